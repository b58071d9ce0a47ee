"""The canonical tables, for applications that need no table of their own.

``alembic/`` migrates them; ``CanonicalBase.metadata`` holds them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field
from sqlalchemy import BigInteger, DateTime, Index, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .dedup import ActionDedupMixin
from .mixin import WorkflowStateMixin

StateDict = Annotated[dict[str, Any], Field(min_length=1)]
"""A plain-dict state; it must not be empty."""


class CanonicalBase(DeclarativeBase):
    """The declarative base of the canonical tables."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        str: Text,
        UUID: Uuid,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
    }


class WorkflowState(WorkflowStateMixin[StateDict], CanonicalBase):
    """The canonical workflow-state row, with a plain dict as its state."""

    __tablename__ = "workflow_state"
    __workflow_indexes__ = ("version", "updated")


class ActionDedupLog(ActionDedupMixin, CanonicalBase):
    """Which actions of a workflow were processed, until they expire."""

    __tablename__ = "action_dedup_log"


class WorkflowProjection(CanonicalBase):
    """The read model of a workflow, as of *version* of its canonical row."""

    __tablename__ = "workflow_projection"
    __table_args__ = (
        Index("idx_workflow_projection_namespace", "namespace"),
        Index("idx_workflow_projection_tag", "tag"),
    )

    workflow_key: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    tag: Mapped[str]
    last_action: Mapped[str | None]
    namespace: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.now(), onupdate=func.now()
    )
    indices: Mapped[dict[str, Any] | None]
    extras: Mapped[dict[str, Any] | None]


class ProjectionWatermark(CanonicalBase):
    """How far a partition of the projection has followed the commits."""

    __tablename__ = "projection_watermarks"

    partition_id: Mapped[str] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.now(), onupdate=func.now()
    )
