"""Orders for old nodes: packed exactly, paced, at most once – on virtual time, against the fake serf cluster."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import trio

from lab.memory_store import MemoryStore
from lab.nursery_rig import ORGANIZATION
from shovey_trio.core.jobs.model import ProofKind
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.serf.wire import MemberStatus
from shovey_trio.nursery.settings import Timing
from shovey_trio.shovey.kind import KIND
from shovey_trio.shovey.protocol.wire import Action, parse_order, verify_order
from tests.legacy.dispatch_rig import CONTROLLER, SchobRig, one_key, open_schob_rig, reached, until

# 28 characters, as `goiardi` clients often have: twelve of them fit beside a start order.
_NAMES = [f"web-{number:03d}.example.internal.net" for number in range(60)]


def _named(*names: str) -> dict[str, str]:
    return {name: name for name in names}


async def test_a_job_is_packed_into_few_queries_of_one_signature(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _named(*_NAMES)) as rig:
        job = await rig.start(*_NAMES)
        await until(lambda: all(rig.live(job, name).attempts == 1 for name in _NAMES))
        sent = Counter(name for query in rig.orders for name in query.filter_nodes)
        assert sent == Counter(_NAMES)
        assert len(rig.orders) <= -(-len(_NAMES) // 11)
        assert len({query.payload for query in rig.orders}) == 1
        # Full to the byte: one more name would have made each query but the last too large.
        assert all(query.size + len(_NAMES[0]) + 1 > 1016 for query in rig.orders[:-1])
        order = parse_order(rig.orders[0].payload)
        assert verify_order(order, one_key().private_key.public_key())
        assert (order.action, order.run_id, order.command, order.timeout) == (Action.START, job, "work", 60)
        assert all(rig.live(job, name).route is KIND for name in _NAMES)


async def test_a_large_job_keeps_the_pace_of_the_ring_and_shows_its_progress(
    autojump_clock: object, tmp_path: Path
) -> None:
    names = [f"n{number:04d}.example.internal.net" for number in range(300)]
    async with open_schob_rig(tmp_path, MemoryStore(), _named(*names)) as rig:
        job = await rig.start(*names)
        await until(lambda: len(rig.orders) >= 12)
        dispatched = [rig.live(job, name).state for name in names]
        assert RunState.PENDING in dispatched
        assert RunState.DISPATCHED in dispatched
        for name in names:
            if rig.live(job, name).attempts:
                await rig.say(job, name, "running")
        await until(lambda: all(rig.live(job, name).attempts for name in names))
        times = [query.at for query in rig.orders]
        assert len(times) >= 20
        # Ten at once after a rest, then about one a second.
        assert times[-1] - times[0] >= len(times) - 11


async def test_a_node_whose_serf_agent_had_the_order_never_gets_it_again(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _named("had", "lost")) as rig:
        rig.cluster.silent.add("lost")
        job = await rig.start("had", "lost")
        await reached(rig, job, "had", RunState.UNKNOWN)
        await reached(rig, job, "lost", RunState.UNKNOWN)
        sent = Counter(name for query in rig.orders for name in query.filter_nodes)
        assert sent == {"had": 1, "lost": 3}
        assert rig.live(job, "lost").attempts == 3
        # Unknown is not the end: the truth heals it.
        await rig.say(job, "had", "running")
        assert rig.live(job, "had").state is RunState.RUNNING


async def test_a_connection_that_broke_leaves_nobody_who_knows_so_nothing_is_sent_again(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _named("n")) as rig:
        rig.cluster.silent.add("n")
        job = await rig.start("n")
        await until(lambda: len(rig.orders) == 1)
        rig.agent.drop()
        await reached(rig, job, "n", RunState.UNKNOWN)
        assert len(rig.orders) == 1


async def test_while_serf_is_away_orders_wait_and_are_not_noted_as_sent(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _named("n")) as rig:
        rig.agent.absent = True
        rig.agent.drop()
        await trio.sleep(1)
        job = await rig.start("n")
        await trio.sleep(20)
        assert (rig.live(job, "n").state, rig.live(job, "n").attempts) == (RunState.PENDING, 0)
        rig.agent.absent = False
        await reached(rig, job, "n", RunState.DISPATCHED)
        assert len(rig.orders) == 1


async def test_a_run_that_is_cancelled_before_its_turn_is_in_no_query(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _named("n")) as rig:
        rig.agent.absent = True
        rig.agent.drop()
        await trio.sleep(1)
        job = await rig.start("n")
        live = rig.supervisor.job(job)
        assert live is not None
        await rig.supervisor.cancel(live, ["n"], by="user/ops", whole_job=True)
        await rig.ended(job)
        run = await rig.stored(job, "n")
        assert (run.state, run.proof) == (RunState.CANCELLED, ProofKind.NEVER_STARTED)
        rig.agent.absent = False
        await trio.sleep(30)
        assert rig.orders == []


async def test_what_was_not_sent_in_time_is_unavailable_and_never_sent(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _named("n")) as rig:
        rig.agent.absent = True
        rig.agent.drop()
        await trio.sleep(1)
        job = await rig.start("n")
        await rig.ended(job)
        run = await rig.stored(job, "n")
        assert (run.state, run.cause) == (RunState.UNAVAILABLE, "no_route")
        rig.agent.absent = False
        await trio.sleep(60)
        assert rig.orders == []


@pytest.mark.parametrize("sent", [False, True])
async def test_after_a_restart_an_order_goes_out_once_in_all(
    autojump_clock: object, tmp_path: Path, sent: bool
) -> None:
    store = MemoryStore()
    async with open_schob_rig(tmp_path, store, _named("n")) as rig:
        cluster = rig.cluster
        if not sent:
            rig.agent.absent = True
            rig.agent.drop()
            await trio.sleep(1)
        job = await rig.start("n")
        await trio.sleep(2)
        assert len(rig.orders) == int(sent)
        rig.agent.absent = False
        rig.supervisor._nursery.cancel_scope.cancel(reason="the controller was killed")
    async with open_schob_rig(tmp_path, store, _named("n"), cluster=cluster) as rig:
        await trio.sleep(40)
        assert len(rig.orders) == 1
        await rig.say(job, "n", "running")
        assert rig.live(job, "n").state is RunState.RUNNING


async def test_a_cancel_is_repeated_until_serf_has_brought_it_and_then_ends_unproven(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _named("n")) as rig:
        job = await rig.start("n", kill_grace=60.0)
        await reached(rig, job, "n", RunState.DISPATCHED)
        await rig.say(job, "n", "running")
        rig.cluster.silent.add("n")
        live = rig.supervisor.job(job)
        assert live is not None
        await rig.supervisor.cancel(live, ["n"], by="user/ops", whole_job=True)
        await until(lambda: len(_cancels(rig)) == 2)
        rig.cluster.silent.clear()
        await rig.ended(job)
        assert len(_cancels(rig)) == 3
        run = await rig.stored(job, "n")
        assert (run.state, run.proof) == (RunState.CANCEL_UNPROVEN, None)
        assert parse_order(_cancels(rig)[0]).run_id == job


async def test_a_cancel_does_not_wait_behind_starts(autojump_clock: object, tmp_path: Path) -> None:
    names = [f"n{number:04d}.example.internal.net" for number in range(300)]
    async with open_schob_rig(tmp_path, MemoryStore(), _named("n", *names)) as rig:
        job = await rig.start("n")
        await reached(rig, job, "n", RunState.DISPATCHED)
        await rig.say(job, "n", "running")
        await rig.start(*names)
        await until(lambda: len(rig.orders) >= 10)
        live = rig.supervisor.job(job)
        assert live is not None
        await rig.supervisor.cancel(live, ["n"], by="user/ops", whole_job=True)
        await until(lambda: len(_cancels(rig)) == 1)
        # One start was waiting for its turn already.
        assert [query.payload for query in rig.orders].index(_cancels(rig)[0]) <= 11


async def test_a_name_that_fits_no_query_fails_alone(autojump_clock: object, tmp_path: Path) -> None:
    giant = "g" * 600
    async with open_schob_rig(tmp_path, MemoryStore(), _named("n", giant)) as rig:
        job = await rig.start("n", giant)
        await reached(rig, job, "n", RunState.DISPATCHED)
        await until(lambda: rig.live(job, giant).is_terminal)
        run = rig.live(job, giant)
        assert (run.state, run.cause, run.attempts) == (RunState.UNAVAILABLE, "too_large", 0)


async def test_both_kinds_of_names_are_used_as_serf_knows_them(autojump_clock: object, tmp_path: Path) -> None:
    nodes = {"old": "old", "new": f"{ORGANIZATION}:new"}
    async with open_schob_rig(tmp_path, MemoryStore(), nodes) as rig:
        job = await rig.start(*nodes)
        await reached(rig, job, "new", RunState.DISPATCHED)
        assert [set(query.filter_nodes) for query in rig.orders] == [{"old", f"{ORGANIZATION}:new"}]
        assert json.loads(rig.orders[0].payload)["run_id"] == job


async def test_a_node_that_serf_loses_gets_its_order_when_it_is_back(autojump_clock: object, tmp_path: Path) -> None:
    timing = Timing(acceptance=120.0)
    async with open_schob_rig(tmp_path, MemoryStore(), _named("n"), timing=timing) as rig:
        rig.agent.absent = True
        rig.agent.drop()
        await trio.sleep(1)
        job = await rig.start("n")
        rig.cluster.set_status("n", MemberStatus.FAILED)
        rig.agent.absent = False
        await trio.sleep(20)
        assert rig.orders == []
        rig.cluster.set_status("n", MemberStatus.ALIVE)
        await reached(rig, job, "n", RunState.DISPATCHED)
        assert [query.source for query in rig.orders] == [CONTROLLER]


def _cancels(rig: SchobRig) -> list[bytes]:
    return [query.payload for query in rig.orders if parse_order(query.payload).action is Action.CANCEL]
