"""Events, output and runs that have ended carry a checksum; what was written before has none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    for table in ("events", "output", "runs"):
        op.add_column(table, sa.Column("checksum", sa.BigInteger(), nullable=True))
