"""What commands are given, and what operators may start where."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("input", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("stdin", sa.LargeBinary(), nullable=True))
    op.create_table(
        "grants",
        sa.Column("organization", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("organization", "user", "command", "nodes"),
    )
