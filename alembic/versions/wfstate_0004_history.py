"""The history: every version of a workflow, one row each.

Revision ID: wfstate_0004
Revises: wfstate_0003
Create Date: 2026-11-23 09:20:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "wfstate_0004"
down_revision = "wfstate_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workflow_history",
        sa.Column("workflow_key", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("committed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column(
            "provenance", postgresql.JSONB(astext_type=sa.Text()), nullable=False
        ),
        sa.PrimaryKeyConstraint(
            "workflow_key",
            "version",
            "committed_at",
            name=op.f("workflow_history_pkey"),
        ),
    )


def downgrade() -> None:
    op.drop_table("workflow_history")
