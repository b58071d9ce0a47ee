"""The operation that a flush notes for each row, before it writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy.orm.exc import StaleDataError

from .entity import statements_by
from .row_keys import check_key_is_made, key_attributes, key_in, key_of
from .stamps import makes_provenances, text_type
from .version_guard import effect_id_in, require_row_counts
from .write_log import OPERATION, Operation, OperationType, write_log_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper, Session

    from ..payload.schema_versions import PayloadSchema
    from ..row.statements import Statements
    from ..row.types import PydanticJSON
    from ..values.row_version import RowVersion
    from .session_state import SessionState
    from .write_log import WriteLog


class _ClassTarget(NamedTuple):
    statements: Statements[Any]
    key_attributes: Collection[str]
    schema: PayloadSchema
    write_version: int
    text_type: PydanticJSON[Any] | None


class Target(NamedTuple):
    """Where a flush writes the rows of a class, and what is the same for all of them.

    *stamp_type* is that of the provenances that it makes, if it makes them as text.
    """

    statements: Statements[Any]
    key_attributes: Collection[str]
    schema: PayloadSchema
    write_version: int
    stamp_type: PydanticJSON[Any] | None
    log: WriteLog


_TARGET: Final = "sa_wfstate.target"


def session_of(state: InstanceState[Any]) -> Session:
    """Return the session that flushes *state*."""
    session: Session = state.session  # type: ignore[assignment]
    return session


def target_of(
    known: SessionState, connection: Connection, mapper: Mapper[Any]
) -> Target:
    """Return where a flush writes the rows of a class; it asks once."""
    flush = known.flush
    found = None if flush is None else flush.targets.get((mapper, connection))
    if found is None:
        info = mapper.class_manager.info
        of_class: _ClassTarget | None = info.get(_TARGET)
        if of_class is None:
            of_class = info[_TARGET] = _class_target(mapper)
        require_row_counts(connection, of_class.statements.entity)
        log = write_log_of(connection)
        known.log.hold(log)
        found = Target(*of_class, log)
        if makes_provenances(mapper.class_):
            found = found._replace(stamp_type=None)
        if flush is not None:
            flush.targets[mapper, connection] = found
    return found


def _class_target(mapper: Mapper[Any]) -> _ClassTarget:
    statements, names = statements_by(mapper), key_attributes(mapper)
    schema = statements.schema
    return _ClassTarget(
        statements, names, schema, schema.write_version, text_type(mapper)
    )


def note(
    known: SessionState,
    target: Target,
    type_: OperationType,
    state: InstanceState[Any],
    values: Mapping[str, Any],
    base: RowVersion,
) -> Operation:
    """Note what a flush does to the row of *state*, which it bases on *base*.

    *values* are those of the instance.
    """
    effect_id = effect_id_in(values.get("provenance"))
    if state.key is not None:
        key = key_of(state)
    else:
        key = key_in(values, target.key_attributes)
        if key is None:
            check_key_is_made(state)
    operation = Operation(
        type_, target.statements, key, base, effect_id, target.log, state
    )
    known.log.pending[state] = state.info[OPERATION] = operation
    return operation


def confirm(connection: Connection, state: InstanceState[Any]) -> None:
    """Note that a flush has written the row of *state*."""
    operation: Operation | None = state.info.get(OPERATION)
    if operation is None:
        return
    if operation.workflow_key is None:  # It has got one now.
        operation.workflow_key = key_of(state)
        operation.statements.check_key(operation.workflow_key)
    if operation.confirmed:
        return
    if operation.type is OperationType.UPDATE:
        if not operation.sent:
            return
        if not connection.dialect.supports_sane_rowcount:
            problem = f"UPDATE on table {operation.table.name!r} returned no row"
            raise StaleDataError(problem)
    operation.confirmed = True
