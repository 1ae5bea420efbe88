"""The tables, once, for SQLite and (next) PostgreSQL.

The rules of this file:

* Integer keys inside (``job_pk``, ``run_pk``), text ids for the world. ``job_pk`` is never used twice
  (AUTOINCREMENT): a deleted job's rows are swept after its own row is gone, and must not fall to a new job.
* ``events`` and ``output`` are append-only and share one sequence (``store.sqlite.sequence``), which is their primary
  key: on SQLite every insert goes to the end of the table. Blobs never sit in a clustered text key; that costs
  two thirds of the speed.
* No foreign keys between them: history is deleted in slices, children after their job (``retention``), and all
  writes come from one place.
* Every listing and every recovery has an index, so that nothing slows down with history.

A change here needs a migration; ``tests/store/test_migrations.py`` compares the two.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

metadata: Final = MetaData()

# SQLite makes a column the rowid only when its type is spelled INTEGER.
_Key: Final = BigInteger().with_variant(Integer(), "sqlite")

# Literals, not parameters: a partial index serves only a query that repeats its condition word for word.
UNFINISHED: Final = text("state IN ('new', 'running')")
FINISHED: Final = text("finished_at IS NOT NULL")
REVOKED: Final = text("revoked = 1")

jobs: Final = Table(
    "jobs",
    metadata,
    Column("job_pk", _Key, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("organization", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("quorum", Text, nullable=False),
    Column("run_timeout", Double, nullable=False),
    Column("kill_grace", Double, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("finished_at", Double),
    Column("cancel_requested", Integer, nullable=False),
    Column("run_total", Integer, nullable=False),
    Column("run_counts", Text, nullable=False),  # JSON
    Column("request_principal", Text),
    Column("request_id", Text),
    Column("request_digest", LargeBinary),
    Column("input", Text),  # JSON; NULL for nothing
    Column("stdin", LargeBinary),  # read at recovery alone: what is long does not slow listings down
    Column("epoch", BigInteger, server_default="0", nullable=False),
    Index("ux_jobs_job_id", "job_id", unique=True),
    Index("ux_jobs_request", "organization", "request_principal", "request_id", unique=True),
    Index("ix_jobs_organization", "organization", "job_pk"),
    Index("ix_jobs_state", "organization", "state", "job_pk"),
    Index("ix_jobs_command", "organization", "command", "job_pk"),
    Index("ix_jobs_created_by", "organization", "created_by", "job_pk"),
    Index("ix_jobs_unfinished", "job_pk", sqlite_where=UNFINISHED, postgresql_where=UNFINISHED),
    Index("ix_jobs_finished", "finished_at", sqlite_where=FINISHED, postgresql_where=FINISHED),
    sqlite_autoincrement=True,
)

runs: Final = Table(
    "runs",
    metadata,
    Column("run_pk", _Key, primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("job_pk", _Key, nullable=False),
    Column("node", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("agent_instance", Text),
    Column("state", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("updated_at", Double, nullable=False),
    Column("dispatched_at", Double),
    Column("accepted_at", Double),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("unknown_since", Double),
    Column("cancelling", Integer, nullable=False),
    Column("cancel_reason", Text, nullable=False),
    Column("proof", Text),
    Column("route", Text),
    Column("attempts", Integer, nullable=False),
    Column("order_expires_at", Double),
    Column("dropped_bytes", BigInteger, nullable=False),
    Column("late_report", Text),  # JSON
    Column("key_id", Text, server_default="", nullable=False),
    Column("held_end", Text),  # JSON
    Column("released_at", Double),
    Column("checksum", BigInteger),  # of a run that has ended; see ``checksums``, as the next two
    Column("output_incomplete", Integer, server_default="0", nullable=False),
    Index("ux_runs_run_id", "run_id", unique=True),
    Index("ux_runs_node", "job_pk", "node", unique=True),
)

# What a job or run was when it was written: the changing columns that differ from their defaults, as JSON.
events: Final = Table(
    "events",
    metadata,
    Column("seq", _Key, primary_key=True, autoincrement=False),
    Column("job_pk", _Key, nullable=False),
    Column("run_pk", _Key),
    Column("body", Text, nullable=False),
    Column("checksum", BigInteger),
    Index("ix_events_job", "job_pk", "seq"),
)

output: Final = Table(
    "output",
    metadata,
    Column("seq", _Key, primary_key=True, autoincrement=False),
    Column("job_pk", _Key, nullable=False),
    Column("run_pk", _Key, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("stream", Text, nullable=False),
    Column("stream_offset", BigInteger, nullable=False),
    Column("read_at", Double, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("dropped_before", BigInteger, server_default="0", nullable=False),
    Column("checksum", BigInteger),
    Index("ux_output_position", "run_pk", "position", unique=True),
    Index("ix_output_stream", "run_pk", "stream", "stream_offset"),
    Index("ix_output_job", "job_pk", "seq"),
)

# Jobs whose row is gone and whose runs, events and output are still being swept.
deleted_jobs: Final = Table("deleted_jobs", metadata, Column("job_pk", _Key, primary_key=True, autoincrement=False))

nodes: Final = Table(
    "nodes",
    metadata,
    Column("organization", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("agent_instance", Text, nullable=False),
    Column("agent_version", Text, nullable=False),
    Column("link", Text, nullable=False),
    Column("tags", Text, nullable=False),  # JSON
    Column("enrolled_at", Double, nullable=False),
    Column("last_seen_at", Double),
    Column("presence", Text, nullable=False),
    Column("presence_since", Double, nullable=False),
    Column("presence_reason", Text, nullable=False),
    Column("clock_skew", Double),
    PrimaryKeyConstraint("organization", "name"),
)

node_statuses: Final = Table(
    "node_statuses",
    metadata,
    Column("status_pk", _Key, primary_key=True),
    Column("organization", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("presence", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Index("ix_node_statuses_node", "organization", "node", "status_pk"),
    Index("ix_node_statuses_since", "since"),
    # A page token is a key; a reused one would repeat or skip entries.
    sqlite_autoincrement=True,
)

users: Final = Table(
    "users",
    metadata,
    Column("organization", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    PrimaryKeyConstraint("organization", "name"),
)

chef_principals: Final = Table(
    "chef_principals",
    metadata,
    Column("organization", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("public_key", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    PrimaryKeyConstraint("organization", "kind", "name"),
)

grants: Final = Table(
    "grants",
    metadata,
    Column("organization", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("nodes", Text, nullable=False),
    PrimaryKeyConstraint("organization", "user", "command", "nodes"),
)

certificates: Final = Table(
    "certificates",
    metadata,
    Column("serial", Text, primary_key=True),
    Column("organization", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("revoked", Integer, nullable=False),
    Index("ix_certificates_subject", "organization", "subject"),
    Index("ix_certificates_revoked", "serial", sqlite_where=REVOKED, postgresql_where=REVOKED),
)

enrollment_tokens: Final = Table(
    "enrollment_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("organization", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
    # Who may use it again: the agent's instance and the digest of its key; NULL for nobody.
    Column("used_by", Text),
    Index("ix_enrollment_tokens_expires_at", "expires_at"),
)

# The audit log (``core.audit.records``): rows are added at the end and taken from the beginning, nothing else.
audit: Final = Table(
    "audit",
    metadata,
    Column("seq", _Key, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("organization", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

# Where pruning has cut the audit log: the last record that is gone.
audit_checkpoints: Final = Table(
    "audit_checkpoints",
    metadata,
    Column("seq", _Key, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)

# Numbers of the store itself: ``epoch``, and ``sequence`` as it was when history was last deleted.
counters: Final = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
