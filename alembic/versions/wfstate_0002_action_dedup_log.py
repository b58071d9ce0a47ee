"""The dedup log: which actions of a workflow were processed, and what they led to.

Revision ID: wfstate_0002
Revises: wfstate_0001
Create Date: 2026-11-23 08:51:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "wfstate_0002"
down_revision = "wfstate_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "action_dedup_log",
        sa.Column("workflow_key", sa.Text(), nullable=False),
        sa.Column("action_id", sa.Uuid(), nullable=False),
        sa.Column("result_hash", sa.Text(), nullable=False),
        sa.Column(
            "processed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint(
            "workflow_key", "action_id", name=op.f("action_dedup_log_pkey")
        ),
    )
    op.create_index(
        op.f("idx_action_dedup_log_expires"), "action_dedup_log", ["expires_at"]
    )


def downgrade() -> None:
    op.drop_table("action_dedup_log")
