"""Writes of jobs, runs and output, each a function of one write transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import bindparam, insert, select

from shovey_trio.core.errors import RequestIdReused
from shovey_trio.core.model import Job, OutputChunk, Run
from shovey_trio.nursery.ports import CreatedJob, RequestKey
from shovey_trio.store.prepared import Prepared
from shovey_trio.store.rows import (
    JOB_DEFAULTS,
    JOB_FIXED,
    Values,
    decode_job,
    job_changes,
    job_fixed,
    run_changes,
    run_fixed,
)
from shovey_trio.store.tables import jobs, runs
from shovey_trio.store.transaction import RunKeys, WriteTransaction

# Without the key, which the database makes.
_INSERT_RUN: Final = Prepared(
    insert(runs).values({column.name: bindparam(column.name) for column in runs.c if column is not runs.c.run_pk})
)
_JOB_COLUMNS: Final = tuple(jobs.c[name] for name in (*JOB_FIXED, *JOB_DEFAULTS))


def create_job(
    transaction: WriteTransaction, job: Job, job_runs: Sequence[Run], request: RequestKey | None, stdin: bytes
) -> CreatedJob:
    """Stores a job and its runs, unless an earlier request with the same key has; see ``Store.create_job``."""
    connection = transaction.connection
    identity: Values = {}
    if request is not None:
        known = _find_request(transaction, request)
        if known is not None:
            return CreatedJob(job=known, created=False)
        identity = {
            "request_principal": request.principal,
            "request_id": request.request_id,
            "request_digest": request.digest,
        }
    changes = job_changes(job)
    result = connection.execute(insert(jobs), {**job_fixed(job), **changes, **identity, "stdin": stdin or None})
    assert result.inserted_primary_key is not None
    job_pk = int(result.inserted_primary_key[0])
    transaction.add_job_event(job_pk, job.id, changes)
    if job_runs:
        rows = [run_changes(run) for run in job_runs]
        _INSERT_RUN.execute(
            connection, [{**run_fixed(run, job_pk), **row} for run, row in zip(job_runs, rows, strict=True)]
        )
        # One query for all keys; asking for them row by row (RETURNING) is slower than inserting.
        rows_of_keys = connection.execute(select(runs.c.node, runs.c.run_pk).where(runs.c.job_pk == job_pk))
        keys = {node: RunKeys(run_pk, job_pk) for node, run_pk in rows_of_keys}
        for run, row in zip(job_runs, rows, strict=True):
            transaction.add_run_event(keys[run.node], job.id, row)
    return CreatedJob(job=job, created=True)


def write_job(transaction: WriteTransaction, job: Job) -> None:
    transaction.update_job(job)


def write_run(transaction: WriteTransaction, run: Run) -> None:
    transaction.update_run(run)


def append_output(transaction: WriteTransaction, run: Run, chunks: Sequence[OutputChunk]) -> None:
    transaction.add_output(run, chunks)


def _find_request(transaction: WriteTransaction, request: RequestKey) -> Job | None:
    row = transaction.connection.execute(
        select(*_JOB_COLUMNS, jobs.c.request_digest).where(
            jobs.c.organization == request.organization,
            jobs.c.request_principal == request.principal,
            jobs.c.request_id == request.request_id,
        )
    ).one_or_none()
    if row is None:
        return None
    job = decode_job(row)
    if row.request_digest != request.digest:
        raise RequestIdReused(f"request {request.request_id} was made before with another body", job_id=job.id)
    return job
