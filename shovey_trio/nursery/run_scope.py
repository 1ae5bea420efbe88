"""One run: a task with its own cancel scope and nursery, from its first order to its one true end.

The run's task receives events (from the node, the operator, presence, its own deadline), asks ``core.jobs.run_machine``
what they mean, writes the answer and carries out the effects – in this order, so that nothing is acknowledged that
is not durable. Events that came together are handled one after the other and written together: each state that the
run passed through is an event of its own in the store, its row and its commit are one.

What takes time runs beside it in the run's nursery, and only while it is needed:

* dispatch – brings a node without a stream here (doorbell, or waiting) until it has answered the start order;
* output   – stores what the node pushes, from the first chunk on (``output_pump``);
* cancel   – hands the node the cancel order, again and again, until the node has proven the end.

The timeout needs no task: ``next_deadline`` derives it from the run, so that it survives a restart. Only what judges a
node's silence counts from when the controller can hear it again.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from shovey_trio.core.errors import StoreCorrupt, first_leaf
from shovey_trio.core.jobs.command_input import NO_INPUT, CommandInput
from shovey_trio.core.jobs.events import (
    BY_DEADLINE,
    AcceptanceOver,
    CancelAsked,
    ConfirmReport,
    Effect,
    ForgetRun,
    InternalFailure,
    LegacyOutputOver,
    NodeReported,
    NodeSilent,
    OrderSent,
    ReconnectGraceOver,
    RunEvent,
    SecretsLost,
    SendCancel,
    SendStart,
)
from shovey_trio.core.jobs.model import Job, Route, Run
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import ACTIVE_RUN_STATES, RunState
from shovey_trio.core.trust.orders import NONCE_BYTES, Order, OrderKind
from shovey_trio.nursery.handles import JobHandle, Posted, RunHandle
from shovey_trio.nursery.output_pump import pump_output
from shovey_trio.nursery.persist import until_stored
from shovey_trio.nursery.ports import SendFollow, SendForget, SendOrder, SendReportDurable
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.settings import Timing
from shovey_trio.shovey.route.run import send_legacy_cancel, send_legacy_start

_log = structlog.get_logger(__name__)

_UNANSWERED = (RunState.PENDING, RunState.DISPATCHED)


async def supervise_run(handle_: RunHandle, job: JobHandle, services: Services) -> None:
    """Supervises a run until it is terminal and durable.

    Lets no exception of the run out: a failure makes this run ``crashed`` (``internal_error``) and its siblings go
    on. When cancelled (the daemon stops), the run stays as the store has it and is taken up again at the next start.

    Raises:
        StoreCorrupt: the shared store is beyond use.
    """
    try:
        # Not unbound again: they are this task's own and end with it.
        structlog.contextvars.bind_contextvars(job_id=handle_.run.job_id, node=handle_.run.node)
        try:
            async with trio.open_nursery() as nursery:
                await _RunScope(handle_, job, services, nursery).live()
                if nursery.child_tasks:
                    nursery.cancel_scope.cancel(reason="the run has ended")
        except* StoreCorrupt:
            raise
        except* Exception as failures:  # noqa: BLE001 - a bug in one must not end its siblings
            _log.exception("run.failed", error=failure_detail(failures))
            await crash_run(handle_, services, failure_detail(failures))
    finally:
        handle_.close()


def next_deadline(handle_: RunHandle, job: JobHandle, timing: Timing) -> tuple[float, RunEvent] | None:
    """When time itself is the run's next event, and which; None when only others can move it.

    Pure. A running run has two: at the first the controller asks the node to end it (the node's own deadline should
    have come before), at the second it no longer believes what it last heard, whoever asked for the end.
    """
    run = handle_.run
    if run.late_report is not None:
        return run.late_report.reported_at + timing.legacy_output, LegacyOutputOver()
    if run.state in (RunState.PENDING, RunState.DISPATCHED):
        if run.route is Route.LEGACY:
            return timing.legacy_acceptance_until(job.job, run), AcceptanceOver()
        return timing.acceptance_until(job.job), AcceptanceOver()
    if run.state is RunState.UNKNOWN:
        silent_since = max(run.unknown_since or run.updated_at, job.supervised_since)
        return silent_since + timing.reconnect_grace, ReconnectGraceOver()
    if run.state in ACTIVE_RUN_STATES:
        began = run.started_at or run.accepted_at or run.updated_at
        overdue = began + job.job.run_timeout + job.job.kill_grace + timing.overdue_margin
        if not run.cancelling:
            return overdue, CancelAsked(by=BY_DEADLINE)
        unheard = max(overdue, job.supervised_since) + job.job.kill_grace + timing.overdue_margin
        return unheard, NodeSilent(since=unheard, reason="overdue")
    return None


def make_order(
    handle_: RunHandle,
    job: Job,
    kind: OrderKind,
    *,
    agent_instance: str,
    until: float,
    services: Services,
    given: CommandInput = NO_INPUT,
) -> Order:
    """The order of a kind for this run. A start order carries the same nonce however often it is made."""
    run = handle_.run
    now = services.clock.now()
    return Order(
        organization=run.organization,
        node=run.node,
        agent_instance=agent_instance,
        job_id=run.job_id,
        run_id=run.id,
        kind=kind,
        command=job.command,
        run_timeout=job.run_timeout,
        kill_grace=job.kill_grace,
        issued_at=now,
        expires_at=until,
        nonce=run.nonce if kind is OrderKind.START else services.random_bytes(NONCE_BYTES),
        epoch=services.epoch,
        input=given,
    )


class _RunScope:
    """The state of ``supervise_run``: the run's handle and which of its helper tasks are on."""

    def __init__(self, handle_: RunHandle, job: JobHandle, services: Services, nursery: trio.Nursery) -> None:
        self._handle = handle_
        self._job = job
        self._services = services
        self._nursery = nursery
        self._dispatching: trio.CancelScope | None = None
        # How the node came to its present stream, as far as this run had a part in it.
        self._route = Route.STREAM
        self._cancelling = False
        self._held_report: NodeReported | None = None

    async def live(self) -> None:
        """Handles events until the run is terminal."""
        handle_ = self._handle
        handle_.stream_lost = self._stream_lost
        handle_.start_output = self._start_output
        if handle_.has_output:
            handle_.start_output = None
            self._start_output()
        try:
            self._begin()
            while not handle_.run.is_terminal:
                await self._apply(await self._next_events())
        finally:
            # The nursery that they start tasks in is about to close.
            handle_.stream_lost = handle_.start_output = None

    def _begin(self) -> None:
        run = self._handle.run
        if run.route is Route.LEGACY:
            if run.attempts == 0 and run.state is RunState.PENDING:
                self._start_dispatch()
        elif run.state in _UNANSWERED:
            self._send_start()
            self._reach_node()
        if run.cancelling:
            self._start_cancel()

    async def _next_events(self) -> list[Posted]:
        """What was posted comes before what time says: a node that has spoken is not silent."""
        inbox = self._handle.inbox
        deadline = next_deadline(self._handle, self._job, self._services.timing)
        if deadline is None:
            return await inbox.take_all()
        at, event = deadline
        until = trio.current_time() + max(at - self._services.clock.now(), 0)
        return await inbox.take_all(until) or [Posted(event)]

    async def _apply(self, batch: list[Posted]) -> None:
        """Handles events that came together: decides, writes what the run has become, then carries out the effects.

        Those behind the run's end are not handled: as if they had come after it.
        """
        handled = durable = 0
        states: list[Run] = []
        effects: list[Effect] = []
        try:
            for posted in batch:
                before = self._handle.run
                if before.is_terminal:
                    break
                effects += self._decide(posted.event)
                if self._handle.run is not before:
                    states.append(self._handle.run)
                handled += 1
            if states:
                await self._write_until_stored(states[:-1])
            else:
                await trio.lowlevel.checkpoint()
            self._job.drop_secrets()
            if self._handle.run.state not in _UNANSWERED and self._dispatching is not None:
                self._dispatching.cancel(reason="the node has answered")
            for effect in effects:
                self._carry_out(effect)
            durable = handled
        finally:
            for number, posted in enumerate(batch):
                posted.settle(handled=number < durable)

    def _decide(self, event: RunEvent) -> Sequence[Effect]:
        if isinstance(event, NodeReported) and event.report.output_bytes > self._handle.extent.position:
            # The end of the output is still on its way; a run is not terminal before its output is durable.
            self._held_report = event
            return ()
        outcome = handle(self._handle.run, event, self._services.clock.now())
        self._handle.run = outcome.run
        return outcome.effects

    async def _write_until_stored(self, passed: Sequence[Run] = ()) -> None:
        async def write() -> None:
            await self._services.store.write_run(self._handle.run, passed=passed)

        await until_stored(write, longest_pause=self._services.timing.store_retry)

    def _carry_out(self, effect: Effect) -> None:
        run = self._handle.run
        link = self._services.links.get(run.organization, run.node)
        match effect:
            case SendStart() if run.state not in _UNANSWERED:
                pass  # what came with it was the answer
            case SendStart() if run.route is Route.LEGACY:
                if self._dispatching is not None:
                    self._dispatching.cancel(reason="the node holds another key")
                self._start_dispatch()
            case SendStart() if self._job.has_lost_secrets:
                self._nursery.start_soon(self._handle.post, SecretsLost())
            case SendStart():
                self._send_start()
                self._reach_node()
            case SendCancel() if not run.is_terminal:
                self._start_cancel()
            case ConfirmReport() if link is not None:
                link.send_nowait(SendReportDurable(run_id=run.id))
            case ForgetRun() if link is not None:
                link.send_nowait(SendForget(run_id=run.id))
            case _:
                pass  # nobody to tell: the node asks again when it attaches

    # -- dispatch

    def _stream_lost(self) -> None:
        if self._handle.run.state in _UNANSWERED and self._handle.run.route is not Route.LEGACY:
            self._reach_node()

    def _reach_node(self) -> None:
        """Brings the node here unless it is: while it has a stream, there is nothing to wait for but its answer."""
        run = self._handle.run
        if self._services.links.get(run.organization, run.node) is None:
            self._start_dispatch()

    def _start_dispatch(self) -> None:
        if self._dispatching is None or self._dispatching.cancel_called:
            self._dispatching = trio.CancelScope()
            self._nursery.start_soon(self._dispatch, self._dispatching)

    async def _dispatch(self, scope: trio.CancelScope) -> None:
        """Brings the node here, until it is or the run has its answer by another way.

        The order goes out when the node has said what it knows (``NodeAttached``), so none is sent that it has. A
        stream that breaks before the answer begins this anew.
        """
        run = self._handle.run
        try:
            with scope:
                if run.route is Route.LEGACY:
                    await send_legacy_start(self._handle, self._job.job, self._services, self._write_until_stored)
                    return
                reached = await self._services.dispatcher.reach(
                    organization=run.organization, job_id=run.job_id, node=run.node
                )
                self._route = reached.route
        finally:
            if self._dispatching is scope:
                self._dispatching = None

    def _send_start(self) -> None:
        """Notes that the order goes out, then lets it go out: without a pause between the two.

        A cancel that comes between them would otherwise take the run for never sent. A node without a stream gets it
        when it attaches.
        """
        run = self._handle.run
        link = self._services.links.get(run.organization, run.node)
        if link is None or run.state not in _UNANSWERED or run.cancelling:
            return
        if self._job.has_lost_secrets:
            return  # what the node knows of the run decides: see ``_carry_out``
        until = self._services.timing.acceptance_until(self._job.job)
        instance = run.agent_instance or link.agent_instance
        order = make_order(
            self._handle,
            self._job.job,
            OrderKind.START,
            agent_instance=instance,
            until=until,
            services=self._services,
            given=self._job.input,
        )
        signed = self._services.signer.sign(order)
        sent = OrderSent(route=self._route, agent_instance=instance, expires_at=until, key_id=signed.key_id)
        outcome = handle(run, sent, self._services.clock.now())
        self._handle.run = outcome.run
        self._services.store.write_run_soon(outcome.run)
        link.send_nowait(SendOrder(order=signed))
        if self._services.hub.is_followed(run.job_id, run.node):
            link.send_nowait(SendFollow(run_id=run.id, followed=True))

    # -- cancel

    def _start_cancel(self) -> None:
        if not self._cancelling:
            self._cancelling = True
            if self._handle.run.route is Route.LEGACY:
                self._nursery.start_soon(send_legacy_cancel, self._handle, self._job.job, self._services)
            else:
                self._nursery.start_soon(self._cancel)

    async def _cancel(self) -> None:
        """Hands the node a cancel order until this nursery ends with the run."""
        timing = self._services.timing
        while True:
            run = self._handle.run
            reached = await self._services.dispatcher.reach(
                organization=run.organization, job_id=run.job_id, node=run.node
            )
            order = make_order(
                self._handle,
                self._job.job,
                OrderKind.CANCEL,
                agent_instance=run.agent_instance or reached.link.agent_instance,
                until=self._services.clock.now() + timing.acceptance,
                services=self._services,
            )
            reached.link.send_nowait(SendOrder(order=self._services.signer.sign(order)))
            with trio.move_on_after(timing.cancel_retry + self._job.job.kill_grace):
                await self._services.links.wait_gone(reached.link)

    # -- output

    def _start_output(self) -> None:
        self._nursery.start_soon(pump_output, self._handle, self._services, self._output_grew)

    async def _output_grew(self) -> None:
        held = self._held_report
        if held is not None and held.report.output_bytes <= self._handle.extent.position:
            self._held_report = None
            await self._handle.post(held)


async def crash_run(handle_: RunHandle, services: Services, detail: str) -> None:
    """Ends a run because its own task or its job's has failed; nothing happens to one that has ended."""
    if handle_.run.is_terminal:
        return
    handle_.run = handle(handle_.run, InternalFailure(detail=detail), services.clock.now()).run

    async def write() -> None:
        await services.store.write_run(handle_.run)

    await until_stored(write, longest_pause=services.timing.store_retry)
    link = services.links.get(handle_.run.organization, handle_.run.node)
    if link is not None:
        link.send_nowait(SendForget(run_id=handle_.run.id))


def failure_detail(failure: BaseException) -> str:
    """What a user is told of a bug: its kind, not its insides. The first leaf stands for a group."""
    return f"{type(first_leaf(failure)).__name__} in the controller; see its log"
