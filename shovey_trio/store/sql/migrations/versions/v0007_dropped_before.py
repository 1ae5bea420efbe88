"""A chunk of output says how much was left out before it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("output", sa.Column("dropped_before", sa.BigInteger(), server_default="0", nullable=False))
