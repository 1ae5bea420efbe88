"""The tables as first shipped. Frozen: later changes are later revisions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "certificates",
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("organization", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("serial"),
    )
    op.create_index(
        "ix_certificates_revoked",
        "certificates",
        ["serial"],
        unique=False,
        sqlite_where=sa.text("revoked = 1"),
        postgresql_where=sa.text("revoked = 1"),
    )
    op.create_index("ix_certificates_subject", "certificates", ["organization", "subject"], unique=False)
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "deleted_jobs",
        sa.Column("job_pk", _KEY, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("job_pk"),
    )
    op.create_table(
        "enrollment_tokens",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("organization", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("ix_enrollment_tokens_expires_at", "enrollment_tokens", ["expires_at"], unique=False)
    op.create_table(
        "events",
        sa.Column("seq", _KEY, autoincrement=False, nullable=False),
        sa.Column("job_pk", _KEY, nullable=False),
        sa.Column("run_pk", _KEY, nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_events_job", "events", ["job_pk", "seq"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("job_pk", _KEY, nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("organization", sa.Text(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("quorum", sa.Text(), nullable=False),
        sa.Column("run_timeout", sa.Double(), nullable=False),
        sa.Column("kill_grace", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("cancel_requested", sa.Integer(), nullable=False),
        sa.Column("run_total", sa.Integer(), nullable=False),
        sa.Column("run_counts", sa.Text(), nullable=False),
        sa.Column("request_principal", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("request_digest", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("job_pk"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_command", "jobs", ["organization", "command", "job_pk"], unique=False)
    op.create_index("ix_jobs_created_by", "jobs", ["organization", "created_by", "job_pk"], unique=False)
    op.create_index(
        "ix_jobs_finished",
        "jobs",
        ["finished_at"],
        unique=False,
        sqlite_where=sa.text("finished_at IS NOT NULL"),
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index("ix_jobs_organization", "jobs", ["organization", "job_pk"], unique=False)
    op.create_index("ix_jobs_state", "jobs", ["organization", "state", "job_pk"], unique=False)
    op.create_index(
        "ix_jobs_unfinished",
        "jobs",
        ["job_pk"],
        unique=False,
        sqlite_where=sa.text("state IN ('new', 'running')"),
        postgresql_where=sa.text("state IN ('new', 'running')"),
    )
    op.create_index("ux_jobs_job_id", "jobs", ["job_id"], unique=True)
    op.create_index("ux_jobs_request", "jobs", ["organization", "request_principal", "request_id"], unique=True)
    op.create_table(
        "node_statuses",
        sa.Column("status_pk", _KEY, nullable=False),
        sa.Column("organization", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("presence", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("status_pk"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_node_statuses_node", "node_statuses", ["organization", "node", "status_pk"], unique=False)
    op.create_index("ix_node_statuses_since", "node_statuses", ["since"], unique=False)
    op.create_table(
        "nodes",
        sa.Column("organization", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("agent_instance", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.Column("link", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("enrolled_at", sa.Double(), nullable=False),
        sa.Column("last_seen_at", sa.Double(), nullable=True),
        sa.Column("presence", sa.Text(), nullable=False),
        sa.Column("presence_since", sa.Double(), nullable=False),
        sa.Column("presence_reason", sa.Text(), nullable=False),
        sa.Column("clock_skew", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("organization", "name"),
    )
    op.create_table(
        "output",
        sa.Column("seq", _KEY, autoincrement=False, nullable=False),
        sa.Column("job_pk", _KEY, nullable=False),
        sa.Column("run_pk", _KEY, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("stream_offset", sa.BigInteger(), nullable=False),
        sa.Column("read_at", sa.Double(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_output_job", "output", ["job_pk", "seq"], unique=False)
    op.create_index("ix_output_stream", "output", ["run_pk", "stream", "stream_offset"], unique=False)
    op.create_index("ux_output_position", "output", ["run_pk", "position"], unique=True)
    op.create_table(
        "runs",
        sa.Column("run_pk", _KEY, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("job_pk", _KEY, nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("agent_instance", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("dispatched_at", sa.Double(), nullable=True),
        sa.Column("accepted_at", sa.Double(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("unknown_since", sa.Double(), nullable=True),
        sa.Column("cancelling", sa.Integer(), nullable=False),
        sa.Column("cancel_reason", sa.Text(), nullable=False),
        sa.Column("proof", sa.Text(), nullable=True),
        sa.Column("route", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("order_expires_at", sa.Double(), nullable=True),
        sa.Column("dropped_bytes", sa.BigInteger(), nullable=False),
        sa.Column("late_report", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("run_pk"),
    )
    op.create_index("ux_runs_node", "runs", ["job_pk", "node"], unique=True)
    op.create_index("ux_runs_run_id", "runs", ["run_id"], unique=True)
    op.create_table(
        "users",
        sa.Column("organization", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("organization", "name"),
    )
