"""A run's times count from its release, and a job has the epoch of the controller that supervises it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("runs", sa.Column("released_at", sa.Double(), nullable=True))
    # Until now a job released all of its runs when it was made.
    op.execute("UPDATE runs SET released_at = created_at")
