"""Contract: retention."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.housekeeping import BELIEVED_AHEAD, delete_history
from shovey_trio.core.errors import HistoryGone, NotFound
from shovey_trio.core.jobs.model import OutputExtent, StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.store.contract import Committed, JobFilter, Store
from shovey_trio.store.opening import open_store
from shovey_trio.store.sql import retention

from .conftest import Make

NOW = 1_800_000_000.0
DAY = 86_400.0


async def finish(store: Store, make: Make, finished_at: float) -> tuple[str, str]:
    """Stores a finished job with output; returns the ids of it and its run."""
    job, [run] = make.job(state=JobState.RUNNING)
    await store.create_job(job, [run], make.request(job.id))
    await store.append_output(run, make.chunks((StreamName.STDOUT, b"output")))
    await store.write_run(replace(run, state=RunState.SUCCEEDED))
    await store.write_job(replace(job, state=JobState.COMPLETE, finished_at=finished_at))
    return job.id, run.id


async def delete(store: Store, before: float, limit: int = 100) -> int:
    return await store.delete_history(jobs_before=before, statuses_before=0.0, limit=limit)


async def listed(store: Store) -> list[str]:
    jobs, _ = await store.list_jobs(JobFilter(organization="default"), limit=100, after="")
    return [job.id for job in jobs]


async def test_old_finished_jobs_are_deleted_and_others_kept(store: Store, make: Make) -> None:
    old, _ = await finish(store, make, NOW - 10)
    young, _ = await finish(store, make, NOW)
    live, runs = make.job(state=JobState.RUNNING)
    await store.create_job(live, runs, None)
    assert await delete(store, NOW) == 1
    assert await listed(store) == [live.id, young]
    assert await store.get_job("default", old) is None
    assert await delete(store, NOW) == 0


async def test_oldest_jobs_go_first_and_never_more_than_the_limit(store: Store, make: Make) -> None:
    ids = [(await finish(store, make, NOW - age))[0] for age in (1, 5, 3, 4, 2)]
    assert await delete(store, NOW, limit=2) == 2
    assert await listed(store) == [ids[4], ids[2], ids[0]]
    assert await delete(store, NOW, limit=2) == 2
    assert await delete(store, NOW, limit=2) == 1


async def test_nothing_of_a_deleted_job_is_left(store: Store, make: Make) -> None:
    job_id, run_id = await finish(store, make, NOW - 10)
    run = await store.find_run("default", run_id)
    assert run is not None
    await delete(store, NOW)
    assert await store.find_run("default", run_id) is None
    assert await store.get_run("default", job_id, "web-1") is None
    assert await store.snapshot_job("default", job_id) is None
    assert await store.output_extent(run_id) == OutputExtent()
    assert list(await store.read_output(run_id, stream=None, offset=0, limit=10)) == []
    assert await store.count_runs("default", job_id) == {}
    with pytest.raises(HistoryGone):
        await store.read_events(job_id, after_seq=1, limit=10, include_output=True)
    with pytest.raises(NotFound):
        await store.write_run(run)
    again, again_runs = make.job()
    assert (await store.create_job(again, again_runs, make.request(job_id))).created


async def test_sequence_numbers_of_deleted_history_are_not_used_again(
    store: Store, make: Make, commits: list[Committed]
) -> None:
    job_id, _ = await finish(store, make, NOW - 10)
    highest = commits[-1].jobs[job_id]
    await delete(store, NOW)
    job, runs = make.job()
    await store.create_job(job, runs, None)
    assert commits[-1].jobs[job.id] == highest + 2


async def test_big_job_is_deleted_in_slices_and_whole(store: Store, make: Make) -> None:
    job, runs = make.job([f"node-{number:04}" for number in range(2_100)], state=JobState.COMPLETE, finished_at=NOW - 1)
    await store.create_job(job, runs, None)
    await store.append_output(runs[0], make.chunks(*[(StreamName.STDOUT, b"x")] * 600))
    kept, _ = await finish(store, make, NOW)
    assert await delete(store, NOW) == 1
    assert await listed(store) == [kept]
    assert await store.find_run("default", runs[-1].id) is None


async def test_what_a_deleted_job_left_goes_slice_by_slice_and_nothing_of_others(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    rows = partial(_rows_by_job, path)
    async with open_store(path) as store:
        old, runs = make.job([f"node-{number:04}" for number in range(2_100)], state=JobState.COMPLETE)
        await store.create_job(replace(old, finished_at=NOW - 1), runs, None)
        await store.append_output(runs[0], make.chunks(*[(StreamName.STDOUT, b"x")] * 600))
        await finish(store, make, NOW)
        before = rows()
        kept = {table: by_job[-1:] for table, by_job in before.items()}
        assert [len(by_job) for by_job in before.values()] == [2, 2, 2]
        assert await store._write(retention.hide_jobs, 0, NOW, 10) == 1
        assert rows() == before, "nobody waits for the deletion of a whole job"
        sizes = {table: by_job[0] for table, by_job in before.items()}
        while await store._write(retention.sweep_jobs, 0):
            left = {table: sum(by_job) - sum(kept[table]) for table, by_job in rows().items()}
            gone = {table: sizes[table] - left[table] for table in left}
            assert sum(bool(count) for count in gone.values()) <= 1
            assert gone["output"] <= retention.SLICE_ROWS
            assert max(gone.values()) <= 2_000
            sizes = left
        assert rows() == kept


def _rows_by_job(path: Path) -> dict[str, list[int]]:
    with closing(sqlite3.connect(path)) as reader:
        return {
            table: [
                count for (count,) in reader.execute(f"SELECT count(*) FROM {table} GROUP BY job_pk ORDER BY job_pk")
            ]
            for table in ("output", "events", "runs")
        }


async def test_old_presence_is_deleted(store: Store, make: Make) -> None:
    for age in (30, 20, 10):
        await store.write_node(make.node(), status=make.status(since=NOW - age))
    await store.delete_history(jobs_before=0.0, statuses_before=NOW - 20, limit=10)
    statuses, _ = await store.list_node_statuses("default", "web-1", limit=10, after="")
    assert [status.since for status in statuses] == [NOW - 10, NOW - 20]
    assert len(await store.load_nodes()) == 1


@pytest.mark.parametrize("ahead", [2 * DAY, 31 * DAY, 3650 * DAY])
async def test_nothing_is_deleted_by_a_clock_that_is_more_than_a_day_ahead_until_somebody_says_so(
    store: Store, make: Make, ahead: float
) -> None:
    settings = ServerSettings()
    job, [run] = make.job(state=JobState.RUNNING)
    await store.create_job(job, [run], None)
    await store.write_job(replace(job, state=JobState.COMPLETE, finished_at=job.created_at))
    now = job.created_at + ahead
    # Of a store of an older version, which has believed no time yet; then again and again, after restarts too.
    for _ in range(3):
        assert not await store.believe_clock(now, at_most_ahead=BELIEVED_AHEAD)
        await delete_history(store, settings, now)
        newer, [its] = make.job(state=JobState.RUNNING)
        await store.create_job(replace(newer, created_at=now), [its], None)
        assert job.id in await listed(store), "what was written by the wrong clock does not make it right"
    await delete_history(store, settings, job.created_at + DAY / 2)
    assert await store.believe_clock(job.created_at + DAY, at_most_ahead=BELIEVED_AHEAD), "it is right again"
    assert await store.believe_clock(now, at_most_ahead=math.inf), "somebody says so"
    await delete_history(store, settings, now + DAY / 2)
    assert (job.id in await listed(store)) is (ahead < settings.retention.jobs)


async def test_a_new_store_believes_any_time(store: Store) -> None:
    assert await store.believe_clock(NOW, at_most_ahead=0.0)
    assert await store.believe_clock(NOW - 40 * DAY, at_most_ahead=0.0), "a clock that goes back deletes nothing"
    assert await store.believe_clock(NOW + DAY, at_most_ahead=DAY), "nor does it bind the one that is right again"
