"""Reads of jobs, runs and their events, each a function of one snapshot transaction."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Select, bindparam, func, select

from shovey_trio.core.errors import HistoryGone
from shovey_trio.core.jobs.model import Job, Run
from shovey_trio.core.jobs.states import RunState
from shovey_trio.store.contract import (
    JobFilter,
    JobOverview,
    JobSnapshot,
    StoredEvent,
    StoredJob,
    StoredOutput,
    StoredRun,
)
from shovey_trio.store.sql.checksums import check_event, checked_chunk, checked_run, checked_status
from shovey_trio.store.sql.pages import Listing, decode_key, decode_page, encode_page
from shovey_trio.store.sql.prepared import Prepared
from shovey_trio.store.sql.rows import CHUNK, JOB, RUN, RUN_STATUS, Row, UndecodableRow
from shovey_trio.store.sql.tables import UNFINISHED, events, jobs, output, runs

_log = structlog.get_logger(__name__)

# Bytes of output in one answer of ``read_events``; the first chunk is given whatever its size.
EVENT_OUTPUT_BYTES: Final = 256 * 1024

_SELECT_RUNS: Final[Select[Any]] = select(*RUN.columns, runs.c.checksum).join(jobs, jobs.c.job_pk == runs.c.job_pk)
_OF_JOB: Final = (jobs.c.job_id == bindparam("job_id"), jobs.c.organization == bindparam("organization"))
_JOB: Final = Prepared(select(*JOB.columns, jobs.c.job_pk).where(*_OF_JOB))
_RUN_ON: Final = Prepared(_SELECT_RUNS.where(*_OF_JOB, runs.c.node == bindparam("node")))
_RUN: Final = Prepared(
    _SELECT_RUNS.where(runs.c.run_id == bindparam("run_id"), jobs.c.organization == bindparam("organization"))
)
_RUN_STATUSES: Final = Prepared(
    select(*RUN_STATUS.columns, runs.c.checksum).where(runs.c.job_pk == bindparam("job_pk")).order_by(runs.c.node)
)
_RUNS: Final = Prepared(_SELECT_RUNS.where(runs.c.job_pk == bindparam("job_pk")).order_by(runs.c.node))
_LAST_SEQS: Final = Prepared(
    select(
        select(func.max(events.c.seq)).where(events.c.job_pk == bindparam("job_pk")).scalar_subquery(),
        select(func.max(output.c.seq)).where(output.c.job_pk == bindparam("job_pk")).scalar_subquery(),
    )
)
_EVENT_BASE: Final = Prepared(select(*JOB.fixed_columns, jobs.c.job_pk).where(jobs.c.job_id == bindparam("job_id")))
_EVENTS: Final = Prepared(
    select(
        *(events.c.seq, events.c.run_pk, events.c.body, events.c.checksum),
        *(runs.c.run_id, runs.c.node, runs.c.created_at, runs.c.nonce),
    )
    .join(runs, runs.c.run_pk == events.c.run_pk, isouter=True)
    .where(events.c.job_pk == bindparam("job_pk"), events.c.seq > bindparam("after_seq"))
    .order_by(events.c.seq)
    .limit(bindparam("limit"))
)
_OUTPUT_EVENTS: Final = Prepared(
    select(output.c.seq, runs.c.node, output.c.run_pk, *CHUNK.columns, output.c.checksum)
    .join(runs, runs.c.run_pk == output.c.run_pk)
    .where(output.c.job_pk == bindparam("job_pk"), output.c.seq > bindparam("after_seq"))
    .order_by(output.c.seq)
    .limit(bindparam("limit"))
)


def get_job(connection: Connection, organization: str, job_id: str) -> Job | None:
    row = _JOB.find(connection, job_id=job_id, organization=organization)
    return None if row is None else JOB.decode(row)


def list_jobs(connection: Connection, where: JobFilter, *, limit: int, after: str) -> tuple[Sequence[Job], str]:
    """See ``Store.list_jobs``."""
    listing = jobs_listing(where)
    query = select(*JOB.columns, jobs.c.job_pk).where(jobs.c.organization == where.organization)
    if after:
        query = query.where(jobs.c.job_pk < decode_key(listing, after))
    if where.command:
        query = query.where(jobs.c.command == where.command)
    if where.created_by:
        query = query.where(jobs.c.created_by == where.created_by)
    query = query.order_by(jobs.c.job_pk.desc()).limit(limit + 1)
    # One query per state, merged: each is a walk along an index that ends at the limit, whereas ``IN`` would either
    # sort all jobs of these states or walk through all the others.
    queries = [query.where(jobs.c.state == state.value) for state in where.states] or [query]
    pages = [connection.execute(query).all() for query in queries]
    rows = list(heapq.merge(*pages, key=lambda row: -int(row.job_pk)))
    shown = rows[:limit]
    return (
        tuple(JOB.decode(row) for row in shown),
        encode_page(listing, str(shown[-1].job_pk)) if len(rows) > limit else "",
    )


def jobs_listing(where: JobFilter) -> Listing:
    """What a page token of ``list_jobs`` is bound to."""
    return ("jobs", where.organization, *sorted(where.states), where.command, where.created_by)


def get_run(connection: Connection, organization: str, job_id: str, node: str) -> Run | None:
    row = _RUN_ON.find(connection, job_id=job_id, organization=organization, node=node)
    return None if row is None else checked_run(row)


def find_run(connection: Connection, organization: str, run_id: str) -> Run | None:
    row = _RUN.find(connection, run_id=run_id, organization=organization)
    return None if row is None else checked_run(row)


def list_runs(
    connection: Connection, organization: str, job_id: str, *, states: frozenset[RunState], limit: int, after: str
) -> tuple[Sequence[Run], str]:
    """See ``Store.list_runs``."""
    listing = runs_listing(organization, job_id, states)
    query = _SELECT_RUNS.where(jobs.c.job_id == job_id, jobs.c.organization == organization)
    if after:
        query = query.where(runs.c.node > decode_page(listing, after))
    if states:
        query = query.where(runs.c.state.in_(sorted(state.value for state in states)))
    found = [checked_run(row) for row in connection.execute(query.order_by(runs.c.node).limit(limit + 1))]
    shown = found[:limit]
    return tuple(shown), encode_page(listing, shown[-1].node) if len(found) > limit else ""


def runs_listing(organization: str, job_id: str, states: frozenset[RunState]) -> Listing:
    """What a page token of ``list_runs`` is bound to."""
    return ("runs", organization, job_id, *sorted(states))


def count_runs(connection: Connection, organization: str, job_id: str) -> Mapping[RunState, int]:
    rows = connection.execute(
        select(runs.c.state, func.count())
        .join(jobs, jobs.c.job_pk == runs.c.job_pk)
        .where(jobs.c.job_id == job_id, jobs.c.organization == organization)
        .group_by(runs.c.state)
    )
    return {RunState(state): count for state, count in rows}


def unfinished_jobs(connection: Connection) -> Sequence[JobSnapshot]:
    """See ``Store.unfinished_jobs``."""
    query = select(*JOB.columns, jobs.c.job_pk, jobs.c.stdin).where(UNFINISHED).order_by(jobs.c.job_pk)
    found = []
    for row in connection.execute(query).all():
        with _left_out():
            picture = _snapshot(connection, row.job_pk, JOB.decode(row), around_damage=True)
            found.append(replace(picture, stdin=row.stdin or b""))
    return tuple(found)


def unfinished_runs(connection: Connection) -> Sequence[Run]:
    """The runs of unfinished jobs that have not ended."""
    return [run for job in unfinished_jobs(connection) for run in job.runs if not run.is_terminal]


def snapshot_job(connection: Connection, organization: str, job_id: str) -> JobSnapshot | None:
    row = _JOB.find(connection, job_id=job_id, organization=organization)
    return None if row is None else _snapshot(connection, row[-1], JOB.decode(row))


def job_overview(connection: Connection, organization: str, job_id: str) -> JobOverview | None:
    """See ``Store.job_overview``."""
    row = _JOB.find(connection, job_id=job_id, organization=organization)
    if row is None:
        return None
    statuses = _RUN_STATUSES.find_all(connection, job_pk=row[-1])
    return JobOverview(job=JOB.decode(row), runs=[checked_status(each) for each in statuses])


def read_events(
    connection: Connection, job_id: str, *, after_seq: int, limit: int, include_output: bool
) -> Sequence[StoredEvent]:
    """See ``Store.read_events``."""
    base = _EVENT_BASE.find(connection, job_id=job_id)
    if base is None:
        raise HistoryGone(f"job {job_id} is not stored any more", job=job_id)
    found = _row_events(connection, base, after_seq, limit)
    if include_output:
        chunks, complete = _output_events(connection, base[-1], job_id, after_seq, limit)
        if not complete:
            # What follows the last chunk that was read would jump over chunks that were not.
            found = [event for event in found if event.seq < chunks[-1].seq]
        found = list(heapq.merge(found, chunks, key=lambda event: event.seq))
    return tuple(found[:limit])


def _snapshot(connection: Connection, job_pk: int, job: Job, *, around_damage: bool = False) -> JobSnapshot:
    last = _LAST_SEQS.find(connection, job_pk=job_pk)
    assert last is not None
    found: list[Run] = []
    with _RUNS.rows(connection, job_pk=job_pk) as rows:
        for row in rows:
            with _left_out() if around_damage else nullcontext():
                found.append(checked_run(row))
    return JobSnapshot(seq=max(seq or 0 for seq in last), job=job, runs=tuple(found))


@contextmanager
def _left_out() -> Iterator[None]:
    try:
        yield
    except UndecodableRow as error:
        _log.error("store.damaged_row", error=str(error))


def _row_events(connection: Connection, base: Row, after_seq: int, limit: int) -> list[StoredEvent]:
    rows = _EVENTS.find_all(connection, job_pk=base[-1], after_seq=after_seq, limit=limit)
    job_fixed = tuple(base[:-1])
    job_id, organization = job_fixed[:2]
    found: list[StoredEvent] = []
    for seq, run_pk, body, checksum, run_id, node, created_at, nonce in rows:
        check_event(checksum, seq, base[-1], run_pk, body)
        if run_id is None:
            found.append(StoredJob(seq=seq, job=JOB.from_event(job_fixed, body)))
        else:
            run_fixed = (run_id, job_id, organization, node, created_at, nonce)
            found.append(StoredRun(seq=seq, run=RUN.from_event(run_fixed, body)))
    return found


def _output_events(
    connection: Connection, job_pk: int, job_id: str, after_seq: int, limit: int
) -> tuple[list[StoredEvent], bool]:
    """Chunks in order, and whether they are all there are within ``limit``."""
    found: list[StoredEvent] = []
    size = 0
    with _OUTPUT_EVENTS.rows(connection, job_pk=job_pk, after_seq=after_seq, limit=limit) as rows:
        for seq, node, run_pk, *row in rows:
            chunk = checked_chunk(row, run_pk, f"node {node} in job {job_id}")
            size += len(chunk.data)
            if found and size > EVENT_OUTPUT_BYTES:
                return found, False
            found.append(StoredOutput(seq=seq, job_id=job_id, node=node, chunk=chunk))
    return found, True
