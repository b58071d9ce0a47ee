"""Workflow state in PostgreSQL: one versioned row per workflow, for SQLAlchemy."""

from .actions import Action, Intent, Reduction
from .bulk import Commit, try_commit_many
from .dedup import ActionDedupMixin, cleanup_expired, remember, should_process
from .dispatcher import DueIntent, IntentDispatcher
from .errors import (
    ActionIdReused,
    KeyNotAssignable,
    MappingError,
    NestedHandle,
    OutcomeUnknown,
    PayloadError,
    ProjectionBehind,
    ReducerGaveUp,
    SchemaVersionAhead,
    UnflushedChanges,
    UnversionedWrite,
    VersionNotAssignable,
    VersionNotInHistory,
    VersionNotKept,
    VersionNotSeen,
    WorkflowNotFound,
    WorkflowStateError,
)
from .history import HistoryMixin, keep_history
from .hooks import Hooks
from .mixin import WorkflowStateMixin
from .outbox import IntentMixin, store_intents
from .paths import field_of
from .projection import Projection, ProjectionMixin
from .projection_store import ProjectionStore
from .projection_worker import ProjectionWorker
from .provenance import Provenance
from .races import ConflictReason, StateConflict, WriteSuppressed
from .reducer import ReducerService
from .retry import RetryPolicy
from .schema import skip_unreadable
from .snapshots import StateCommitted, WorkflowSnapshot
from .sqlstates import ErrorKind, classify
from .store import CanonicalStore, get_state, try_commit
from .transactions import run_transaction
from .triggers import version_trigger
from .types import PydanticJSON
from .watermarks import WatermarkMixin

__all__ = [
    "Action",
    "ActionDedupMixin",
    "ActionIdReused",
    "CanonicalStore",
    "Commit",
    "ConflictReason",
    "DueIntent",
    "ErrorKind",
    "HistoryMixin",
    "Hooks",
    "Intent",
    "IntentDispatcher",
    "IntentMixin",
    "KeyNotAssignable",
    "MappingError",
    "NestedHandle",
    "OutcomeUnknown",
    "PayloadError",
    "Projection",
    "ProjectionBehind",
    "ProjectionMixin",
    "ProjectionStore",
    "ProjectionWorker",
    "Provenance",
    "PydanticJSON",
    "ReducerGaveUp",
    "ReducerService",
    "Reduction",
    "RetryPolicy",
    "SchemaVersionAhead",
    "StateCommitted",
    "StateConflict",
    "UnflushedChanges",
    "UnversionedWrite",
    "VersionNotAssignable",
    "VersionNotInHistory",
    "VersionNotKept",
    "VersionNotSeen",
    "WatermarkMixin",
    "WorkflowNotFound",
    "WorkflowSnapshot",
    "WorkflowStateError",
    "WorkflowStateMixin",
    "WriteSuppressed",
    "classify",
    "cleanup_expired",
    "field_of",
    "get_state",
    "keep_history",
    "remember",
    "run_transaction",
    "should_process",
    "skip_unreadable",
    "store_intents",
    "try_commit",
    "try_commit_many",
    "version_trigger",
]
