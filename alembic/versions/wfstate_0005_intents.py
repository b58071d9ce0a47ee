"""The outbox: intents to be delivered, and dead letters.

Revision ID: wfstate_0005
Revises: wfstate_0004
Create Date: 2026-11-23 09:21:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "wfstate_0005"
down_revision = "wfstate_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workflow_intents",
        sa.Column("workflow_key", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("intent_id", sa.Uuid(), nullable=False),
        sa.Column("intent_type", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "attempts", sa.Integer(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column(
            "due_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("dead_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint(
            "workflow_key",
            "version",
            "position",
            "intent_id",
            name=op.f("workflow_intents_pkey"),
        ),
    )
    op.create_index(
        op.f("idx_workflow_intents_due"),
        "workflow_intents",
        ["due_at"],
        postgresql_where=sa.text("dead_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("workflow_intents")
