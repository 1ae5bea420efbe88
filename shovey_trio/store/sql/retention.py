"""Deletes old history without a stall.

A job disappears at once: its row is moved to ``deleted_jobs``, and every read of runs, events and output goes through
that row. What hung on it, possibly gigabytes, is then swept in slices, each one write among the others, so that no
commit waits for more than one slice. A crash in between leaves rows nobody sees; the next sweep takes them.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, Table, delete, insert, select

from shovey_trio.store.sql.tables import (
    FINISHED,
    deleted_jobs,
    enrollment_tokens,
    events,
    jobs,
    node_statuses,
    output,
    runs,
)
from shovey_trio.store.sql.transaction import WriteTransaction

# Rows that one slice deletes: at most 16 MiB of output, some milliseconds of small rows.
SLICE_ROWS: Final = 256
_SMALL_SLICE_ROWS: Final = 2_000


def hide_jobs(transaction: WriteTransaction, before: float, limit: int) -> int:
    """Makes up to ``limit`` jobs that finished before a time disappear; returns how many."""
    connection = transaction.connection
    # Their events may carry the highest sequence number; without them it would be forgotten and used again.
    transaction.flush()
    transaction.sequence.keep(transaction)
    keys = list(
        connection.execute(
            select(jobs.c.job_pk)
            .where(FINISHED, jobs.c.finished_at < before, jobs.c.state.not_in(["new", "running"]))
            .order_by(jobs.c.finished_at)
            .limit(limit)
        ).scalars()
    )
    if keys:
        connection.execute(insert(deleted_jobs), [{"job_pk": key} for key in keys])
        for key in keys:
            connection.execute(delete(jobs).where(jobs.c.job_pk == key))
    return len(keys)


def sweep_jobs(transaction: WriteTransaction) -> bool:
    """Deletes a slice of what hidden jobs left; False when nothing is left."""
    connection = transaction.connection
    transaction.flush()
    job_pk = connection.execute(select(deleted_jobs.c.job_pk).limit(1)).scalar_one_or_none()
    if job_pk is None:
        return False
    for table, key, rows in (
        (output, output.c.seq, SLICE_ROWS),
        (events, events.c.seq, _SMALL_SLICE_ROWS),
        (runs, runs.c.run_pk, _SMALL_SLICE_ROWS),
    ):
        if _delete_slice(transaction, table, key, table.c.job_pk == job_pk, rows):
            return True
    connection.execute(delete(deleted_jobs).where(deleted_jobs.c.job_pk == job_pk))
    return True


def sweep_statuses(transaction: WriteTransaction, before: float) -> bool:
    """Deletes a slice of presence entries and dead enrolment tokens older than a time; False when none is left."""
    statuses = _delete_slice(
        transaction, node_statuses, node_statuses.c.status_pk, node_statuses.c.since < before, _SMALL_SLICE_ROWS
    )
    tokens = _delete_slice(
        transaction,
        enrollment_tokens,
        enrollment_tokens.c.digest,
        enrollment_tokens.c.expires_at < before,
        _SMALL_SLICE_ROWS,
    )
    return bool(statuses or tokens)


def _delete_slice(transaction: WriteTransaction, table: Table, key: Column[Any], where: Any, rows: int) -> int:
    chosen = select(key).where(where).limit(rows)
    return transaction.connection.execute(delete(table).where(key.in_(chosen))).rowcount
