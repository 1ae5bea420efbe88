"""Writes of jobs, runs and output, each a function of one write transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, insert, select, update

from shovey_trio.core.errors import RequestIdReused
from shovey_trio.core.jobs.model import Job, OutputChunk, Run
from shovey_trio.store.contract import CreatedJob, RequestKey
from shovey_trio.store.sql.checksums import end_sum
from shovey_trio.store.sql.prepared import Prepared
from shovey_trio.store.sql.rows import JOB, RUN, Values
from shovey_trio.store.sql.tables import UNFINISHED, jobs, runs
from shovey_trio.store.sql.transaction import RunKeys, WriteTransaction

# Without the key, which the database makes.
_INSERT_RUN: Final = Prepared(
    insert(runs).values({column.name: bindparam(column.name) for column in runs.c if column is not runs.c.run_pk})
)
_INSERT_JOB: Final = Prepared(
    insert(jobs)
    .values({column.name: bindparam(column.name) for column in jobs.c if column is not jobs.c.job_pk})
    .returning(jobs.c.job_pk)
)
_RUN_KEYS: Final = Prepared(select(runs.c.node, runs.c.run_pk).where(runs.c.job_pk == bindparam("job_pk")))
_FIND_REQUEST: Final = Prepared(
    select(*JOB.columns, jobs.c.request_digest).where(
        *(jobs.c[name] == bindparam(name) for name in ("organization", "request_principal", "request_id"))
    )
)


def create_job(
    transaction: WriteTransaction, job: Job, job_runs: Sequence[Run], request: RequestKey | None, stdin: bytes
) -> CreatedJob:
    """Stores a job and its runs, unless an earlier request with the same key has; see ``Store.create_job``."""
    connection = transaction.connection
    identity: Values = {"request_principal": None, "request_id": None, "request_digest": None}
    if request is not None:
        known = find_request(connection, request)
        if known is not None:
            return CreatedJob(job=known, created=False)
        identity = {
            "request_principal": request.principal,
            "request_id": request.request_id,
            "request_digest": request.digest,
        }
    changes = JOB.changes(job)
    inserted = _INSERT_JOB.find(connection, **JOB.fixed(job), **changes, **identity, stdin=stdin or None)
    assert inserted is not None
    job_pk = int(inserted[0])
    transaction.add_job_event(job_pk, job.id, changes)
    if job_runs:
        rows = [RUN.changes(run) for run in job_runs]
        _INSERT_RUN.execute(
            connection,
            [
                {**RUN.fixed(run), "job_pk": job_pk, **row, "checksum": end_sum(run, row)}
                for run, row in zip(job_runs, rows, strict=True)
            ],
        )
        # One query for all keys; asking for them row by row (RETURNING) is slower than inserting.
        keys = dict(_RUN_KEYS.find_all(connection, job_pk=job_pk))
        for run, row in zip(job_runs, rows, strict=True):
            run_keys = RunKeys(keys[run.node], job_pk)
            transaction.note_run(run, run_keys)
            transaction.add_run_event(run_keys, job.id, row)
    return CreatedJob(job=job, created=True)


def raise_epochs(transaction: WriteTransaction, epoch: int) -> None:
    """See ``Store.raise_epochs``. No event tells it: an epoch is between a controller and its nodes."""
    transaction.connection.execute(update(jobs).where(UNFINISHED, jobs.c.epoch < epoch).values(epoch=epoch))


def write_job(transaction: WriteTransaction, job: Job) -> None:
    transaction.update_job(job)


def write_run(transaction: WriteTransaction, run: Run, passed: Sequence[Run] = ()) -> None:
    transaction.update_run(run, passed)


def append_output(transaction: WriteTransaction, run: Run, chunks: Sequence[OutputChunk]) -> None:
    transaction.add_output(run, chunks)


def find_request(connection: Connection, request: RequestKey) -> Job | None:
    """See ``Store.find_request``."""
    row = _FIND_REQUEST.find(
        connection,
        organization=request.organization,
        request_principal=request.principal,
        request_id=request.request_id,
    )
    if row is None:
        return None
    job = JOB.decode(row)
    if row[-1] != request.digest:
        raise RequestIdReused(f"request {request.request_id} was made before with another body", job_id=job.id)
    return job
