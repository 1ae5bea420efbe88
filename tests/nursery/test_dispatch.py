"""Reaching nodes: their stream at once, else their doorbell, rung for all of a job together."""

from __future__ import annotations

import pytest
import trio

from lab.fake_agents import FakeAgent, Script
from lab.fake_doorbell import FakeDoorbell
from lab.nursery_rig import OPERATOR
from shovey_trio.core.jobs.model import LinkMode
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.orders import OrderKind
from shovey_trio.nursery.route import DOORBELL, STREAM
from tests.nursery.conftest import Fleet, open_fleet, until

ON_DEMAND = LinkMode.ON_DEMAND


def _listen(doorbell: FakeDoorbell, *agents: FakeAgent) -> None:
    for agent in agents:
        doorbell.set_member("default", agent.node, "alive")
        doorbell.on_ring("default", agent.node, agent.connect)


async def _rung(doorbell: FakeDoorbell, count: int) -> None:
    await until(lambda: len(doorbell.rings) >= count)


async def test_an_attached_node_gets_its_order_at_once_and_is_not_rung(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("n", doorbell=doorbell) as fleet:
        _listen(doorbell, fleet.agents["n"])
        await until(lambda: fleet.agents["n"].link is not None)
        job = await fleet.rig.start("n")
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert (run.route, run.attempts) == (STREAM, 1)
        assert run.finished_at == pytest.approx(run.created_at)
        assert doorbell.rings == []
        assert len(fleet.agents["n"].orders) == 1


async def test_one_query_rings_all_nodes_of_a_job_that_are_away(autojump_clock: object) -> None:
    doorbell, names = FakeDoorbell(), [f"n{number:03}" for number in range(200)]
    async with open_fleet(*names, doorbell=doorbell, mode=ON_DEMAND, connected=False) as fleet:
        _listen(doorbell, *fleet.agents.values())
        job = await fleet.rig.start(*names)
        assert (await fleet.rig.ended(job.id)).run_counts == {RunState.SUCCEEDED: 200}
        [ring] = doorbell.rings
        assert (ring.job_id, ring.nodes) == (job.id, tuple(names))
        assert {(await fleet.rig.run(job.id, name)).route for name in names} == {DOORBELL}
        assert sorted(doorbell.came) == names
        assert all(len(agent.orders) == 1 for agent in fleet.agents.values()), "no order is sent twice"


async def test_each_job_rings_for_itself(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("a", "b", doorbell=doorbell, mode=ON_DEMAND, connected=False) as fleet:
        _listen(doorbell, *fleet.agents.values())
        jobs = [await fleet.rig.start("a"), await fleet.rig.start("b")]
        await _rung(doorbell, 2)
        assert {(ring.job_id, ring.nodes) for ring in doorbell.rings} == {(jobs[0].id, ("a",)), (jobs[1].id, ("b",))}
        for job in jobs:
            await fleet.rig.ended(job.id)


async def test_silent_nodes_are_rung_three_times_each_time_by_one_query(autojump_clock: object) -> None:
    doorbell, names = FakeDoorbell(), [f"n{number:02}" for number in range(50)]
    async with open_fleet(*names, doorbell=doorbell, mode=ON_DEMAND, connected=False) as fleet:
        for name in names:
            doorbell.set_member("default", name, "alive")
        came = fleet.agents["n07"]
        doorbell.on_ring("default", "n07", came.connect)
        job = await fleet.rig.start(*names)
        ended = await fleet.rig.ended(job.id)
        assert ended.run_counts == {RunState.SUCCEEDED: 1, RunState.UNAVAILABLE: 49}
        assert [len(ring.nodes) for ring in doorbell.rings] == [50, 49, 49], "only those that have not come"
        first, second, third = (ring.at for ring in doorbell.rings)
        assert 5 <= second - first <= 7.6
        assert 10 <= third - second <= 15.1


async def test_a_node_that_comes_late_gets_its_order(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("n", doorbell=doorbell, mode=ON_DEMAND, connected=False) as fleet:
        doorbell.set_member("default", "n", "alive")
        job = await fleet.rig.start("n")
        await trio.sleep(58)
        fleet.agents["n"].connect()
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "n")).state is RunState.SUCCEEDED


async def test_serf_being_away_costs_a_ring_not_the_run(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    doorbell.unavailable = "serf restarts"
    async with open_fleet("n", doorbell=doorbell, mode=ON_DEMAND, connected=False) as fleet:
        _listen(doorbell, fleet.agents["n"])
        job = await fleet.rig.start("n")
        await trio.sleep(3)
        doorbell.unavailable = ""
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "n")).state is RunState.SUCCEEDED
        assert len(doorbell.rings) == 1


async def test_a_node_that_breaks_off_before_it_answered_is_rung_again(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("n", doorbell=doorbell, mode=ON_DEMAND, connected=False, script=Script(silent=True)) as fleet:
        agent = fleet.agents["n"]
        _listen(doorbell, agent)
        job = await fleet.rig.start("n")
        await until(lambda: bool(agent.orders))
        agent.script = Script()
        agent.disconnect()
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "n")).state is RunState.SUCCEEDED
        assert len({order.nonce for order in agent.orders}) == 1
        assert len(doorbell.rings) == 2


async def test_a_cancelled_run_gets_no_start_order_when_its_node_comes(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(silent=True)) as fleet:
        job = await fleet.rig.start("n")
        await until(lambda: bool(fleet.agents["n"].orders))
        fleet.agents["n"].disconnect()
        await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        fleet.agents["n"].orders.clear()
        fleet.agents["n"].script = Script()
        fleet.agents["n"].connect()
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "n")).state is RunState.CANCELLED
        assert fleet.agents["n"].orders_of(OrderKind.START) == []
        assert not fleet.agents["n"].starts


async def test_a_cancel_rings_a_node_that_is_away(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet(
        "n", doorbell=doorbell, mode=ON_DEMAND, connected=False, script=Script(run_for=None)
    ) as fleet:
        _listen(doorbell, fleet.agents["n"])
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.RUNNING)
        fleet.agents["n"].disconnect()
        await until(lambda: fleet.agents["n"].link is None)
        await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "n")).state is RunState.CANCELLED
        assert len(doorbell.rings) == 2


async def test_an_agent_on_demand_leaves_when_it_has_nothing_to_do_though_its_job_goes_on(
    autojump_clock: object,
) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("quick", "slow", doorbell=doorbell, mode=ON_DEMAND, connected=False) as fleet:
        _listen(doorbell, *fleet.agents.values())
        fleet.agents["slow"].script = Script(run_for=50)
        job = await fleet.rig.start("quick", "slow")
        await fleet.until(job.id, "quick", RunState.SUCCEEDED)
        await trio.sleep(5)
        assert _attached(fleet) == {"slow"}
        await fleet.rig.ended(job.id)
        await trio.sleep(5)
        assert _attached(fleet) == set()


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_an_order_is_never_missed_by_an_agent_that_is_leaving(steps: int, autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("n", doorbell=doorbell, mode=ON_DEMAND) as fleet:
        _listen(doorbell, fleet.agents["n"])
        await until(lambda: fleet.agents["n"].link is not None)
        await trio.sleep_until(1.0)  # when it asks to leave
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        job = await fleet.rig.start("n")
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert run.state is RunState.SUCCEEDED
        assert run.finished_at is not None
        assert run.finished_at < run.created_at + 5, "at most one ring later"


def _attached(fleet: Fleet) -> set[str]:
    return {link.node for link in fleet.rig.links}
