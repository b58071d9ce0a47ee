"""The canonical tables, for applications that need no table of their own.

``alembic/`` migrates them; ``CanonicalBase.metadata`` holds them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, cast
from uuid import UUID

from pydantic import Field
from sqlalchemy import DateTime, Index, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from .dedup import ActionDedupMixin
from .history.table import HistoryMixin
from .orm.mixin import WorkflowStateMixin
from .outbox.table import IntentMixin
from .projection.definition import ProjectionMixin
from .projection.watermarks import WatermarkMixin
from .row.ddl import COMMIT_INDEXES, add_indexes, index_name

__all__ = [
    "ActionDedupLog",
    "CanonicalBase",
    "ProjectionWatermark",
    "StateDict",
    "WorkflowHistory",
    "WorkflowIntent",
    "WorkflowProjection",
    "WorkflowState",
    "replace_indexes",
]

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


def replace_indexes(*wanted: str) -> None:
    """Give WorkflowState the indexes *wanted* in place of its two B-trees.

    *wanted* are names as in ``__workflow_indexes__``: none, or ``"recent"`` where a
    projection follows it. Call it before the tables are created or compared, once; the
    migration is ``op.replace_workflow_indexes("workflow_state", *wanted)``.
    """
    table = cast("Table", WorkflowState.__table__)
    indexes = {index_name(table.name, which) for which in COMMIT_INDEXES}
    for index in [each for each in table.indexes if each.name in indexes]:
        table.indexes.remove(index)
    add_indexes("WorkflowState", table, wanted)


class ActionDedupLog(ActionDedupMixin, CanonicalBase):
    """The idempotency keys of processed actions, until they expire."""

    __tablename__ = "action_dedup_log"


class WorkflowProjection(ProjectionMixin, CanonicalBase):
    """The read model of a workflow at *version* of its canonical row."""

    __tablename__ = "workflow_projection"
    __table_args__ = (
        Index("idx_workflow_projection_namespace", "namespace"),
        Index("idx_workflow_projection_tag", "tag"),
    )


class ProjectionWatermark(WatermarkMixin, CanonicalBase):
    """How far a partition of the projection has followed the commits."""

    __tablename__ = "projection_watermarks"


class WorkflowHistory(HistoryMixin, CanonicalBase):
    """Every version of a workflow, once ``keep_history`` names it."""

    __tablename__ = "workflow_history"


class WorkflowIntent(IntentMixin, CanonicalBase):
    """The outbox: intents to be delivered, if a writer is ``store_intents``."""

    __tablename__ = "workflow_intents"
