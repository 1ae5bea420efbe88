"""SQLite on a full disk, behind a lock, under kill -9; groups in which one write fails."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from shovey_trio.core.errors import NotFound, StoreUnavailable
from shovey_trio.core.jobs.model import Run, StreamName
from shovey_trio.core.jobs.states import RunState
from shovey_trio.store.contract import Committed
from shovey_trio.store.opening import open_store
from shovey_trio.store.sql.failures import StoreConflict

from .conftest import Make

# Appends to one run for ever; prints the number of bytes after each write that was acknowledged.
APPEND = """
import sys, trio
from pathlib import Path
from shovey_trio.core.jobs.model import Job, OutputChunk, Run, StreamName
from shovey_trio.store.opening import open_store

async def main():
    job = Job(id="job", organization="default", command="true", quorum="1", run_timeout=1.0, kill_grace=1.0,
              created_by="user/admin", created_at=1.0, updated_at=1.0)
    run = Run(id="run", job_id="job", organization="default", node="web-1", created_at=1.0, updated_at=1.0,
              nonce=bytes(16))
    async with open_store(Path(sys.argv[1])) as store:
        await store.create_job(job, [run], None)
        size = 0
        while True:
            data = size.to_bytes(8, "big") * 100
            await store.append_output(run, [OutputChunk(stream=StreamName.STDOUT, position=size, stream_offset=size,
                                                        read_at=1.0, data=data)])
            size += len(data)
            print(size, flush=True)

trio.run(main)
"""

# Writes until the file may grow no more, then until it may again; prints what happened as JSON.
FILL = """
import json, resource, sys, trio
from pathlib import Path
from shovey_trio.core.errors import StoreUnavailable
from shovey_trio.core.jobs.model import User, Role
from shovey_trio.store.opening import open_store

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    async with open_store(Path(sys.argv[1])) as store:
        limit(Path(sys.argv[1] + "-wal").stat().st_size + 200_000)
        written, refused, failure = 0, 0, ""
        async def write(number):
            nonlocal written, refused, failure
            user = User(name=f"user-{number:04}", organization="x" * 5000, role=Role.VIEWER, created_at=1.0)
            try:
                await store.write_user(user)
                written += 1
            except StoreUnavailable:
                refused += 1
                failure = store.failure
        for number in range(100):
            await write(number)
        readable = len(await store.load_users())
        before = (written, refused)
        limit(resource.RLIM_INFINITY)
        await write(1000)
        print(json.dumps({"written": before[0], "refused": before[1], "failure": failure, "readable": readable,
                          "healed": written == before[0] + 1, "failure_after": store.failure}))

trio.run(main)
"""


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Another program holds SQLite's write lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


@pytest.mark.parametrize("acknowledged", [1, 40, 200])
async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "store.db"
    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", APPEND, str(path)], stdout=subprocess.PIPE, stderr=None
        )
        assert process.stdout is not None
        printed = b""
        try:
            while printed.count(b"\n") < acknowledged:
                more = await process.stdout.receive_some()
                assert more, "the writer ended by itself"
                printed += more
        finally:
            process.send_signal(signal.SIGKILL)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 20):
                await process.wait()
        while more := await process.stdout.receive_some():
            printed += more
        await process.stdout.aclose()
    last = int(printed.split(b"\n")[-2])
    async with open_store(path) as store:
        extent = await store.output_extent("run")
        assert extent.stdout_bytes >= last
        chunks = await store.read_output("run", stream=StreamName.STDOUT, offset=0, limit=2**31)
        assert b"".join(chunk.data for chunk in chunks) == b"".join(
            size.to_bytes(8, "big") * 100 for size in range(0, extent.stdout_bytes, 800)
        )


async def test_full_disk_refuses_writes_loses_nothing_and_heals_without_restart(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with trio.fail_after(60):
        done = await trio.run_process([sys.executable, "-c", FILL, str(path)], capture_stdout=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["written"] > 0
    assert told["refused"] > 0
    assert told["readable"] == told["written"]
    assert told["healed"]
    assert "store.db" in told["failure"]
    assert told["failure_after"] == ""
    async with open_store(path) as store:
        assert len(await store.load_users()) == told["written"] + 1


async def test_locked_file_fails_all_that_wait_and_reads_go_on(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shovey_trio.store.sqlite.files.BUSY_WAIT", 0.1)
    path = tmp_path / "store.db"
    job, runs = make.job([f"web-{number}" for number in range(5)])
    refused: list[Run] = []

    async def write(run: Run) -> None:
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.write_run(run)
        refused.append(run)

    async with open_store(path) as store:
        await store.create_job(job, runs, None)
        async with locked(path):
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for run in runs:
                        nursery.start_soon(write, replace(run, state=RunState.RUNNING))
                assert len(refused) == 5
                assert "locked" in store.failure
                assert await store.count_runs("default", job.id) == {RunState.PENDING: 5}
        await store.write_run(replace(runs[0], state=RunState.RUNNING))
        assert store.failure == ""
        story = await store.read_events(job.id, after_seq=0, limit=100, include_output=True)
        assert [event.seq for event in story] == list(range(1, 8))


async def test_write_soon_behind_a_lock_is_made_up_for(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shovey_trio.store.sqlite.files.BUSY_WAIT", 0.1)
    path = tmp_path / "store.db"
    job, [run] = make.job()
    async with open_store(path) as store:
        await store.create_job(job, [run], None)
        async with locked(path):
            store.write_run_soon(replace(run, state=RunState.DISPATCHED))
            with pytest.raises(StoreUnavailable):
                await store.write_job(job)
        await store.write_job(job)
        found = await store.find_run("default", run.id)
        assert found is not None
        assert found.state is RunState.DISPATCHED


async def test_file_locked_at_open_is_unavailable_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shovey_trio.store.sqlite.files.BUSY_WAIT", 0.1)
    path = tmp_path / "store.db"
    async with open_store(path):
        pass
    async with locked(path):
        with pytest.raises(StoreUnavailable, match="locked"):
            async with open_store(path):
                pass
    async with open_store(path):
        pass


async def test_concurrent_writes_share_commits(tmp_path: Path, make: Make) -> None:
    job, runs = make.job([f"web-{number}" for number in range(500)])
    commits: list[Committed] = []
    async with open_store(tmp_path / "store.db") as store:
        await store.create_job(job, runs, None)
        store.on_commit(commits.append)
        async with trio.open_nursery() as nursery:
            for run in runs:
                nursery.start_soon(store.write_run, replace(run, state=RunState.RUNNING))
        assert await store.count_runs("default", job.id) == {RunState.RUNNING: 500}
    # Every task starts in one step of the loop: the first commits alone, the rest together (or nearly).
    assert len(commits) <= 5
    assert [commit.jobs[job.id] for commit in commits][-1] == 1001


async def test_one_write_that_fails_takes_no_other_with_it(tmp_path: Path, make: Make) -> None:
    job, runs = make.job([f"web-{number}" for number in range(50)])
    chunks = make.chunks((StreamName.STDOUT, b"x"))
    stranger, [unknown] = make.job()
    outcomes: dict[str, type[BaseException] | None] = {}
    commits: list[Committed] = []

    async def append(run: Run) -> None:
        await trio.lowlevel.checkpoint()
        try:
            await store.append_output(run, chunks)
        except (StoreConflict, NotFound) as error:
            outcomes[run.id] = type(error)
        else:
            outcomes[run.id] = None

    async with open_store(tmp_path / "store.db") as store:
        await store.create_job(job, runs, None)
        await store.append_output(runs[7], chunks)
        store.on_commit(commits.append)
        async with trio.open_nursery() as nursery:
            for run in [*runs, unknown]:
                nursery.start_soon(append, run)
        assert store.failure == ""
        assert outcomes.pop(runs[7].id) is StoreConflict
        assert outcomes.pop(unknown.id) is NotFound
        assert set(outcomes.values()) == {None}
        extents = await store.output_extents([run.id for run in runs])
        assert {extent.stdout_bytes for extent in extents.values()} == {1}
        story = await store.read_events(job.id, after_seq=0, limit=1000, include_output=True)
        assert [event.seq for event in story] == list(range(1, 102))
        heard = frozenset().union(*(commit.runs for commit in commits))
        assert heard == {(job.id, run.node) for run in runs if run is not runs[7]}
        assert len(commits) <= 5
    assert stranger.id not in {job_id for commit in commits for job_id in commit.jobs}


async def test_value_the_database_cannot_hold_concerns_its_caller_alone(tmp_path: Path, make: Make) -> None:
    job, [run] = make.job()
    async with open_store(tmp_path / "store.db") as store:
        await store.create_job(job, [run], None)
        with pytest.raises(StoreConflict, match="too large"):
            await store.write_run(replace(run, exit_code=2**70))
        with pytest.raises(StoreConflict, match="surrogates"):
            await store.write_run(replace(run, agent_instance="\udc80"))
        assert store.failure == ""
        await store.write_run(replace(run, exit_code=1))


async def test_leaving_the_block_finishes_the_writes_of_cancelled_callers(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, runs = make.job([f"web-{number}" for number in range(100)])
    async with open_store(path) as store:
        await store.create_job(job, runs, None)
        async with trio.open_nursery() as nursery:
            for run in runs:
                nursery.start_soon(store.write_run, replace(run, state=RunState.RUNNING))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the callers give up")
        store.write_run_soon(replace(runs[0], state=RunState.SUCCEEDED))
    async with open_store(path) as store:
        counts = await store.count_runs("default", job.id)
    assert counts == {RunState.RUNNING: 99, RunState.SUCCEEDED: 1}
