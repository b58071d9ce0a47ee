"""The projection: a read model of the workflows, and how far it has followed.

Revision ID: wfstate_0003
Revises: wfstate_0002
Create Date: 2026-11-23 08:52:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "wfstate_0003"
down_revision = "wfstate_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workflow_projection",
        sa.Column("workflow_key", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("last_action", sa.Text(), nullable=True),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("indices", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("extras", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("workflow_key", name=op.f("workflow_projection_pkey")),
    )
    op.create_index(
        op.f("idx_workflow_projection_namespace"), "workflow_projection", ["namespace"]
    )
    op.create_index(op.f("idx_workflow_projection_tag"), "workflow_projection", ["tag"])
    op.create_table(
        "projection_watermarks",
        sa.Column("partition_id", sa.Text(), nullable=False),
        sa.Column(
            "offset", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint(
            "partition_id", name=op.f("projection_watermarks_pkey")
        ),
    )


def downgrade() -> None:
    op.drop_table("projection_watermarks")
    op.drop_table("workflow_projection")
