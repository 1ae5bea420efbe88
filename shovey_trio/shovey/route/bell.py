"""Old nodes over a serf agent: what hands them whole orders, and the ear for what they say.

A node of goiardi 0.11 is in serf under its own name, one of goiardi 1.0 under ``organization:name``. Both are looked
for; where both exist, the longer is meant, because the plain one may be somebody else's. Plain names are those of the
controller's own organization: goiardi 0.11 has no others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import structlog
import trio

from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.core.serf.records import Member
from shovey_trio.core.serf.size import QueryFrame, query_timeout
from shovey_trio.serf.doorbell import serf_name
from shovey_trio.serf.link import ReceivedQuery, SerfLink
from shovey_trio.serf.progress import QueryProgress
from shovey_trio.shovey.protocol.wire import (
    ORDER_QUERY,
    START_EVENT,
    STATUS_OK,
    STATUS_QUERY,
    STATUS_UP,
    PayloadMalformed,
    parse_status,
)

_log = structlog.get_logger(__name__)
#: What the link must subscribe to for ``SchobListener``.
RING_EVENTS: Final = (f"query:{STATUS_QUERY}", f"user:{START_EVENT}")
# An answer that takes longer is of no use: the heartbeat's query is over.
_ANSWER_DEADLINE: Final = 3.0


@dataclass(frozen=True, slots=True)
class SchobQuery:
    """One query: a signed order and the nodes it is for."""

    organization: str
    nodes: tuple[str, ...]
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Which nodes go into the next query.

    Attributes:
        together: in the order given, as many as fit.
        never: nodes whose name does not fit beside this payload, not even alone.
    """

    together: tuple[str, ...]
    never: tuple[str, ...]


class SchobBell:
    """Sends orders over one serf agent. The link must be running.

    Args:
        link: to the agent.
        organization: whose nodes may go by their plain names.
        limit: the agent's ``query_size_limit``.
    """

    def __init__(self, link: SerfLink, *, organization: str, limit: int) -> None:
        self._link = link
        self._organization = organization
        self._limit = limit
        # Queries with targets not heard from; the issuer lets at most ten be so.
        self._open: list[QueryProgress] = []

    def member_status(self, organization: str, node: str) -> str:
        """Serf's word for the node's serf agent, whichever of its two names it goes by; '' when serf has neither."""
        member = self._member(organization, node)
        return "" if member is None else member.status.value

    def pack(self, organization: str, nodes: Sequence[str], payload_size: int) -> Packed:
        """Fills one query, exactly to the agent's limit."""
        frame, names = self._frame(), list[str]()
        together, never = list[str](), list[str]()
        for node in nodes:
            name = self._name(organization, node)
            if frame.size(payload_size, [*names, name]) <= self._limit:
                names.append(name)
                together.append(node)
            elif frame.size(payload_size, [name]) > self._limit:
                never.append(node)
            else:
                break
        return Packed(together=tuple(together), never=tuple(never))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[SendQuery]:
        """A block that begins when the pace of queries allows one more, with what sends it; others wait meanwhile.

        Raises:
            SerfUnavailable: at the beginning, there is no connection; by the sender, the query may have been sent.
            ShoveyError: serf refused it; nobody got it.
        """
        async with self._link.turn() as issue:

            async def send(query: SchobQuery) -> Delivery:
                names = {node: self._name(query.organization, node) for node in query.nodes}
                progress = await issue(self._plan(query.payload, tuple(names.values())))
                self._open = [known for known in self._open if not known.settled] + [progress]
                return Delivery(progress, names)

            yield send

    def heard(self, organization: str, node: str) -> None:
        """Notes that a node has answered, so that its query makes room for others."""
        plain = [node] if organization == self._organization else []
        for progress in self._open:
            progress.mark_heard(*plain, serf_name(organization, node))

    def _plan(self, payload: bytes, names: tuple[str, ...]) -> PlannedQuery:
        frame = self._frame()
        return PlannedQuery(
            name=ORDER_QUERY,
            payload=payload,
            filter_nodes=names,
            targets=names,
            request_ack=True,
            timeout=frame.timeout,
            size=frame.size(len(payload), names),
        )

    def _frame(self) -> QueryFrame:
        source = self._link.snapshot().node_name or ""
        timeout = query_timeout(len(self._link.membership.members))
        return QueryFrame(source_node=source, query_name=ORDER_QUERY, timeout=timeout)

    def _name(self, organization: str, node: str) -> str:
        member = self._member(organization, node)
        return node if member is None else member.name

    def _member(self, organization: str, node: str) -> Member | None:
        members = self._link.membership.members
        plain = members.get(node) if organization == self._organization else None
        return members.get(serf_name(organization, node)) or plain


class Delivery:
    """What serf says of one query that was sent."""

    def __init__(self, progress: QueryProgress, names: dict[str, str]) -> None:
        self._progress = progress
        self._names = names

    async def is_lost_on(self, node: str) -> bool:
        """Waits until it is known, and then whether the node's serf agent has not had the query.

        False when it has, and also when it can never be known: whoever sends an order again on the strength of this
        must be sure that nobody got it twice.
        """
        name = self._names[node]
        while name not in self._progress.acked and not self._progress.settled:
            await self._progress.wait_changed()
        # A connection that broke has taken the acknowledgements with it: then nobody knows.
        return name not in self._progress.acked and self._progress.done


SendQuery: TypeAlias = Callable[[SchobQuery], Awaitable[Delivery]]


class SchobListener:
    """Listens to old nodes and answers their heartbeats.

    Args:
        link: must subscribe to ``RING_EVENTS``, and nobody else may read its events.
        said: takes a name and a status; returns whether to answer.
    """

    def __init__(self, link: SerfLink, *, said: Callable[[str, str], Awaitable[bool]]) -> None:
        self._link = link
        self._said = said

    async def serve(self) -> None:
        """Listens until cancelled. What is no heartbeat is logged and left."""
        async for event in self._link.events:
            if isinstance(event, ReceivedQuery):
                if event.name == STATUS_QUERY:
                    await self._heartbeat(event)
            elif event.name == START_EVENT:
                name = event.payload.decode("utf-8", "replace")
                _log.info("legacy.joined", node=name[:200])
                await self._said(name, STATUS_UP)

    async def _heartbeat(self, query: ReceivedQuery) -> None:
        try:
            said = parse_status(query.payload)
        except PayloadMalformed as error:
            _log.warning("legacy.heartbeat_malformed", error=str(error))
            return
        if not await self._said(said.node, said.status):
            return
        try:
            with trio.move_on_after(_ANSWER_DEADLINE):
                await query.respond(STATUS_OK)
        except ShoveyError as error:
            _log.debug("legacy.heartbeat_unanswered", node=said.node, error=error.message)
