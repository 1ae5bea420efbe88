"""Setting the controller's clock: orders go on being taken, no run ends by it, and nobody is down because of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from lab.failpoint_store import FailpointStore
from lab.fake_agents import OnCancel, Script
from lab.fake_doorbell import FakeDoorbell
from lab.nursery_rig import OPERATOR
from shovey_trio.core.jobs.model import LinkMode, Presence
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.orders import frame_of
from shovey_trio.nursery.clock import TrioClock
from shovey_trio.nursery.clock_steps import ClockSteps
from shovey_trio.nursery.ports import SendClock
from tests.nursery.conftest import Fleet, assert_nothing_left, open_agents, open_fleet, open_rig

HOUR, DAY = 3600.0, 86_400.0
STEPS = [HOUR, -HOUR, DAY, -DAY, 31 * DAY, -31 * DAY]
# A step is noticed within a second; orders under way have twenty to be answered.
NOTICED = 25.0


@asynccontextmanager
async def open_stepped(*names: str, script: Script, mode: LinkMode = LinkMode.ATTACHED) -> AsyncIterator[Fleet]:
    """A fleet whose controller watches its clock, as the daemon does."""
    async with (
        open_fleet(*names, script=script, mode=mode, doorbell=FakeDoorbell()) as fleet,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(ClockSteps(fleet.clock, fleet.rig.services, fleet.rig.supervisor).serve)  # noqa: ASYNC113 - it waits a second first
        yield fleet
        nursery.cancel_scope.cancel(reason="test over")


@pytest.mark.parametrize("step", STEPS)
async def test_no_run_ends_and_no_node_is_down_by_a_step_of_the_controllers_clock(
    step: float, autojump_clock: object
) -> None:
    async with open_stepped("a", script=Script(run_for=1700.0)) as fleet:
        job = await fleet.rig.start("a", run_timeout=1800.0)
        await fleet.until(job.id, "a", RunState.RUNNING)
        for ahead in (step, 0.0, step, 0.0):
            fleet.clock.ahead = ahead
            await trio.sleep(NOTICED)
            assert fleet.rig.live_run(job.id, "a").state is RunState.RUNNING
            node = fleet.rig.registry.get("default", "a")
            assert node is not None
            assert node.presence is Presence.UP
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "a")).state is RunState.SUCCEEDED
        assert fleet.clock.frame == 4


@pytest.mark.parametrize("step", STEPS)
async def test_attached_nodes_take_orders_before_and_after_a_step_is_followed(
    step: float, autojump_clock: object
) -> None:
    async with open_stepped("a", script=Script()) as fleet:
        await _runs(fleet)
        for number, ahead in enumerate((step, 0.0), 1):
            fleet.clock.ahead = ahead
            await _runs(fleet)
            await trio.sleep(NOTICED)
            await _runs(fleet)
            assert fleet.clock.step() == 0
            frames = {frame_of(order.nonce) for order in fleet.agents["a"].orders}
            assert len(frames) == number + 1, "orders of two times cannot be taken for those of one"


async def _runs(fleet: Fleet) -> None:
    job = await fleet.rig.start("a")
    await fleet.rig.ended(job.id)
    run = await fleet.rig.run(job.id, "a")
    assert run.state is RunState.SUCCEEDED, (run.cause, run.detail, run.attempts)


@pytest.mark.parametrize("step", STEPS)
async def test_an_order_that_waits_for_its_node_is_made_anew_by_the_new_time(
    step: float, autojump_clock: object
) -> None:
    async with open_stepped("a", script=Script()) as fleet:
        agent = fleet.agents["a"]
        await _runs(fleet)
        agent.disconnect()
        await trio.sleep(0.1)
        job = await fleet.rig.start("a")
        before = fleet.rig.live_run(job.id, "a").nonce
        fleet.clock.ahead = step
        await trio.sleep(NOTICED)
        run = fleet.rig.live_run(job.id, "a")
        assert (run.state, frame_of(run.nonce) == frame_of(before)) == (RunState.PENDING, False)
        agent.controller_ahead = step
        agent.connect()
        await fleet.rig.ended(job.id)
        assert (await fleet.rig.run(job.id, "a")).state is RunState.SUCCEEDED


@pytest.mark.parametrize("step", STEPS)
async def test_an_order_that_was_sent_and_not_answered_is_not_sent_again_by_another_time(
    step: float, autojump_clock: object
) -> None:
    async with open_stepped("a", script=Script(silent=True)) as fleet:
        agent = fleet.agents["a"]
        job = await fleet.rig.start("a")
        await fleet.until(job.id, "a", RunState.DISPATCHED)
        agent.disconnect()
        fleet.clock.ahead = step
        await trio.sleep(NOTICED)
        agent.controller_ahead, agent.script = step, Script()
        agent.connect()
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "a")
        assert (run.state, run.cause) == (RunState.UNAVAILABLE, "not_accepted")
        assert len(agent.orders) == 1


async def test_a_step_that_is_undone_while_orders_are_under_way_leaves_no_trace(autojump_clock: object) -> None:
    async with open_stepped("a", script=Script(accept_after=5.0)) as fleet:
        job = await fleet.rig.start("a")
        await fleet.until(job.id, "a", RunState.DISPATCHED)
        fleet.clock.ahead = DAY
        await trio.sleep(3)
        fleet.clock.ahead = 0.0
        await fleet.rig.ended(job.id)
        await trio.sleep(NOTICED)
        assert fleet.clock.frame == 0
        assert [message for message in fleet.agents["a"].messages if isinstance(message, SendClock)] == []


async def test_a_silent_node_has_its_whole_grace_whatever_the_clock_does(autojump_clock: object) -> None:
    async with open_stepped("a", script=Script(run_for=None, on_cancel=OnCancel.IGNORE)) as fleet:
        job = await fleet.rig.start("a", run_timeout=10_000.0)
        await fleet.until(job.id, "a", RunState.RUNNING)
        fleet.agents["a"].disconnect()
        await fleet.until(job.id, "a", RunState.UNKNOWN)
        since = trio.current_time()
        fleet.clock.ahead = 31 * DAY
        await fleet.rig.ended(job.id)
        grace = fleet.rig.services.timing.reconnect_grace
        assert grace - 30 < trio.current_time() - since <= grace


@pytest.mark.parametrize("ahead", [HOUR, 31 * DAY])
async def test_a_controller_that_starts_with_a_clock_ahead_asks_the_node_before_it_ends_a_run(
    ahead: float, autojump_clock: object
) -> None:
    store = FailpointStore()
    async with open_agents(["a"], script=Script(run_for=800.0)) as agents:
        async with open_rig(store, clock=TrioClock()) as rig:
            await rig.register(["a"])
            agents["a"].connect(rig.inbox)
            job = await rig.start("a", run_timeout=900.0)
            while rig.live_run(job.id, "a").state is not RunState.RUNNING:
                await trio.sleep(0.1)
            rig.crash(agents.values())
        async with open_rig(store, clock=TrioClock(1_800_000_000.0 + ahead)) as rig:
            agents["a"].connect(rig.inbox)
            await rig.ended(job.id)
            assert (await rig.run(job.id, "a")).state is RunState.SUCCEEDED
            assert_nothing_left(rig)


async def test_the_clock_says_when_it_showed_a_time_in_whichever_frame(autojump_clock: object) -> None:
    clock = TrioClock()
    first = clock.now()
    await trio.sleep(100)
    clock.ahead = HOUR
    assert clock.now() == first + 100, "nobody can set it"
    clock.follow()
    assert clock.now() == first + 100 + HOUR
    await trio.sleep(100)
    now = trio.current_time()
    assert clock.moment_of(first) == pytest.approx(now - 200)
    assert clock.moment_of(clock.now() - 50) == pytest.approx(now - 50)
    assert clock.moment_of(first - DAY) == pytest.approx(now - 200 - DAY), "before this process"
    assert clock.moment_of(clock.now() + DAY) == now, "shown by another clock"
    clock.ahead = 0.0
    clock.follow()
    assert clock.moment_of(clock.now()) == pytest.approx(now)
    assert clock.time_of(now) == pytest.approx(clock.now())


async def test_a_slewed_clock_is_followed_without_a_new_frame(autojump_clock: object) -> None:
    async with open_stepped("a", script=Script()) as fleet:
        fleet.clock.ahead = 0.4
        await trio.sleep(2)
        assert (fleet.clock.step(), fleet.clock.frame) == (0, 0)


@pytest.mark.parametrize("ahead", [0.0, 30.0, -HOUR])
async def test_all_copies_of_a_start_order_have_one_nonce_and_one_expiry_also_by_another_clock(
    ahead: float, autojump_clock: object
) -> None:
    store = FailpointStore()
    async with open_agents(["a"], script=Script(silent=True)) as agents:
        agent = agents["a"]
        async with open_rig(store, clock=TrioClock()) as rig:
            await rig.register(["a"])
            agent.connect(rig.inbox)
            job = await rig.start("a")
            for _ in range(2):
                await trio.sleep(1)
                agent.disconnect()
                agent.connect()
            await trio.sleep(1)
            rig.crash(agents.values())
        async with open_rig(store, clock=TrioClock(1_800_000_000.0 + trio.current_time() + ahead)) as rig:
            agent.connect(rig.inbox)
            await trio.sleep(1)
            assert len({order.epoch for order in agent.orders}) == 2
            assert len({(order.run_id, order.nonce, order.expires_at) for order in agent.orders}) == 1
            await rig.jobs.cancel(OPERATOR, job.id, [])
            agent.script = Script()
            agent.disconnect()
            agent.connect()
            await rig.ended(job.id)
