"""The run machine against everything that peers, operators and clocks can throw at it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shovey_trio.core.errors import IllegalTransition
from shovey_trio.core.jobs.events import (
    BY_DEADLINE,
    STORE_RESTORED,
    AcceptanceOver,
    CancelAsked,
    ConfirmReport,
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
    ReconnectGraceOver,
    Released,
    ReportOutcome,
    RunEvent,
    RunReport,
    SendCancel,
    SendStart,
    Skipped,
    StoreRestored,
)
from shovey_trio.core.jobs.model import ProofKind, Run
from shovey_trio.core.jobs.run_machine import Outcome, handle
from shovey_trio.core.jobs.states import ACTIVE_RUN_STATES, TERMINAL_RUN_STATES, RunState, check_run_transition
from shovey_trio.core.trust.orders import OrderKind, RefusalReason
from shovey_trio.nursery.route import STREAM

NOW = 1_800_000_000.0
EXPIRES = NOW + 60
PENDING = Run(
    id="run", job_id="job", organization="default", node="web-1", created_at=NOW, updated_at=NOW, nonce=b"n" * 16
)
SENT = OrderSent(route=STREAM, agent_instance="i-1", expires_at=EXPIRES)
ACCEPTED = NodeAccepted(at=NOW + 1)
STARTED = NodeStarted(at=NOW + 2)
SILENT = NodeSilent(since=NOW + 3, reason="stream_lost")
CANCEL = CancelAsked(by="user/ops")


def after(*events: RunEvent, run: Run = PENDING, now: float = NOW + 10) -> Outcome:
    """What is left of a run after these events."""
    outcome = Outcome(run=run)
    for event in events:
        outcome = handle(outcome.run, event, now)
    return outcome


def reported(outcome: ReportOutcome = ReportOutcome.EXITED, **fields: object) -> NodeReported:
    values: dict[str, object] = {"run_id": "run", "outcome": outcome}
    if outcome is ReportOutcome.EXITED:
        values["exit_code"] = 0
    return NodeReported(report=RunReport(**(values | fields)))  # type: ignore[arg-type]  # fields are the test's


def attached(knows: NodeKnows, instance: str = "i-1") -> NodeAttached:
    return NodeAttached(agent_instance=instance, knows=knows)


times = st.floats(NOW - 100, NOW + 2000)
proofs = st.none() | st.sampled_from(ProofKind)
words = st.sampled_from(["", "x", *RefusalReason])
reports = st.builds(
    RunReport,
    run_id=st.just("run"),
    outcome=st.sampled_from(ReportOutcome),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    proof=proofs,
    started_at=st.none() | times,
    finished_at=st.none() | times,
    output_bytes=st.integers(0, 10),
)
heard = st.one_of(
    st.builds(NodeAccepted, at=times),
    st.builds(NodeStarted, at=times),
    st.builds(NodeRefused, kind=st.sampled_from(OrderKind), reason=words),
    st.builds(NodeReported, report=reports),
    st.builds(NodeAttached, agent_instance=st.sampled_from(["i-1", "i-2"]), knows=st.sampled_from(NodeKnows)),
)
caused = st.one_of(
    st.builds(NodeSilent, since=times, reason=words),
    st.builds(CancelAsked, by=st.sampled_from(["user/ops", BY_DEADLINE])),
    st.just(AcceptanceOver()),
    st.builds(NodeUnavailable, cause=words.filter(bool)),
    st.just(ReconnectGraceOver()),
    st.builds(InternalFailure, detail=words),
    st.just(Released()),
    st.builds(Skipped, cause=words.filter(bool)),
)


class LifeOfARun(RuleBasedStateMachine):
    """Any history whatever: our own code sends orders by its rules, everybody else does as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.run = PENDING
        self.past = [PENDING]
        self.now = NOW
        self.sent = False
        self.proven = False
        self.restored = False

    @rule(event=heard | caused | st.just(StoreRestored()), later=st.floats(0, 100))
    def happens(self, event: RunEvent, later: float) -> None:
        self.now += later
        if isinstance(event, NodeReported):
            self.proven = self.proven or event.report.proof is not None
        outcome = handle(self.run, event, self.now)
        self.restored = self.restored or isinstance(event, StoreRestored)
        self._check(event, outcome)
        self.run = outcome.run
        self.past.append(outcome.run)

    @rule(instance=st.sampled_from(["i-1", "i-2"]))
    def our_order_goes_out(self, instance: str) -> None:
        if self.run.state in (RunState.PENDING, RunState.DISPATCHED) and not self.run.cancelling:
            event = OrderSent(route=STREAM, agent_instance=instance, expires_at=EXPIRES)
            self.run = handle(self.run, event, self.now).run
            self.past.append(self.run)
            self.sent = True

    def _check(self, event: RunEvent, outcome: Outcome) -> None:
        before, run = self.run, outcome.run
        if before.is_terminal:
            assert replace(run, late_report=None, updated_at=0) == replace(before, late_report=None, updated_at=0)
            assert before.late_report is None or run.late_report == before.late_report
            assert set(outcome.effects) <= {ConfirmReport()}
        elif run.state is not before.state:
            check_run_transition(before.state, run.state)
        if isinstance(event, NodeReported):
            assert outcome.effects == (ConfirmReport(),), "whatever it says, the node may clear its spool"
        if SendStart() in outcome.effects:
            assert not self.restored, "an older copy never starts a run"
            assert not run.cancelling
            assert not run.is_terminal
            assert run.accepted_at is None
            assert run.order_expires_at is None or run.order_expires_at > self.now

    @invariant()
    def cancelled_means_proven(self) -> None:
        if self.run.state is RunState.CANCELLED:
            assert self.run.proof is not None
            assert self.proven or not self.sent

    @invariant()
    def flags_and_times_fit_the_state(self) -> None:
        run = self.run
        assert (run.finished_at is not None) is run.is_terminal
        assert (run.unknown_since is not None) is (run.state is RunState.UNKNOWN)
        assert not (run.is_terminal and run.cancelling)
        assert run.state is not RunState.RUNNING or run.accepted_at is not None
        assert run.is_terminal <= bool(run.cause)

    @invariant()
    def the_nonce_never_changes(self) -> None:
        assert self.run.nonce == PENDING.nonce


TestLifeOfARun = LifeOfARun.TestCase
TestLifeOfARun.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


@given(events=st.lists(heard | caused, max_size=30))
def test_a_terminal_state_never_changes_and_one_late_report_is_kept(events: list[RunEvent]) -> None:
    run = after(reported()).run
    lates = set()
    for event in events:
        run = handle(run, event, NOW).run
        assert (run.state, run.exit_code, run.cause) == (RunState.SUCCEEDED, 0, "exited")
        lates.add(run.late_report)
    assert len(lates - {None}) <= 1


# --- the ends ---------------------------------------------------------------------------------------------------


def test_an_exit_code_of_zero_succeeds_and_any_other_fails() -> None:
    assert after(SENT, ACCEPTED, STARTED, reported()).run.state is RunState.SUCCEEDED
    failed = after(SENT, ACCEPTED, STARTED, reported(exit_code=3)).run
    assert (failed.state, failed.exit_code, failed.cause) == (RunState.FAILED, 3, "exited")


def test_a_command_killed_by_a_signal_fails_as_signalled() -> None:
    run = after(SENT, STARTED, reported(exit_code=None, signal=9)).run
    assert (run.state, run.signal, run.cause) == (RunState.FAILED, 9, "signalled")


@pytest.mark.parametrize("outcome", [ReportOutcome.CANCELLED, ReportOutcome.TIMED_OUT])
def test_an_end_by_force_without_proof_is_crashed(outcome: ReportOutcome) -> None:
    run = after(SENT, STARTED, CANCEL, reported(outcome)).run
    assert (run.state, run.cause) == (RunState.CRASHED, "supervisor_lost")


def test_a_cancel_with_proof_is_cancelled() -> None:
    run = after(SENT, STARTED, CANCEL, reported(ReportOutcome.CANCELLED, proof=ProofKind.EMPTY_CGROUP)).run
    assert (run.state, run.proof, run.cancel_reason) == (RunState.CANCELLED, ProofKind.EMPTY_CGROUP, "user/ops")


def test_a_run_ended_by_the_controllers_own_deadline_is_timed_out() -> None:
    report = reported(ReportOutcome.CANCELLED, proof=ProofKind.EMPTY_CGROUP)
    run = after(SENT, STARTED, CancelAsked(by=BY_DEADLINE), report).run
    assert (run.state, run.cause) == (RunState.TIMED_OUT, "overdue")
    assert after(report, run=run).run.late_report is None, "the same words again are no news"


def test_a_run_that_was_never_sent_is_cancelled_at_once() -> None:
    outcome = after(CANCEL)
    assert (outcome.run.state, outcome.run.proof) == (RunState.CANCELLED, ProofKind.NEVER_STARTED)
    assert outcome.effects == ()


def test_a_run_that_exits_while_it_is_cancelled_keeps_its_result() -> None:
    assert after(SENT, STARTED, CANCEL, reported(exit_code=0)).run.state is RunState.SUCCEEDED


def test_without_a_route_the_run_is_unavailable() -> None:
    run = after(AcceptanceOver()).run
    assert (run.state, run.cause) == (RunState.UNAVAILABLE, "no_route")


def test_an_order_that_was_sent_and_not_answered_is_unknown_not_unavailable() -> None:
    run = after(SENT, AcceptanceOver()).run
    assert (run.state, run.cause, run.unknown_since) == (RunState.UNKNOWN, "not_confirmed", NOW + 10)


def test_a_node_that_attaches_after_the_expiry_without_the_run_makes_it_unavailable() -> None:
    run = after(SENT, AcceptanceOver(), attached(NodeKnows.NOTHING), now=EXPIRES).run
    assert (run.state, run.cause) == (RunState.UNAVAILABLE, "not_accepted")


def test_a_removed_node_makes_unavailable_only_what_was_never_sent() -> None:
    assert after(NodeUnavailable(cause="node_removed")).run.state is RunState.UNAVAILABLE
    maybe_sent = replace(PENDING, attempts=1)
    assert after(NodeUnavailable(cause="node_removed"), run=maybe_sent).run.state is RunState.PENDING
    assert after(SENT, NodeUnavailable(cause="node_removed")).run.state is RunState.DISPATCHED


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (RefusalReason.NOT_WHITELISTED, RunState.NACKED),
        (RefusalReason.BUSY, RunState.NACKED),
        ("a word from the future", RunState.NACKED),
        (RefusalReason.BAD_SIGNATURE, RunState.INVALID),
        (RefusalReason.OLD_EPOCH, RunState.INVALID),
        (RefusalReason.EXPIRED, RunState.UNAVAILABLE),
    ],
)
def test_the_reason_of_a_refusal_decides_the_state(reason: str, state: RunState) -> None:
    run = after(SENT, NodeRefused(kind=OrderKind.START, reason=reason)).run
    assert (run.state, run.cause) == (state, reason)


@pytest.mark.parametrize("silence", [(), (SILENT,)])
def test_a_refused_repeat_says_nothing_about_an_accepted_run(silence: tuple[RunEvent, ...]) -> None:
    before = after(SENT, ACCEPTED, *silence).run
    assert after(NodeRefused(kind=OrderKind.START, reason=RefusalReason.REPLAYED), run=before).run is before


def test_a_refused_cancel_leaves_the_run_cancelling() -> None:
    run = after(SENT, STARTED, CANCEL, NodeRefused(kind=OrderKind.CANCEL, reason=RefusalReason.EXPIRED)).run
    assert (run.state, run.cancelling) == (RunState.RUNNING, True)


# --- silence and its healing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [(SENT,), (SENT, ACCEPTED), (SENT, STARTED)])
def test_a_silent_node_makes_a_sent_run_unknown_since_the_moment_it_fell_silent(before: tuple[RunEvent, ...]) -> None:
    run = after(*before, SILENT).run
    assert (run.state, run.unknown_since, run.cause) == (RunState.UNKNOWN, NOW + 3, "stream_lost")


def test_a_silent_node_says_nothing_about_a_run_that_was_not_sent() -> None:
    assert after(SILENT).run is PENDING


@pytest.mark.parametrize(
    ("word", "state"),
    [
        (attached(NodeKnows.RUNNING), RunState.RUNNING),
        (attached(NodeKnows.ACCEPTED), RunState.ACCEPTED),
        (attached(NodeKnows.FINISHED), RunState.RUNNING),
        (ACCEPTED, RunState.ACCEPTED),
        (STARTED, RunState.RUNNING),
    ],
)
def test_a_word_of_the_node_heals_unknown_without_a_trace(word: RunEvent, state: RunState) -> None:
    run = after(SENT, STARTED, SILENT, word).run
    assert (run.state, run.unknown_since, run.cause) == (state, None, "")


def test_a_silent_run_is_crashed_after_the_grace_and_the_truth_is_kept_beside_it() -> None:
    run = after(SENT, STARTED, SILENT, ReconnectGraceOver(), reported(exit_code=3)).run
    assert (run.state, run.cause) == (RunState.CRASHED, "node_lost")
    assert run.late_report is not None
    assert (run.late_report.state, run.late_report.exit_code) == (RunState.FAILED, 3)


def test_the_grace_means_nothing_to_a_run_that_was_heard() -> None:
    before = after(SENT, STARTED).run
    assert after(ReconnectGraceOver(), run=before).run is before


def test_a_node_that_lost_an_accepted_run_crashes_it() -> None:
    run = after(SENT, ACCEPTED, attached(NodeKnows.NOTHING)).run
    assert (run.state, run.cause) == (RunState.CRASHED, "run_lost_by_node")


def test_a_node_with_another_state_directory_crashes_what_was_pinned_to_the_old_one() -> None:
    run = after(SENT, ACCEPTED, attached(NodeKnows.NOTHING, "i-2")).run
    assert (run.state, run.cause) == (RunState.CRASHED, "agent_replaced")
    assert after(attached(NodeKnows.NOTHING, "i-2")).effects == (SendStart(),), "pinned to nothing yet"


def test_an_order_that_got_lost_is_sent_again_until_it_expires() -> None:
    outcome = after(SENT, SILENT, attached(NodeKnows.NOTHING))
    assert (outcome.run.state, outcome.effects) == (RunState.DISPATCHED, (SendStart(),))


@pytest.mark.parametrize("knows", [NodeKnows.NOTHING, NodeKnows.ACCEPTED, NodeKnows.RUNNING])
def test_a_cancelling_run_is_never_started_again_but_cancelled(knows: NodeKnows) -> None:
    assert after(SENT, CANCEL, attached(knows)).effects == (SendCancel(),)


def test_a_bug_in_one_run_crashes_it_and_voids_it_on_the_node() -> None:
    outcome = after(SENT, STARTED, InternalFailure(detail="KeyError"))
    assert (outcome.run.state, outcome.run.cause) == (RunState.CRASHED, "internal_error")
    assert outcome.effects == (ForgetRun(),)


def test_dispatched_is_the_only_state_that_need_not_be_durable() -> None:
    assert not after(SENT).durable
    assert after(SENT, ACCEPTED).durable


def test_active_means_that_the_node_has_it() -> None:
    assert {after(SENT, ACCEPTED).run.state, after(SENT, STARTED).run.state} == set(ACTIVE_RUN_STATES)


@pytest.mark.parametrize("state", sorted(TERMINAL_RUN_STATES))
def test_our_own_code_cannot_leave_a_terminal_state(state: RunState) -> None:
    with pytest.raises(IllegalTransition, match=f"run may not go from {state}"):
        check_run_transition(state, RunState.RUNNING)


def test_a_run_that_was_never_sent_is_not_for_whoever_is_enrolled_under_the_nodes_name_since() -> None:
    pinned = replace(PENDING, agent_instance="i-1")
    run = handle(pinned, attached(NodeKnows.NOTHING, "i-2"), NOW).run
    assert (run.state, run.cause) == (RunState.UNAVAILABLE, "agent_replaced")
    outcome = handle(pinned, attached(NodeKnows.NOTHING, "i-1"), NOW)
    assert outcome.effects == (SendStart(),)


HELD = replace(PENDING, state=RunState.HELD, agent_instance="i-1")


@given(st.lists(heard | caused.filter(lambda event: not isinstance(event, Released)), max_size=8))
def test_a_held_run_is_moved_by_its_job_and_by_what_ends_it_alone(events: list[RunEvent]) -> None:
    run = HELD
    for event in events:
        outcome = handle(run, event, NOW + 10)
        if not run.is_terminal:
            assert SendStart() not in outcome.effects
            assert SendCancel() not in outcome.effects
        run = outcome.run
    ends = {RunState.SKIPPED, RunState.CANCELLED, RunState.UNAVAILABLE, RunState.CRASHED}
    assert run.state in {RunState.HELD} | ends
    assert (run.released_at, run.attempts, run.accepted_at, run.started_at) == (None, 0, None, None)


def test_a_released_run_counts_from_its_release_and_is_sent() -> None:
    outcome = handle(HELD, Released(), NOW + 500)
    assert (outcome.run.state, outcome.run.released_at) == (RunState.PENDING, NOW + 500)
    assert outcome.effects == (SendStart(),)
    assert outcome.durable


def test_a_held_run_that_is_cancelled_was_never_started() -> None:
    run = handle(HELD, CANCEL, NOW + 1).run
    assert (run.state, run.proof, run.cancel_reason) == (RunState.CANCELLED, ProofKind.NEVER_STARTED, "user/ops")


def test_a_run_that_is_not_released_ends_skipped_with_its_cause() -> None:
    run = handle(HELD, Skipped(cause="too_many_errors", detail="3 of 10 failed"), NOW + 1).run
    assert (run.state, run.cause, run.finished_at) == (RunState.SKIPPED, "too_many_errors", NOW + 1)


@pytest.mark.parametrize("event", [Released(), Skipped(cause="too_late")])
def test_a_run_that_was_released_is_neither_released_again_nor_skipped(event: RunEvent) -> None:
    run = after(SENT)
    assert handle(run.run, event, NOW + 1).run is run.run


def test_the_note_of_a_cancel_that_the_jobs_row_has_is_waited_for_by_nobody() -> None:
    running = after(SENT, ACCEPTED, STARTED).run
    assert handle(running, CancelAsked(by="user/ops"), NOW).durable
    assert not handle(running, CancelAsked(by="user/ops", is_stored=True), NOW).durable


LIVES: dict[str, tuple[RunEvent, ...]] = {
    "pending": (),
    "dispatched": (SENT,),
    "accepted": (SENT, ACCEPTED),
    "running": (SENT, ACCEPTED, STARTED),
    "unknown": (SENT, ACCEPTED, STARTED, SILENT),
    "cancelling": (SENT, ACCEPTED, STARTED, CANCEL),
}
NOTHING = NodeAttached(agent_instance="i-1", knows=NodeKnows.NOTHING)
VOIDED = reported(ReportOutcome.CANCELLED, exit_code=None, proof=ProofKind.NEVER_STARTED)


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("event", [NOTHING, ReconnectGraceOver(), VOIDED], ids=["nothing", "silent", "voided"])
def test_run_of_a_restored_store_that_the_node_does_not_know_has_crashed_by_the_restore(
    life: str, event: RunEvent
) -> None:
    outcome = after(*LIVES[life], StoreRestored(), event)
    assert (outcome.run.state, outcome.run.cause) == (RunState.CRASHED, STORE_RESTORED)
    assert SendStart() not in outcome.effects


@pytest.mark.parametrize("life", LIVES)
def test_run_of_a_restored_store_becomes_what_the_node_still_knows(life: str) -> None:
    knows = NodeAttached(agent_instance="i-1", knows=NodeKnows.RUNNING)
    assert after(*LIVES[life], StoreRestored(), knows).run.state is RunState.RUNNING
    assert after(*LIVES[life], StoreRestored(), reported()).run.state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    "event",
    [
        NodeRefused(kind=OrderKind.START, reason=RefusalReason.REPLAYED),
        OrderUnusable(),
        NodeHeard(),
        AcceptanceOver(),
        SILENT,
        StoreRestored(),
    ],
)
@pytest.mark.parametrize("life", LIVES)
def test_nothing_but_the_node_and_time_moves_a_run_of_a_restored_store(life: str, event: RunEvent) -> None:
    outcome = after(*LIVES[life], StoreRestored(), event)
    assert (outcome.run.state, outcome.run.cause) == (RunState.UNKNOWN, STORE_RESTORED)
    assert SendStart() not in outcome.effects


def test_held_run_of_a_restored_store_is_not_released_again() -> None:
    unknown = handle(HELD, StoreRestored(), NOW + 1).run
    assert unknown.state is RunState.UNKNOWN
    assert handle(unknown, Released(), NOW + 2).effects == ()
