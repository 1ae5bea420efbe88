"""What old nodes report, in whatever order it comes: nothing lost, doubled or believed too early – on virtual time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from lab.memory_store import MemoryStore
from lab.nursery_rig import ORGANIZATION
from shovey_trio.core.errors import DuplicateChunk, IllegalReport, InvalidRequest, NotFound, PermissionDenied
from shovey_trio.core.jobs.model import LinkMode, Presence
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.serf.wire import MemberStatus
from shovey_trio.shovey.protocol.times import coarse_time
from shovey_trio.shovey.protocol.views import run_view
from shovey_trio.shovey.protocol.wire import status_payload
from tests.legacy.dispatch_rig import OPERATOR, SchobRig, open_schob_rig, principal, reached, until

_N = {"n": "n"}


async def _running(rig: SchobRig) -> str:
    job = await rig.start("n")
    await reached(rig, job, "n", RunState.DISPATCHED)
    await rig.say(job, "n", "running")
    return job


async def test_the_end_waits_for_the_last_output_and_no_longer(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        await rig.send(job, "n", 0, "a")
        await rig.say(job, "n", "failed", exit_status=3, error="exit status 3")
        # Durable before it was acknowledged, and not the run's state yet.
        held = await rig.stored(job, "n")
        assert (held.state, held.held_end is not None, held.late_report) == (RunState.RUNNING, True, None)
        await rig.send(job, "n", 1, "b", is_last=True)
        before = trio.current_time()
        await rig.send(job, "n", 0, "", stream="stderr", is_last=True)
        await rig.ended(job)
        assert trio.current_time() - before < 0.1
        run = await rig.stored(job, "n")
        assert (run.state, run.exit_code, run.held_end, run.late_report) == (RunState.FAILED, 3, None, None)
        assert not run.output_incomplete
        assert "output_incomplete" not in run_view(run)
        assert await rig.output(job, "n") == b"ab"


async def test_output_that_never_ends_delays_the_end_by_a_while_only(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        await rig.say(job, "n", "succeeded")
        before = trio.current_time()
        await rig.ended(job)
        assert 4 < trio.current_time() - before < 6
        run = await rig.stored(job, "n")
        # A schob that keeps 3 KB of a burst reports success, and no end of the output.
        assert (run.state, run.output_incomplete) == (RunState.SUCCEEDED, True)
        assert run_view(run)["output_incomplete"] is True
        await rig.send(job, "n", 0, "late", is_last=True)
        assert await rig.output(job, "n") == b"late"
        assert (await rig.stored(job, "n")).output_incomplete
        await rig.send(job, "n", 0, "", stream="stderr", is_last=True)
        assert not (await rig.stored(job, "n")).output_incomplete


async def test_output_with_a_hole_is_incomplete_though_its_last_piece_came(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        await rig.send(job, "n", 0, "a")
        await rig.send(job, "n", 2, "c", is_last=True)
        await rig.send(job, "n", 0, "", stream="stderr", is_last=True)
        await rig.say(job, "n", "succeeded")
        await rig.ended(job)
        assert (await rig.stored(job, "n")).output_incomplete


async def test_a_told_end_survives_a_restart(autojump_clock: object, tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_schob_rig(tmp_path, store, _N) as rig:
        job = await _running(rig)
        await rig.say(job, "n", "succeeded")
        rig.supervisor._nursery.cancel_scope.cancel(reason="the controller was killed")
    async with open_schob_rig(tmp_path, store, _N) as rig:
        await rig.ended(job)
        assert (await rig.stored(job, "n")).state is RunState.SUCCEEDED


async def test_pieces_are_stored_once_and_in_order_whatever_their_way(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        async with trio.open_nursery() as nursery:
            for seq in (3, 1, 2, 0):
                nursery.start_soon(rig.send, job, "n", seq, f"<{seq}>")
                await trio.sleep(0.01)
        assert await rig.output(job, "n") == b"<0><1><2><3>"
        for seq in range(4):
            with pytest.raises(DuplicateChunk):
                await rig.send(job, "n", seq, "again")
        # One that is missing is waited for, and then done without; late, it is taken all the same.
        await rig.send(job, "n", 5, "<5>")
        await rig.send(job, "n", 4, "<4>")
        with pytest.raises(DuplicateChunk):
            await rig.send(job, "n", 4, "<4>")
        assert await rig.output(job, "n") == b"<0><1><2><3><5><4>"


async def test_two_copies_of_one_piece_at_once_are_one(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        refused = 0

        async def send() -> None:
            nonlocal refused
            try:
                await rig.send(job, "n", 0, "once")
            except DuplicateChunk:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send)
        assert refused == 4
        assert await rig.output(job, "n") == b"once"


async def test_repeats_are_known_after_a_restart(autojump_clock: object, tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_schob_rig(tmp_path, store, _N) as rig:
        job = await _running(rig)
        await rig.send(job, "n", 0, "a")
        await rig.send(job, "n", 0, "x", stream="stderr")
        await rig.send(job, "n", 1, "b")
        rig.supervisor._nursery.cancel_scope.cancel(reason="the controller was killed")
    async with open_schob_rig(tmp_path, store, _N) as rig:
        for seq, stream in ((0, "stdout"), (1, "stdout"), (0, "stderr")):
            with pytest.raises(DuplicateChunk):
                await rig.send(job, "n", seq, "again", stream=stream)
        await rig.send(job, "n", 2, "c")
        assert await rig.output(job, "n") == b"axbc"


async def test_a_piece_whose_sender_went_away_is_still_one_piece(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        with trio.move_on_after(0):
            await rig.send(job, "n", 0, "once")
        with suppress(DuplicateChunk):
            await rig.send(job, "n", 0, "once")
        assert await rig.output(job, "n") == b"once"


async def test_a_node_speaks_of_its_own_runs_alone(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), {"n": "n", "m": "m"}) as rig:
        job = await _running(rig)
        body = {"status": "failed"}
        for caller in (principal("m"), OPERATOR):
            with pytest.raises(PermissionDenied):
                await rig.nodes.run_put(caller, job, "n", body)
        with pytest.raises(NotFound):
            await rig.nodes.run_put(principal("m"), job, "m", body)
        with pytest.raises(NotFound):
            await rig.say("no such job", "n", "failed")
        with pytest.raises(InvalidRequest):
            await rig.say(job, "n", "zork")
        assert rig.live(job, "n").state is RunState.RUNNING


async def test_a_run_of_an_agent_of_ours_cannot_be_ended_over_http(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        node = rig.registry.get(ORGANIZATION, "n")
        assert node is not None
        await rig.registry.put(replace(node, link=LinkMode.ATTACHED))
        job = await rig.start("n")
        with pytest.raises(PermissionDenied):
            await rig.say(job, "n", "succeeded")
        await trio.sleep(5)
        assert rig.orders == []


async def test_what_cannot_be_true_any_more_is_refused_without_harm(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        await rig.say(job, "n", "succeeded")
        await rig.ended(job)
        ended = await rig.stored(job, "n")
        for status, error in (("running", ""), ("nacked", ""), ("invalid", "could not be verified!")):
            with pytest.raises(IllegalReport):
                await rig.say(job, "n", status, error=error)
        await rig.say(job, "n", "succeeded")
        await rig.say(job, "n", "invalid", error="fork/exec x: no such file")
        assert await rig.stored(job, "n") == ended
        await rig.say(job, "n", "failed", exit_status=9, error="exit status 9")
        late = (await rig.stored(job, "n")).late_report
        assert late is not None
        assert (late.state, late.exit_code) == (RunState.FAILED, 9)


async def test_a_node_that_is_dead_behind_a_living_serf_costs_a_job_its_time_limit_and_a_margin(
    autojump_clock: object, tmp_path: Path
) -> None:
    """However often others beat in its name; and with words for whoever asks meanwhile."""
    async with open_schob_rig(tmp_path, MemoryStore(), {"n": "n", "m": "m"}) as rig, trio.open_nursery() as nursery:

        async def beat() -> None:
            while True:
                rig.cluster.send_query("node_status", status_payload("m"))
                await trio.sleep(5)

        nursery.start_soon(beat)
        began = trio.current_time()
        job = await rig.start("n", "m", run_timeout=120.0)
        await reached(rig, job, "m", RunState.DISPATCHED)
        await rig.say(job, "m", "running")
        silent = await reached(rig, job, "n", RunState.UNKNOWN)
        assert trio.current_time() - began < 65
        assert run_view(silent)["error"] == f"no word from the node since {coarse_time(silent.dispatched_at or 0)}"
        await rig.ended(job)
        # Time limit, kill grace and overdue margin.
        assert 160 <= trio.current_time() - began < 165
        for name in ("n", "m"):
            run = await rig.stored(job, name)
            assert (run.state, run.cause) == (RunState.CRASHED, "node_lost")
        # What was true all the same is kept beside it.
        await rig.say(job, "m", "succeeded")
        assert run_view(await rig.stored(job, "m"))["error"].endswith("; the node said after that: succeeded")
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_command_that_outlived_its_unproven_cancel_is_put_right_by_the_nodes_later_report(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        await rig.jobs.cancel(OPERATOR, job, [])
        await rig.ended(job)
        ended = run_view(await rig.stored(job, "n"))
        assert ended["status"] == "cancelled"
        assert ended["error"].startswith("cancel unproven, the command may still run: ")
        await rig.say(job, "n", "failed", exit_status=4, error="exit status 4")
        told = run_view(await rig.stored(job, "n"))
        assert (told["status"], told["error"]) == (
            "cancelled",
            f"{ended['error']}; the node said after that: failed, exit status 4",
        )


async def test_an_unverified_order_with_no_other_key_is_the_end(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await rig.start("n")
        await reached(rig, job, "n", RunState.DISPATCHED)
        await rig.say(job, "n", "invalid", error="Command id j running 'work' could not be verified!")
        await rig.ended(job)
        run = await rig.stored(job, "n")
        assert (run.state, run.cause, run.attempts) == (RunState.INVALID, "bad_signature", 1)


# --- presence -------------------------------------------------------------------------------------------------


async def _history(rig: SchobRig, name: str) -> list[tuple[Presence, str]]:
    statuses, _ = await rig.services.store.list_node_statuses(ORGANIZATION, name, limit=100, after="")
    return [(status.presence, status.reason) for status in reversed(statuses)]


async def test_a_node_is_up_while_it_beats_and_down_after_ten_minutes(autojump_clock: object, tmp_path: Path) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N, presence=Presence.NEW) as rig:
        for _ in range(100):
            rig.cluster.send_query("node_status", status_payload("n"))
            await trio.sleep(30)
        node = rig.registry.get(ORGANIZATION, "n")
        assert node is not None
        assert node.presence is Presence.UP
        before = trio.current_time()
        await until(lambda: _presence(rig, "n") is Presence.DOWN)
        assert 540 < trio.current_time() - before < 661
        # A hundred heartbeats, two entries.
        assert await _history(rig, "n") == [
            (Presence.NEW, "enrolled"),
            (Presence.UP, "heartbeat"),
            (Presence.DOWN, "heartbeat_lost"),
        ]


@pytest.mark.parametrize(("said", "acme_is_up"), [("n", True), ("acme:n", True), ("default:n", False)])
async def test_a_heartbeat_counts_for_the_nodes_of_its_name_that_serf_sees(
    autojump_clock: object, tmp_path: Path, said: str, acme_is_up: bool
) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), {"n": "acme:n"}, presence=Presence.NEW) as rig:
        node = rig.registry.get(ORGANIZATION, "n")
        assert node is not None
        await rig.registry.put(replace(node, organization="acme"))
        rig.cluster.send_query("node_status", status_payload(said))
        await trio.sleep(5)
        acme = rig.registry.get("acme", "n")
        assert acme is not None
        assert (acme.presence is Presence.UP, _presence(rig, "n")) == (acme_is_up, Presence.NEW)


async def test_serf_saying_failed_is_enough_to_be_down_and_not_enough_to_be_up(
    autojump_clock: object, tmp_path: Path
) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), _N) as rig:
        job = await _running(rig)
        rig.cluster.set_status("n", MemberStatus.FAILED)
        await until(lambda: _presence(rig, "n") is Presence.DOWN)
        assert rig.live(job, "n").state is RunState.UNKNOWN
        rig.cluster.set_status("n", MemberStatus.ALIVE)
        await trio.sleep(5)
        assert _presence(rig, "n") is Presence.DOWN
        rig.cluster.send_user_event("goiardi-join", b"n")
        await until(lambda: _presence(rig, "n") is Presence.UP)
        assert rig.live(job, "n").state is RunState.RUNNING


@pytest.mark.parametrize(
    "payload",
    [
        b'{"node":"n","status":"down"}',
        b'{"node":"nobody","status":"up"}',
        b'{"node":"agent","status":"up"}',
        b'{"node":"gone","status":"up"}',
        b"not json",
        b'{"node":5}',
    ],
)
async def test_the_ring_can_talk_nobody_down_and_nothing_up_that_is_not_there(
    autojump_clock: object, tmp_path: Path, payload: bytes
) -> None:
    async with open_schob_rig(tmp_path, MemoryStore(), {"n": "n", "gone": "gone"}) as rig:
        node = rig.registry.get(ORGANIZATION, "n")
        assert node is not None
        down = {"presence": Presence.DOWN, "presence_reason": "stream_lost"}
        await rig.registry.put(replace(node, name="agent", link=LinkMode.ATTACHED, **down))
        rig.cluster.set_status("gone", MemberStatus.FAILED)
        await until(lambda: _presence(rig, "gone") is Presence.DOWN)
        rig.cluster.send_query("node_status", payload)
        await trio.sleep(5)
        assert _presence(rig, "n") is Presence.UP
        assert _presence(rig, "agent") is Presence.DOWN
        assert _presence(rig, "gone") is Presence.DOWN


def _presence(rig: SchobRig, name: str) -> Presence:
    node = rig.registry.get(ORGANIZATION, name)
    assert node is not None
    return node.presence
