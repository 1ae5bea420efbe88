"""One run: a task with its own cancel scope and nursery, from its first order to its one true end.

The run's task receives events (from the node, the operator, presence, its own deadline), asks ``core.run_machine``
what they mean, writes the answer and carries out the effects – in this order, so that nothing is acknowledged that
is not durable. What takes time runs beside it in the run's nursery, and only while it is needed:

* dispatch – brings the node here (its stream, or doorbell and then stream) until it has answered the start order;
* output   – stores what the node pushes, from the first chunk on (``output_pump``);
* cancel   – hands the node the cancel order, again and again, until the node has proven the end.

The timeout needs no task: ``next_deadline`` derives it from the run, so that it survives a restart. Only what judges a
node's silence counts from when the controller can hear it again.
"""

from __future__ import annotations

import structlog
import trio

from shovey_trio.core.command_input import NO_INPUT, CommandInput
from shovey_trio.core.errors import StoreCorrupt
from shovey_trio.core.events import (
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
from shovey_trio.core.model import Job, Route
from shovey_trio.core.orders import NONCE_BYTES, Order, OrderKind
from shovey_trio.core.run_machine import handle
from shovey_trio.core.states import ACTIVE_RUN_STATES, RunState
from shovey_trio.nursery.handles import JobHandle, Posted, RunHandle
from shovey_trio.nursery.legacy_run import send_legacy_cancel, send_legacy_start
from shovey_trio.nursery.output_pump import pump_output
from shovey_trio.nursery.persist import until_stored
from shovey_trio.nursery.ports import SendFollow, SendForget, SendOrder, SendReportDurable
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.settings import Timing

_log = structlog.get_logger(__name__)


async def supervise_run(handle_: RunHandle, job: JobHandle, services: Services) -> None:
    """Supervises a run until it is terminal and durable.

    Lets no exception of the run out: a failure makes this run ``crashed`` (``internal_error``) and its siblings go
    on. When cancelled (the daemon stops), the run stays as the store has it and is taken up again at the next start.

    Raises:
        StoreCorrupt: the shared store is beyond use.
    """
    try:
        with structlog.contextvars.bound_contextvars(job_id=handle_.run.job_id, node=handle_.run.node):
            try:
                async with trio.open_nursery() as nursery:
                    scope = _RunScope(handle_, job, services, nursery)
                    await scope.live()
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
        with self._handle.on_output(self._start_output):
            await self._handle_events()

    async def _handle_events(self) -> None:
        run = self._handle.run
        if run.route is Route.LEGACY:
            if run.attempts == 0 and run.state is RunState.PENDING:
                self._start_dispatch()
        elif run.state in (RunState.PENDING, RunState.DISPATCHED):
            self._send_start()
            self._start_dispatch()
        if run.cancelling:
            self._start_cancel()
        while not self._handle.run.is_terminal:
            posted = await self._next_event()
            handled = False
            try:
                await self._apply(posted.event)
                handled = True
            finally:
                posted.settle(handled=handled)

    async def _next_event(self) -> Posted:
        """What was posted comes before what time says: a node that has spoken is not silent."""
        await trio.lowlevel.checkpoint()
        try:
            return self._handle.inbox.receive_nowait()
        except trio.WouldBlock:
            pass
        deadline = next_deadline(self._handle, self._job, self._services.timing)
        if deadline is None:
            return await self._handle.inbox.receive()
        at, event = deadline
        with trio.move_on_after(max(at - self._services.clock.now(), 0)):
            return await self._handle.inbox.receive()
        return Posted(event)

    async def _apply(self, event: RunEvent) -> None:
        if isinstance(event, NodeReported) and event.report.output_bytes > self._handle.extent.position:
            # The end of the output is still on its way; a run is not terminal before its output is durable.
            self._held_report = event
            return
        before = self._handle.run
        outcome = handle(before, event, self._services.clock.now())
        if outcome.run is not before:
            self._handle.run = outcome.run
            await self._write_until_stored()
        self._job.drop_secrets()
        if outcome.run.state not in (RunState.PENDING, RunState.DISPATCHED) and self._dispatching is not None:
            self._dispatching.cancel(reason="the node has answered")
        for effect in outcome.effects:
            self._carry_out(effect)

    async def _write_until_stored(self) -> None:
        await until_stored(self._write, longest_pause=self._services.timing.store_retry)

    async def _write(self) -> None:
        await self._services.store.write_run(self._handle.run)

    def _carry_out(self, effect: Effect) -> None:
        run = self._handle.run
        link = self._services.links.get(run.organization, run.node)
        match effect:
            case SendStart() if run.route is Route.LEGACY:
                if self._dispatching is not None:
                    self._dispatching.cancel(reason="the node holds another key")
                self._start_dispatch()
            case SendStart() if self._job.has_lost_secrets:
                self._nursery.start_soon(self._handle.post, SecretsLost())
            case SendStart():
                self._send_start()
                self._start_dispatch()
            case SendCancel():
                self._start_cancel()
            case ConfirmReport() if link is not None:
                link.send_nowait(SendReportDurable(run_id=run.id))
            case ForgetRun() if link is not None:
                link.send_nowait(SendForget(run_id=run.id))
            case _:
                pass  # nobody to tell: the node asks again when it attaches

    # -- dispatch

    def _start_dispatch(self) -> None:
        if self._dispatching is None or self._dispatching.cancel_called:
            self._dispatching = trio.CancelScope()
            self._nursery.start_soon(self._dispatch, self._dispatching)

    async def _dispatch(self, scope: trio.CancelScope) -> None:
        """Brings the node here, as often as its stream breaks, until it has answered.

        The order goes out when the node has said what it knows (``NodeAttached``), so none is sent that it has.
        """
        run = self._handle.run
        try:
            with scope:
                if run.route is Route.LEGACY:
                    await send_legacy_start(self._handle, self._job.job, self._services, self._write_until_stored)
                    return
                while True:
                    reached = await self._services.dispatcher.reach(
                        organization=run.organization, job_id=run.job_id, node=run.node
                    )
                    self._route = reached.route
                    await self._services.links.wait_gone(reached.link)
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
        if link is None or run.state not in (RunState.PENDING, RunState.DISPATCHED) or run.cancelling:
            return
        if self._job.has_lost_secrets:
            return  # what the node knows of the run decides: see ``_carry_out``
        until = self._services.timing.acceptance_until(self._job.job)
        instance = link.agent_instance
        order = make_order(
            self._handle,
            self._job.job,
            OrderKind.START,
            agent_instance=instance,
            until=until,
            services=self._services,
            given=self._job.input,
        )
        sent = OrderSent(route=self._route, agent_instance=instance, expires_at=until)
        outcome = handle(run, sent, self._services.clock.now())
        self._handle.run = outcome.run
        self._services.store.write_run_soon(outcome.run)
        link.send_nowait(SendOrder(order=self._services.signer.sign(order)))
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
                agent_instance=reached.link.agent_instance,
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
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return f"{type(failure).__name__} in the controller; see its log"
