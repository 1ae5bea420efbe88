"""Runs that their job holds back: nothing is sent before the release, and all their times count from it."""

from __future__ import annotations

from dataclasses import replace

import trio

from lab.failpoint_store import FailpointStore
from lab.fake_agents import FakeAgent, Script
from lab.nursery_rig import NurseryRig, open_rig
from shovey_trio.core.jobs.events import Released, Skipped
from shovey_trio.core.jobs.model import Job, Run
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.nursery.clock import TrioClock
from shovey_trio.store.contract import CreatedJob
from tests.nursery.conftest import until

NAMES = ("a", "b")


async def _launch_held(rig: NurseryRig, *names: str) -> Job:
    """A job whose runs are all held, as a rollout will make them."""
    launch = rig.supervisor.launch

    async def held(job: Job, runs: list[Run], *rest: object, **options: object) -> CreatedJob:
        waiting = [replace(run, state=RunState.HELD, released_at=None) for run in runs]
        return await launch(job, waiting, *rest, **options)  # type: ignore[arg-type]  # passed on as they came

    rig.supervisor.launch = held  # type: ignore[method-assign, assignment]  # the one difference to a job of today
    try:
        return await rig.start(*names)
    finally:
        rig.supervisor.launch = launch  # type: ignore[method-assign]


async def _connected(rig: NurseryRig, nursery: trio.Nursery, clock: TrioClock) -> dict[str, FakeAgent]:
    agents = {name: FakeAgent(name, clock=clock, script=Script(run_for=1)) for name in NAMES}
    await rig.register(NAMES)
    for agent in agents.values():
        nursery.start_soon(agent.serve)
        agent.connect(rig.inbox)
    return agents


async def test_a_held_run_is_not_sent_and_expires_never_and_a_released_one_has_all_its_time(
    autojump_clock: object,
) -> None:
    clock = TrioClock()
    async with trio.open_nursery() as nursery, open_rig(FailpointStore(), clock=clock) as rig:
        agents = await _connected(rig, nursery, clock)
        job = await _launch_held(rig, *NAMES)
        # Far longer than an order lives, and than a silent node is waited for; streams come and go meanwhile.
        for agent in agents.values():
            agent.disconnect()
        await trio.sleep(5_000)
        for agent in agents.values():
            agent.connect(rig.inbox)
        await trio.sleep(5_000)
        assert [agent.orders for agent in agents.values()] == [[], []]
        assert {rig.live_run(job.id, name).state for name in NAMES} == {RunState.HELD}
        live = rig.supervisor.job(job.id)
        assert live is not None
        released = clock.now()
        await live.runs["a"].post(Released())
        await until(lambda: rig.live_run(job.id, "a").is_terminal)
        run = await rig.run(job.id, "a")
        assert (run.state, run.released_at) == (RunState.SUCCEEDED, released)
        [order] = agents["a"].orders
        assert order.expires_at >= released + 60
        await live.runs["b"].post(Skipped(cause="max_errors"))
        ended = await rig.ended(job.id)
        assert ended.state is JobState.COMPLETE
        assert (await rig.run(job.id, "b")).state is RunState.SKIPPED
        assert agents["b"].orders == []
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_released_run_whose_node_does_not_answer_waits_from_its_release(autojump_clock: object) -> None:
    clock = TrioClock()
    async with open_rig(FailpointStore(), clock=clock) as rig:
        await rig.register(["a"])
        job = await _launch_held(rig, "a")
        await trio.sleep(1_000)
        live = rig.supervisor.job(job.id)
        assert live is not None
        await live.runs["a"].post(Released())
        released = clock.now()
        await rig.ended(job.id)
        run = await rig.run(job.id, "a")
        assert (run.state, run.cause) == (RunState.UNAVAILABLE, "no_route")
        assert run.finished_at is not None
        assert 60 <= run.finished_at - released <= 62


async def test_restart_does_not_take_a_held_run_for_a_sent_one(autojump_clock: object) -> None:
    clock, store = TrioClock(), FailpointStore()
    async with trio.open_nursery() as nursery:
        async with open_rig(store, clock=clock) as rig:
            agents = await _connected(rig, nursery, clock)
            job = await _launch_held(rig, *NAMES)
            rig.crash(agents.values())
        await trio.sleep(1_000)
        async with open_rig(store, clock=clock) as rig:
            for agent in agents.values():
                agent.connect(rig.inbox)
            await trio.sleep(1_000)
            for name in NAMES:
                run = rig.live_run(job.id, name)
                assert (run.state, run.attempts, run.order_expires_at) == (RunState.HELD, 0, None)
            assert [agent.orders for agent in agents.values()] == [[], []]
            live = rig.supervisor.job(job.id)
            assert live is not None
            for held in live.runs.values():
                await held.post(Released())
            await rig.ended(job.id)
            for name in NAMES:
                assert (await rig.run(job.id, name)).state is RunState.SUCCEEDED
            assert [len(agent.orders) for agent in agents.values()] == [1, 1]
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_cancel_of_a_job_whose_runs_are_held_ends_them_at_once_across_a_restart(autojump_clock: object) -> None:
    clock, store = TrioClock(), FailpointStore()
    async with open_rig(store, clock=clock) as rig:
        await rig.register(NAMES)
        job = await _launch_held(rig, *NAMES)
        live = rig.supervisor.job(job.id)
        assert live is not None
        # The job's own note alone: as if the power failed behind the first commit of the cancel.
        await store.write_job(replace(live.job, cancel_requested=True))
        rig.crash()
    async with open_rig(store, clock=clock) as rig:
        await rig.ended(job.id)
        assert {(await rig.run(job.id, name)).state for name in NAMES} == {RunState.CANCELLED}
