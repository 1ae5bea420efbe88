"""What may be opened, by whom, and what a damaged file does."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_trio.core.errors import ConfigurationInvalid, RowDamaged, StoreCorrupt, StoreUnavailable
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.core.jobs.states import JobState
from shovey_trio.store.opening import open_store
from shovey_trio.store.sqlite.files import CHECKED_AT_OPEN

from .conftest import Make

NOW = 1_800_000_000.0
PAGE = 4096


async def test_file_is_durable_logged_ahead_and_its_owners_alone(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await store.create_job(*make.job(), None)
        assert sorted(os.listdir(tmp_path)) == ["store.db", "store.db-shm", "store.db-wal", "store.db.lock"]
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
        assert set(modes.values()) == {0o600}
    assert sorted(os.listdir(tmp_path)) == ["store.db", "store.db.lock"]


async def test_everything_is_there_after_a_restart(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, [run] = make.job()
    chunks = make.chunks((StreamName.STDOUT, b"output"))
    async with open_store(path) as store:
        await store.create_job(job, [run], make.request())
        await store.append_output(run, chunks)
        await store.next_epoch(NOW)
        story = await store.read_events(job.id, after_seq=0, limit=10, include_output=True)
    async with open_store(path) as store:
        assert await store.read_events(job.id, after_seq=0, limit=10, include_output=True) == story
        [snapshot] = await store.unfinished_jobs()
        assert (snapshot.job, snapshot.runs) == (job, (run,))
        assert not (await store.create_job(*make.job(), make.request())).created
        assert await store.next_epoch(0.0) == NOW + 1
        await store.write_run(run)
        [event] = await store.read_events(job.id, after_seq=story[-1].seq, limit=10, include_output=True)
        assert event.seq == story[-1].seq + 1


async def test_sequence_goes_on_after_all_history_is_deleted_and_the_store_reopened(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, runs = make.job(finished_at=NOW - 1, state=JobState.COMPLETE)
    async with open_store(path) as store:
        await store.create_job(job, runs, None)
        await store.delete_history(jobs_before=NOW, statuses_before=NOW, limit=10)
    async with open_store(path) as store:
        later, runs = make.job()
        await store.create_job(later, runs, None)
        story = await store.read_events(later.id, after_seq=0, limit=10, include_output=True)
        assert [event.seq for event in story] == [3, 4]


async def test_second_server_is_refused_while_administration_is_let_in(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    token: dict[str, Any] = {"digest": b"x" * 32, "organization": "default", "node": "web-1"}
    async with open_store(path) as serving:
        with pytest.raises(StoreUnavailable, match="served by another"):
            async with open_store(path):
                pass
        async with open_store(path, exclusive=False) as offline:
            await offline.write_enrollment_token(**token, expires_at=NOW)
        assert await serving.use_enrollment_token(**token, now=NOW - 1)
    async with open_store(path):
        pass


async def test_two_processes_writing_events_never_use_a_number_twice(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as serving, open_store(path, exclusive=False) as offline:
        numbers = []
        for store in (serving, offline, serving, offline):
            job, runs = make.job()
            await store.create_job(job, runs, None)
            story = await serving.read_events(job.id, after_seq=0, limit=10, include_output=True)
            numbers += [event.seq for event in story]
        assert numbers == list(range(1, 9))


async def test_directory_that_others_may_change_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir(mode=0o700)
    directory.chmod(0o770)
    with pytest.raises(ConfigurationInvalid, match="0700"):
        async with open_store(directory / "store.db"):
            pass
    assert list(directory.iterdir()) == []


async def test_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path):
        pass
    path.chmod(0o640)
    with pytest.raises(ConfigurationInvalid, match="0600"):
        async with open_store(path):
            pass


async def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="absent"):
        async with open_store(tmp_path / "absent" / "store.db"):
            pass


SERVE = """
import sys, trio
from pathlib import Path
from shovey_trio.store.opening import open_store

async def main() -> None:
    async with open_store(Path(sys.argv[1])):
        print("served", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@within(30)
async def test_lock_of_the_store_survives_the_deletion_of_its_lock_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with trio.open_nursery() as nursery:
        serving = await nursery.start(
            partial(trio.run_process, [sys.executable, "-c", SERVE, str(path)], stdout=subprocess.PIPE, check=False)
        )
        async with serving.stdout:
            assert (await serving.stdout.receive_some()).startswith(b"served")
            (tmp_path / "store.db.lock").unlink()
            with pytest.raises(StoreUnavailable, match="served by another"):
                async with open_store(path):
                    pass
            serving.kill()
    async with open_store(path):
        pass


@pytest.mark.parametrize("content", [None, b""])
async def test_store_that_must_be_there_is_not_made_anew(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "store.db"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(StoreCorrupt, match=r"store\.db is (missing|empty)"):
        async with open_store(path, create=False):
            pass
    assert sorted(os.listdir(tmp_path)) == before


async def test_database_without_any_table_is_not_filled_where_a_store_must_be(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("DROP TABLE t")
    path.chmod(0o600)
    with pytest.raises(StoreCorrupt, match="is empty"):
        async with open_store(path, create=False):
            pass


@pytest.mark.parametrize("table", ["certificates", "output"])
async def test_missing_table_is_named_and_nothing_is_changed(tmp_path: Path, table: str) -> None:
    path = tmp_path / "store.db"
    async with open_store(path):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"DROP TABLE {table}")
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match=f"no table {table}"):
        async with open_store(path):
            pass
    assert path.read_bytes() == before


async def test_error_inside_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with open_store(tmp_path / "store.db"):
            raise KeyError


@pytest.mark.parametrize("content", [b"\0" * 8192, b"not a database at all, but text\n" * 300])
async def test_file_that_is_no_database_is_refused_by_name_and_not_changed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StoreCorrupt, match=r"store\.db"):
        async with open_store(path):
            pass
    assert path.read_bytes() == content


async def test_database_of_another_program_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE theirs (x)")
    path.chmod(0o600)
    with pytest.raises(StoreCorrupt, match="not one of shovey-trio"):
        async with open_store(path):
            pass
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


async def test_damaged_header_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path):
        pass
    _damage(path, 0)
    with pytest.raises(StoreCorrupt, match=r"store\.db"):
        async with open_store(path):
            pass


async def test_damaged_page_of_a_small_file_is_found_at_open(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await store.create_job(*make.job([f"node-{number}" for number in range(500)]), None)
    _damage(path, _root_page(path, "runs"))
    with pytest.raises(StoreCorrupt, match=r"store\.db is damaged"):
        async with open_store(path):
            pass


async def test_damaged_page_of_a_large_file_is_found_when_read_and_ends_the_service(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, [run] = make.job()
    async with open_store(path) as store:
        await store.create_job(job, [run], None)
        data = bytes(60_000)
        chunks = make.chunks(*[(StreamName.STDOUT, data)] * (CHECKED_AT_OPEN // len(data) + 10))
        await store.append_output(run, chunks)
    _damage(path, _root_page(path, "ux_output_position"))
    async with open_store(path) as store:
        assert await store.get_job("default", job.id) == job
        with pytest.raises(StoreCorrupt, match=r"store\.db is damaged"):
            await store.read_output(run.id, stream=None, offset=0, limit=10**9)
        assert "damaged" in store.failure
        with pytest.raises(StoreCorrupt):
            await store.get_job("default", job.id)
        with pytest.raises(StoreCorrupt):
            await store.write_run(run)
        with pytest.raises(StoreCorrupt):
            store.write_run_soon(run)


async def test_row_that_was_never_written_is_damage(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, runs = make.job()
    async with open_store(path) as store:
        await store.create_job(job, runs, None)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET state = 'dancing'")
    async with open_store(path) as store:
        with pytest.raises(RowDamaged, match="dancing"):
            await store.find_run("default", runs[0].id)
        assert await store.get_job("default", job.id) == job


async def test_damage_met_by_a_write_fails_all_that_wait(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, [run] = make.job()
    async with open_store(path) as store:
        await store.create_job(job, [run], None)
        data = bytes(60_000)
        chunks = make.chunks(*[(StreamName.STDOUT, data)] * (CHECKED_AT_OPEN // len(data) + 10))
        await store.append_output(run, chunks)
    _damage(path, _root_page(path, "events"))
    async with open_store(path) as store:
        with pytest.raises(StoreCorrupt):
            await store.write_run(run)
        assert "damaged" in store.failure


def _root_page(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        [page] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    return int(page) - 1


def _damage(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(b"\xa5" * PAGE)
