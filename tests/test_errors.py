"""Errors survive pickle and copy, and tell keys and versions, but no payload."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime

import pytest
from sqlalchemy.orm.exc import StaleDataError

from sa_wfstate import (
    ConflictReason,
    OutcomeUnknown,
    StateConflict,
    UnversionedWrite,
    VersionNotAssignable,
    VersionNotSeen,
    WorkflowSnapshot,
    WorkflowStateError,
    WriteSuppressed,
)

CURRENT = WorkflowSnapshot[dict](
    workflow_key="o-1",
    version=2,
    state={"secret": "payload"},
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
    UnversionedWrite("Order", "UPDATE"),
    VersionNotSeen("Order", "o-1"),
    VersionNotAssignable("Order"),
]


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
def test_error_survives(error: WorkflowStateError) -> None:
    """A copy says and knows what the original does."""
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again).keys() == vars(error).keys()
        assert getattr(again, "current", None) == getattr(error, "current", None)
        assert again.args[:2] == error.args[:2]


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
def test_message_is_fit_for_a_log(error: WorkflowStateError) -> None:
    """It names the entity and says what to do; it holds no payload."""
    message = str(error)
    assert "Order" in message
    assert ";" in message
    for shown in (message, repr(error)):
        assert "payload" not in shown
        assert "secret" not in shown


def test_conflict_is_a_stale_data_error() -> None:
    """Code that handles SQLAlchemy's error handles this one."""
    assert isinstance(MOVED, StaleDataError)
    both = MOVED.together_with((GONE,))
    assert [each.workflow_key for each in both.conflicts] == ["o-1", "o-2"]
    assert "expected version 1, found 2 (written by effect 'effect-2')" in str(both)
    assert "'o-2': expected version 3, the row is gone" in str(both)
