"""Base the next write of an instance on a version that the application names."""

from __future__ import annotations

from typing import Any

from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import InstanceState

from ..errors import PayloadError
from ..values.row_version import RowVersion
from .mixin import WorkflowStateMixin
from .row_keys import key_of
from .version_guard import EXPECTED, seen_of


def expect_version(
    instance: WorkflowStateMixin[Any], version: int | RowVersion
) -> None:
    """Let the next flush that writes *instance* check *version*.

    In place of the version that the session has read. A form that was filled in, a
    request with If-Match, a draft: they are based on the version that a person has
    seen. If the row is at another one, the flush raises a StateConflict, as for any
    write that lost; after that, or after a flush that has written the row, the session
    checks what it reads again. Nothing is checked if nothing is to be written.

    *instance* is one that is stored, in a session or not; pickled, it keeps *version*.
    Raises PayloadError if *version* cannot be one, and InvalidRequestError if
    *instance* is new.
    """
    state: InstanceState[Any] = inspect(instance)
    name = type(instance).__name__
    if not state.has_identity:
        raise InvalidRequestError(
            f"expect_version() takes a stored {name}, and this one is new; a flush "
            "creates it only if there is no row with its key"
        )
    expected, seen = RowVersion.of(version), seen_of(state)
    if type(expected.version) is not int or expected.version < 1:
        problem = f"must be a version that was read, got {expected.version!r}"
        raise PayloadError(f"{name} {key_of(state)!r}", "expected_version", problem)
    if expected.effect_id is None and seen is not None and seen.matches(expected):
        expected = seen  # It says more.
    state.info[EXPECTED] = expected
