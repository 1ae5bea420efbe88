"""A run's output: in order, once, durable before the end, and bounded on its way."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from lab.failpoint_store import FailpointStore
from lab.fake_agents import Script
from shovey_trio.core.jobs.events import NodeReported, ReportOutcome, RunReport
from shovey_trio.core.jobs.model import OutputChunk, OutputExtent, StreamName
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.credits import ByteCredits
from shovey_trio.nursery.handles import PushedChunk
from shovey_trio.nursery.output_pump import continue_output
from tests.nursery.conftest import Fleet, open_fleet, until

OUT, ERR = StreamName.STDOUT, StreamName.STDERR


def _chunk(position: int, data: bytes, stream: StreamName = OUT) -> OutputChunk:
    return OutputChunk(stream=stream, position=position, stream_offset=0, read_at=1.0, data=data)


@given(
    pieces=st.lists(st.tuples(st.sampled_from(StreamName), st.binary(min_size=1, max_size=9)), max_size=12),
    seed=st.randoms(use_true_random=False),
)
def test_any_repeats_and_overlaps_of_a_node_leave_each_byte_once(
    pieces: list[tuple[StreamName, bytes]], seed: random.Random
) -> None:
    log = [(stream, bytes([byte])) for stream, data in pieces for byte in data]
    chunks, at = [], 0
    for stream, data in pieces:
        chunks.append(_chunk(at, data, stream))
        at += len(data)
    pushed = [chunk for chunk in chunks for _ in range(seed.randint(1, 3))]
    for _ in range(len(pieces)):  # beyond a gap, from before, anything
        pushed.insert(seed.randint(0, len(pushed)), seed.choice(chunks))
    extent, stored = OutputExtent(), []
    while pushed:
        taken, pushed = pushed[:3], pushed[3:]
        fresh, extent = continue_output(extent, taken)
        stored += fresh
    for chunk in chunks:  # what was dropped is pushed again from the durable position
        fresh, extent = continue_output(extent, [chunk])
        stored += fresh
    assert [(chunk.stream, bytes([byte])) for chunk in stored for byte in chunk.data] == log
    assert extent.position == at
    for stream in StreamName:
        ends = 0
        for chunk in stored:
            if chunk.stream is stream:
                assert chunk.stream_offset == ends
                ends += len(chunk.data)


def test_a_chunk_from_beyond_a_gap_is_not_stored() -> None:
    extent = OutputExtent(stdout_bytes=5)
    assert continue_output(extent, [_chunk(6, b"x")]) == ([], extent)


def test_an_overlapping_chunk_is_cut() -> None:
    [fresh], extent = continue_output(OutputExtent(stdout_bytes=3, stderr_bytes=2), [_chunk(3, b"abcd", ERR)])
    assert (fresh.position, fresh.stream_offset, fresh.data) == (5, 2, b"cd")
    assert extent == OutputExtent(stdout_bytes=3, stderr_bytes=4)


async def _live(fleet: Fleet) -> tuple[str, str]:
    job = await fleet.rig.start("n", run_timeout=1000)
    run = await fleet.until(job.id, "n", RunState.RUNNING)
    return job.id, run.id


async def test_a_run_is_not_terminal_before_its_output_is_durable(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", store=store, script=Script(run_for=None)) as fleet:
        job_id, run_id = await _live(fleet)
        link = fleet.agents["n"].link
        assert link is not None
        report = RunReport(run_id=run_id, outcome=ReportOutcome.EXITED, exit_code=0, output_bytes=6)
        await fleet.rig.inbox.said(link, run_id, NodeReported(report=report))
        await trio.sleep(50)
        assert (await fleet.rig.run(job_id, "n")).state is RunState.RUNNING
        positions: list[int] = []
        for position, data in ((0, b"abc"), (3, b"def")):
            assert (await fleet.rig.run(job_id, "n")).state is RunState.RUNNING
            pushed = PushedChunk(chunk=_chunk(position, data), acknowledge=positions.append)
            assert await fleet.rig.inbox.pushed("default", "n", run_id, pushed)
            await until(lambda position=position: len(positions) > position / 3)  # type: ignore[misc]  # bound now
        assert (await fleet.rig.ended(job_id)).run_counts == {RunState.SUCCEEDED: 1}
        assert positions == [3, 6]
        assert store.written.index(("append_output", "n")) < len(store.written) - 1
        last_output = max(at for at, write in enumerate(store.written) if write == ("append_output", "n"))
        assert ("write_run", "n") in store.written[last_output:]


async def test_output_that_comes_after_the_end_is_kept_even_if_it_is_the_first(autojump_clock: object) -> None:
    async with open_fleet("n", "other", script=Script(run_for=None)) as fleet:
        job = await fleet.rig.start("n", "other", run_timeout=5000)
        run = await fleet.until(job.id, "n", RunState.RUNNING)
        fleet.agents["n"].disconnect()
        await trio.sleep(901)
        assert fleet.rig.live_run(job.id, "n").state is RunState.CRASHED
        positions: list[int] = []
        pushed = PushedChunk(chunk=_chunk(0, b"late"), acknowledge=positions.append)
        assert await fleet.rig.inbox.pushed("default", "n", run.id, pushed)
        assert positions == [4]
        assert (await fleet.store.output_extent(run.id)).position == 4


async def test_a_late_report_is_not_confirmed_before_its_output_is_durable(autojump_clock: object) -> None:
    async with open_fleet("n", "other", script=Script(run_for=None)) as fleet:
        job = await fleet.rig.start("n", "other", run_timeout=5000)
        run = await fleet.until(job.id, "n", RunState.RUNNING)
        fleet.agents["n"].disconnect()
        await trio.sleep(901)
        fleet.agents["n"].connect()
        await until(lambda: fleet.agents["n"].link is not None)
        link = fleet.agents["n"].link
        assert link is not None
        report = RunReport(run_id=run.id, outcome=ReportOutcome.EXITED, exit_code=0, output_bytes=4)
        await fleet.rig.inbox.said(link, run.id, NodeReported(report=report))
        assert (await fleet.rig.run(job.id, "n")).late_report is None
        for position, data in ((0, b"la"), (2, b"te")):
            pushed = PushedChunk(chunk=_chunk(position, data), acknowledge=[].append)
            assert await fleet.rig.inbox.pushed("default", "n", run.id, pushed)
        late = (await fleet.rig.run(job.id, "n")).late_report
        assert late is not None
        assert late.state is RunState.SUCCEEDED
        assert (await fleet.store.output_extent(run.id)).position == 4


async def test_nothing_is_taken_behind_a_reported_end_and_repeats_are_still_acknowledged(
    autojump_clock: object,
) -> None:
    output = ((StreamName.STDOUT, b"abc"),)
    async with open_fleet("n", script=Script(output=output, run_for=1)) as fleet:
        job = await fleet.rig.start("n")
        await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        positions: list[int] = []

        async def push(position: int, data: bytes) -> bool:
            pushed = PushedChunk(chunk=_chunk(position, data), acknowledge=positions.append)
            return await fleet.rig.inbox.pushed("default", "n", run.id, pushed)

        assert not await push(3, b"more")
        assert await push(0, b"abc")
        assert positions == [3]
        assert (await fleet.store.output_extent(run.id)).position == 3


async def test_output_before_the_runs_task_has_begun_is_stored_too(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", store=store, script=Script(run_for=None)) as fleet:
        job_id, run_id = await _live(fleet)
    async with open_fleet("n", store=store, connected=False) as fleet:
        positions: list[int] = []
        pushed = PushedChunk(chunk=_chunk(0, b"early"), acknowledge=positions.append)
        live = fleet.rig.supervisor.run(run_id)
        assert live is not None
        assert await live.push(pushed)
        await until(lambda: bool(positions))
        assert positions == [5]
        assert fleet.rig.supervisor.job(job_id) is not None


async def test_a_slow_store_holds_the_node_back_and_what_waits_is_bounded(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", store=store, script=Script(run_for=None)) as fleet:
        _, run_id = await _live(fleet)

        async def stuck(write: str, subject: str) -> None:
            await trio.sleep_forever()

        store.before = stuck
        taken = 0
        acknowledged: list[int] = []
        with trio.move_on_after(100):
            for position in range(100):
                pushed = PushedChunk(chunk=_chunk(position, b"x"), acknowledge=acknowledged.append)
                await fleet.rig.inbox.pushed("default", "n", run_id, pushed)
                taken += 1
        assert taken <= 4 + 4 + 1, "one batch at the store, one channel full"
        assert acknowledged == []
    assert acknowledged == [0] * taken, "each is answered exactly once, with what is durable"


async def test_a_run_of_another_node_takes_no_output(autojump_clock: object) -> None:
    async with open_fleet("n", "thief", script=Script(run_for=None)) as fleet:
        job_id, run_id = await _live(fleet)
        pushed = PushedChunk(chunk=_chunk(0, b"x"), acknowledge=lambda _: pytest.fail("it was not taken"))
        assert not await fleet.rig.inbox.pushed("default", "thief", run_id, pushed)
        assert not await fleet.rig.inbox.pushed("elsewhere", "n", run_id, pushed)
        assert not await fleet.rig.inbox.pushed("default", "n", "no such run", pushed)
        fleet.agents["n"].finish(run_id, RunReport(run_id=run_id, outcome=ReportOutcome.EXITED, exit_code=0))
        await fleet.rig.ended(job_id)
        assert not await fleet.rig.inbox.pushed("default", "thief", run_id, pushed)


# --- credits ----------------------------------------------------------------------------------------------------


async def test_credits_are_handed_out_in_order_and_never_beyond_the_pool(autojump_clock: object) -> None:
    pool, order, peak = ByteCredits(100), list[int](), 0

    async def upload(number: int, amount: int) -> None:
        nonlocal peak
        taken = await pool.take(amount)
        order.append(number)
        peak = max(peak, pool.in_use)
        await trio.sleep(1)
        pool.give_back(taken)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(upload, number, 51 + number * 7 % 40)
            await trio.testing.wait_all_tasks_blocked()
    assert order == sorted(order)
    assert peak <= 100
    assert pool.in_use == 0


async def test_more_than_the_whole_pool_is_cut_to_it(autojump_clock: object) -> None:
    pool = ByteCredits(100)
    assert await pool.take(1000) == 100
    pool.give_back(100)
    assert pool.in_use == 0


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancelled_wait_takes_no_credit_and_lets_the_next_one_pass(steps: int, autojump_clock: object) -> None:
    pool = ByteCredits(10)
    await pool.take(10)
    passed = trio.Event()

    async def small() -> None:
        await pool.take(1)
        passed.set()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(pool.take, 10)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(small)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(steps):
                    if _ == 2:
                        pool.give_back(5)
                    await trio.lowlevel.checkpoint()
                scope.cancel(reason="the agent is gone")
        if steps <= 2:
            pool.give_back(5)
        with trio.fail_after(1):
            await passed.wait()
    assert pool.in_use == 6


def test_what_was_left_out_before_a_chunk_is_told_once() -> None:
    tail = replace(_chunk(3, b"tail"), dropped_before=7)
    [fresh], extent = continue_output(OutputExtent(stdout_bytes=3), [tail])
    assert fresh.dropped_before == 7
    # Its beginning is durable, so the hole is told already.
    [rest], _ = continue_output(replace(extent, stdout_bytes=5), [tail])
    assert (rest.data, rest.dropped_before) == (b"il", 0)
