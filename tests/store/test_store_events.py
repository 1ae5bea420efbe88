"""Contract: sequence, events, listeners, the order of writes, cancellation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from shovey_trio.core.errors import HistoryGone
from shovey_trio.core.jobs.model import Run, StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.store.contract import Committed, Store, StoredEvent, StoredJob, StoredOutput, StoredRun

from .conftest import Make

OUT, ERR = StreamName


async def all_events(store: Store, job_id: str, limit: int, *, include_output: bool = True) -> list[StoredEvent]:
    """Reads from the beginning, ``limit`` at a time."""
    found: list[StoredEvent] = []
    while page := await store.read_events(
        job_id, after_seq=found[-1].seq if found else 0, limit=limit, include_output=include_output
    ):
        assert len(page) <= limit
        found += page
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_events_tell_the_whole_story_in_order(store: Store, make: Make, limit: int) -> None:
    job, runs = make.job(["web-1", "web-2"])
    chunks = make.chunks((OUT, b"one"), (ERR, b"two"))
    await store.create_job(job, runs, None)
    running = replace(job, state=JobState.RUNNING, run_counts={RunState.PENDING: 2})
    await store.write_job(running)
    await store.append_output(runs[0], chunks)
    done = replace(runs[0], state=RunState.SUCCEEDED, exit_code=0, finished_at=5.5)
    await store.write_run(done)
    await store.append_output(runs[1], chunks[:1])
    story = await all_events(store, job.id, limit)
    seqs = [event.seq for event in story]
    assert story == [
        StoredJob(seq=seqs[0], job=job),
        StoredRun(seq=seqs[1], run=runs[0]),
        StoredRun(seq=seqs[2], run=runs[1]),
        StoredJob(seq=seqs[3], job=running),
        StoredOutput(seq=seqs[4], job_id=job.id, node="web-1", chunk=chunks[0]),
        StoredOutput(seq=seqs[5], job_id=job.id, node="web-1", chunk=chunks[1]),
        StoredRun(seq=seqs[6], run=done),
        StoredOutput(seq=seqs[7], job_id=job.id, node="web-2", chunk=chunks[0]),
    ]
    assert seqs == list(range(seqs[0], seqs[0] + 8))
    without = await all_events(store, job.id, limit, include_output=False)
    assert without == [event for event in story if not isinstance(event, StoredOutput)]


async def test_states_a_run_has_passed_through_are_events_and_the_last_is_its_row(store: Store, make: Make) -> None:
    job, runs = make.job(["web-1", "web-2"])
    await store.create_job(job, runs, None)
    accepted = replace(runs[0], state=RunState.ACCEPTED, accepted_at=1.0, updated_at=1.0)
    running = replace(accepted, state=RunState.RUNNING, started_at=2.0, updated_at=2.0)
    done = replace(running, state=RunState.SUCCEEDED, exit_code=0, finished_at=3.0, updated_at=3.0)
    await store.write_run(done, passed=(accepted, running))
    story = await all_events(store, job.id, 100)
    assert [event.run for event in story[3:] if isinstance(event, StoredRun)] == [accepted, running, done]
    assert await store.get_run("default", job.id, "web-1") == done
    assert await store.get_run("default", job.id, "web-2") == runs[1]


async def test_a_run_written_twice_in_one_commit_has_both_events_and_the_last_row(store: Store, make: Make) -> None:
    job, runs = make.job()
    await store.create_job(job, runs, None)
    sent = replace(runs[0], state=RunState.DISPATCHED, attempts=1, dispatched_at=1.0)
    accepted = replace(sent, state=RunState.ACCEPTED, accepted_at=2.0)
    other, _ = make.job()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.create_job, other, [], None)  # a commit that keeps the writer busy
        await trio.lowlevel.checkpoint()
        store.write_run_soon(sent)
        nursery.start_soon(store.write_run, accepted)
    story = await all_events(store, job.id, 100)
    assert [event.run for event in story[2:] if isinstance(event, StoredRun)] == [sent, accepted]
    assert await store.get_run("default", job.id, "web-1") == accepted


async def test_events_of_other_jobs_are_not_mixed_in_and_never_share_a_number(store: Store, make: Make) -> None:
    await store.next_epoch(1.0)
    jobs = [make.job() for _ in range(3)]
    for job, runs in jobs:
        await store.create_job(job, runs, None)
    for job, [run] in jobs:
        await store.append_output(run, make.chunks((OUT, job.id.encode())))
    stories = [await all_events(store, job.id, 10) for job, _ in jobs]
    for (job, _), story in zip(jobs, stories, strict=True):
        assert len(story) == 3
        assert isinstance(story[-1], StoredOutput)
        assert story[-1].chunk.data == job.id.encode()
    seqs = [event.seq for story in stories for event in story]
    assert sorted(seqs) == list(range(min(seqs), min(seqs) + 9))


async def test_one_answer_holds_at_most_256_kib_of_output_and_skips_nothing(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    chunks = make.chunks(*[(OUT, bytes([number]) * 100_000) for number in range(4)])
    for chunk in chunks:
        await store.append_output(run, [chunk])
        await store.write_run(run)
    page = await store.read_events(job.id, after_seq=0, limit=100, include_output=True)
    assert sum(len(event.chunk.data) for event in page if isinstance(event, StoredOutput)) == 200_000
    story = await all_events(store, job.id, 100)
    assert [event.seq for event in story] == list(range(story[0].seq, story[0].seq + 10))


async def test_chunk_over_256_kib_is_given_all_the_same(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    await store.append_output(run, make.chunks((OUT, bytes(5 * 1024 * 1024))))
    story = await all_events(store, job.id, 100)
    assert isinstance(story[-1], StoredOutput)
    assert len(story[-1].chunk.data) == 5 * 1024 * 1024


async def test_events_after_a_snapshot_are_those_it_does_not_hold(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    await store.write_run(replace(run, state=RunState.RUNNING))
    snapshot = await store.snapshot_job("default", job.id)
    assert snapshot is not None
    assert snapshot.runs[0].state is RunState.RUNNING
    await store.append_output(run, make.chunks((OUT, b"later")))
    done = replace(run, state=RunState.SUCCEEDED)
    await store.write_run(done)
    later = await store.read_events(job.id, after_seq=snapshot.seq, limit=10, include_output=True)
    assert [type(event) for event in later] == [StoredOutput, StoredRun]
    again = await store.snapshot_job("default", job.id)
    assert again is not None
    assert again.seq == later[-1].seq


async def test_events_of_a_job_that_is_not_stored_are_gone(store: Store, make: Make) -> None:
    job, _ = make.job()
    with pytest.raises(HistoryGone):
        await store.read_events(job.id, after_seq=0, limit=1, include_output=True)


async def test_listener_hears_the_last_number_of_every_write_before_its_caller(
    store: Store, make: Make, commits: list[Committed]
) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    assert commits == [Committed(jobs={job.id: 2}, runs=frozenset())]
    await store.append_output(run, make.chunks((OUT, b"a"), (OUT, b"b")))
    assert commits[1:] == [Committed(jobs={job.id: 4}, runs=frozenset({(job.id, "web-1")}))]
    await store.write_job(job)
    assert commits[2:] == [Committed(jobs={job.id: 5}, runs=frozenset())]
    await store.write_run(run)
    assert commits[3:] == [Committed(jobs={job.id: 6}, runs=frozenset({(job.id, "web-1")}))]


async def test_listener_is_not_called_for_what_touches_no_job(
    store: Store, make: Make, commits: list[Committed]
) -> None:
    await store.write_node(make.node())
    await store.next_epoch(1.0)
    job, [run] = make.job()
    await store.create_job(job, [run], make.request())
    commits.clear()
    await store.create_job(job, [run], make.request())
    await store.append_output(run, [])
    await store.append_output(run, make.chunks((OUT, b"")))
    assert commits == []


async def test_write_soon_keeps_its_place_before_a_later_write(store: Store, make: Make) -> None:
    job, runs = make.job([f"web-{number}" for number in range(20)])
    await store.create_job(job, runs, None)

    async def dispatch(run: Run) -> None:
        store.write_run_soon(replace(run, state=RunState.DISPATCHED))
        await store.write_run(replace(run, state=RunState.ACCEPTED))

    async with trio.open_nursery() as nursery:
        for run in runs:
            nursery.start_soon(dispatch, run)
    story = await store.read_events(job.id, after_seq=21, limit=100, include_output=False)
    for run in runs:
        states = [event.run.state for event in story if isinstance(event, StoredRun) and event.run.node == run.node]
        assert states == [RunState.DISPATCHED, RunState.ACCEPTED]
    assert await store.count_runs("default", job.id) == {RunState.ACCEPTED: 20}


async def test_write_soon_is_applied_in_order_without_anybody_waiting(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    for attempts in range(1, 6):
        store.write_run_soon(replace(run, state=RunState.DISPATCHED, attempts=attempts))
    await store.write_job(job)
    story = await store.read_events(job.id, after_seq=2, limit=100, include_output=False)
    assert [event.run.attempts for event in story if isinstance(event, StoredRun)] == [1, 2, 3, 4, 5]


async def test_write_whose_caller_is_cancelled_under_way_is_applied(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    with trio.CancelScope() as scope:
        # Between the commit and its caller.
        store.on_commit(lambda _: scope.cancel(reason="the test cancels a write"))
        await store.write_run(replace(run, state=RunState.ACCEPTED))
    assert scope.cancelled_caught
    found = await store.find_run("default", run.id)
    assert found is not None
    assert found.state is RunState.ACCEPTED


async def test_write_in_a_cancelled_scope_is_not_begun(store: Store, make: Make) -> None:
    job, [run] = make.job()
    with trio.CancelScope() as scope:
        scope.cancel(reason="the test begins cancelled")
        await store.create_job(job, [run], None)
    assert scope.cancelled_caught
    await store.next_epoch(1.0)
    assert await store.get_job("default", job.id) is None
