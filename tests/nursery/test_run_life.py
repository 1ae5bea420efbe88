"""A run's whole life on virtual time, once for every end it can have."""

from __future__ import annotations

import pytest
import trio

from lab.fake_agents import OnCancel, Script
from lab.nursery_rig import OPERATOR
from shovey_trio.core.jobs.events import NodeReported, ReportOutcome, RunReport
from shovey_trio.core.jobs.model import ProofKind, Run, StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.core.trust.orders import OrderKind, RefusalReason
from shovey_trio.nursery.ports import SendForget, SendOrder, SendReportDurable
from shovey_trio.nursery.route import STREAM
from tests.nursery.conftest import Fleet, open_fleet, until

FOREVER = Script(run_for=None)


async def _play(script: Script, run_timeout: float = 60.0) -> Run:
    async with open_fleet("n", script=script) as fleet:
        job = await fleet.rig.start("n", run_timeout=run_timeout)
        await fleet.rig.ended(job.id)
        return await fleet.rig.run(job.id, "n")


# --- by itself --------------------------------------------------------------------------------------------------


async def test_an_exit_of_zero_succeeds_with_every_time_noted(autojump_clock: object) -> None:
    run = await _play(Script(accept_after=1, run_for=5))
    assert (run.state, run.exit_code, run.route, run.attempts) == (RunState.SUCCEEDED, 0, STREAM, 1)
    assert run.dispatched_at == run.created_at
    times = [run.accepted_at, run.started_at, run.finished_at]
    assert times == pytest.approx([run.created_at + 1, run.created_at + 2, run.created_at + 7])


async def test_another_exit_code_fails(autojump_clock: object) -> None:
    run = await _play(Script(exit_code=7))
    assert (run.state, run.exit_code, run.cause) == (RunState.FAILED, 7, "exited")


async def test_a_signal_fails_as_signalled(autojump_clock: object) -> None:
    run = await _play(Script(exit_code=None, signal=11))
    assert (run.state, run.signal, run.cause) == (RunState.FAILED, 11, "signalled")


async def test_the_nodes_own_deadline_times_out(autojump_clock: object) -> None:
    script = Script(outcome=ReportOutcome.TIMED_OUT, exit_code=None, signal=15, proof=ProofKind.EMPTY_CGROUP)
    async with open_fleet("n", script=script) as fleet:
        job = await fleet.rig.start("n")
        ended = await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
    assert (run.state, run.proof) == (RunState.TIMED_OUT, ProofKind.EMPTY_CGROUP)
    assert (ended.state, ended.cause) == (JobState.TIMED_OUT, "run_timeout")


@pytest.mark.parametrize(
    ("reason", "state"),
    [(RefusalReason.NOT_WHITELISTED, RunState.NACKED), (RefusalReason.UNSUPPORTED_FIELD, RunState.INVALID)],
)
async def test_a_refused_order_ends_the_run_with_the_nodes_reason(
    reason: RefusalReason, state: RunState, autojump_clock: object
) -> None:
    run = await _play(Script(refuse=reason))
    assert (run.state, run.cause) == (state, reason)


# --- not reached ------------------------------------------------------------------------------------------------


async def test_a_node_that_is_down_is_unavailable_in_the_first_commit(autojump_clock: object) -> None:
    async with open_fleet("up", "down", connected=False) as fleet:
        await fleet.rig.register(["down"], up=False)
        fleet.agents["up"].connect()
        job = await fleet.rig.start("up", "down", quorum="1")
        assert (await fleet.rig.run(job.id, "down")).state is RunState.UNAVAILABLE
        assert (await fleet.rig.ended(job.id)).state is JobState.COMPLETE
        assert (await fleet.rig.run(job.id, "down")).cause == "node_down"


async def test_without_a_stream_a_run_is_unavailable_when_the_acceptance_time_is_over(autojump_clock: object) -> None:
    async with open_fleet("n", connected=False) as fleet:
        job = await fleet.rig.start("n")
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.cause, run.attempts) == (RunState.UNAVAILABLE, "no_route", 0)
        assert run.finished_at == pytest.approx(job.created_at + 61)


async def test_a_node_that_never_answers_is_unknown_and_then_crashed(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(silent=True)) as fleet:
        job = await fleet.rig.start("n")
        run = await fleet.until(job.id, "n", RunState.UNKNOWN)
        assert run.cause == "not_confirmed"
        assert run.unknown_since == pytest.approx(job.created_at + 61)
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.cause) == (RunState.CRASHED, "node_lost")
        assert run.finished_at == pytest.approx(job.created_at + 61 + 900)


async def test_a_node_that_comes_back_without_the_expired_order_is_unavailable(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(silent=True)) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.UNKNOWN)
        await _reconnect(fleet)
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.cause) == (RunState.UNAVAILABLE, "not_accepted")


# --- the controller's deadline ----------------------------------------------------------------------------------


async def test_an_overdue_run_is_ended_by_the_controller_and_timed_out(autojump_clock: object) -> None:
    async with open_fleet("n", script=FOREVER) as fleet:
        job = await fleet.rig.start("n", run_timeout=60)
        ended = await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.cause, run.proof) == (RunState.TIMED_OUT, "overdue", ProofKind.EMPTY_SUBREAPER)
        assert run.finished_at == pytest.approx(job.created_at + 60 + 10 + 30, abs=0.1)
        assert ended.state is JobState.TIMED_OUT


@pytest.mark.parametrize("cancelled_by_operator", [False, True])
async def test_a_node_that_will_not_end_its_run_is_no_longer_believed(
    cancelled_by_operator: bool, autojump_clock: object
) -> None:
    async with open_fleet("n", script=Script(run_for=None, on_cancel=OnCancel.IGNORE)) as fleet:
        job = await fleet.rig.start("n", run_timeout=60)
        await fleet.until(job.id, "n", RunState.RUNNING)
        if cancelled_by_operator:
            await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        run = await fleet.until(job.id, "n", RunState.UNKNOWN)
        assert (run.cause, run.cancelling) == ("overdue", True)
        assert run.unknown_since == pytest.approx(job.created_at + 100 + 40, abs=0.1)
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "n")).state is RunState.CRASHED


# --- cancel -----------------------------------------------------------------------------------------------------


async def test_a_cancel_before_sending_ends_the_run_and_no_order_goes_out_later(autojump_clock: object) -> None:
    async with open_fleet("n", connected=False) as fleet:
        job = await fleet.rig.start("n")
        cancelled = await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        assert (cancelled.cancelling, cancelled.already_finished) == (("n",), ())
        ended = await fleet.rig.ended(job.id)
        fleet.agents["n"].connect()
        await trio.sleep(100)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.proof, run.attempts) == (RunState.CANCELLED, ProofKind.NEVER_STARTED, 0)
        assert ended.state is JobState.CANCELLED
        assert fleet.agents["n"].orders == []


async def test_a_cancel_of_a_dispatched_run_voids_the_order_on_the_node(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(accept_after=30)) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.DISPATCHED)
        await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.proof) == (RunState.CANCELLED, ProofKind.NEVER_STARTED)
        await trio.sleep(100)
        assert not fleet.agents["n"].starts


async def test_a_cancelling_run_is_not_cancelled_before_the_proof(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=None, on_cancel=OnCancel.IGNORE)) as fleet:
        job = await fleet.rig.start("n", run_timeout=1000)
        await fleet.until(job.id, "n", RunState.RUNNING)
        await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        stored = await fleet.rig.run(job.id, "n")
        assert (stored.state, stored.cancelling, stored.cancel_reason) == (RunState.RUNNING, True, "user/ops")
        await trio.sleep(100)
        assert fleet.rig.live_run(job.id, "n").state is RunState.RUNNING
        assert len(fleet.agents["n"].orders_of(OrderKind.CANCEL)) >= 5, "asked again and again"
        fleet.agents["n"].script = FOREVER
        assert (await fleet.rig.ended(job.id)).state is JobState.CANCELLED
        assert (await fleet.rig.run(job.id, "n")).proof is ProofKind.EMPTY_SUBREAPER


async def test_a_cancel_without_proof_is_crashed(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=None, on_cancel=OnCancel.CANNOT_PROVE)) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.RUNNING)
        await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.cause) == (RunState.CRASHED, "supervisor_lost")


async def test_a_cancel_of_some_nodes_leaves_the_others_and_the_job_complete(autojump_clock: object) -> None:
    async with open_fleet("a", "b", script=Script(run_for=50)) as fleet:
        job = await fleet.rig.start("a", "b")
        await fleet.until(job.id, "b", RunState.RUNNING)
        await fleet.rig.jobs.cancel(OPERATOR, job.id, ["a"])
        ended = await fleet.rig.ended(job.id)
        assert ended.run_counts == {RunState.CANCELLED: 1, RunState.SUCCEEDED: 1}
        assert (ended.state, ended.cancel_requested) == (JobState.COMPLETE, False)


async def test_a_cancel_after_the_end_says_so(autojump_clock: object) -> None:
    async with open_fleet("a", "b", script=Script(run_for=50)) as fleet:
        fleet.agents["a"].script = Script()
        job = await fleet.rig.start("a", "b")
        await fleet.until(job.id, "a", RunState.SUCCEEDED)
        await fleet.until(job.id, "b", RunState.RUNNING)
        cancelled = await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        assert (cancelled.cancelling, cancelled.already_finished) == (("b",), ("a",))
        await fleet.rig.ended(job.id)
        again = await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        assert (again.cancelling, again.already_finished) == ((), ("a", "b"))


@pytest.mark.parametrize("steps", range(40))
async def test_a_cancel_that_races_with_start_and_exit_ends_in_one_true_state(
    steps: int, autojump_clock: object
) -> None:
    async with open_fleet("n", script=Script(run_for=0)) as fleet:
        job = await fleet.rig.start("n")
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        cancelled = await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        ended = await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert run.state in (RunState.CANCELLED, RunState.SUCCEEDED)
        assert (run.state is RunState.CANCELLED) is (ended.state is JobState.CANCELLED)
        if cancelled.already_finished:
            assert run.state is RunState.SUCCEEDED
        if run.proof is ProofKind.NEVER_STARTED:
            assert not fleet.agents["n"].starts


@pytest.mark.parametrize("late", [-0.02, -0.01, 0.0, 0.01, 0.02])
async def test_a_cancel_that_races_with_the_deadline_ends_in_one_true_state(
    late: float, autojump_clock: object
) -> None:
    async with open_fleet("n", script=FOREVER) as fleet:
        job = await fleet.rig.start("n", run_timeout=60)
        await trio.sleep(100 + late)
        await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert run.state in (RunState.CANCELLED, RunState.TIMED_OUT)
        assert (run.cancel_reason == "timeout") is (run.state is RunState.TIMED_OUT)


# --- unknown ----------------------------------------------------------------------------------------------------


async def test_a_lost_stream_makes_a_run_unknown_since_it_broke_and_its_return_heals_it(
    autojump_clock: object,
) -> None:
    async with open_fleet("n", script=Script(run_for=500)) as fleet:
        job = await fleet.rig.start("n", run_timeout=1000)
        await fleet.until(job.id, "n", RunState.RUNNING)
        broke_at = fleet.clock.now()
        fleet.agents["n"].disconnect()
        await trio.sleep(14)
        assert fleet.rig.live_run(job.id, "n").state is RunState.RUNNING
        run = await fleet.until(job.id, "n", RunState.UNKNOWN)
        assert run.cause == "stream_lost"
        assert run.unknown_since == pytest.approx(broke_at, abs=0.1)
        assert fleet.clock.now() < broke_at + 17
        fleet.agents["n"].connect()
        run = await fleet.until(job.id, "n", RunState.RUNNING)
        assert (run.cause, run.unknown_since) == ("", None)
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "n")).state is RunState.SUCCEEDED
        assert fleet.agents["n"].starts.total() == 1


async def test_a_run_that_ended_while_unknown_is_healed_by_its_report(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=100, output=((StreamName.STDOUT, b"x" * 1000),))) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.RUNNING)
        fleet.agents["n"].disconnect()
        await trio.sleep(500)
        assert fleet.rig.live_run(job.id, "n").state is RunState.UNKNOWN
        fleet.agents["n"].connect()
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.unknown_since) == (RunState.SUCCEEDED, None)
        assert run.finished_at == pytest.approx(job.created_at + 100, abs=0.1)


async def test_silence_beyond_the_grace_is_crashed_and_the_late_report_is_kept(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=100, exit_code=4)) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.RUNNING)
        fleet.agents["n"].disconnect()
        await fleet.rig.ended(job.id)
        assert fleet.clock.now() == pytest.approx(job.created_at + 900, abs=0.1)
        for _ in range(2):
            fleet.agents["n"].connect()
            await until(lambda: not fleet.agents["n"].spool)
            run = await fleet.rig.run(job.id, "n")
            assert (run.state, run.cause, run.exit_code) == (RunState.CRASHED, "node_lost", None)
            assert run.late_report is not None
            assert (run.late_report.state, run.late_report.exit_code) == (RunState.FAILED, 4)


async def test_a_replaced_agent_crashes_its_runs(autojump_clock: object) -> None:
    async with open_fleet("n", script=FOREVER) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.RUNNING)
        fleet.agents["n"].instance = "instance-2"
        fleet.agents["n"].spool.clear()
        await _reconnect(fleet)
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.cause) == (RunState.CRASHED, "agent_replaced")


async def test_a_run_that_the_node_lost_is_crashed(autojump_clock: object) -> None:
    async with open_fleet("n", script=FOREVER) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.RUNNING)
        fleet.agents["n"].spool.clear()
        await _reconnect(fleet)
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.state, run.cause) == (RunState.CRASHED, "run_lost_by_node")


# --- what goes to the node --------------------------------------------------------------------------------------


async def test_an_order_that_was_lost_with_its_stream_is_sent_again_with_the_same_nonce(
    autojump_clock: object,
) -> None:
    async with open_fleet("n", script=Script(silent=True)) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.DISPATCHED)
        await until(lambda: bool(fleet.agents["n"].orders))
        fleet.agents["n"].script = Script()
        await _reconnect(fleet)
        await fleet.rig.ended(job.id)
        orders = fleet.agents["n"].orders_of(OrderKind.START)
        assert len(orders) >= 2
        assert {order.nonce for order in orders} == {(await fleet.rig.run(job.id, "n")).nonce}
        assert len({order.expires_at for order in orders}) == 1, "sending again does not prolong the acceptance"
        assert (await fleet.rig.run(job.id, "n")).state is RunState.SUCCEEDED
        assert fleet.agents["n"].starts.total() == 1


async def test_the_report_is_confirmed_again_when_the_confirmation_was_lost(autojump_clock: object) -> None:
    async with open_fleet("n") as fleet:
        agent = fleet.agents["n"]
        job = await fleet.rig.start("n")
        run = await fleet.rig.run(job.id, "n")
        await fleet.rig.ended(job.id)
        await until(lambda: not agent.spool)
        agent.messages.clear()
        link = agent.link
        assert link is not None
        report = RunReport(run_id=run.id, outcome=ReportOutcome.EXITED, exit_code=0)
        await fleet.rig.inbox.said(link, run.id, NodeReported(report=report))
        await until(lambda: bool(agent.messages))
        assert agent.messages == [SendReportDurable(run_id=run.id)]
        assert (await fleet.rig.run(job.id, "n")).late_report is None


async def test_what_a_node_says_of_runs_that_are_not_its_own_changes_nothing(autojump_clock: object) -> None:
    async with open_fleet("a", "b", script=FOREVER) as fleet:
        job = await fleet.rig.start("a")
        run = await fleet.until(job.id, "a", RunState.RUNNING)
        await until(lambda: fleet.agents["b"].link is not None)
        link = fleet.agents["b"].link
        assert link is not None
        report = RunReport(run_id=run.id, outcome=ReportOutcome.EXITED, exit_code=0)
        await fleet.rig.inbox.said(link, run.id, NodeReported(report=report))
        assert await fleet.rig.inbox.positions(link, [run.id, "no such run"]) == {}
        await fleet.rig.inbox.said(link, "no such run", NodeReported(report=report))
        await until(lambda: bool(fleet.agents["b"].messages))
        assert fleet.agents["b"].messages == [SendForget(run_id="no such run")]
        assert fleet.rig.live_run(job.id, "a").state is RunState.RUNNING
        await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        await fleet.rig.ended(job.id)
        await fleet.rig.inbox.said(link, run.id, NodeReported(report=report))
        assert (await fleet.rig.run(job.id, "a")).late_report is None
        assert await fleet.rig.inbox.positions(link, [run.id]) == {}


async def test_orders_name_the_node_the_instance_and_the_epoch(autojump_clock: object) -> None:
    async with open_fleet("n") as fleet:
        job = await fleet.rig.start("n", run_timeout=33, kill_grace=4)
        await fleet.rig.ended(job.id)
        [order] = fleet.agents["n"].orders
        assert (order.node, order.agent_instance, order.epoch) == ("n", "instance-1", fleet.rig.services.epoch)
        assert (order.run_timeout, order.kill_grace, order.command) == (33, 4, "work")
        assert isinstance(fleet.agents["n"].messages[0], SendOrder)


async def _reconnect(fleet: Fleet, node: str = "n") -> None:
    fleet.agents[node].disconnect()
    await until(lambda: fleet.agents[node].link is None)
    fleet.agents[node].connect()
