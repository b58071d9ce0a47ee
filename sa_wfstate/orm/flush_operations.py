"""The operation that a flush notes for each row, before it writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .entity import statements_of
from .row_keys import check_key_is_made, key_of, known_key_of
from .version_guard import effect_id_in, require_row_counts
from .write_log import Operation, OperationType, write_log_of

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Session

    from ..row.statements import Statements
    from ..values.row_version import RowVersion
    from .session_state import Flush, SessionState
    from .write_log import WriteLog


def session_of(state: InstanceState[Any]) -> Session:
    """Return the session that flushes *state*."""
    session: Session = state.session  # type: ignore[assignment]
    return session


def note(
    known: SessionState,
    type_: OperationType,
    connection: Connection,
    state: InstanceState[Any],
    base: RowVersion,
) -> Operation:
    """Note what a flush does to the row of *state*, which it bases on *base*."""
    statements, log = _table_of(known.flush, connection, state.class_)
    effect_id = effect_id_in(state.dict.get("provenance"))
    if state.key is not None:
        key = key_of(state)
    else:
        key = known_key_of(state)
        if key is None:
            check_key_is_made(state)
    operation = Operation(type_, statements, key, base, effect_id, log, state)
    known.log.pending[state] = operation
    return operation


def _table_of(
    flush: Flush | None, connection: Connection, entity: type[Any]
) -> tuple[Statements[Any], WriteLog]:
    """Return the statements of *entity*, and the log of *connection*."""
    found = None if flush is None else flush.tables.get((entity, connection))
    if found is None:
        statements = statements_of(entity)
        require_row_counts(connection, statements.entity)
        found = statements, write_log_of(connection)
        if flush is not None:
            flush.tables[entity, connection] = found
    return found
