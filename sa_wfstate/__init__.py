"""Workflow state in PostgreSQL: one versioned row per workflow, for SQLAlchemy."""

from typing import TYPE_CHECKING, Any, Final

from .errors import (
    ConflictReason,
    PayloadError,
    StateConflict,
    WorkflowNotFound,
    WorkflowStateError,
)
from .orm.events import listen_to_mappings as _listen_to_mappings
from .orm.mixin import WorkflowStateMixin
from .row.types import PydanticJSON
from .values.keys import TenantKey
from .values.provenance import Provenance
from .values.public_names import publish as _publish
from .values.snapshot import StateCommitted, WorkflowSnapshot

if TYPE_CHECKING:
    from .payload.actions import Action, Intent, Reduction
    from .reducer.service import ReducerService
    from .retry import ErrorKind, RetryPolicy, classify
    from .row.paths import field_of
    from .store.api import get_state, try_commit
    from .store.batch_checks import Commit
    from .store.bulk import try_commit_many
    from .store.canonical_store import CanonicalStore
    from .store.transactions import run_transaction

    __version__: str

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

_MODULES: Final = {
    "Action": ".payload.actions",
    "CanonicalStore": ".store.canonical_store",
    "Commit": ".store.batch_checks",
    "ErrorKind": ".retry",
    "Intent": ".payload.actions",
    "ReducerService": ".reducer.service",
    "Reduction": ".payload.actions",
    "RetryPolicy": ".retry",
    "classify": ".retry",
    "field_of": ".row.paths",
    "get_state": ".store.api",
    "run_transaction": ".store.transactions",
    "try_commit": ".store.api",
    "try_commit_many": ".store.bulk",
}
"""The names that a mapped class does not need: imported when they are asked for."""

if not TYPE_CHECKING:  # A type checker would take any name for one of the module.

    def __getattr__(name: str) -> Any:
        """Import the module of the public *name*."""
        if name == "__version__":
            from importlib.metadata import version

            found = version("sa-wfstate")
        elif name in _MODULES:
            from importlib import import_module

            found = getattr(import_module(_MODULES[name], __name__), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        _publish(globals())
        return found

    def __dir__() -> list[str]:
        """Return the names that there are, those not yet imported among them."""
        return sorted({*globals(), *__all__})


_publish(globals())
