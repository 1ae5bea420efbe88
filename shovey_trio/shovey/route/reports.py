"""Old nodes as they report: run by run over signed HTTP, whichever server took the request.

Who calls has been proven by then. Here is decided whether the run is the caller's, what its words mean, and in which
order its output goes. Nothing is acknowledged that is not durable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
import trio

from shovey_trio.application.audit import audit_entry, origin
from shovey_trio.core.errors import DuplicateChunk, IllegalReport, NotFound, PermissionDenied, StoreUnavailable
from shovey_trio.core.jobs.events import EndTold, NodeRefused, NodeStarted, OrderUnusable, OutputOver
from shovey_trio.core.jobs.model import OutputChunk, Principal, Role, Run
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.handles import PushedChunk, RunHandle
from shovey_trio.nursery.inbound import AgentInbox
from shovey_trio.nursery.persist import write_latest
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.shovey.kind import KEY_RESET, KIND, SchobTiming
from shovey_trio.shovey.protocol.report import RunPut, StreamPut, event_of, parse_run_put, parse_stream_put
from shovey_trio.shovey.route.bell import SchobBell
from shovey_trio.shovey.route.keyring import SchobKeyring
from shovey_trio.shovey.route.names import nodes_called
from shovey_trio.shovey.route.presence import SchobPresence
from shovey_trio.shovey.route.sequences import RunSequences, SequenceBook
from shovey_trio.store.contract import AuditStore

_log = structlog.get_logger(__name__)
# How long a caller that went away holds on to a piece that is being stored, so that a repeat of it is known as one.
_STORED_DEADLINE: Final = 30.0
# ``RunHandle.memo`` of a run whose node has refused a key once.
_OTHER_KEY_TRIED: Final = "other key tried"

_Report = NodeStarted | NodeRefused | EndTold | OrderUnusable


class SchobReports:
    """What old nodes may do over HTTP.

    The caller's signature and role, and that ``node`` is its own name, were checked before; ``body`` is the request's
    JSON object, its members not yet checked.
    """

    def __init__(
        self,
        *,
        services: Services,
        supervisor: Supervisor,
        inbox: AgentInbox,
        presence: SchobPresence,
        bell: SchobBell,
        registry: NodeRegistry,
        keyring: SchobKeyring,
        waits: SchobTiming,
        audit: AuditStore,
    ) -> None:
        self._services = services
        self._audit = audit
        self._supervisor = supervisor
        self._inbox = inbox
        self._presence = presence
        self._bell = bell
        self._registry = registry
        self._keyring = keyring
        self._waits = waits
        self._book = SequenceBook(services.store)

    async def organization_of(self, job_id: str, node: str) -> str:
        """The organization of a job that an old node of this name has a run of; '' when there is none.

        Raises:
            StoreUnavailable: it cannot be looked up now.
        """
        named = nodes_called(self._registry, node)
        if len(named) == 1:
            return named[0].organization
        live = self._supervisor.job(job_id)
        if live is not None:
            return live.job.organization
        for known in named:
            if await self._services.store.get_run(known.organization, job_id, known.name) is not None:
                return known.organization
        return ""

    async def run_put(self, principal: Principal, job_id: str, node: str, body: Mapping[str, object]) -> None:
        """Takes a node's report of its run; durable when it returns.

        A final status is kept at once and becomes the run's state when the last of its output is here: at the latest
        ``SchobTiming.output`` after it.

        Raises:
            NotFound: no such job, or no run of it on this node.
            PermissionDenied: the run is not the caller's.
            InvalidRequest: a member is missing, has another type, or names a state that does not exist.
            IllegalReport: the run has ended otherwise; nothing was changed.
        """
        run, live = await self._find(principal, job_id, node)
        put = parse_run_put(body)
        await self._heard(run)
        event = self._meaning(run, live, put)
        if event is None:
            return
        if live is None or not await live.post_durably(event):
            await self._after_the_end(run, event)
            return
        if isinstance(event, NodeStarted | EndTold) and live.run.key_id:
            self._keyring.fits(run.organization, node, live.run.key_id)
        if isinstance(event, EndTold):
            await self._conclude(live, await self._book.of(run.id, is_silent=_is_silent(live)))

    async def stream_put(self, principal: Principal, job_id: str, node: str, body: Mapping[str, object]) -> None:
        """Takes a piece of a run's output; durable when it returns.

        Pieces are stored in the order of their numbers; one whose forerunner does not come within
        ``SchobTiming.reorder`` is stored without it.

        Raises:
            NotFound, PermissionDenied, InvalidRequest: as for ``run_put``.
            DuplicateChunk: a piece with this number is stored already.
            StoreUnavailable: it is not known whether it was stored; to be sent again.
        """
        run, live = await self._find(principal, job_id, node)
        put = parse_stream_put(body)
        await self._heard(run)
        sequences = await self._book.of(run.id, is_silent=_is_silent(live))
        sequence = sequences.of(put.stream)
        if put.seq > sequence.expected:
            with trio.move_on_after(self._waits.reorder):
                await sequence.wait_turn(put.seq)
        async with sequences.lock:
            if sequence.knows(put.seq):
                raise DuplicateChunk(f"sequence {put.seq} for {job_id} - {node} already exists", seq=str(put.seq))
            if put.data:
                await self._store(run, put)
            sequence.take(put.seq, is_last=put.is_last)
        if live is not None:
            await self._conclude(live, sequences)
        elif run.output_incomplete and sequences.is_complete:
            await self._change_after_the_end(run, OutputOver(is_complete=True))

    def public_key(self, organization: str) -> str:
        """PEM of the key that orders to old nodes are signed with.

        Raises:
            NotFound: not an organization of this controller.
        """
        return self._keyring.public_key(organization)

    async def reset_key(self, organization: str, request_id: str) -> str:
        """Makes a new key, once for a request, and returns the current one's PEM; see ``SchobKeyring.reset``."""
        if not await self._keyring.reset(organization, request_id):
            return self._keyring.public_key(organization)
        reset = audit_entry(
            self._services.clock.now(),
            KEY_RESET,
            organization=organization,
            principal=origin().principal,
        )
        await self._audit.append_audit([reset])
        return self._keyring.public_key(organization)

    # -- reports

    async def _find(self, principal: Principal, job_id: str, node: str) -> tuple[Run, RunHandle | None]:
        if principal.role is not Role.NODE or principal.name != node:
            raise PermissionDenied(f"{principal.label} may not report for the node {node}", node=node)
        job = self._supervisor.job(job_id)
        live = None if job is None or job.job.organization != principal.organization else job.runs.get(node)
        run = live.run if live is not None else await self._services.store.get_run(principal.organization, job_id, node)
        if run is None:
            raise NotFound(f"run {job_id} for node {node} not found", job_id=job_id, node=node)
        if run.route != KIND:
            raise PermissionDenied(f"the run of {node} belongs to an agent that proves its reports", node=node)
        return run, None if live is None or live.is_closed else live

    async def _heard(self, run: Run) -> None:
        self._bell.heard(run.organization, run.node)
        await self._presence.heard(run.organization, run.node, "report")

    def _meaning(self, run: Run, live: RunHandle | None, put: RunPut) -> _Report | None:
        event = event_of(put, self._services.clock.now())
        if not put.is_unverified or live is None or live.memo is _OTHER_KEY_TRIED or run.accepted_at is not None:
            return event
        # Once per run: a node that holds none of our keys has no valid order, and that is the run's end.
        live.memo = _OTHER_KEY_TRIED
        signed_with = live.run.key_id
        if signed_with and self._keyring.does_not_fit(run.organization, run.node, signed_with):
            return OrderUnusable()
        return event

    async def _after_the_end(self, before: Run, event: _Report) -> None:
        """Later truth is kept beside the end; what is no truth any more is refused."""
        run = await self._services.store.get_run(before.organization, before.job_id, before.node)
        if run is None:
            raise NotFound(f"run {before.job_id} for node {before.node} not found", node=before.node)
        if not isinstance(event, EndTold):
            raise IllegalReport(f"the run has ended: it is {run.state.value}", state=run.state.value)
        if event.end.state is RunState.INVALID:
            return  # anybody on the ring can make a schob say so of a run that has long ended
        await self._change_after_the_end(run, event)

    async def _change_after_the_end(self, run: Run, event: EndTold | OutputOver) -> None:
        after = handle(run, event, self._services.clock.now()).run
        if after is not run:
            await write_latest(lambda: after, self._services)

    async def _conclude(self, live: RunHandle, sequences: RunSequences) -> None:
        if sequences.is_complete and live.run.held_end is not None:
            await live.post(OutputOver(is_complete=True))

    # -- output

    async def _store(self, run: Run, put: StreamPut) -> None:
        live = self._supervisor.run(run.id)
        extent = live.extent if live is not None else await self._services.store.output_extent(run.id)
        chunk = OutputChunk(
            stream=put.stream,
            position=extent.position,
            stream_offset=0,
            read_at=self._services.clock.now(),
            data=put.data,
        )
        stored = _Stored()
        pushed = PushedChunk(chunk=chunk, acknowledge=stored.acknowledge)
        if not await self._inbox.pushed(run.organization, run.node, run.id, pushed):
            raise NotFound(f"run {run.job_id} for node {run.node} not found", node=run.node)
        with trio.CancelScope(deadline=trio.current_time() + _STORED_DEADLINE, shield=True):
            await stored.known.wait()
        if stored.position < chunk.position + len(chunk.data):
            # The numbers are read from the store again: they hold this piece, or not.
            self._book.forget(run.id)
            raise StoreUnavailable("the output was not stored in time", retry_after_s="1")


def _is_silent(live: RunHandle | None) -> bool:
    return live is not None and live.extent.position == 0


class _Stored:
    """Up to where a run's output is durable, once that is known."""

    def __init__(self) -> None:
        self.position = -1
        self.known = trio.Event()

    def acknowledge(self, position: int) -> None:
        self.position = position
        self.known.set()
