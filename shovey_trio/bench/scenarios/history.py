"""``history``: what must not grow with what is stored – start, paging, memory – and deleting it without stalls."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from shovey_trio.bench.daemon_meter import DaemonCost, DaemonMeter
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import END_DEADLINE, Stage, make_fleet, start_daemon
from shovey_trio.core.ids import job_id, run_id
from shovey_trio.core.jobs.model import Job, Run
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.demo.fleet import ORGANIZATION, Fleet
from shovey_trio.store.contract import Store
from shovey_trio.store.opening import open_store

_RUNS_PER_JOB: Final = 100
_PAGES: Final = 200
_PAGE: Final = 50
_LISTINGS_WHILE_DELETING: Final = 5
# Jobs that are stored together, by one commit.
_AT_ONCE: Final = 32


async def measure(stage: Stage) -> Sequence[Figure]:
    """Fills a store of its own, serves it, pages through it, and serves it again with a retention of one second."""
    total = stage.options.history_runs
    directory = stage.fleet.directory / "history"
    await trio.Path(directory).mkdir()
    fleet = make_fleet(directory)
    try:
        await fleet.initialize()
        empty = await start_daemon(fleet)
        await fleet.controller.stop()
        await _fill(fleet.data.store, total)
        started = await start_daemon(fleet)
        pages, serving = await _serve(fleet, listings=1)
        await fleet.controller.stop()
        # The same data directory; its configuration holds the ports.
        fleet.controller = make_fleet(directory, **{"retention.jobs": "1s"}).controller
        await start_daemon(fleet)
        while_deleting, deleting = await _serve(fleet, listings=_LISTINGS_WHILE_DELETING)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_DEADLINE):
            await fleet.end()
    name = f"{total:,} stored runs"
    return [
        figure("no stored runs: start", [empty]),
        figure(f"{name}: start", [started], bar=Bar(at=2.0)),
        figure(f"{name}: page of {_PAGE} jobs", pages, bar=Bar(at=0.05, of="p99")),
        figure(f"{name}: daemon memory, peak", [serving.peak / 2**20], unit="MiB", bar=Bar(at=200)),
        figure(f"{name}: page of {_PAGE} jobs while old ones are deleted", while_deleting),
        figure(f"{name}: longest stall while old ones are deleted", [deleting.stall], bar=Bar(at=0.1)),
    ]


async def _serve(fleet: Fleet, *, listings: int) -> tuple[list[float], DaemonCost]:
    """Pages through the newest jobs, ``listings`` times; seconds per page, and what it cost."""
    pages: list[float] = []
    assert fleet.controller.pid is not None
    meter = DaemonMeter(fleet.controller.pid, fleet.controller.log)
    async with fleet.open_client() as client:
        await client.get_server_info()  # connect
        with meter.measuring() as cost:
            for _ in range(listings):
                listing = client.list_jobs(page_size=_PAGE)
                for _ in range(_PAGES):
                    began = time.perf_counter()
                    jobs = await listing.take(_PAGE)
                    pages.append(time.perf_counter() - began)
                    if len(jobs) < _PAGE:
                        break
    return pages, cost


async def _fill(path: Path, total: int) -> None:
    """Stores finished jobs as the daemon would have, the newest finished a minute ago."""
    now = time.time() - 60.0
    jobs = iter(range(-(-total // _RUNS_PER_JOB)))

    async def fill(store: Store) -> None:
        for _ in jobs:
            await store.create_job(*_finished_job(now), None)

    async with open_store(path) as store, trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(fill, store)


def _finished_job(at: float) -> tuple[Job, list[Run]]:
    job = Job(
        id=job_id(at, os.urandom(10)),
        organization=ORGANIZATION,
        command="true",
        quorum="100%",
        run_timeout=3600.0,
        kill_grace=10.0,
        created_by="user/bench",
        created_at=at,
        updated_at=at,
        finished_at=at,
        state=JobState.COMPLETE,
        run_total=_RUNS_PER_JOB,
        run_counts={RunState.SUCCEEDED: _RUNS_PER_JOB},
    )
    runs = [
        Run(
            id=run_id(job.id, f"node-{number:05}"),
            job_id=job.id,
            organization=ORGANIZATION,
            node=f"node-{number:05}",
            created_at=at,
            updated_at=at,
            finished_at=at,
            state=RunState.SUCCEEDED,
            exit_code=0,
            nonce=os.urandom(16),
        )
        for number in range(_RUNS_PER_JOB)
    ]
    return job, runs
