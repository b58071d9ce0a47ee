"""What a flush was about to write when it failed, to compare it with the row.

It is noted while the flush is rolled back, before SQLAlchemy expires the instances: by
reference, so that nothing is encoded or compared unless a conflict is asked for its
changes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.orm import InstanceState, LoaderCallableStatus, Session

from ..errors import PayloadError
from ..payload.changes import document_of, is_same, pointers_of
from ..row.columns import Columns
from ..row.types import PydanticJSON
from ..row.unread import Unread
from ..values.changes import Changes
from ..values.snapshot import WorkflowSnapshot, beside_of, source_of
from .baseline import SQL, Baseline, baselines_of, tracked
from .session_state import existing_state_of
from .version_guard import seen_of
from .write_log import Operation, OperationType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..errors import StateConflict
    from ..row.encoded import Encoded
    from ..row.statements import Statements


UNKNOWN = LoaderCallableStatus.NO_VALUE


class Value(NamedTuple):
    """An attribute in a flush: what its row held *before*, and what it is *now*.

    Both may be a text that is not decoded yet, or a baseline. The same object twice is
    a value that the flush does not write.
    """

    before: Any
    now: Any


def after_rollback(session: Session) -> None:
    known = existing_state_of(session)
    if known is None or known.flush is None:
        return
    for state, operation in known.log.pending.items():
        seen = seen_of(state)
        # The application may have named another version, whose values are not known.
        if (
            seen is not None
            and seen.matches(operation.base)
            and not operation.confirmed
            and operation.type is not OperationType.INSERT
        ):
            operation.attempt = values_of(state, known.flush.written)


def values_of(
    state: InstanceState[Any], written: Mapping[Any, Encoded]
) -> dict[str, Value]:
    """Return the loaded columns of *state*, by attribute, that the application writes.

    *written* is what the flush has encoded. Columns that do not count are no part of
    it.
    """
    values, uncounted = dict[str, Value](), state.class_.__unversioned__
    for name in state.mapper.columns.keys():  # noqa: SIM118 - no dict
        if name in uncounted or (name in Columns._fields and name != "state"):
            continue
        if name in state.dict:
            values[name] = value_of(state, name, written.get((state, name)))
        elif name in state.expired_attributes:
            # It was sent as SQL: neither what it was nor what it is now is known.
            values[name] = Value(UNKNOWN, None)
    return values


def explain_unflushed(
    conflict: StateConflict, statements: Statements[Any], state: InstanceState[Any]
) -> StateConflict:
    """Let *conflict* of a stale instance find its changes when it is asked for them.

    No flush has encoded them: a value is compared as it is then.
    """
    if conflict.current is None:
        return conflict
    attempt = {
        name: value._replace(now=state.dict[name])
        if name in tracked(state) and name in state.dict
        else value
        for name, value in values_of(state, {}).items()
    }
    compare = partial(_compare, statements, attempt, conflict.current, deletes=False)
    return conflict.compared_by(compare)


def value_of(
    state: InstanceState[Any], name: str, encoded: Encoded | None = None
) -> Value:
    """Return the attribute *name* of *state*, which a flush may write as *encoded*."""
    now = state.dict[name]
    before = state.committed_state.get(name, now)
    if name not in tracked(state):
        return Value(before, now)
    base = baselines_of(state).get(name)
    if base is not None and base.value is before:
        before = base
    if encoded is not None and encoded.value is now and encoded.text is not None:
        return Value(before, Unread(encoded.text))
    return Value(before, before if name not in state.committed_state else now)


def text_of(type_: PydanticJSON[Any], value: Any) -> str | None:
    """Return the JSON of *value*, part of a :class:`Value`; None if it is not known."""
    if isinstance(value, Baseline):
        value = Unread(value.source or "") if value.text is None else Unread(value.text)
    if isinstance(value, Unread):
        return value.text if getattr(value, "known", True) else None
    if value is None or isinstance(value, (LoaderCallableStatus, *SQL)):
        return None
    return type_.dump(value)


def explain(conflict: StateConflict, operation: Operation) -> StateConflict:
    """Let *conflict* of *operation* find its changes when it is asked for them."""
    if operation.attempt is None or conflict.current is None:
        return conflict
    compare = partial(
        _compare,
        operation.statements,
        operation.attempt,
        conflict.current,
        deletes=operation.type is OperationType.DELETE,
    )
    return conflict.compared_by(compare)


def _compare(
    statements: Statements[Any],
    attempt: Mapping[str, Value],
    current: WorkflowSnapshot[Any],
    *,
    deletes: bool,
) -> Changes | None:
    source, state = source_of(current), attempt.get("state")
    if source is None or state is None:
        return None
    try:
        base, own = (text_of(statements.state_type, each) for each in state)
        if base is None or own is None:
            return None
        mine, theirs = pointers_of(statements.state_type.codec, base, own, source[1])
        for name, column, value in _beside(statements, current):
            if name in attempt:
                was, now = attempt[name]
                mine += [name] * differs(column.type, was, now)
                theirs += [name] * differs(column.type, was, value)
    except PayloadError:
        return None
    if deletes:
        mine = ["", *(name for name in theirs if name[:1] not in {"", "/"})]
    return Changes(mine, theirs)


def _beside(
    statements: Statements[Any], current: WorkflowSnapshot[Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, column and value of the application's own columns in the row."""
    columns = statements.sql.beside
    for (name, column), value in zip(columns.items(), beside_of(current), strict=False):
        if isinstance(column.type, PydanticJSON) and value is not None:
            yield name, column, Unread(value)
        else:
            yield name, column, value


def differs(type_: Any, one: Any, other: Any) -> bool:
    """Return whether two values of a column differ; True if one is not known."""
    if one is other:
        return False
    if isinstance(type_, PydanticJSON):
        before, after = (text_of(type_, each) for each in (one, other))
        if before is None or after is None:
            return True
        codec = type_.codec
        return not is_same(document_of(codec, before), document_of(codec, after))
    if isinstance(one, SQL) or isinstance(other, SQL):
        return True
    return not type_.compare_values(one, other)
