"""The public names: which there are, and the paths that they are shown under."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import traceback
import typing
from importlib import import_module
from typing import Any

import pytest

import sa_wfstate
from sa_wfstate import ConflictReason, StateConflict
from sa_wfstate.errors import PayloadError

NAMES = {
    "sa_wfstate": {
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
    },
    "sa_wfstate.alembic": {
        "create_hash_partitions",
        "create_version_trigger",
        "distribute_table",
        "drop_version_trigger",
        "replace_workflow_indexes",
        "upcast_workflow_state",
    },
    "sa_wfstate.asyncio": {
        "CanonicalStore",
        "IntentDispatcher",
        "ProjectionStore",
        "ProjectionWorker",
        "ReducerService",
        "get_state",
        "run_transaction",
        "try_commit",
        "try_commit_many",
        "try_delete",
        "try_delete_many",
        "try_patch",
        "try_patch_many",
    },
    "sa_wfstate.canonical": {
        "ActionDedupLog",
        "CanonicalBase",
        "ProjectionWatermark",
        "StateDict",
        "WorkflowHistory",
        "WorkflowIntent",
        "WorkflowProjection",
        "WorkflowState",
        "replace_indexes",
    },
    "sa_wfstate.dedup": {
        "ActionDedupMixin",
        "cleanup_expired",
        "remember",
        "should_process",
    },
    "sa_wfstate.engines": {"use_profile"},
    "sa_wfstate.errors": {
        "ActionIdReused",
        "ConflictReason",
        "IfMatchRefused",
        "KeyNotAssignable",
        "MappingError",
        "NestedHandle",
        "OutcomeUnknown",
        "PayloadError",
        "ProjectionBehind",
        "QueueFull",
        "StateBehind",
        "ReducerGaveUp",
        "SchemaVersionAhead",
        "StateConflict",
        "StateReplaced",
        "UnflushedChanges",
        "UnversionedWrite",
        "VersionNotAssignable",
        "VersionNotInHistory",
        "VersionNotKept",
        "VersionNotSeen",
        "WorkflowNotFound",
        "WorkflowStateError",
        "WriteSuppressed",
    },
    "sa_wfstate.history": {
        "HistoryMixin",
        "diff_versions",
        "get_state_as_of",
        "get_version",
        "keep_history",
        "list_versions",
        "restore_version",
        "trim_history",
    },
    "sa_wfstate.http": {"MEDIA_TYPE", "etag", "if_match", "problem"},
    "sa_wfstate.hooks": {
        "Hooks",
        "LoggingHooks",
        "OpenTelemetryHooks",
        "PrometheusHooks",
    },
    "sa_wfstate.merging": {
        "Changes",
        "Rebase",
        "add",
        "append",
        "mine",
        "theirs",
        "union",
    },
    "sa_wfstate.outbox": {
        "DueIntent",
        "IntentDispatcher",
        "IntentMixin",
        "add_intents",
        "revive_dead",
        "store_intents",
    },
    "sa_wfstate.patching": {
        "Edit",
        "Patch",
        "append",
        "increment",
        "remove",
        "set_to",
        "try_patch",
        "try_patch_many",
    },
    "sa_wfstate.projection": {
        "Projection",
        "ProjectionBatch",
        "ProjectionLag",
        "ProjectionMixin",
        "ProjectionRead",
        "ProjectionSource",
        "ProjectionStore",
        "ProjectionWorker",
        "Swept",
        "WatermarkMixin",
        "measure_lag",
        "rebuild",
    },
    "sa_wfstate.sqlmodel": {"WorkflowStateFields"},
    "sa_wfstate.testing": {
        "Given",
        "When",
        "assert_schema_pinned",
        "caught_up",
        "given",
        "lose_race",
        "one_transaction",
        "pass_time",
        "replay",
        "schema_fingerprint",
        "temporary_database",
        "temporary_server",
    },
    "sa_wfstate.sharding": {"distribute", "hash_partitions"},
    "sa_wfstate.upcasting": {
        "UpcastProgress",
        "UpcastReport",
        "Upcaster",
        "count_schema_versions",
        "skip_unreadable",
        "upcast_all",
    },
    "sa_wfstate.versions": {
        "RowVersion",
        "depends_on",
        "expect_version",
        "require_version",
        "try_delete",
        "try_delete_many",
        "version_trigger",
    },
}
"""The names of each public module."""

MODULES_OF_OURS = 78
"""How many modules of the package ``import sa_wfstate`` loads."""

NOT_LOADED = {
    "alembic",
    "asyncpg",
    "jsonpatch",
    "opentelemetry",
    "prometheus_client",
    "psycopg",
    "rich",
    "sa_wfstate.asyncio",
    "sa_wfstate.reducer",
    "sa_wfstate.store",
    "sqlmodel",
    "sqlalchemy.ext.asyncio",
    "tenacity",
}
"""What ``import sa_wfstate`` does not load, since the root does not need it."""


@pytest.mark.parametrize("path", NAMES)
def test_names_of_a_module(path: str) -> None:
    """Each module exports its names, each once, and has a docstring."""
    module = import_module(path)
    assert set(module.__all__) == NAMES[path]
    assert len(module.__all__) == len(NAMES[path])
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert module.__doc__


def functions() -> list[Any]:
    """Return each public function, with the path of its module, as test parameters."""
    return [
        pytest.param(path, function, id=f"{path}.{name}")
        for path, names in NAMES.items()
        for name in sorted(names)
        if inspect.isfunction(function := getattr(import_module(path), name))
    ]


@pytest.mark.parametrize(("path", "function"), functions())
def test_function_is_shown_under_its_public_path(path: str, function: Any) -> None:
    """Its source and the types of its parameters are found all the same."""
    assert function.__module__ == path
    assert f"def {function.__name__}(" in inspect.getsource(function)
    hints = typing.get_type_hints(function)
    assert {*inspect.signature(function).parameters} <= {*hints}


def test_error_is_shown_under_its_public_path() -> None:
    """A traceback names the path that an ``except`` clause would."""
    conflict = StateConflict("Order", "o-1", 1, None, ConflictReason.MISSING)
    (line,) = traceback.format_exception_only(conflict)
    assert line.startswith("sa_wfstate.StateConflict: ")
    for name in ("PayloadError", "WorkflowNotFound", "WorkflowStateError"):
        assert getattr(sa_wfstate, name).__module__ == "sa_wfstate"


@pytest.mark.parametrize("name", sorted({*sa_wfstate.errors.__all__}))
def test_source_of_an_error_is_found_or_refused(name: str) -> None:
    """It is never that of another class: those of the root are shown without one."""
    error = getattr(sa_wfstate.errors, name)
    if error.__module__ == "sa_wfstate":
        with pytest.raises(OSError):  # noqa: PT011 - its text differs by Python
            inspect.getsource(error)
    else:
        assert f"class {name}(" in inspect.getsource(error)


@pytest.mark.parametrize(
    "error",
    [
        StateConflict("Order", "o-1", 1, None, ConflictReason.MISSING),
        PayloadError("Order 'o-1' state", "total", "must be a number"),
    ],
)
def test_error_survives_pickle(error: Exception) -> None:
    """It is found again under the path that it is shown under."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_each_name_of_the_root_is_listed_before_it_is_imported() -> None:
    """dir() shows it; a name that there is not is an AttributeError that names it."""
    code = "import sa_wfstate; print(*dir(sa_wfstate)); from sa_wfstate import *"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert NAMES["sa_wfstate"] <= {*run.stdout.split()}
    with pytest.raises(AttributeError, match="'sa_wfstate' has no attribute 'Actions'"):
        sa_wfstate.Actions  # noqa: B018


def test_import_loads_what_the_root_needs() -> None:
    """No driver, no optional library, and a known number of modules of ours."""
    code = "import sys, sa_wfstate; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    loaded = {*run.stdout.split()}
    assert loaded & NOT_LOADED == set()
    ours = [name for name in loaded if name.partition(".")[0] == "sa_wfstate"]
    assert len(ours) <= MODULES_OF_OURS, sorted(ours)
