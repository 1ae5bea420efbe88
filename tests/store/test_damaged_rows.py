"""A flipped bit in what is written once is found when it is read, named, and costs nobody else anything."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shovey_trio.core.errors import RowDamaged
from shovey_trio.core.jobs.model import Job, ProofKind, Run, StreamName, ToldEnd
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.store.contract import JobFilter, Store
from shovey_trio.store.opening import open_store

from .conftest import NOW, Make

ENDED = {
    "state": RunState.FAILED,
    "cause": "exited",
    "detail": "it did not work",
    "exit_code": 3,
    "signal": 9,
    "updated_at": NOW + 5,
    "released_at": NOW + 1,
    "dispatched_at": NOW + 1,
    "accepted_at": NOW + 2,
    "started_at": NOW + 3,
    "finished_at": NOW + 5,
    "proof": ProofKind.EMPTY_CGROUP,
    "route": "stream",
    "attempts": 1,
    "order_expires_at": NOW + 60,
    "dropped_bytes": 7,
    "key_id": "key-1",
    "agent_instance": "i-1",
    "cancel_reason": "user/ada",
    "late_report": ToldEnd(state=RunState.SUCCEEDED, cause="exited", exit_code=0, signal=None, reported_at=NOW + 9),
}


async def filled(path: Path, make: Make) -> tuple[Job, list[Run]]:
    """A job with two runs that have ended, the first with output."""
    job, runs = make.job(["a", "b"])
    async with open_store(path) as store:
        await store.create_job(job, runs, None)
        await store.append_output(runs[0], make.chunks(*[(StreamName.STDOUT, b"chunk %d\n" % n) for n in range(3)]))
        runs = [replace(run, **ENDED) for run in runs]
        for run in runs:
            await store.write_run(run)
        job = replace(job, state=JobState.COMPLETE, finished_at=NOW + 5)
        await store.write_job(job)
    return job, runs


def flip(path: Path, table: str, column: str, where: str) -> None:
    """Changes a value by one bit, as memory or a disk does: SQLite sees nothing."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.text_factory = bytes
        [[rowid, kind, value]] = connection.execute(
            f"SELECT rowid, typeof({column}), {column} FROM {table} WHERE {where} LIMIT 1"
        ).fetchall()
        changed: Any
        match kind:
            case b"text" | b"blob":
                changed = bytes([*value[:-1], value[-1] ^ 1])
            case b"integer":
                changed = value ^ 1
            case _:
                changed = value + 0.25
        cast = "CAST(? AS TEXT)" if kind == b"text" else "?"
        connection.execute(f"UPDATE {table} SET {column} = {cast} WHERE rowid = ?", (changed, rowid))


def columns(path: Path, table: str, where: str) -> list[str]:
    """Those that hold something."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        row = connection.execute(f"SELECT * FROM {table} WHERE {where} LIMIT 1").fetchone()
        return [name for name in row.keys() if row[name] not in (None, "", b"")]  # noqa: SIM118  # it is no dictionary


READS: dict[str, tuple[str, frozenset[str], Callable[[Store, Job, Run], Awaitable[object]]]] = {
    # By the keys a row is found: with another one there is none.
    "runs": (
        "node = 'a'",
        frozenset({"run_pk", "job_pk", "node"}),
        lambda store, job, run: store.get_run("default", job.id, "a"),
    ),
    "events": (
        "run_pk = 1 AND body LIKE '%late_report%'",
        frozenset({"seq", "job_pk"}),
        lambda store, job, run: store.read_events(job.id, after_seq=0, limit=99, include_output=False),
    ),
    "output": (
        "position = 8",
        frozenset({"seq", "job_pk", "run_pk"}),
        lambda store, job, run: store.read_output(run.id, stream=None, offset=0, limit=99),
    ),
}


@pytest.mark.parametrize("table", READS)
async def test_no_flipped_value_is_served_and_everything_else_is(tmp_path: Path, make: Make, table: str) -> None:
    where, keys, read = READS[table]
    whole = tmp_path / "whole.db"
    job, [run, other] = await filled(whole, make)
    for column in columns(whole, table, where):
        if column in keys:
            continue
        path = tmp_path / f"{column}.db"
        path.write_bytes(whole.read_bytes())
        path.chmod(0o600)
        flip(path, table, column, where)
        async with open_store(path) as store:
            with pytest.raises(RowDamaged) as refused:
                await read(store, job, run)
            assert refused.value.details["row"]
            assert store.failure == ""
            assert await store.get_run("default", job.id, "b") == other
            assert (await store.list_jobs(JobFilter(organization="default"), limit=9, after=""))[0] == (job,)


async def test_text_that_is_none_any_more_is_named_like_any_damage(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, [_, other] = await filled(path, make)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET detail = CAST(x'ff' AS TEXT) WHERE node = 'a'")
    async with open_store(path) as store:
        with pytest.raises(RowDamaged, match="node 'a'"):
            await store.get_run("default", job.id, "a")
        assert await store.get_run("default", job.id, "b") == other


async def test_overview_of_a_job_does_not_show_a_flipped_state(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, _ = await filled(path, make)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET state = 'succeeded' WHERE node = 'a'")
    async with open_store(path) as store:
        with pytest.raises(RowDamaged, match="node 'a'"):
            await store.job_overview("default", job.id)


async def test_rows_without_a_checksum_are_served(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    job, [run, _] = await filled(path, make)
    with closing(sqlite3.connect(path)) as connection, connection:
        for table in READS:
            connection.execute(f"UPDATE {table} SET checksum = NULL")
    async with open_store(path) as store:
        assert await store.get_run("default", job.id, "a") == run
        assert len(await store.read_output(run.id, stream=None, offset=0, limit=99)) == 3
        assert await store.read_events(job.id, after_seq=0, limit=99, include_output=True)


async def test_damaged_run_of_an_unfinished_job_is_left_out_of_recovery_and_its_siblings_live(
    tmp_path: Path, make: Make
) -> None:
    path = tmp_path / "store.db"
    job, [ended, live] = make.job(["a", "b"])
    async with open_store(path) as store:
        await store.create_job(job, [ended, live], None)
        await store.write_run(replace(ended, **ENDED))
    flip(path, "runs", "exit_code", "node = 'a'")
    async with open_store(path) as store:
        [picture] = await store.unfinished_jobs()
        assert picture.runs == (live,)


async def test_whole_numbers_in_columns_of_floats_have_the_checksum_that_they_are_read_with(
    tmp_path: Path, make: Make
) -> None:
    path = tmp_path / "store.db"
    job, [run] = make.job()
    whole = replace(run, **{**ENDED, "finished_at": int(NOW), "accepted_at": 5})
    async with open_store(path) as store:
        await store.create_job(job, [run], None)
        await store.write_run(whole)
        assert await store.get_run("default", job.id, run.node) == whole
