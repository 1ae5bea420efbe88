"""One run: a task with its own cancel scope and nursery, from its first order to its one true end.

The run's task receives events (from the node, the operator, presence, its own deadline), asks ``core.jobs.run_machine``
what they mean, writes the answer and carries out the effects – in this order, so that nothing is acknowledged that
is not durable. Events that came together are handled one after the other and written together: each state that the
run passed through is an event of its own in the store, its row and its commit are one.

What takes time runs beside it in the run's nursery, and only while it is needed:

* start  – what takes time for the start order to come to the node, until the node has answered it;
* output – stores what the node pushes, from the first chunk on (``output_pump``);
* cancel – hands the node the cancel order, until the run has ended.

How the node is reached, and what that can promise, is the run's route (``route``); this file knows no kind of node.

The timeout needs no task: ``next_deadline`` derives it from the run, so that it survives a restart. It is measured on
trio's clock, so that setting the system's clock ends nothing. Only what judges a node's silence counts from when the
controller can hear it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import structlog
import trio

from shovey_trio.core.errors import StoreCorrupt, first_leaf
from shovey_trio.core.jobs.events import (
    BY_DEADLINE,
    AcceptanceOver,
    CancelAsked,
    ConfirmReport,
    Effect,
    ForgetRun,
    InternalFailure,
    NodeReported,
    NodeSilent,
    OutputOver,
    ReconnectGraceOver,
    RunEvent,
    SecretsLost,
    SendCancel,
    SendStart,
)
from shovey_trio.core.jobs.model import Run
from shovey_trio.core.jobs.run_machine import Outcome, handle
from shovey_trio.core.jobs.states import ACTIVE_RUN_STATES, UNANSWERED_RUN_STATES, RunState
from shovey_trio.nursery.handles import JobHandle, Posted, RunHandle
from shovey_trio.nursery.output_pump import pump_output
from shovey_trio.nursery.persist import write_latest
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
    """When, on trio's clock, time itself is the run's next event, and which; None when only others can move it.

    A running run has two: at the first the controller asks the node to end it (the node's own deadline should
    have come before), at the second it no longer believes what it last heard, whoever asked for the end. A node that
    tells an end once is not waited for when its time for that is over.
    """
    run = handle_.run
    if run.held_end is not None:
        return handle_.since + handle_.route.output_patience, OutputOver()
    last_word = _last_word_of(handle_, job, timing) if handle_.route.tells_once else math.inf
    if run.state in UNANSWERED_RUN_STATES:
        acceptance = handle_.moment_of_acceptance(handle_.route.acceptance_until(job.job, run))
        return min(acceptance, last_word), AcceptanceOver()
    if run.state is RunState.UNKNOWN:
        silence = max(handle_.since, job.supervised_since) + timing.reconnect_grace
        return min(silence, last_word), ReconnectGraceOver()
    if run.state in ACTIVE_RUN_STATES:
        if last_word < math.inf:
            return last_word, NodeSilent(since=job.clock.time_of(last_word), reason="overdue")
        overdue = _overdue(handle_.began, job, timing)
        if not run.cancelling:
            return overdue, CancelAsked(by=BY_DEADLINE)
        unheard = max(overdue, job.supervised_since) + job.job.kill_grace + timing.overdue_margin
        return unheard, NodeSilent(since=job.clock.time_of(unheard), reason="overdue")
    return None


def _overdue(began: float, job: JobHandle, timing: Timing) -> float:
    """When a run that began at a moment should have ended by its time limit, and been told."""
    overdue = began + job.job.run_timeout + job.job.kill_grace + timing.overdue_margin
    if job.taken_up:
        # How long it has run is known by what two clocks showed, and one of them may be wrong: the node's own
        # deadline is not, and it is asked first.
        overdue = max(overdue, job.supervised_since + timing.reconnect_grace)
    return overdue


def _last_word_of(handle_: RunHandle, job: JobHandle, timing: Timing) -> float:
    """Until when a node that has been sent an order can tell its end; infinite for one that has not been."""
    run = handle_.run
    if run.accepted_at is not None:
        return _overdue(handle_.began, job, timing)
    if run.dispatched_at is not None:
        return _overdue(job.clock.moment_of(run.dispatched_at), job, timing)
    return math.inf


class _RunScope:
    """The state of ``supervise_run``: the run's handle and which of its helper tasks are on."""

    def __init__(self, handle_: RunHandle, job: JobHandle, services: Services, nursery: trio.Nursery) -> None:
        self.handle = handle_
        self.job = job
        self.services = services
        self._nursery = nursery
        self._starting: trio.CancelScope | None = None
        self._cancelling = False
        # Here and not in the run: until it is confirmed, the node tells it again.
        self._early_report: NodeReported | None = None

    async def live(self) -> None:
        """Handles events until the run is terminal."""
        handle_ = self.handle
        handle_.contact_lost = self._contact_lost
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
            handle_.contact_lost = handle_.start_output = None

    def _begin(self) -> None:
        run = self.handle.run
        if run.state in UNANSWERED_RUN_STATES and (run.attempts == 0 or self.handle.route.may_repeat):
            self._start()
        if run.cancelling:
            self._start_cancel()

    async def _next_events(self) -> list[Posted]:
        """What was posted comes before what time says: a node that has spoken is not silent."""
        inbox = self.handle.inbox
        deadline = next_deadline(self.handle, self.job, self.services.timing)
        if deadline is None:
            return await inbox.take_all()
        moment, event = deadline
        return await inbox.take_all(moment) or [Posted(event)]

    async def _apply(self, batch: list[Posted]) -> None:
        """Handles events that came together: decides, writes what the run has become, then carries out the effects.

        Those behind the run's end are not handled: as if they had come after it.
        """
        handled = durable = 0
        waits = False
        states: list[Run] = []
        effects: list[Effect] = []
        try:
            for posted in batch:
                before = self.handle.run
                if before.is_terminal:
                    break
                outcome = self._decide(posted.event)
                effects += outcome.effects
                if outcome.run is not before:
                    self.handle.run = outcome.run
                    states.append(outcome.run)
                    waits = waits or outcome.durable
                handled += 1
            if waits:
                await self._write_until_stored(states[:-1])
            else:
                for state in states:
                    self.services.store.write_run_soon(state)
                await trio.lowlevel.checkpoint()
            self.job.drop_secrets()
            if self.handle.run.state not in UNANSWERED_RUN_STATES and self._starting is not None:
                self._starting.cancel(reason="the node has answered")
            for effect in effects:
                self._carry_out(effect)
            durable = handled
        finally:
            for number, posted in enumerate(batch):
                posted.settle(handled=number < durable)

    def _decide(self, event: RunEvent) -> Outcome:
        if isinstance(event, NodeReported) and event.report.output_bytes > self.handle.extent.position:
            # The end of the output is still on its way; a run is not terminal before its output is durable.
            self._early_report = event
            return Outcome(run=self.handle.run)
        return handle(self.handle.run, event, self.services.clock.now())

    async def _write_until_stored(self, passed: Sequence[Run] = ()) -> None:
        await write_latest(self.handle.get_run, self.services, passed=passed)

    def _carry_out(self, effect: Effect) -> None:
        run = self.handle.run
        match effect:
            case SendStart() if run.state not in UNANSWERED_RUN_STATES:
                pass  # what came with it was the answer
            case SendStart() if self.job.has_lost_secrets:
                self._nursery.start_soon(self.handle.post, SecretsLost())
            case SendStart():
                if self._starting is not None:
                    self._starting.cancel(reason="the order is sent anew")
                self._start()
            case SendCancel() if not run.is_terminal:
                self._start_cancel()
            case ConfirmReport() | ForgetRun():
                self.handle.route.tell(run, effect)

    # -- the order

    def _contact_lost(self) -> None:
        if self.handle.run.state in UNANSWERED_RUN_STATES and self.handle.route.may_repeat:
            self._start()

    def _start(self) -> None:
        if self.handle.route.start_nowait(self):
            return
        if self._starting is None or self._starting.cancel_called:
            self._starting = trio.CancelScope()
            self._nursery.start_soon(self._start_waiting, self._starting)

    async def _start_waiting(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self.handle.route.start(self)
        finally:
            if self._starting is scope:
                self._starting = None

    def _start_cancel(self) -> None:
        if not self._cancelling:
            self._cancelling = True
            self._nursery.start_soon(self.handle.route.cancel, self)

    # -- output

    def _start_output(self) -> None:
        self._nursery.start_soon(pump_output, self.handle, self.services, self._output_grew)

    async def _output_grew(self) -> None:
        early = self._early_report
        if early is not None and early.report.output_bytes <= self.handle.extent.position:
            self._early_report = None
            await self.handle.post(early)


async def crash_run(handle_: RunHandle, services: Services, detail: str) -> None:
    """Ends a run because its own task or its job's has failed; nothing happens to one that has ended."""
    if handle_.run.is_terminal:
        return
    handle_.run = handle(handle_.run, InternalFailure(detail=detail), services.clock.now()).run
    await write_latest(handle_.get_run, services)
    handle_.route.tell(handle_.run, ForgetRun())


def failure_detail(failure: BaseException) -> str:
    """What a user is told of a bug: its kind, not its insides. The first leaf stands for a group."""
    return f"{type(first_leaf(failure)).__name__} in the controller; see its log"
