"""What the SQLite store does per second on this machine: ``python bench/store.py [--directory DIR] [--history N]``.

Every figure includes fsync (WAL, synchronous=FULL) and the way through trio: callers are tasks that wait for their
write to be durable. CPU is the whole process's, loop and threads together.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from shovey_trio.core.ids import job_id, run_id
from shovey_trio.core.jobs.model import Job, OutputChunk, Run, StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.store.contract import JobFilter
from shovey_trio.store.opening import open_store
from shovey_trio.store.sql.store import SqlStore

NOW: Final = 1_800_000_000.0
MEBI: Final = 1024 * 1024


def new_job(nodes: int) -> tuple[Job, list[Run]]:
    """A job with runs, of random id."""
    job = Job(
        id=job_id(NOW, os.urandom(10)),
        organization="default",
        command="true",
        quorum="100%",
        run_timeout=3600.0,
        kill_grace=10.0,
        created_by="user/bench",
        created_at=NOW,
        updated_at=NOW,
        run_total=nodes,
    )
    names = [f"node-{number:05}.example.org" for number in range(nodes)]
    runs = [
        Run(
            id=run_id(job.id, name),
            job_id=job.id,
            organization=job.organization,
            node=name,
            created_at=NOW,
            updated_at=NOW,
            nonce=os.urandom(16),
        )
        for name in names
    ]
    return job, runs


async def measure(title: str, tasks: int, each: int, call: Callable[[int, int], Awaitable[object]], unit: str) -> None:
    """Runs ``call(task, number)`` ``each`` times in each of ``tasks`` tasks at once, and prints what it took."""
    delays: list[float] = []

    async def worker(task: int) -> None:
        await trio.lowlevel.checkpoint()
        for number in range(each):
            start = time.perf_counter()
            await call(task, number)
            delays.append(time.perf_counter() - start)

    start, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for task in range(tasks):
            nursery.start_soon(worker, task)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    delays.sort()
    p50, p99 = statistics.median(delays), delays[math.ceil(len(delays) * 0.99) - 1]
    print(
        f"{title:<44} {len(delays) / took:>9,.0f} {unit}/s   p50 {p50 * 1e3:7.2f} ms   p99 {p99 * 1e3:7.2f} ms"
        f"   {cpu / len(delays) * 1e6:7.0f} µs CPU each"
    )


async def bench_output(store: SqlStore, size: int, tasks: int, each: int, chunks: int) -> None:
    """Appends chunks of ``size`` bytes to ``tasks`` runs, ``chunks`` a call."""
    job, runs = new_job(tasks)
    await store.create_job(job, runs, None)
    data = os.urandom(size)

    async def append(task: int, number: int) -> None:
        first = number * chunks
        await store.append_output(
            runs[task],
            [
                OutputChunk(
                    stream=StreamName.STDOUT,
                    position=(first + index) * size,
                    stream_offset=(first + index) * size,
                    read_at=NOW,
                    data=data,
                )
                for index in range(chunks)
            ],
        )

    title = f"append_output {size:,} B × {chunks}, {tasks} tasks"
    start = time.perf_counter()
    await measure(title, tasks, each, append, "calls")
    took = time.perf_counter() - start
    rows = tasks * each * chunks
    print(f"{'':<44} {rows / took:>9,.0f} rows/s   {rows * size / took / MEBI:7.1f} MiB/s")


async def bench_writes(store: SqlStore) -> None:
    """Runs and jobs."""
    job, runs = new_job(1_000)
    await store.create_job(job, runs, None)
    states = [RunState.ACCEPTED, RunState.RUNNING, RunState.SUCCEEDED] * 7

    async def write_run(task: int, number: int) -> None:
        await store.write_run(replace(runs[task], state=states[number], attempts=number))

    await measure("write_run, 1,000 tasks", 1_000, 20, write_run, "runs")
    await measure("write_run, 1 task", 1, 500, lambda _, number: write_run(0, number % 21), "runs")

    async def create(_task: int, _number: int) -> None:
        await store.create_job(*new_job(1), None)

    await measure("create_job with 1 run, 32 tasks", 32, 40, create, "jobs")
    big = [new_job(10_000) for _ in range(5)]

    async def create_big(_task: int, number: int) -> None:
        await store.create_job(*big[number], None)

    await measure("create_job with 10,000 runs, 1 task", 1, 5, create_big, "jobs")

    async def snapshot(_task: int, number: int) -> None:
        await store.snapshot_job("default", big[number][0].id)

    await measure("snapshot_job with 10,000 runs, 1 task", 1, 5, snapshot, "reads")
    for job, _ in big:
        await store.write_job(replace(job, state=JobState.COMPLETE, finished_at=NOW))


async def bench_history(path: Path, total: int) -> None:
    """Fills the store with finished runs, 100 to a job, and measures what must not grow with them."""
    async with open_store(path) as store:
        for _ in range(total // 100):
            job, runs = new_job(100)
            await store.create_job(
                replace(job, state=JobState.COMPLETE, finished_at=NOW),
                [replace(run, state=RunState.SUCCEEDED, finished_at=NOW) for run in runs],
                None,
            )
    start = time.perf_counter()
    async with open_store(path) as store:
        await store.unfinished_jobs()
        print(f"open and recover with {total:,} runs stored: {time.perf_counter() - start:.3f} s")
        token = ""

        async def page(_task: int, _number: int) -> None:
            nonlocal token
            _, token = await store.list_jobs(JobFilter(organization="default"), limit=50, after=token)

        await measure("list_jobs, pages of 50", 1, 200, page, "pages")
        rare = JobFilter(organization="default", states=frozenset({JobState.CRASHED, JobState.TIMED_OUT}))
        await measure(
            "list_jobs, states that none has", 1, 200, lambda *_: store.list_jobs(rare, limit=50, after=""), "pages"
        )
        job, runs = new_job(1_000)
        await store.create_job(job, runs, None)
        await measure("write_run, 1,000 tasks", 1_000, 10, lambda task, _: store.write_run(runs[task]), "runs")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_delete, store)
            await measure("write_run while 200 jobs are deleted", 1, 300, lambda *_: store.write_run(runs[0]), "runs")


async def _delete(store: SqlStore) -> None:
    start = time.perf_counter()
    deleted = await store.delete_history(jobs_before=NOW + 1, statuses_before=0.0, limit=200)
    print(f"delete_history of {deleted} jobs: {time.perf_counter() - start:.2f} s")


async def main(directory: str | None, history: int) -> None:
    """Runs all, in a temporary directory under ``directory``."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        async with open_store(Path(folder) / "store.db") as store:
            await bench_output(store, 1024, 1_000, 20, 1)
            await bench_output(store, 1024, 100, 20, 16)
            await bench_output(store, 64 * 1024, 100, 20, 1)
            await bench_writes(store)
        if history:
            await bench_history(Path(folder) / "history.db", history)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", help="where the file is made (default: the temporary directory)")
    parser.add_argument("--history", type=int, default=0, metavar="RUNS", help="also fill a store with so many runs")
    arguments = parser.parse_args()
    trio.run(main, arguments.directory, arguments.history)
