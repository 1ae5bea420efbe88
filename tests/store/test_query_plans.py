"""Nothing grows with history: every statement finds its rows by an index and needs no sorting."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from shovey_trio.core.audit.records import AuditAction, AuditEntry, AuditOutcome
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.store.contract import JobFilter
from shovey_trio.store.opening import open_store
from shovey_trio.store.sql.store import SqlStore

from .conftest import Make


@asynccontextmanager
async def recorded(path: Path, make: Make) -> AsyncIterator[tuple[SqlStore, list[str]]]:
    """A store with two jobs, and the statements that SQLite executes from then on, whoever asks for them."""
    statements: list[str] = []

    def trace(connection: Any, _: object) -> None:
        connection.set_trace_callback(statements.append)

    event.listen(Engine, "connect", trace)
    try:
        async with open_store(path) as store:
            for _ in range(2):
                job, runs = make.job(["web-1", "web-2"])
                await store.create_job(job, runs, make.request(job.id))
                await store.append_output(runs[0], make.chunks((StreamName.STDOUT, b"x")))
            statements.clear()
            yield store, statements
    finally:
        event.remove(Engine, "connect", trace)


def plans(path: Path, statements: list[str]) -> list[tuple[str, str]]:
    """Every step of the plan of every statement, with the statement."""
    steps = []
    with closing(sqlite3.connect(path)) as connection:
        for sql in statements:
            if sql.startswith(("SELECT", "UPDATE", "DELETE")):
                for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {sql}"):
                    steps.append((step, sql))  # a comprehension of this reads worse
    return steps


async def read_all(store: SqlStore, make: Make) -> None:
    """Calls every method that reads history, and those that write to what is large."""
    by_state = JobFilter(organization="default", states=frozenset({JobState.NEW, JobState.RUNNING}))
    [job, _], token = await store.list_jobs(by_state, limit=2, after="")
    assert token == ""
    for where in (
        JobFilter(organization="default"),
        JobFilter(organization="default", command="true"),
        JobFilter(organization="default", created_by="user/admin"),
    ):
        [_], token = await store.list_jobs(where, limit=1, after="")
        await store.list_jobs(where, limit=1, after=token)
    [run], token = await store.list_runs("default", job.id, states=frozenset(), limit=1, after="")
    await store.list_runs("default", job.id, states=frozenset(), limit=1, after=token)
    await store.list_runs("default", job.id, states=frozenset({RunState.PENDING}), limit=1, after="")
    await store.get_job("default", job.id)
    await store.get_run("default", job.id, "web-1")
    await store.find_run("default", run.id)
    await store.unfinished_jobs()
    await store.snapshot_job("default", job.id)
    await store.job_overview("default", job.id)
    await store.read_events(job.id, after_seq=1, limit=5, include_output=True)
    await store.output_extents([run.id])
    for stream in (None, StreamName.STDOUT):
        await store.read_output(run.id, stream=stream, offset=0, limit=5)
    await store.list_node_statuses("default", "web-1", limit=5, after="")
    await store.revoked_serials()
    entry = AuditEntry(at=1.0, organization="default", action=AuditAction.CALLS, outcome=AuditOutcome.ALLOWED)
    await store.append_audit([entry, entry])
    await store.audit_head()
    await store.audit_start()
    await store.read_audit(after_seq=0, limit=5)
    await store.prune_audit(before=2.0, now=2.0, organization="default")
    await store.create_job(*make.job(), make.request("another"))
    await store.write_run(replace(run, state=RunState.ACCEPTED, accepted_at=1.0))
    await store.write_job(replace(job, state=JobState.COMPLETE, finished_at=1.0))
    silent = await store.get_run("default", job.id, "web-2")
    assert silent is not None
    await store.append_output(silent, make.chunks((StreamName.STDOUT, b"y")))
    await store.delete_history(jobs_before=2e9, statuses_before=2e9, limit=5)


async def test_no_statement_walks_a_table_or_sorts(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    async with recorded(path, make) as (store, statements):
        await read_all(store, make)
        found = plans(path, statements)
    assert len(found) > 40
    # ``deleted_jobs`` holds what is being swept and nothing else.
    walks = [
        (step, sql)
        for step, sql in found
        if step.startswith("SCAN") and "INDEX" not in step and step not in ("SCAN deleted_jobs", "SCAN CONSTANT ROW")
    ]
    sorts = [(step, sql) for step, sql in found if "TEMP B-TREE FOR ORDER BY" in step]
    assert walks == []
    assert sorts == []


async def test_plan_check_would_notice_a_walk(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "store.db"
    async with recorded(path, make):
        steps = plans(path, ["SELECT * FROM runs WHERE cause = 'x'"])
    with pytest.raises(AssertionError):
        assert not any(step.startswith("SCAN") for step, _ in steps)
