"""The supervised link to the local serf agent: connected whenever the agent is there, and honest when it is not.

After each connect: handshake, authentication, ``stream`` first, then ``members``; the difference to the last view
replaces the member events that were missed, and what streamed in meanwhile is applied after it. Nothing arrives on an
idle stream, so ``stats`` is asked every 10 s and must answer within 5 s; it brings the length of the query queue with
it.

One connection carries everything: its reader never waits, so events cannot hold up an answer on our side, and all
queries leave from one place (``serf.queries``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import structlog
import trio

from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.core.serf.ipc import RemoteProtocolError
from shovey_trio.core.serf.records import MembersChanged, QueryReceived, UserEventReceived
from shovey_trio.core.serf.wire import RPC_PORT, STREAM_MEMBERS
from shovey_trio.serf.connection import SerfConnection, StreamRecord, Subscription, open_connection
from shovey_trio.serf.errors import SerfConnectionLost, SerfConsumerTooSlow, SerfStalled
from shovey_trio.serf.membership import Membership
from shovey_trio.serf.pace import PaceLimits
from shovey_trio.serf.progress import QueryProgress
from shovey_trio.serf.queries import IssueQuery, QueryIssuer

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SerfSettings:
    """How to reach and watch the agent. Durations in seconds.

    Attributes:
        host: RPC address of the agent.
        port: RPC port of the agent.
        auth_key: its ``rpc_auth``, or None.
        events: serf's filters of what ``SerfLink.events`` is to receive, such as ``serf_wire.STREAM_DOORBELLS``. With
            any filter, somebody must read ``events``.
        follow_members: whether to know who is in the cluster. Without, ``membership`` stays empty, and what happens to
            ten thousand others costs this program nothing; how many there are ``stats`` tells.
        event_buffer: received queries and user events (about 1 KiB each) that may wait for the reader of ``events``.
        setup_deadline: for connecting up to the first ``members`` (or ``stats``, which is asked before).
        liveness_interval: between two ``stats``; 1 s while the agent's query queue is long.
        liveness_deadline: for the answer to ``stats``.
        reconcile_interval: between two full comparisons of the members.
        backoff_min: first wait after a lost connection.
        backoff_max: longest wait.
        pace: how fast queries may be sent.
        open_stream: replaces the TCP connection, for tests.
    """

    host: str = "127.0.0.1"
    port: int = RPC_PORT
    auth_key: str | None = field(default=None, repr=False)
    events: tuple[str, ...] = ()
    follow_members: bool = True
    event_buffer: int = 1024
    setup_deadline: float = 10.0
    liveness_interval: float = 10.0
    liveness_deadline: float = 5.0
    reconcile_interval: float = 300.0
    backoff_min: float = 0.1
    backoff_max: float = 5.0
    pace: PaceLimits = field(default_factory=PaceLimits)
    open_stream: Callable[[], Awaitable[trio.abc.Stream]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SerfLinkStatus:
    """The link at one moment, for status and health.

    Attributes:
        connected: whether commands can be sent now.
        since: unix seconds since when that is so.
        last_error: what ended or prevented the last connection; kept after a reconnect.
        connects: how many times a connection was set up.
        node_name: serf name of the local agent, known from the first connect on.
        members: members known, reaped ones not counted.
        alive: members alive; the last view while disconnected. 0 where members are not followed.
        query_queue: length of the agent's own query queue when it last told.
        queries_outstanding: sent, with targets not heard from.
        queries_waiting: not sent yet.
    """

    connected: bool
    since: float
    last_error: str | None
    connects: int
    node_name: str | None
    members: int
    alive: int
    query_queue: int
    queries_outstanding: int
    queries_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedQuery:
    """A query that somebody asked, with the connection it must be answered on."""

    name: str
    payload: bytes
    ltime: int
    _record: QueryReceived = field(repr=False)
    _connection: SerfConnection = field(repr=False)

    async def respond(self, payload: bytes) -> None:
        """Answers it.

        Raises:
            SerfRefused: answered already, past its deadline, or larger than 1,024 bytes encoded.
            SerfConnectionLost: the connection it came on is gone, and with it the question.
        """
        await self._connection.respond(self._record, payload)


LinkEvent: TypeAlias = ReceivedQuery | UserEventReceived


class SerfLink:
    """The link. ``run`` must be running for anything to happen; everything else may be called at any time.

    Attributes:
        membership: the last known view; it stays as it was while disconnected.
        events: received queries and user events, if ``settings.events`` asks for them.
    """

    def __init__(
        self,
        settings: SerfSettings,
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self.membership = Membership()
        self._events, self.events = trio.open_memory_channel[LinkEvent](settings.event_buffer)
        self._issuer = QueryIssuer(settings.pace)
        self._connection: SerfConnection | None = None
        self._connected = trio.Event()
        self._connects = 0
        self._since = clock()
        self._last_error: str | None = None
        self._node_name: str | None = None
        self._query_queue = 0
        self._members_told = 0

    def snapshot(self) -> SerfLinkStatus:
        """The state now."""
        return SerfLinkStatus(
            connected=self._is_connected(),
            since=self._since,
            last_error=self._last_error,
            connects=self._connects,
            node_name=self._node_name,
            members=len(self.membership.members) if self._settings.follow_members else self._members_told,
            alive=self.membership.alive_count,
            query_queue=self._query_queue,
            queries_outstanding=self._issuer.outstanding,
            queries_waiting=self._issuer.waiting,
        )

    def is_alive(self, name: str) -> bool:
        """Whether serf says that the agent of that full name is alive; False while disconnected: we cannot know."""
        return self._is_connected() and self.membership.is_alive(name)

    async def wait_connected(self, *, after: int = 0) -> int:
        """Returns the number of the current connection when it is greater than ``after``.

        Call it with its own last answer to learn of each reconnect: what was sent by query meanwhile is lost for good.
        """
        while not self._is_connected() or self._connects <= after:
            await self._connected.wait()
        await trio.lowlevel.checkpoint()
        return self._connects

    async def ring(self, query: PlannedQuery) -> QueryProgress:
        """Sends a query in its turn; see ``QueryIssuer.issue``. While serf is away it waits."""
        return await self._issuer.issue(query)

    def turn(self) -> AbstractAsyncContextManager[IssueQuery]:
        """The turn of a query that is made when it has come; see ``QueryIssuer.turn``."""
        return self._issuer.turn()

    async def announce(self, name: str, payload: bytes, *, coalesce: bool = False) -> None:
        """Sends a user event as soon as there is a connection.

        Args:
            coalesce: of several events of this name, agents may deliver the last one alone.

        Raises:
            SerfRefused: larger than 512 bytes encoded.
            SerfConnectionLost: the connection broke meanwhile.
        """
        await self.wait_connected()
        connection = self._connection
        if connection is None:
            raise SerfConnectionLost("the connection to serf was lost")
        await connection.send_user_event(name, payload, coalesce=coalesce)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keeps the link up until cancelled. It is started at once: an absent serf is a state, not an error."""
        task_status.started()
        backoff = self._settings.backoff_min
        while True:
            connects = self._connects
            try:
                await self._session()
            except (ShoveyError, OSError) as exc:
                self._on_lost(exc)
            if self._connects > connects:
                backoff = self._settings.backoff_min
            await trio.sleep(backoff * (0.5 + self._jitter() / 2))
            backoff = min(backoff * 2, self._settings.backoff_max)

    async def _session(self) -> NoReturn:
        with trio.move_on_after(self._settings.setup_deadline) as setup:
            stream = await self._open_stream()
            async with open_connection(stream, auth_key=self._settings.auth_key) as connection:
                followed = (STREAM_MEMBERS,) if self._settings.follow_members else ()
                subscription = await connection.subscribe(",".join((*followed, *self._settings.events)))
                stats = await connection.stats()
                if self._settings.follow_members:
                    self.membership.apply_snapshot(await connection.members())
                setup.deadline = float("inf")
                self._node_name = stats.get("agent", {}).get("name") or None
                try:
                    self._on_connected(connection, stats)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch, connection)
                        if self._settings.follow_members:
                            nursery.start_soon(self._reconcile, connection)
                        failure = await self._take_records(connection, subscription)
                        nursery.cancel_scope.cancel(reason="serf connection lost")
                finally:
                    self._on_disconnected()
            raise failure
        raise SerfStalled(f"serf did not answer within {self._settings.setup_deadline} s of connecting")

    async def _open_stream(self) -> trio.abc.Stream:
        if self._settings.open_stream is not None:
            return await self._settings.open_stream()
        return await trio.open_tcp_stream(self._settings.host, self._settings.port)

    async def _take_records(self, connection: SerfConnection, subscription: Subscription) -> ShoveyError:
        try:
            async for record in subscription:
                self._on_record(connection, record)
        except ShoveyError as exc:
            return exc
        return connection.failure()

    def _on_record(self, connection: SerfConnection, record: StreamRecord) -> None:
        if isinstance(record, MembersChanged):
            self.membership.apply_event(record)
            return
        event: LinkEvent
        if isinstance(record, QueryReceived):
            event = ReceivedQuery(
                name=record.name, payload=record.payload, ltime=record.ltime, _record=record, _connection=connection
            )
        else:
            event = record
        try:
            self._events.send_nowait(event)
        except trio.WouldBlock:
            connection.fail(SerfConsumerTooSlow(f"{self._settings.event_buffer} events of serf were not handled"))
        except trio.BrokenResourceError:
            _log.debug("serf.event_unwanted", event_name=record.name)

    async def _watch(self, connection: SerfConnection) -> None:
        settings = self._settings
        while True:
            busy = self._query_queue > settings.pace.slow_depth
            await trio.sleep(min(1.0, settings.liveness_interval) if busy else settings.liveness_interval)
            try:
                with trio.move_on_after(settings.liveness_deadline) as scope:
                    self._take_stats(await connection.stats())
            except ShoveyError as exc:
                connection.fail(exc)
                return
            if scope.cancelled_caught:
                connection.fail(SerfStalled(f"serf did not answer within {settings.liveness_deadline} s"))
                return

    async def _reconcile(self, connection: SerfConnection) -> None:
        while True:
            await trio.sleep(self._settings.reconcile_interval)
            try:
                changes = self.membership.apply_snapshot(await connection.members())
            except ShoveyError as exc:
                connection.fail(exc)
                return
            if changes:
                _log.info("serf.reconciled", changes=len(changes))

    def _is_connected(self) -> bool:
        # A connection that broke is known to its callers before the session has ended.
        return self._connection is not None and not self._connection.broken

    def _on_connected(self, connection: SerfConnection, stats: Mapping[str, Mapping[str, str]]) -> None:
        self._connection = connection
        self._connects += 1
        self._since = self._clock()
        self._take_stats(stats)
        self._issuer.set_connection(connection)
        self._connected.set()
        self._connected = trio.Event()
        _log.info("serf.connected", node=self._node_name, members=self.snapshot().members)

    def _on_disconnected(self) -> None:
        self._connection = None
        self._since = self._clock()
        self._issuer.set_connection(None)

    def _on_lost(self, error: ShoveyError | OSError) -> None:
        text = f"{error.reason}: {error}" if isinstance(error, ShoveyError) else f"cannot connect: {error}"
        # An agent that stays away is tried every few seconds; say so once.
        if text != self._last_error:
            _log.warning("serf.lost", error=text)
        self._last_error = text

    def _take_stats(self, stats: Mapping[str, Mapping[str, str]]) -> None:
        self._query_queue = _serf_number(stats, "query_queue")
        self._members_told = _serf_number(stats, "members")
        self._issuer.set_depth(self._query_queue)


def _serf_number(stats: Mapping[str, Mapping[str, str]], name: str) -> int:
    try:
        return int(stats["serf"][name])
    except (KeyError, ValueError, TypeError) as exc:
        raise RemoteProtocolError(f"serf RPC: stats without {name}: {exc!r}") from exc
