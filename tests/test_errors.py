"""Errors survive pickle and copy, and tell keys and versions, but no payload."""

from __future__ import annotations

import copy
import pickle
import re
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy.orm.exc import StaleDataError

from sa_wfstate import (
    ConflictReason,
    PayloadError,
    StateConflict,
    WorkflowNotFound,
    WorkflowSnapshot,
    WorkflowStateError,
    errors,
)
from sa_wfstate import errors as races
from sa_wfstate.errors import (
    ActionIdReused,
    IfMatchRefused,
    KeyNotAssignable,
    MappingError,
    NestedHandle,
    OutcomeUnknown,
    ProjectionBehind,
    QueueFull,
    ReducerGaveUp,
    SchemaVersionAhead,
    StateBehind,
    StateReplaced,
    UnflushedChanges,
    UnversionedWrite,
    VersionNotAssignable,
    VersionNotInHistory,
    VersionNotKept,
    VersionNotSeen,
    WriteSuppressed,
)

CURRENT = WorkflowSnapshot[dict](
    workflow_key="o-1",
    version=2,
    state={"secret": "hidden"},
    updated_at=datetime.now(UTC),
    provenance={"effect_id": "effect-2", "timestamp": datetime.now(UTC)},
)
MOVED = StateConflict("Order", "o-1", 1, 2, ConflictReason.MOVED, CURRENT)
GONE = StateConflict("Order", "o-2", 3, None, ConflictReason.MISSING)
ERRORS = [
    MOVED,
    GONE,
    MOVED.together_with((GONE,)),
    StateConflict("Order", "o-1", 0, 2, ConflictReason.EXISTS, CURRENT),
    StateConflict("Order", "o-1", 2, 2, ConflictReason.RECREATED, CURRENT),
    StateConflict("Order", "o-1", 1, None, ConflictReason.SERIALIZATION),
    WriteSuppressed("Order", "o-1", 1),
    OutcomeUnknown("Order", "o-1", ("effect-1", "effect-2")),
    UnversionedWrite("Order", "UPDATE", "use try_commit_many"),
    VersionNotSeen("Order", "o-1"),
    VersionNotAssignable("Order"),
    KeyNotAssignable("Order", "o-1"),
    WorkflowNotFound("Order", "o-1"),
    PayloadError("Order 'o-1' state", "items.0", "is missing; give one"),
    PayloadError("Order 'o-1' state", "", "is missing; give one"),
    SchemaVersionAhead("Order", "o-1", 3, known=2),
    UnflushedChanges("Order", workflow_key="o-1"),
    StateReplaced("Order", "o-1", "state"),
    MappingError("Order", "it has no state; give it one"),
    ReducerGaveUp("Order", "o-1", MOVED, attempts=3, elapsed=0.25),
    ReducerGaveUp("Order", "o-1", None, 3, 0.25),
    NestedHandle("Order", "o-1", "Order 'o-2'"),
    QueueFull("Order", "o-1", 1000),
    ActionIdReused("Order 1", UUID(int=1)),
    VersionNotKept("Order", "o-1", 1),
    VersionNotInHistory("Order", "o-1", None),
    ProjectionBehind("Order", "o-1", 2, 1),
    StateBehind("Order", "o-1", 2, 1),
    IfMatchRefused("names no version of an Order; send the one that was read", 428),
]


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
def test_error_survives(error: WorkflowStateError) -> None:
    """A copy has the message and the fields of the original."""
    error.add_note("noted")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again).keys() == vars(error).keys()
        assert getattr(again, "current", None) == getattr(error, "current", None)
        assert again.args[:2] == error.args[:2]
        assert again.__notes__ == ["noted"]


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
def test_message_is_fit_for_a_log(error: WorkflowStateError) -> None:
    """It names the entity and says what to do; it holds no payload."""
    message = str(error)
    assert "Order" in message
    assert ";" in message
    for shown in (message, repr(error)):
        assert "hidden" not in shown
        assert "secret" not in shown


def test_every_error_is_tried_and_documented() -> None:
    """No error of the two modules is missing above, or without its anchor."""
    page = Path(__file__).parents[1] / "docs" / "reference" / "errors.md"
    anchors = set(re.findall(r"^\((\w+)\)=$", page.read_text(), re.MULTILINE))
    tried = {type(error) for error in ERRORS}
    assert not {kind.__name__.lower() for kind in tried} - anchors
    defined = {
        each
        for module in (errors, races)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, WorkflowStateError)
    }
    assert defined - tried == {WorkflowStateError, errors.RowError}


def test_conflict_is_a_stale_data_error() -> None:
    """Code that handles SQLAlchemy's error handles this one."""
    assert isinstance(MOVED, StaleDataError)
    both = MOVED.together_with((GONE,))
    assert [each.workflow_key for each in both.conflicts] == ["o-1", "o-2"]
    assert "expected version 1, found 2 (written by effect 'effect-2')" in str(both)
    assert "'o-2': expected version 3, the row is gone" in str(both)
