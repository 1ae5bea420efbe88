"""A run says whether the last of its output never came."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("runs", sa.Column("output_incomplete", sa.Integer(), server_default="0", nullable=False))
