"""The tables of the shop.

Revision ID: shop_0001
Revises:
Create Date: 2026-11-28 08:10:03.700195
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "shop_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "order_actions",
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
        sa.PrimaryKeyConstraint("workflow_key", "action_id"),
    )
    op.create_index(
        op.f("idx_order_actions_expires"), "order_actions", ["expires_at"], unique=False
    )
    op.create_table(
        "order_history",
        sa.Column("workflow_key", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("committed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column(
            "provenance", postgresql.JSONB(astext_type=sa.Text()), nullable=False
        ),
        sa.PrimaryKeyConstraint("workflow_key", "version", "committed_at"),
    )
    op.create_table(
        "order_intents",
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
        sa.PrimaryKeyConstraint("workflow_key", "version", "position", "intent_id"),
    )
    op.create_index(
        op.f("idx_order_intents_due"),
        "order_intents",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("dead_at IS NULL"),
        sqlite_where=sa.text("dead_at IS NULL"),
    )
    op.create_table(
        "order_rows",
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
        sa.Column("open", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("workflow_key"),
    )
    op.create_index(op.f("ix_order_rows_open"), "order_rows", ["open"], unique=False)
    op.create_table(
        "orders",
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
        sa.CheckConstraint(
            "schema_version >= 1", name=op.f("orders_schema_version_check")
        ),
        sa.CheckConstraint("version >= 1", name=op.f("orders_version_check")),
        sa.PrimaryKeyConstraint("workflow_key"),
    )
    op.create_table(
        "watermarks",
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
        sa.PrimaryKeyConstraint("partition_id"),
    )


def downgrade() -> None:

    op.drop_table("watermarks")
    op.drop_table("orders")
    op.drop_index(op.f("ix_order_rows_open"), table_name="order_rows")
    op.drop_table("order_rows")
    op.drop_index(
        op.f("idx_order_intents_due"),
        table_name="order_intents",
        postgresql_where=sa.text("dead_at IS NULL"),
        sqlite_where=sa.text("dead_at IS NULL"),
    )
    op.drop_table("order_intents")
    op.drop_table("order_history")
    op.drop_index(op.f("idx_order_actions_expires"), table_name="order_actions")
    op.drop_table("order_actions")
