"""The controller killed at any moment: every run still ends in one true state and was started at most once."""

from __future__ import annotations

import pytest
import trio

from lab.failpoint_store import FailpointStore
from lab.fake_agents import FakeAgent, Script
from lab.nursery_rig import OPERATOR, open_rig
from shovey_trio.core.jobs.model import ProofKind, StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.nursery.clock import TrioClock
from tests.nursery.conftest import assert_nothing_left, open_agents, until

OUTPUT = ((StreamName.STDOUT, b"one\n"), (StreamName.STDERR, b"two\n"), (StreamName.STDOUT, b"three\n"))
NAMES = ("a", "b", "c")


async def _first_life(store: FailpointStore, agents: dict[str, FakeAgent], steps: int, *, cancel_at: int = -1) -> bool:
    """Starts a job and kills the controller after so many steps of the loop; whether the caller had an answer."""
    answered = False
    clock = TrioClock()
    async with open_rig(store, clock=clock) as rig, trio.open_nursery() as callers:
        await rig.register(agents)
        for agent in agents.values():
            agent.connect(rig.inbox)

        async def operate() -> None:
            nonlocal answered
            job = await rig.start(*agents, request_id="once")
            answered = True
            if cancel_at >= 0:
                for _ in range(cancel_at):
                    await trio.lowlevel.checkpoint()
                await rig.jobs.cancel(OPERATOR, job.id, [])

        callers.start_soon(operate)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        rig.crash(agents.values())
    return answered


async def _second_life(store: FailpointStore, agents: dict[str, FakeAgent], *, away: float = 5.0) -> None:
    """Starts the controller again; when this returns every job has ended."""
    await trio.sleep(away)
    async with open_rig(store, clock=TrioClock()) as rig:
        handles = list(rig.supervisor.live_jobs())
        for agent in agents.values():
            agent.connect(rig.inbox)
        for handle in handles:
            await handle.ended.wait()
        assert_nothing_left(rig)


async def _output(store: FailpointStore, run_id: str) -> bytes:
    return b"".join(chunk.data for chunk in await store.read_output(run_id, stream=None, offset=0, limit=1000))


@pytest.mark.parametrize("steps", range(60))
async def test_killed_at_any_step_a_job_completes_in_the_next_life(steps: int, autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_agents(NAMES, script=Script(output=OUTPUT)) as agents:
        answered = await _first_life(store, agents, steps)
        await _second_life(store, agents)
        jobs = list(store._jobs.values())
        assert len(jobs) == 1 or (not jobs and not answered), "what was answered is durable"
        for stored in jobs:
            assert stored.job.state is JobState.COMPLETE
            for run in stored.runs.values():
                assert run.state is RunState.SUCCEEDED, run
                assert await _output(store, run.id) == b"one\ntwo\nthree\n"
        for agent in agents.values():
            assert agent.starts.total() == len(jobs)
            assert agent.spool == {}, "every report was confirmed"


@pytest.mark.parametrize("cancel_at", [0, 3, 10, 20])
@pytest.mark.parametrize("steps", range(0, 70, 3))
async def test_killed_in_the_middle_of_a_cancel_no_job_is_half_cancelled(
    steps: int, cancel_at: int, autojump_clock: object
) -> None:
    store = FailpointStore()
    async with open_agents(NAMES, script=Script(run_for=3000, output=OUTPUT)) as agents:
        await _first_life(store, agents, steps, cancel_at=cancel_at)
        asked = [stored.job.cancel_requested for stored in store._jobs.values()]
        await _second_life(store, agents)
        for stored, cancelled in zip(store._jobs.values(), asked, strict=True):
            states = {run.state for run in stored.runs.values()}
            assert states == ({RunState.CANCELLED} if cancelled else {RunState.TIMED_OUT}), stored.runs
            assert stored.job.state is (JobState.CANCELLED if cancelled else JobState.TIMED_OUT)
            for run in stored.runs.values():
                if run.proof is ProofKind.NEVER_STARTED:
                    assert not agents[run.node].starts[run.id]
        assert all(agent.starts.total() <= 1 for agent in agents.values())


async def test_a_controller_that_was_away_for_long_does_not_take_its_absence_for_the_nodes_silence(
    autojump_clock: object,
) -> None:
    store = FailpointStore()
    async with open_agents(NAMES, script=Script(run_for=50, output=OUTPUT)) as agents:
        await _first_life(store, agents, 200)
        await _second_life(store, agents, away=2_000)
        [stored] = store._jobs.values()
        assert {run.state for run in stored.runs.values()} == {RunState.SUCCEEDED}


async def test_an_unknown_run_has_its_grace_from_when_the_controller_can_hear_again(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_agents(("a",), script=Script(run_for=50)) as agents:
        async with open_rig(store, clock=TrioClock()) as rig:
            await rig.register(agents)
            agents["a"].connect(rig.inbox)
            job = await rig.start("a")
            await until(lambda: rig.live_run(job.id, "a").state is RunState.RUNNING)
            agents["a"].disconnect()
            await until(lambda: rig.live_run(job.id, "a").state is RunState.UNKNOWN)
        await _second_life(store, agents, away=1_500)
        [stored] = store._jobs.values()
        assert stored.runs["a"].state is RunState.SUCCEEDED


async def test_a_run_that_may_have_been_sent_before_the_stop_is_not_called_unavailable(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_agents(("a",)) as agents:
        async with open_rig(store, clock=TrioClock()) as rig:
            await rig.register(agents)
            job = await rig.start("a")
        async with open_rig(store, clock=TrioClock()) as rig:
            await trio.sleep(62)
            assert rig.live_run(job.id, "a").state is RunState.UNKNOWN
            agents["a"].connect(rig.inbox)
            assert (await rig.ended(job.id)).state is JobState.COMPLETE
            run = await rig.run(job.id, "a")
            assert (run.state, run.cause) == (RunState.UNAVAILABLE, "not_accepted"), (
                "its node has said that it has none"
            )
            assert agents["a"].orders == []
