"""What an action asked for and which version it led to, beside its claim.

Both columns are nullable: rows that were written before stay valid.

Revision ID: wfstate_0004
Revises: wfstate_0003
Create Date: 2026-11-23 09:10:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "wfstate_0004"
down_revision = "wfstate_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("action_dedup_log", sa.Column("request_hash", sa.Text()))
    op.add_column("action_dedup_log", sa.Column("version", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("action_dedup_log", "version")
    op.drop_column("action_dedup_log", "request_hash")
