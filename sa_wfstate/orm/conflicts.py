"""Translate the error of each lost write into a StateConflict.

When a flush fails, SQLAlchemy has rolled back by the time ``after_soft_rollback`` is
dispatched, the original error is still being handled, and the session's own connection
is still there. The session's log knows which rows the failed statement was about. On
that connection they are read again: those that are no longer what the write was based
on have lost. A COMMIT that is refused arrives in ``handle_error``. An error that
concerns no workflow row is left as it is.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Connection, ExceptionContext, TwoPhaseTransaction
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

from .._concurrency import raised_by_signal_handler
from ..errors import ConflictReason, StateConflict, WriteSuppressed
from ..retry import SERIALIZATION_FAILURE, UNIQUE_VIOLATION, sqlstate
from ..values.keys import Key, key_text, parts_of
from ..values.row_version import NOTHING, RowVersion
from ..values.snapshot import WorkflowSnapshot
from .attempts import explain
from .criteria import HIDDEN, filtering
from .session_state import existing_state_of
from .version_guard import EXPECTED
from .write_log import Operation, OperationType, written_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..row.statements import Statements


def conflict_of(
    statements: Statements[Any],
    workflow_key: Key,
    base: RowVersion,
    found: WorkflowSnapshot[Any] | RowVersion | None,
) -> StateConflict | None:
    """Judge a lost write by what was *found* in its row after the loss.

    None means that the row is still at *base*: no other writer has changed it.
    """
    current = None
    if isinstance(found, WorkflowSnapshot):
        current, found = found, RowVersion(found.version, found.provenance.effect_id)
    actual = found or NOTHING
    if actual.matches(base):
        return None
    if base.version == 0:
        reason = ConflictReason.EXISTS
    elif actual.version == 0:
        reason = ConflictReason.MISSING
    elif actual.version == base.version:
        reason = ConflictReason.RECREATED
    else:
        reason = ConflictReason.MOVED
    return StateConflict(
        statements.entity,
        workflow_key,
        base.version,
        actual.version if actual.version > 0 else None,
        reason,
        current,
    )


def conflict_of_all(conflicts: Sequence[StateConflict]) -> StateConflict | None:
    """Make one conflict of several: the first, which knows the others."""
    first, *others = conflicts or (None,)
    return first if first is None else first.together_with(tuple(others))


def after_soft_rollback(session: Session, transaction: SessionTransaction) -> None:
    known = existing_state_of(session)
    if known is None:
        return
    doubtful = known.log.fail(transaction)
    error = sys.exc_info()[1]
    in_flush = transaction.origin is SessionTransactionOrigin.SUBTRANSACTION
    if doubtful and in_flush and isinstance(error, SQLAlchemyError):
        meant = _meaning(error, doubtful, hides=filtering(session) is not None)
        if meant is not None:
            if not raised_by_signal_handler(error):
                # All its frames are SQLAlchemy's: what is printed is long enough.
                error = error.with_traceback(None)
            raise meant from error


def _meaning(
    error: SQLAlchemyError, doubtful: list[Operation], *, hides: bool
) -> StateConflict | WriteSuppressed | None:
    """Return what *error* means for the rows of *doubtful*, None if it means nothing.

    A serialization failure that no row explains is the loss of the rows in the failing
    statement: the database has seen a conflict that the rows alone do not show. *hides*
    says that the session may not be shown the row that a creation has met.
    """
    refused = sqlstate(error)
    # A key that the INSERT itself makes is empty before it, and cannot conflict.
    doubtful = [
        operation for operation in doubtful if operation.workflow_key is not None
    ]
    if refused == UNIQUE_VIOLATION:
        doubtful = [
            e for e in _of_statement(error, doubtful) if e.type is OperationType.INSERT
        ]
    elif refused != SERIALIZATION_FAILURE and not isinstance(
        error, (StaleDataError, ObjectDeletedError)
    ):
        return None
    try:
        lost, unmoved = _judge(doubtful, hides=hides)
    except SQLAlchemyError:
        return None  # The original error says more than a failed look at the rows.
    if refused == SERIALIZATION_FAILURE and not lost:
        lost = [_refused(operation) for operation in _of_statement(error, unmoved)]
    conflict = conflict_of_all(lost)
    if conflict is None and unmoved and isinstance(error, StaleDataError):
        operation = unmoved[0]
        return WriteSuppressed(
            operation.statements.entity, operation.workflow_key, operation.base.version
        )
    return conflict


def _of_statement(
    error: SQLAlchemyError, operations: list[Operation]
) -> list[Operation]:
    """Return those of *operations* whose key is among the parameters of *error*."""
    parameters = getattr(error, "params", None)
    rows = parameters if isinstance(parameters, list) else [parameters]
    values = set[Any]()
    for row in rows:
        for value in row.values() if isinstance(row, dict) else row or ():
            if isinstance(value, (str, int, UUID)):
                values.add(str(value))
    return [
        operation
        for operation in operations
        if all(_texts(part) & values for part in parts_of(operation.workflow_key))
    ]


def _texts(part: Any) -> set[str]:
    """Return the texts of a part of a key as it is bound."""
    texts = {key_text(part)}  # SQLite binds the digits of a UUID.
    return texts | {part.hex} if isinstance(part, UUID) else texts


def _refused(operation: Operation) -> StateConflict:
    return StateConflict(
        operation.statements.entity,
        operation.workflow_key,
        operation.base.version,
        None,
        ConflictReason.SERIALIZATION,
    )


def _judge(
    operations: list[Operation], *, hides: bool = False
) -> tuple[list[StateConflict], list[Operation]]:
    """Read the rows again; return the conflicts, and what has not moved."""
    grouped = defaultdict(list)
    for operation in operations:
        grouped[operation.connection, operation.statements].append(operation)
    lost, unmoved = [], []
    for (connection, statements), group in grouped.items():
        expected = {
            operation.workflow_key: operation.base.version for operation in group
        }
        whole = any(operation.attempt for operation in group)
        current = read_again(connection, statements, expected, whole=whole)
        for operation in group:
            key = operation.workflow_key
            found = current.get(key)
            if hides and found is not None and operation.base == NOTHING:
                found = HIDDEN
            conflict = conflict_of(statements, key, operation.base, found)
            if conflict is None:
                unmoved.append(operation)
            else:
                lost.append(explain(conflict, operation))
                if operation.state is not None:
                    # Told, it is up to the code to decide again.
                    operation.state.info.pop(EXPECTED, None)
    return lost, unmoved


def read_again(
    connection: Connection,
    statements: Statements[Any],
    expected: Mapping[Key, int],
    *,
    whole: bool = False,
) -> Mapping[Key, WorkflowSnapshot[Any] | RowVersion]:
    """Read what is there in place of what was *expected*, versions by key.

    Read on the session's own connection, and leave it as it was found. *whole*: with
    the application's own columns.

    A fresh connection could wait for ever for a pool of one, and would not see the
    outer transaction that a test has put around everything.
    """
    joined = connection.in_transaction()
    reader = connection if joined else _beside(connection)
    try:
        try:
            return statements.found(reader, expected, whole=whole)
        except SQLAlchemyError:
            raise
        except Exception:
            if not whole:
                raise
            # A type of the application cannot read a column.
            return statements.found(reader, expected)
    finally:
        if not joined:
            reader.rollback()


def _beside(connection: Connection) -> Connection:
    """Return another face of *connection*.

    One whose ``with connection.begin()`` the session has rolled back refuses to go on
    before the end of that block.
    """
    beside = Connection(connection.engine, connection.connection)
    schemas = connection.get_execution_options().get("schema_translate_map")
    return beside.execution_options(schema_translate_map=schemas)


def handle_error(context: ExceptionContext) -> None:
    """Translate the serialization failure of a COMMIT that holds workflow rows.

    The server's transaction is over by then, so the rows are read in the next one. That
    is ended here: for SQLAlchemy there is none that a rollback would have to end.
    """
    error, connection = context.sqlalchemy_exception, context.connection
    if (
        error is None
        or connection is None
        or context.statement is not None
        or sqlstate(error) != SERIALIZATION_FAILURE
        # What it has prepared, or not, allows no reading; nor would the error last.
        or isinstance(connection.get_transaction(), TwoPhaseTransaction)
    ):
        return
    first: dict[tuple[Statements[Any], Key], Operation] = {}
    for operation in written_on(connection):
        first.setdefault((operation.statements, operation.workflow_key), operation)
    if not first:
        return
    try:
        lost, unmoved = _judge(list(first.values()))
    except SQLAlchemyError:
        lost, unmoved = [], list(first.values())
    finally:
        with suppress(SQLAlchemyError, context.dialect.loaded_dbapi.Error):
            connection.connection.rollback()
    conflict = conflict_of_all(lost or [_refused(operation) for operation in unmoved])
    if conflict is not None:
        raise conflict from error
