"""What workers report: an intent that is due, a batch that was projected."""

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
    """An intent as it is given to a handler; *attempt* counts from 1."""

    intent_id: UUID
    workflow_key: str
    version: int
    position: int
    intent_type: str
    target: str
    payload: Any
    attempt: int
    created_at: datetime


class ProjectionBatch(NamedTuple):
    """What one transaction of a worker has done.

    *lag_seconds* and *lag_versions* say how far its rows were behind when they were
    found: the time since the oldest of their transactions began, and the most versions.
    *failed* counts the rows that could not be read or projected.
    """

    projection: str
    applied: int
    failed: int
    lag_seconds: float
    lag_versions: int
