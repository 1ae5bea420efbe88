"""A token that was used says by whom, so that an enrolment whose answer was lost can be repeated."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("enrollment_tokens", sa.Column("used_by", sa.Text(), nullable=True))
