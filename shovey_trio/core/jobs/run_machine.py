"""The run state machine: one pure decision for everything that can happen to a run.

``handle`` takes a run and an event and returns the run as it is from now on and what to do about it; it performs
nothing. The caller (``nursery.run_scope``) writes the run, durably where ``durable`` says so, and only then carries
out the effects. Rules beyond the table in ``states``:

* A held run is moved by its job alone, by what ends it (a cancel, a bug, another agent in the place of its own), and by
  a restore of the store.
* What a node says about a run that has ended is never an error: the same words again are confirmed again, others
  are kept as a late report.
* ``unavailable`` is entered only when no order can still start: none was ever sent, or the node itself attached
  without knowing the run after the order had expired.
* An order that was sent and not answered in time makes the run ``unknown``: the node may have it.
* ``cancelled`` needs a proof; a report of a cancel without one is ``crashed`` (``supervisor_lost``).
* A run that the controller's own deadline has cancelled is ``timed_out``: nobody asked for its cancel.
* A node that proves nothing tells a run's end once, perhaps before the last of its output. Until that is here the end
  is held (``held_end``), durably, and the run is not terminal; whatever else happens meanwhile changes nothing.
* A run of a store that was restored from an older copy is ``unknown`` (``store_restored``) and is never started again.
  What the node still knows of it is the truth; where it knows nothing, the run may have ended there and been cleared,
  so nothing is concluded from that, and a cancel that finds nothing proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shovey_trio.core.jobs.events import (
    BY_DEADLINE,
    STORE_RESTORED,
    AcceptanceOver,
    CancelAsked,
    CancelUnproven,
    ClockSet,
    ConfirmReport,
    Effect,
    EndTold,
    ForgetRun,
    InternalFailure,
    NodeAccepted,
    NodeAttached,
    NodeHeard,
    NodeKnows,
    NodeRefused,
    NodeReported,
    NodeSilent,
    NodeStarted,
    NodeUnavailable,
    OrderSent,
    OrderUnusable,
    OutputOver,
    ReconnectGraceOver,
    Released,
    ReportOutcome,
    RunEvent,
    RunReport,
    SecretsLost,
    SendCancel,
    SendStart,
    Skipped,
    StoreRestored,
)
from shovey_trio.core.jobs.model import ProofKind, Run, ToldEnd
from shovey_trio.core.jobs.states import ACTIVE_RUN_STATES, UNANSWERED_RUN_STATES, RunState, check_run_transition
from shovey_trio.core.trust.orders import OrderKind, RefusalReason

# Refusals that say "this order is not acceptable", as opposed to "I am not willing or able".
_INVALID = frozenset(
    {
        RefusalReason.BAD_SIGNATURE,
        RefusalReason.UNKNOWN_KEY,
        RefusalReason.REVOKED_KEY,
        RefusalReason.KEY_NOT_VALID,
        RefusalReason.MALFORMED,
        RefusalReason.UNSUPPORTED_FIELD,
        RefusalReason.UNSUPPORTED_KIND,
        RefusalReason.OTHER_ORGANIZATION,
        RefusalReason.OTHER_NODE,
        RefusalReason.OTHER_INSTANCE,
        RefusalReason.FUTURE_DATED,
        RefusalReason.REPLAYED,
        RefusalReason.OLD_EPOCH,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What ``handle`` decided.

    Attributes:
        run: the run from now on; the same object when nothing changed.
        effects: what to do once the run is written.
        durable: whether the effects and the next event wait for the write (all but ``dispatched``, and the note of a
            cancel that the job's row has already).
    """

    run: Run
    effects: tuple[Effect, ...] = ()
    durable: bool = True


def handle(run: Run, event: RunEvent, now: float) -> Outcome:
    """Decides what an event means for a run.

    Args:
        run: the run as it is.
        event: what happened.
        now: unix seconds, for the times the run records.

    Raises:
        IllegalTransition: our own bug; no event a peer can cause raises it.
    """
    if run.is_terminal:
        return _after_the_end(run, event, now)
    if run.held_end is not None and not isinstance(event, OutputOver | InternalFailure):
        return Outcome(run=run)
    if isinstance(event, StoreRestored):
        return Outcome(run=_restored(run, now))
    if run.state is RunState.HELD:
        return _while_held(run, event, now)
    if _is_restored(run):
        return _while_restored(run, event, now)
    return _while_live(run, event, now)


def _while_live(run: Run, event: RunEvent, now: float) -> Outcome:
    match event:
        case OrderSent():
            return _order_sent(run, event, now)
        case NodeAccepted(at=at):
            if run.state in ACTIVE_RUN_STATES:
                return Outcome(run=run)
            return Outcome(run=_heard(run, RunState.ACCEPTED, now, accepted_at=run.accepted_at or at))
        case NodeStarted(at=at):
            if run.state is RunState.RUNNING:
                return Outcome(run=run)
            times = {"accepted_at": run.accepted_at or at, "started_at": run.started_at or at}
            return Outcome(run=_heard(run, RunState.RUNNING, now, **times))
        case NodeRefused():
            return _refused(run, event, now)
        case NodeReported(report=report):
            return Outcome(run=_ended(run, report, now), effects=(ConfirmReport(),))
        case NodeSilent(since=since, reason=reason):
            if run.state not in ACTIVE_RUN_STATES and not (run.state is RunState.DISPATCHED and run.attempts):
                return Outcome(run=run)
            return Outcome(run=_to(run, RunState.UNKNOWN, now, unknown_since=since, cause=reason))
        case NodeAttached():
            return _attached(run, event, now)
        case Released() | Skipped() | StoreRestored():
            return Outcome(run=run)  # it was released before; what a restore means is said above
        case CancelAsked():
            return _cancel_asked(run, event, now)
        case AcceptanceOver():
            return _acceptance_over(run, now)
        case NodeUnavailable(cause=cause, detail=detail):
            if run.attempts == 0 and run.state is RunState.PENDING:
                return Outcome(run=_end(run, RunState.UNAVAILABLE, now, cause=cause, detail=detail))
            return Outcome(run=run)
        case ClockSet():
            return Outcome(run=_clock_set(run, event, now))
        case SecretsLost():
            if run.state not in UNANSWERED_RUN_STATES:
                return Outcome(run=run)
            detail = "the controller was restarted before the node accepted the run, and secrets are not stored"
            return Outcome(run=_end(run, RunState.UNAVAILABLE, now, cause="secret_lost", detail=detail))
        case ReconnectGraceOver():
            if run.state is not RunState.UNKNOWN:
                return Outcome(run=run)
            return Outcome(
                run=_end(run, RunState.CRASHED, now, cause="node_lost", detail="the node was silent for too long")
            )
        case InternalFailure(detail=detail):
            return Outcome(
                run=_end(
                    run,
                    RunState.CRASHED,
                    now,
                    held_end=None,
                    late_report=run.held_end,
                    cause="internal_error",
                    detail=detail,
                ),
                effects=(ForgetRun(),),
            )
        case EndTold():
            return Outcome(run=_end_told(run, event, now))
        case OutputOver(is_complete=is_complete):
            return Outcome(run=_output_over(run, now, is_complete=is_complete))
        case NodeHeard():
            if run.state is not RunState.UNKNOWN or run.accepted_at is None:
                return Outcome(run=run)
            return Outcome(run=_heard(run, RunState.ACCEPTED if run.started_at is None else RunState.RUNNING, now))
        case OrderUnusable():
            if run.accepted_at is not None or run.cancelling:
                return Outcome(run=run)
            waiting = run if run.state in UNANSWERED_RUN_STATES else _heard(run, RunState.DISPATCHED, now)
            return Outcome(run=waiting, effects=(SendStart(),))
        case CancelUnproven():
            # A node that is silent beyond the deadline is followed up like any silence.
            if not run.cancelling or run.cancel_reason == BY_DEADLINE:
                return Outcome(run=run)
            detail = "the node was told to end the command and cannot prove that it did"
            cut = run.accepted_at is not None
            return Outcome(
                run=_end(run, RunState.CANCEL_UNPROVEN, now, cause="cancelled", detail=detail, output_incomplete=cut)
            )


def result_of(report: RunReport) -> tuple[RunState, str, str]:
    """The terminal state, cause and detail that a node's report stands for."""
    match report.outcome:
        case ReportOutcome.EXITED:
            state = RunState.SUCCEEDED if report.exit_code == 0 else RunState.FAILED
            return (
                state,
                report.cause or ("signalled" if report.signal is not None else "exited"),
                report.detail,
            )
        case ReportOutcome.TIMED_OUT | ReportOutcome.CANCELLED if report.proof is None:
            return (
                RunState.CRASHED,
                "supervisor_lost",
                "the node could not prove that the process tree is gone",
            )
        case ReportOutcome.TIMED_OUT:
            return RunState.TIMED_OUT, report.cause or "timed_out", report.detail
        case ReportOutcome.CANCELLED:
            return RunState.CANCELLED, report.cause or "cancelled", report.detail
        case ReportOutcome.CRASHED:
            return RunState.CRASHED, report.cause or "supervisor_lost", report.detail


def _order_sent(run: Run, event: OrderSent, now: float) -> Outcome:
    sent: dict[str, Any] = {
        "attempts": run.attempts + 1,
        "route": event.route,
        "agent_instance": event.agent_instance,
        "order_expires_at": event.expires_at,
        "key_id": event.key_id,
        "dispatched_at": run.dispatched_at or now,
    }
    if run.state is RunState.PENDING:
        return Outcome(run=_to(run, RunState.DISPATCHED, now, **sent), durable=False)
    return Outcome(run=replace(run, updated_at=now, **sent), durable=False)


def _refused(run: Run, event: NodeRefused, now: float) -> Outcome:
    if event.kind is OrderKind.CANCEL:
        # The node still runs it and would not take our cancel: the flag stays and the cancel is sent again.
        return Outcome(run=replace(run, detail=f"cancel refused: {event.reason}", updated_at=now))
    if run.accepted_at is not None:
        # It has this run, whether or not it is heard now; a refusal of a repeat says nothing about it.
        return Outcome(run=run)
    if event.reason == RefusalReason.EXPIRED:
        state = RunState.UNAVAILABLE
    elif event.reason in _INVALID:
        state = RunState.INVALID
    else:
        state = RunState.NACKED
    proof = ProofKind.NEVER_STARTED if run.cancelling else None
    return Outcome(run=_end(run, state, now, cause=event.reason or "refused", detail=event.detail, proof=proof))


def _attached(run: Run, event: NodeAttached, now: float) -> Outcome:
    if run.agent_instance is not None and event.agent_instance != run.agent_instance:
        detail = "the node came back with another state directory"
        # What was never sent to the one before did not run there, and is not for the one that has its name now.
        state = RunState.CRASHED if run.attempts else RunState.UNAVAILABLE
        return Outcome(run=_end(run, state, now, cause="agent_replaced", detail=detail))
    cancel: tuple[Effect, ...] = (SendCancel(),) if run.cancelling else ()
    match event.knows:
        case NodeKnows.FINISHED:
            # Its report follows, perhaps behind much output: until then the node has it and has not said how it ended.
            if run.state in ACTIVE_RUN_STATES:
                return Outcome(run=run)
            state = RunState.ACCEPTED if run.started_at is None else RunState.RUNNING
            return Outcome(run=_heard(run, state, now, accepted_at=run.accepted_at or now))
        case NodeKnows.ACCEPTED | NodeKnows.RUNNING:
            state = RunState.RUNNING if event.knows is NodeKnows.RUNNING else RunState.ACCEPTED
            if run.state is state or run.state is RunState.RUNNING:
                return Outcome(run=run, effects=cancel)
            return Outcome(run=_heard(run, state, now, accepted_at=run.accepted_at or now), effects=cancel)
        case NodeKnows.NOTHING:
            return _attached_knowing_nothing(run, now)


def _attached_knowing_nothing(run: Run, now: float) -> Outcome:
    if run.accepted_at is not None:
        detail = "the node accepted the run and no longer knows it"
        return Outcome(run=_end(run, RunState.CRASHED, now, cause="run_lost_by_node", detail=detail))
    if run.cancelling:
        # The node voids the run when it gets the cancel, so that a copy of the order still under way cannot start.
        return Outcome(run=run, effects=(SendCancel(),))
    if run.order_expires_at is not None and run.order_expires_at <= now:
        detail = "the order expired before the node accepted it"
        return Outcome(run=_end(run, RunState.UNAVAILABLE, now, cause="not_accepted", detail=detail))
    if run.state is RunState.UNKNOWN:
        run = _heard(run, RunState.DISPATCHED, now)
    return Outcome(run=run, effects=(SendStart(),))


def _while_held(run: Run, event: RunEvent, now: float) -> Outcome:
    match event:
        case Released():
            return Outcome(run=_to(run, RunState.PENDING, now, released_at=now), effects=(SendStart(),))
        case Skipped(cause=cause, detail=detail):
            return Outcome(run=_end(run, RunState.SKIPPED, now, cause=cause, detail=detail))
        case CancelAsked(by=by):
            return Outcome(run=_never_started(run, by, now))
        case ClockSet(nonce=nonce):
            return Outcome(run=replace(run, nonce=nonce, updated_at=now))
        case NodeAttached(agent_instance=instance) if run.agent_instance not in (None, instance):
            return _attached(run, event, now)
        case InternalFailure(detail=detail):
            return Outcome(run=_end(run, RunState.CRASHED, now, cause="internal_error", detail=detail))
        case _:
            return Outcome(run=run)


def _restored(run: Run, now: float) -> Run:
    if run.state is RunState.HELD:
        run = _to(run, RunState.PENDING, now, released_at=now)
    if run.state is not RunState.UNKNOWN:
        run = _to(run, RunState.UNKNOWN, now)
    return replace(run, cause=STORE_RESTORED, unknown_since=now, updated_at=now)


def _is_restored(run: Run) -> bool:
    return run.state is RunState.UNKNOWN and run.cause == STORE_RESTORED


def _while_restored(run: Run, event: RunEvent, now: float) -> Outcome:
    match event:
        case NodeAttached(agent_instance=instance, knows=NodeKnows.NOTHING) if run.agent_instance in (None, instance):
            return Outcome(run=_lost_by_restore(run, now))
        case NodeReported(report=RunReport(outcome=ReportOutcome.CANCELLED, proof=ProofKind.NEVER_STARTED)):
            # The answer to a cancel by a node that does not know the run: it may have run, and been cleared.
            return Outcome(run=_lost_by_restore(run, now), effects=(ConfirmReport(),))
        case ReconnectGraceOver():
            return Outcome(run=_lost_by_restore(run, now))
        case NodeHeard() | OrderUnusable():
            return Outcome(run=run)
        case NodeRefused(kind=OrderKind.START):
            return Outcome(run=run)  # of an order from before; this store has sent none
        case _:
            return _while_live(run, event, now)


def _lost_by_restore(run: Run, now: float) -> Run:
    detail = "the store was restored from an older copy, and the node does not know the run any more"
    return _end(run, RunState.CRASHED, now, cause=STORE_RESTORED, detail=detail)


def _never_started(run: Run, by: str, now: float) -> Run:
    ended = _end(run, RunState.CANCELLED, now, cause="cancelled", proof=ProofKind.NEVER_STARTED)
    return replace(ended, cancel_reason=by)


def _cancel_asked(run: Run, event: CancelAsked, now: float) -> Outcome:
    if run.attempts == 0 and run.state is RunState.PENDING:
        return Outcome(run=_never_started(run, event.by, now))
    if run.cancelling:
        return Outcome(run=run, effects=(SendCancel(),))
    asked = replace(run, cancelling=True, cancel_reason=event.by, updated_at=now)
    return Outcome(run=asked, effects=(SendCancel(),), durable=not event.is_stored)


def _acceptance_over(run: Run, now: float) -> Outcome:
    if run.state not in UNANSWERED_RUN_STATES:
        return Outcome(run=run)
    if run.attempts == 0:
        detail = "no route led to the node in time"
        return Outcome(run=_end(run, RunState.UNAVAILABLE, now, cause="no_route", detail=detail))
    return Outcome(run=_to(run, RunState.UNKNOWN, now, unknown_since=now, cause="not_confirmed"))


def _clock_set(run: Run, event: ClockSet, now: float) -> Run:
    if run.accepted_at is not None:
        return run
    if run.attempts == 0:
        return replace(run, nonce=event.nonce, released_at=now, updated_at=now)
    # A copy with another expiry could run beside the first one: what the node does not have yet, it never gets.
    return replace(run, order_expires_at=min(run.order_expires_at or now, now), updated_at=now)


def _after_the_end(run: Run, event: RunEvent, now: float) -> Outcome:
    match event:
        case NodeReported(report=report):
            state, cause, _ = _truth(run, report)
            told = ToldEnd(state=state, cause=cause, exit_code=report.exit_code, signal=report.signal, reported_at=now)
            return Outcome(run=_told_late(run, told, now), effects=(ConfirmReport(),))
        case EndTold(end=end):
            return Outcome(run=_told_late(run, end, now))
        case OutputOver(is_complete=True) if run.output_incomplete:
            return Outcome(run=replace(run, output_incomplete=False, updated_at=now))
        case _:
            return Outcome(run=run)


def _told_late(run: Run, end: ToldEnd, now: float) -> Run:
    said_before = (run.state, run.exit_code, run.signal) == (end.state, end.exit_code, end.signal)
    if said_before or run.late_report is not None:
        return run
    return replace(run, late_report=end, updated_at=now)


def _end_told(run: Run, event: EndTold, now: float) -> Run:
    """The run with its end held, or ended where no output can follow."""
    end = event.end
    if end.state is RunState.INVALID and run.accepted_at is None:
        return _end(run, RunState.INVALID, now, cause=end.cause, detail=event.detail)
    if end.state is RunState.INVALID:
        end = replace(end, state=RunState.FAILED)
    elif run.cancelling and end.state not in (RunState.SUCCEEDED, RunState.TIMED_OUT):
        overdue = run.cancel_reason == BY_DEADLINE
        state, cause = (RunState.TIMED_OUT, "overdue") if overdue else (RunState.CANCEL_UNPROVEN, "cancelled")
        end = replace(end, state=state, cause=cause)
    held = run if run.state is RunState.RUNNING else _heard(run, RunState.RUNNING, now)
    return replace(
        held,
        held_end=end,
        detail=event.detail,
        accepted_at=run.accepted_at or end.reported_at,
        started_at=run.started_at or end.reported_at,
        updated_at=now,
    )


def _output_over(run: Run, now: float, *, is_complete: bool) -> Run:
    end = run.held_end
    if end is None:
        return run
    return _end(
        run,
        end.state,
        now,
        held_end=None,
        output_incomplete=not is_complete,
        cause=end.cause,
        exit_code=end.exit_code,
        signal=end.signal,
        finished_at=end.reported_at,
    )


def _truth(run: Run, report: RunReport) -> tuple[RunState, str, str]:
    """What a report says about this run: the node cannot know that its cancel was the controller's deadline."""
    state, cause, detail = result_of(report)
    if state is RunState.CANCELLED and run.cancel_reason == BY_DEADLINE:
        return (
            RunState.TIMED_OUT,
            "overdue",
            detail or "the controller ended it: the node's own deadline had not",
        )
    return state, cause, detail


def _ended(run: Run, report: RunReport, now: float) -> Run:
    state, cause, detail = _truth(run, report)
    return _end(
        run,
        state,
        now,
        cause=cause,
        detail=detail,
        exit_code=report.exit_code,
        signal=report.signal,
        proof=report.proof,
        accepted_at=run.accepted_at or report.started_at,
        started_at=report.started_at or run.started_at,
        dropped_bytes=report.dropped_bytes,
        finished_at=report.finished_at or now,
    )


def _heard(run: Run, state: RunState, now: float, **changes: Any) -> Run:
    """The run in a state that the node itself has told; nothing is unknown any more."""
    return _to(run, state, now, cause="", unknown_since=None, **changes)


def _end(run: Run, state: RunState, now: float, **changes: Any) -> Run:
    changes.setdefault("finished_at", now)
    return _to(run, state, now, cancelling=False, unknown_since=None, **changes)


def _to(run: Run, state: RunState, now: float, **changes: Any) -> Run:
    check_run_transition(run.state, state)
    return replace(run, state=state, updated_at=now, **changes)
