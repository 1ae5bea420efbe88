"""The one place where queries are sent.

Two queries racing on different RPC connections of one agent may get the same Lamport time, and then one of them loses
its acks and answers; so all go through one issuer, over one connection, one after the other, each in its turn, no
faster than gossip carries them. While serf is away they wait here, up to a bound.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeAlias

import trio

from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.serf.connection import SerfConnection
from shovey_trio.serf.errors import SerfQueueFull
from shovey_trio.serf.pace import Pace, PaceLimits
from shovey_trio.serf.progress import QueryProgress

#: Waiting queries of about 1 KiB and their tasks; at one a second the last of them would already wait four minutes.
MAX_WAITING: Final = 256

IssueQuery: TypeAlias = Callable[[PlannedQuery], Awaitable[QueryProgress]]


class QueryIssuer:
    """Sends queries in the order they were asked for; needs no task of its own."""

    def __init__(self, limits: PaceLimits, *, max_waiting: int = MAX_WAITING) -> None:
        self._limits = limits
        self._pace: Pace | None = None
        self._max_waiting = max_waiting
        self._turn = trio.StrictFIFOLock()
        self._connection: SerfConnection | None = None
        self._depth = 0
        self._outstanding = 0
        self._waiting = 0
        self._changed = trio.Event()

    @property
    def outstanding(self) -> int:
        """Queries with targets that were not heard from, their time not over."""
        return self._outstanding

    @property
    def waiting(self) -> int:
        """Queries that have not been sent."""
        return self._waiting

    def set_connection(self, connection: SerfConnection | None) -> None:
        """For the link: where to send, or None while there is no connection."""
        self._connection = connection
        self._wake()

    def set_depth(self, depth: int) -> None:
        """For the link: the length of the agent's own query queue."""
        self._depth = depth
        self._wake()

    async def issue(self, query: PlannedQuery) -> QueryProgress:
        """Waits for the query's turn, sends it, and returns when the agent has accepted it.

        Cancelled before its turn, the query is not sent. Cancelled later it may have been.

        Returns:
            What becomes of it. Call ``mark_heard`` for nodes heard by another way: the query counts as outstanding
            until all its targets are heard or its time is over.

        Raises:
            SerfQueueFull: too many are waiting.
            SerfRefused: the agent does not take it, for instance because it is too large.
            SerfConnectionLost: the connection broke meanwhile; the query may have been sent.
            RemoteProtocolError, SerfAuthFailed: as ``SerfConnection.command``.
        """
        async with self.turn() as issue:
            return await issue(query)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[IssueQuery]:
        """A block that begins when a query may be sent, with what sends it. Other queries wait for its end.

        Raises:
            SerfQueueFull: too many are waiting.
            Whatever ``issue`` raises, by the sender.
        """
        if self._waiting >= self._max_waiting:
            await trio.lowlevel.checkpoint()
            retry_after = str(round(self._waiting / self._limits.rate))
            raise SerfQueueFull(f"{self._waiting} serf queries are waiting", retry_after_s=retry_after)
        self._waiting += 1
        try:
            async with self._turn:
                yield partial(self._send, await self._wait_allowed())
        finally:
            self._waiting -= 1

    async def _send(self, connection: SerfConnection, query: PlannedQuery) -> QueryProgress:
        progress = QueryProgress(query.targets, on_settled=self._on_settled)
        self._outstanding += 1
        try:
            await connection.query(query, progress)
        except ShoveyError:
            progress.settle()
            raise
        return progress

    async def _wait_allowed(self) -> SerfConnection:
        while True:
            changed = self._changed
            now = trio.current_time()
            delay: float | None = None
            if self._connection is not None and not self._connection.broken:
                self._pace = self._pace or Pace(self._limits, now=now)
                delay = self._pace.delay(now=now, outstanding=self._outstanding, depth=self._depth)
                if delay == 0:
                    self._pace.take()
                    return self._connection
            with trio.CancelScope(deadline=trio.current_time() + delay if delay is not None else float("inf")):
                await changed.wait()

    def _on_settled(self) -> None:
        self._outstanding -= 1
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
