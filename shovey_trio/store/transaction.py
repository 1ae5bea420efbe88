"""One write transaction: the sequence, the keys it has looked up, and the rows it will insert.

Rows of the frequent writes (a run's state, an event, a chunk of output) are gathered and go to the database in one
``executemany`` per table when the transaction ends, which is what makes a group of 1,000 writes ten times cheaper than
1,000 single ones. Whoever reads those tables inside the transaction calls ``flush`` first.

The sequence is not kept in memory: the first number of a transaction is looked up in it (the ends of two primary keys
and a counter). So a rolled-back transaction leaves no gap and no duplicate, and a second process that writes to the
same file (offline administration) cannot disturb it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, update

from shovey_trio.core.errors import NotFound
from shovey_trio.core.model import Job, OutputChunk, Run
from shovey_trio.nursery.ports import Committed
from shovey_trio.store.prepared import Prepared
from shovey_trio.store.rows import (
    JOB_DEFAULTS,
    RUN_DEFAULTS,
    Values,
    chunk_values,
    event_body,
    job_changes,
    run_changes,
)
from shovey_trio.store.tables import counters, events, jobs, output, runs

SEQUENCE: Final = "sequence"

_LAST_SEQ: Final = Prepared(
    select(
        select(func.max(events.c.seq)).scalar_subquery(),
        select(func.max(output.c.seq)).scalar_subquery(),
        select(counters.c.value).where(counters.c.name == bindparam("name")).scalar_subquery(),
    )
)
_JOB_KEY: Final = Prepared(select(jobs.c.job_pk).where(jobs.c.job_id == bindparam("job_id")))
# Through the job's row: the runs of a deleted job are gone although their rows may still wait to be swept.
_RUN_KEYS: Final = Prepared(
    select(runs.c.run_pk, runs.c.job_pk)
    .join(jobs, jobs.c.job_pk == runs.c.job_pk)
    .where(runs.c.run_id == bindparam("run_id"))
)
_UPDATE_RUN: Final = Prepared(
    update(runs).where(runs.c.run_pk == bindparam("key")).values({name: bindparam(name) for name in RUN_DEFAULTS})
)
_UPDATE_JOB: Final = Prepared(
    update(jobs).where(jobs.c.job_pk == bindparam("key")).values({name: bindparam(name) for name in JOB_DEFAULTS})
)
_INSERT_EVENT: Final = Prepared(insert(events))
_INSERT_OUTPUT: Final = Prepared(insert(output))


class RunKeys(NamedTuple):
    """A run's internal keys."""

    run_pk: int
    job_pk: int


class WriteTransaction:
    """What a write works on; lives inside one ``BEGIN IMMEDIATE`` … ``COMMIT``, in the writer's thread."""

    __slots__ = ("_events", "_jobs", "_keys", "_output", "_outputs", "_run_updates", "_seq", "connection")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._seq: int | None = None
        self._keys: dict[str, RunKeys] = {}
        self._run_updates: list[Values] = []
        self._events: list[Values] = []
        self._output: list[Values] = []
        self._jobs: dict[str, int] = {}
        self._outputs: set[tuple[str, str]] = set()

    @property
    def committed(self) -> Committed:
        """What a commit of this transaction touches."""
        return Committed(jobs=self._jobs, outputs=frozenset(self._outputs))

    def last_seq(self) -> int:
        """The highest sequence number ever used, this transaction's included."""
        if self._seq is None:
            numbers = _LAST_SEQ.find(self.connection, name=SEQUENCE)
            assert numbers is not None
            self._seq = max(number or 0 for number in numbers)
        return self._seq

    def next_seq(self) -> int:
        """The next sequence number of events and output."""
        self._seq = self.last_seq() + 1
        return self._seq

    def job_key(self, job_id: str) -> int:
        """The job's internal key.

        Raises:
            NotFound: it is not stored, or not any more.
        """
        row = _JOB_KEY.find(self.connection, job_id=job_id)
        if row is None:
            raise NotFound(f"job {job_id} is not stored", job=job_id)
        return int(row[0])

    def run_keys(self, run: Run) -> RunKeys:
        """The run's internal keys.

        Raises:
            NotFound: it is not stored, or not any more.
        """
        keys = self._keys.get(run.id)
        if keys is None:
            row = _RUN_KEYS.find(self.connection, run_id=run.id)
            if row is None:
                raise NotFound(f"run {run.id} of node {run.node} is not stored", run=run.id, job=run.job_id)
            keys = self._keys[run.id] = RunKeys(*row)
        return keys

    def update_job(self, job: Job) -> None:
        """Writes a stored job's changing columns, and the event."""
        key = self.job_key(job.id)
        changes = job_changes(job)
        _UPDATE_JOB.execute(self.connection, [{"key": key, **changes}])
        self.add_job_event(key, job.id, changes)

    def update_run(self, run: Run) -> None:
        """Writes a stored run's changing columns, and the event."""
        keys = self.run_keys(run)
        changes = run_changes(run)
        self._run_updates.append({"key": keys.run_pk, **changes})
        self.add_run_event(keys, run.job_id, changes)

    def add_job_event(self, job_pk: int, job_id: str, changes: Values) -> None:
        """Adds the event of a job's row that was written."""
        self._add_event(job_id, job_pk, None, event_body(changes, JOB_DEFAULTS))

    def add_run_event(self, keys: RunKeys, job_id: str, changes: Values) -> None:
        """Adds the event of a run's row that was written."""
        self._add_event(job_id, keys.job_pk, keys.run_pk, event_body(changes, RUN_DEFAULTS))

    def add_output(self, run: Run, chunks: Sequence[OutputChunk]) -> None:
        """Adds chunks to a run's output; empty ones hold nothing to store."""
        keys = self.run_keys(run)
        for chunk in chunks:
            if chunk.data:
                seq = self.next_seq()
                row = {"seq": seq, "job_pk": keys.job_pk, "run_pk": keys.run_pk, **chunk_values(chunk)}
                self._output.append(row)
                self._jobs[run.job_id] = seq
                self._outputs.add((run.job_id, run.node))

    def flush(self) -> None:
        """Sends the gathered rows to the database."""
        for statement, rows in (
            (_UPDATE_RUN, self._run_updates),
            (_INSERT_EVENT, self._events),
            (_INSERT_OUTPUT, self._output),
        ):
            if rows:
                statement.execute(self.connection, rows)
                rows.clear()

    def _add_event(self, job_id: str, job_pk: int, run_pk: int | None, body: str) -> None:
        seq = self.next_seq()
        self._events.append({"seq": seq, "job_pk": job_pk, "run_pk": run_pk, "body": body})
        self._jobs[job_id] = seq
