"""The workflow states: one row per workflow, guarded by its version.

The names of constraints and indexes are the ones PostgreSQL gives by itself, whatever
naming convention is in force.

Revision ID: wfstate_0001
Revises:
Create Date: 2026-11-23 08:50:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "wfstate_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workflow_state",
        sa.Column("workflow_key", sa.Text(), nullable=False),
        sa.Column(
            "version", sa.BigInteger(), server_default=sa.text("1"), nullable=False
        ),
        sa.Column("state", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "schema_version", sa.Integer(), server_default=sa.text("1"), nullable=False
        ),
        sa.Column(
            "provenance", postgresql.JSONB(astext_type=sa.Text()), nullable=False
        ),
        sa.PrimaryKeyConstraint("workflow_key", name=op.f("workflow_state_pkey")),
        sa.CheckConstraint("version >= 1", name=op.f("workflow_state_version_check")),
        sa.CheckConstraint(
            "schema_version >= 1", name=op.f("workflow_state_schema_version_check")
        ),
    )
    op.create_index(
        op.f("idx_workflow_state_version"),
        "workflow_state",
        ["workflow_key", "version"],
    )
    op.create_index(
        op.f("idx_workflow_state_updated"),
        "workflow_state",
        [sa.literal_column("updated_at DESC")],
    )


def downgrade() -> None:
    op.drop_table("workflow_state")
