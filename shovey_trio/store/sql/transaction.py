"""One write transaction: the keys it has looked up, and the rows it will insert.

Rows of the frequent writes (a run's state, an event, a chunk of output) are gathered and go to the database in one
``executemany`` per table when the transaction ends, which is what makes a group of 1,000 writes ten times cheaper than
1,000 single ones. A run that is written several times in one transaction has several events and one update, the last.
Whoever reads those tables inside the transaction calls ``flush`` first. Events and output are numbered when they go
(``sequence``), in the order in which they were added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, update

from shovey_trio.core.audit.records import GENESIS, AuditEntry, AuditHead, chain_record
from shovey_trio.core.errors import NotFound
from shovey_trio.core.jobs.model import Job, OutputChunk, Run
from shovey_trio.store.contract import Committed
from shovey_trio.store.sql.checksums import chunk_sum, end_sum, event_sum
from shovey_trio.store.sql.prepared import Prepared
from shovey_trio.store.sql.rows import (
    CHUNK,
    JOB,
    RUN,
    Values,
)
from shovey_trio.store.sql.sequence import CommitSequence
from shovey_trio.store.sql.tables import audit, audit_checkpoints, events, jobs, output, runs

_JOB_KEY: Final = Prepared(select(jobs.c.job_pk).where(jobs.c.job_id == bindparam("job_id")))
# Through the job's row: the runs of a deleted job are gone although their rows may still wait to be swept.
_RUN_KEYS: Final = Prepared(
    select(runs.c.run_pk, runs.c.job_pk)
    .join(jobs, jobs.c.job_pk == runs.c.job_pk)
    .where(runs.c.run_id == bindparam("run_id"))
)
_UPDATE_RUN: Final = Prepared(
    update(runs)
    .where(runs.c.run_pk == bindparam("key"))
    .values({name: bindparam(name) for name in (*RUN.changing, "nonce", "checksum")})
)
_UPDATE_JOB: Final = Prepared(
    update(jobs).where(jobs.c.job_pk == bindparam("key")).values({name: bindparam(name) for name in JOB.changing})
)
_AUDIT_HEAD: Final = Prepared(
    select(audit.c.seq, audit.c.hash).where(audit.c.seq == select(func.max(audit.c.seq)).scalar_subquery())
)
_AUDIT_CHECKPOINT: Final = Prepared(
    select(audit_checkpoints.c.seq, audit_checkpoints.c.hash).where(
        audit_checkpoints.c.seq == select(func.max(audit_checkpoints.c.seq)).scalar_subquery()
    )
)
_INSERT_AUDIT: Final = Prepared(insert(audit))
_INSERT_EVENT: Final = Prepared(insert(events))
_INSERT_OUTPUT: Final = Prepared(insert(output))


class RunKeys(NamedTuple):
    """A run's internal keys."""

    run_pk: int
    job_pk: int


LiveKeys = dict[str, RunKeys]
"""The keys of runs that have not ended, by run id, kept from one transaction to the next: each run is written several
times while it lives, and looking its keys up costs more than the write. At most as many as there are live runs."""


class WriteTransaction:
    """What a write works on; lives inside one ``BEGIN IMMEDIATE`` … ``COMMIT``, in the writer's thread.

    Args:
        connection: inside its transaction.
        sequence: numbers events and output.
        live: keys that earlier transactions have found; only ``remember`` changes it.
    """

    __slots__ = (
        "_audit",
        "_audit_head",
        "_encoded",
        "_events",
        "_found",
        "_jobs",
        "_live",
        "_output",
        "_run_updates",
        "_runs",
        "_unnumbered",
        "connection",
        "sequence",
    )

    def __init__(self, connection: Connection, sequence: CommitSequence, live: LiveKeys | None = None) -> None:
        self.connection = connection
        self.sequence = sequence
        self._live: LiveKeys = {} if live is None else live
        self._found: dict[str, RunKeys | None] = {}  # None: of a run that has ended
        self._run_updates: dict[int, Values] = {}
        self._encoded: tuple[Values, str] | None = None
        self._events: list[Values] = []
        self._output: list[Values] = []
        self._unnumbered: list[tuple[str, Values]] = []  # the rows of both, each with its job's id
        self._jobs: dict[str, int] = {}
        self._runs: set[tuple[str, str]] = set()
        self._audit: list[Values] = []
        self._audit_head: AuditHead | None = None

    @property
    def committed(self) -> Committed:
        """What a commit of this transaction touches, once it is flushed."""
        return Committed(jobs=self._jobs, runs=self._runs)

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
        keys = self._found.get(run.id) or self._live.get(run.id)
        if keys is None:
            row = _RUN_KEYS.find(self.connection, run_id=run.id)
            if row is None:
                raise NotFound(f"run {run.id} of node {run.node} is not stored", run=run.id, job=run.job_id)
            keys = RunKeys(*row)
            self.note_run(run, keys)
        return keys

    def note_run(self, run: Run, keys: RunKeys) -> None:
        """Takes note of a run's keys, for as long as it has not ended."""
        self._found[run.id] = None if run.is_terminal else keys

    def remember(self) -> None:
        """To be called once this transaction is durable: hands its keys on to those that follow."""
        for run_id, keys in self._found.items():
            if keys is None:
                self._live.pop(run_id, None)
            else:
                self._live[run_id] = keys

    def update_job(self, job: Job) -> None:
        """Writes a stored job's changing columns, and the event."""
        key = self.job_key(job.id)
        changes = JOB.changes(job)
        _UPDATE_JOB.execute(self.connection, [{"key": key, **changes}])
        self.add_job_event(key, job.id, changes)

    def update_run(self, run: Run, passed: Sequence[Run] = ()) -> None:
        """Writes a stored run's changing columns, an event for each state it has passed through, and its own."""
        keys = self.run_keys(run)
        for each in passed:
            self.add_run_event(keys, run.job_id, RUN.changes(each))
        changes = RUN.changes(run)
        self._run_updates[keys.run_pk] = {**changes, "nonce": run.nonce, "checksum": end_sum(run, changes)}
        self._runs.add((run.job_id, run.node))
        self.add_run_event(keys, run.job_id, changes)
        if run.is_terminal:
            self._found[run.id] = None

    def add_job_event(self, job_pk: int, job_id: str, changes: Values) -> None:
        """Adds the event of a job's row that was written."""
        self._add_event(job_id, job_pk, None, JOB.event_body(changes))

    def add_run_event(self, keys: RunKeys, job_id: str, changes: Values) -> None:
        """Adds the event of a run's row that was written."""
        # The runs of a new job are all alike.
        if self._encoded is None or self._encoded[0] != changes:
            self._encoded = (changes, RUN.event_body(changes))
        self._add_event(job_id, keys.job_pk, keys.run_pk, self._encoded[1])

    def add_output(self, run: Run, chunks: Sequence[OutputChunk]) -> None:
        """Adds chunks to a run's output; empty ones hold nothing to store."""
        keys = self.run_keys(run)
        for chunk in chunks:
            if chunk.data:
                row = {"job_pk": keys.job_pk, "run_pk": keys.run_pk, **CHUNK.fixed(chunk)}
                row["checksum"] = chunk_sum(keys.run_pk, row)
                self._output.append(row)
                self._unnumbered.append((run.job_id, row))
                self._runs.add((run.job_id, run.node))

    def audit_head(self) -> AuditHead:
        """The place of the audit log's last record, this transaction's included."""
        if self._audit_head is None:
            last = _AUDIT_HEAD.find(self.connection) or _AUDIT_CHECKPOINT.find(self.connection)
            self._audit_head = GENESIS if last is None else AuditHead(seq=last[0], hash=last[1])
        return self._audit_head

    def add_audit(self, entry: AuditEntry) -> None:
        """Gives an entry its place in the audit log."""
        record = chain_record(self.audit_head(), entry)
        self._audit_head = record.head
        self._audit.append(
            {
                "seq": record.seq,
                "at": record.at,
                "organization": record.organization,
                "body": record.body,
                "hash": record.hash,
            }
        )

    def flush(self) -> None:
        """Sends the gathered rows to the database."""
        if self._run_updates:
            _UPDATE_RUN.execute(
                self.connection, [{"key": key, **changes} for key, changes in self._run_updates.items()]
            )
            self._run_updates.clear()
        self._number()
        for statement, rows in (
            (_INSERT_EVENT, self._events),
            (_INSERT_OUTPUT, self._output),
            (_INSERT_AUDIT, self._audit),
        ):
            if rows:
                statement.execute(self.connection, rows)
                rows.clear()

    def _add_event(self, job_id: str, job_pk: int, run_pk: int | None, body: str) -> None:
        row = {"job_pk": job_pk, "run_pk": run_pk, "body": body}
        self._events.append(row)
        self._unnumbered.append((job_id, row))

    def _number(self) -> None:
        if not self._unnumbered:
            return
        numbers = self.sequence.number(self, [row["job_pk"] for _, row in self._unnumbered])
        for (job_id, row), seq in zip(self._unnumbered, numbers, strict=True):
            row["seq"] = self._jobs[job_id] = seq
            if "body" in row:
                row["checksum"] = event_sum(seq, row["job_pk"], row["run_pk"], row["body"])
        self._unnumbered.clear()
