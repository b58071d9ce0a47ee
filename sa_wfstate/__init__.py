"""Workflow state in PostgreSQL: one versioned row per workflow, for SQLAlchemy."""

from .errors import (
    ConflictReason,
    MappingError,
    PayloadError,
    StateConflict,
    UnflushedChanges,
    VersionNotAssignable,
    WorkflowNotFound,
    WorkflowStateError,
    WriteSuppressed,
)
from .mixin import WorkflowStateMixin
from .provenance import Provenance
from .retry import RetryPolicy
from .snapshots import StateCommitted, WorkflowSnapshot
from .store import CanonicalStore, get_state, try_commit
from .types import PydanticJSON

__all__ = [
    "CanonicalStore",
    "ConflictReason",
    "MappingError",
    "PayloadError",
    "Provenance",
    "PydanticJSON",
    "RetryPolicy",
    "StateCommitted",
    "StateConflict",
    "UnflushedChanges",
    "VersionNotAssignable",
    "WorkflowNotFound",
    "WorkflowSnapshot",
    "WorkflowStateError",
    "WorkflowStateMixin",
    "WriteSuppressed",
    "get_state",
    "try_commit",
]
