"""Workflow state in PostgreSQL: one versioned row per workflow, for SQLAlchemy."""

from importlib.metadata import version as _version

from .errors import (
    ConflictReason,
    PayloadError,
    StateConflict,
    WorkflowNotFound,
    WorkflowStateError,
)
from .orm.events import listen_to_mappings as _listen_to_mappings
from .orm.mixin import WorkflowStateMixin
from .payload.actions import Action, Intent, Reduction
from .reducer.service import ReducerService
from .retry import ErrorKind, RetryPolicy, classify
from .row.paths import field_of
from .row.types import PydanticJSON
from .store.api import get_state, try_commit
from .store.batch_checks import Commit
from .store.bulk import try_commit_many
from .store.canonical_store import CanonicalStore
from .store.transactions import run_transaction
from .values.keys import TenantKey
from .values.provenance import Provenance
from .values.public_names import publish as _publish
from .values.snapshot import StateCommitted, WorkflowSnapshot

__version__ = _version("sa-wfstate")

_listen_to_mappings()

__all__ = [
    "Action",
    "CanonicalStore",
    "Commit",
    "ConflictReason",
    "ErrorKind",
    "Intent",
    "PayloadError",
    "Provenance",
    "PydanticJSON",
    "ReducerService",
    "Reduction",
    "RetryPolicy",
    "StateCommitted",
    "StateConflict",
    "TenantKey",
    "WorkflowNotFound",
    "WorkflowSnapshot",
    "WorkflowStateError",
    "WorkflowStateMixin",
    "__version__",
    "classify",
    "field_of",
    "get_state",
    "run_transaction",
    "try_commit",
    "try_commit_many",
]

_publish(globals())
