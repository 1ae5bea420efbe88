"""An end that was told before its output was here has a column of its own; ``late_report`` had served for both."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("runs", sa.Column("held_end", sa.Text(), nullable=True))
    op.execute(
        "UPDATE runs SET held_end = late_report, late_report = NULL WHERE late_report IS NOT NULL "
        "AND state IN ('pending', 'dispatched', 'accepted', 'running', 'unknown')"
    )
