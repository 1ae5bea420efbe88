"""What is written down as a bound is one."""

from __future__ import annotations

import pytest
import trio

from lab.failpoint_store import FailpointStore
from lab.fake_agents import Script
from shovey_trio.core.errors import Draining, Overloaded, RequestIdReused
from shovey_trio.core.jobs.model import Job
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.nursery.settings import Bounds
from tests.nursery.conftest import open_fleet


async def test_calls_that_come_together_do_not_pass_the_bound_of_live_jobs(autojump_clock: object) -> None:
    bounds = Bounds(live_jobs=3)
    async with open_fleet("n", bounds=bounds, script=Script(run_for=10)) as fleet:
        started: list[Job] = []
        refused: list[Overloaded] = []

        async def start() -> None:
            try:
                started.append(await fleet.rig.start("n"))
            except Overloaded as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(start)
        assert (len(started), len(refused)) == (3, 17)
        assert {error.details["limit"] for error in refused} == {"live_jobs"}
        assert all(int(error.details["retry_after_s"]) > 0 for error in refused)
        for job in started:
            await fleet.rig.ended(job.id)
        assert (await fleet.rig.ended((await fleet.rig.start("n")).id)).state is JobState.COMPLETE


async def test_ended_runs_of_a_live_job_count_until_the_job_has_ended(autojump_clock: object) -> None:
    async with open_fleet("a", "b", "c", bounds=Bounds(live_runs=3)) as fleet:
        fleet.agents["a"].script = Script(run_for=10)
        job = await fleet.rig.start("a", "b")
        await fleet.until(job.id, "b", RunState.SUCCEEDED)
        with pytest.raises(Overloaded) as caught:
            await fleet.rig.start("b", "c")
        assert caught.value.details["limit"] == "live_runs"
        assert (await fleet.rig.start("c")).state is JobState.RUNNING
        await fleet.rig.ended(job.id)
        await trio.sleep(1)
        await fleet.rig.ended((await fleet.rig.start("a", "b", "c")).id)


async def test_a_job_that_could_not_be_stored_takes_no_room(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", store=store, bounds=Bounds(live_jobs=1, live_runs=1)) as fleet:
        store.fail("the disk is full")
        for _ in range(3):
            with pytest.raises(Exception, match="the disk is full"):
                await fleet.rig.start("n")
        store.heal()
        await fleet.rig.ended((await fleet.rig.start("n")).id)


async def test_the_same_request_twice_is_one_job(autojump_clock: object) -> None:
    async with open_fleet("n") as fleet:
        first = await fleet.rig.start("n", request_id="once")
        await fleet.rig.ended(first.id)
        assert (await fleet.rig.start("n", request_id="once")).id == first.id
        assert fleet.agents["n"].starts.total() == 1
        assert len(fleet.rig.supervisor) == 0


async def test_the_same_request_gets_its_job_where_no_new_one_would_be_taken(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=10), bounds=Bounds(live_jobs=1)) as fleet:
        first = await fleet.rig.start("n", request_id="once")
        with pytest.raises(Overloaded):
            await fleet.rig.start("n", request_id="another")
        assert (await fleet.rig.start("n", request_id="once")).id == first.id
        with pytest.raises(RequestIdReused):
            await fleet.rig.start("n", request_id="once", run_timeout=5)
        fleet.rig.supervisor.draining = True
        assert (await fleet.rig.start("n", request_id="once")).id == first.id
        await fleet.rig.ended(first.id)
        assert fleet.agents["n"].starts.total() == 1


async def test_a_controller_that_drains_takes_no_jobs_and_leaves_those_it_has(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=10)) as fleet:
        job = await fleet.rig.start("n")
        fleet.rig.supervisor.draining = True
        with pytest.raises(Draining):
            await fleet.rig.start("n")
        assert (await fleet.rig.ended(job.id)).state is JobState.COMPLETE


async def test_without_its_quorum_nothing_is_sent(autojump_clock: object) -> None:
    async with open_fleet("a", "b", connected=False) as fleet:
        await fleet.rig.register(["b"], up=False)
        fleet.agents["a"].connect()
        job = await fleet.rig.start("a", "b", quorum="2")
        assert (job.state, job.detail) == (JobState.QUORUM_FAILED, "1 of 2 nodes are up, 2 needed")
        assert {(await fleet.rig.run(job.id, name)).state for name in "ab"} == {RunState.UNAVAILABLE}
        await trio.sleep(100)
        assert fleet.agents["a"].orders == []
