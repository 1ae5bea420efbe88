"""Who is up, since when and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio

from lab.failpoint_store import FailpointStore
from lab.fake_agents import Script
from lab.fake_doorbell import FakeDoorbell
from shovey_trio.core.jobs.model import LinkMode, NodeStatus, Presence
from shovey_trio.core.jobs.states import RunState
from tests.nursery.conftest import Fleet, open_fleet, until

DOWN, UP = Presence.DOWN, Presence.UP


def _presence(fleet: Fleet) -> tuple[Presence, str]:
    node = fleet.rig.registry.get("default", "n")
    assert node is not None
    return node.presence, node.presence_reason


async def _history(fleet: Fleet) -> Sequence[NodeStatus]:
    return (await fleet.store.list_node_statuses("default", "n", limit=100, after=""))[0]


async def test_an_attached_node_is_down_fifteen_seconds_after_its_stream_broke_since_then(
    autojump_clock: object,
) -> None:
    async with open_fleet("n") as fleet:
        await until(lambda: fleet.agents["n"].link is not None)
        await trio.sleep(100)
        broke_at = fleet.clock.now()
        fleet.agents["n"].disconnect()
        await trio.sleep(14.9)
        assert _presence(fleet) == (UP, "attached")
        await trio.sleep(0.7)
        assert _presence(fleet) == (DOWN, "stream_lost")
        newest = (await _history(fleet))[0]
        assert (newest.presence, newest.reason) == (DOWN, "stream_lost")
        assert newest.since == pytest.approx(broke_at)
        stored = (await fleet.store.load_nodes())[0]
        assert stored.presence is DOWN
        assert stored.last_seen_at == pytest.approx(broke_at)


async def test_a_node_that_comes_back_in_time_was_never_down(autojump_clock: object) -> None:
    async with open_fleet("n") as fleet:
        await until(lambda: fleet.agents["n"].link is not None)
        fleet.agents["n"].disconnect()
        await trio.sleep(14)
        fleet.agents["n"].connect()
        await trio.sleep(100)
        assert [status.presence for status in await _history(fleet)] == [UP]


async def test_serf_alive_does_not_keep_an_attached_node_up(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("n", doorbell=doorbell) as fleet:
        doorbell.set_member("default", "n", "alive")
        await until(lambda: fleet.agents["n"].link is not None)
        fleet.agents["n"].disconnect()
        await trio.sleep(16)
        assert _presence(fleet) == (DOWN, "stream_lost")


async def test_an_agent_on_demand_is_up_for_fifteen_minutes_after_it_was_heard(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("n", doorbell=doorbell, mode=LinkMode.ON_DEMAND) as fleet:
        doorbell.set_member("default", "n", "alive")
        await trio.sleep(5)
        assert fleet.agents["n"].link is None, "it has left"
        await trio.sleep(890)
        assert _presence(fleet) == (UP, "attached")
        await trio.sleep(10)
        assert _presence(fleet) == (DOWN, "stale")


async def test_an_agent_on_demand_is_down_while_serf_says_so(autojump_clock: object) -> None:
    doorbell = FakeDoorbell()
    async with open_fleet("n", doorbell=doorbell, mode=LinkMode.ON_DEMAND) as fleet:
        doorbell.set_member("default", "n", "alive")
        await trio.sleep(5)
        doorbell.set_member("default", "n", "failed")
        await trio.sleep(1)
        assert _presence(fleet) == (DOWN, "serf_failed")
        doorbell.set_member("default", "n", "alive")
        await trio.sleep(1)
        assert _presence(fleet) == (UP, "serf_alive")
        await trio.sleep(900)
        assert _presence(fleet) == (DOWN, "stale")
        doorbell.set_member("default", "n", "alive")
        await trio.sleep(1)
        assert _presence(fleet) == (DOWN, "stale"), "serf alive alone is never up"


async def test_a_broken_stream_of_an_agent_on_demand_makes_its_runs_unknown_and_leaves_it_up(
    autojump_clock: object,
) -> None:
    doorbell = FakeDoorbell()
    script = Script(run_for=2000)
    async with open_fleet("n", doorbell=doorbell, mode=LinkMode.ON_DEMAND, script=script) as fleet:
        doorbell.set_member("default", "n", "alive")
        job = await fleet.rig.start("n", run_timeout=5000)
        await fleet.until(job.id, "n", RunState.RUNNING)
        broke_at = fleet.clock.now()
        fleet.agents["n"].disconnect()
        run = await fleet.until(job.id, "n", RunState.UNKNOWN)
        assert run.unknown_since == pytest.approx(broke_at, abs=0.1)
        assert fleet.clock.now() < broke_at + 16
        assert _presence(fleet) == (UP, "attached")
        await trio.sleep(890)
        assert _presence(fleet) == (DOWN, "stale")
        await fleet.rig.ended(job.id)


async def test_a_restart_gives_every_node_the_usual_time_and_then_tells_its_runs(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", store=store, script=Script(run_for=None)) as fleet:
        job = await fleet.rig.start("n", run_timeout=5000)
        await fleet.until(job.id, "n", RunState.RUNNING)
    await trio.sleep(3000)
    async with open_fleet("n", store=store, connected=False) as fleet:
        started = fleet.clock.now()
        await trio.sleep(14)
        assert fleet.rig.live_run(job.id, "n").state is RunState.RUNNING
        run = await fleet.until(job.id, "n", RunState.UNKNOWN)
        assert run.unknown_since == pytest.approx(started, abs=0.1)
        assert _presence(fleet) == (DOWN, "stream_lost")


async def test_a_run_on_a_node_that_was_down_already_is_not_left_running_by_a_restart(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", store=store, script=Script(run_for=None)) as fleet:
        job = await fleet.rig.start("n", run_timeout=5000)
        await fleet.until(job.id, "n", RunState.RUNNING)
        node = fleet.rig.registry.get("default", "n")
        assert node is not None
    # Killed between the two: the node is down in the store, its run does not know yet.
    async with open_fleet("n", store=store, connected=False) as fleet:
        await fleet.rig.register(["n"], up=False)
        await trio.sleep(16)
        assert fleet.rig.live_run(job.id, "n").state is RunState.UNKNOWN


async def test_a_second_stream_replaces_the_first_without_a_moment_of_absence(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=50)) as fleet:
        job = await fleet.rig.start("n")
        await fleet.until(job.id, "n", RunState.RUNNING)
        first = fleet.agents["n"].link
        assert first is not None
        twin = type(first)(organization="default", node="n", agent_instance="instance-1", mode=first.mode)
        knows = {run_id: run.knows for run_id, run in fleet.agents["n"].spool.items()}
        await fleet.rig.inbox.attached(twin, knows)
        assert first.closed_because
        await trio.sleep(30)
        assert fleet.rig.links.get("default", "n") is twin
        assert _presence(fleet) == (UP, "attached")
        fleet.agents["n"].connect()
        await fleet.rig.ended(job.id)


async def test_a_change_of_tags_does_not_undo_a_change_of_presence(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", store=store, connected=False) as fleet:
        node = fleet.rig.registry.get("default", "n")
        assert node is not None

        async def slow(write: str, subject: str) -> None:
            await trio.sleep(1)

        store.before = slow
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.rig.registry.put, replace(node, tags={"a": "b"}))
            await trio.sleep(0.5)
            await fleet.rig.registry.set_presence("default", "n", DOWN, reason="gone", since=5.0, longest_pause=1.0)
        known, [stored] = fleet.rig.registry.get("default", "n"), await store.load_nodes()
        assert known == stored
        assert (stored.presence, stored.presence_reason, dict(stored.tags)) == (DOWN, "gone", {"a": "b"})
