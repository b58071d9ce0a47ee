"""Reports of workers: an intent that is due, a batch that was projected."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import (
    datetime,  # noqa: TC003 (SQLAlchemy reads the annotation)
)
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class DueIntent:
    """An intent that a handler is called with; *attempt* counts from 1."""

    intent_id: UUID
    workflow_key: Any
    version: int
    position: int
    intent_type: str
    target: str
    payload: Any
    attempt: int
    created_at: datetime


class ProjectionBatch(NamedTuple):
    """One transaction of a projection worker.

    *lag_seconds* and *lag_versions* are the lag of its rows when they were found: the
    time since the oldest of their transactions began, and the most versions. *failed*
    counts the rows that could not be read or projected.
    """

    projection: str
    applied: int
    failed: int
    lag_seconds: float
    lag_versions: int
