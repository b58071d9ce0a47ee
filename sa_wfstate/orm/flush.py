"""Note in the session's log what a flush does to workflow rows.

The mapper events before a write note its operation; those after it confirm it. When
RETURNING of an UPDATE or INSERT comes back with a row, that operation is confirmed
before the next statement is sent. Rows that are deleted together are read first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Mapper,
    Session,
    UOWTransaction,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.exc import StaleDataError

from ..commit_listeners import are_attached
from ..errors import VersionNotSeen
from ..values.row_version import NOTHING, RowVersion
from .baseline import tracked
from .collecting import will_write
from .commit_feed import follow_flush
from .entity import statements_of
from .flush_operations import confirm, note, session_of, target_of
from .mixin import WorkflowStateMixin
from .row_keys import check_insertion, check_replacement, keep_key, key_of
from .schema_version import follow_state, forget_unwritten
from .session_state import existing_state_of, state_of
from .stamps import Unstamped, set_stamp, stamp_of, stamp_update
from .unversioned import write_uncounted
from .version_guard import effect_id_in, seen_of
from .write_log import OPERATION, Operation, OperationType

if TYPE_CHECKING:
    from .session_log import SessionLog
    from .session_state import SessionState


def before_insert(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    session, values = session_of(state), state.dict
    known = state_of(session)
    flush = known.flush
    target = None if flush is None else flush.targets.get((mapper, connection))
    if target is None:
        target = target_of(known, connection, mapper)
    # Not by the attribute, which would note a change, row by row.
    values["schema_version"] = target.write_version
    if values.get("provenance") is None:
        if "provenance" in state.committed_state:
            set_stamp(state, flush, target.stamp_type)
        else:
            values["provenance"] = stamp_of(state, flush, target.stamp_type)
    if session.deleted if flush is None else flush.deletes:
        identity = state.mapper.identity_key_from_instance(state.obj())
        replaced = session.identity_map.get(identity)
        if replaced is not None and replaced in session.deleted:
            # The unit of work makes one UPDATE of a DELETE and an INSERT of one
            # identity.
            check_replacement(state, inspect(replaced))
            base = known.log.check(inspect(replaced))
            note(known, target, OperationType.UPDATE, state, values, base)
            return
        check_insertion(session, state)
    note(known, target, OperationType.INSERT, state, values, NOTHING)


def before_update(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    known, values = state_of(session_of(state)), state.dict
    target = target_of(known, connection, mapper)
    keep_key(state, values)
    if state.class_.__unversioned__:
        write_uncounted(mapper, connection, state)
    follow_state(connection, state, values, target.schema)
    likely = will_write(state)
    if not likely and seen_of(state) is None:
        return  # If another listener changes it, refresh_flush() refuses to write it.
    stamp_update(known.flush, mapper, state, values, target.stamp_type)
    base = known.log.check(state, values)
    operation = note(known, target, OperationType.UPDATE, state, values, base)
    operation.likely = likely


def before_delete(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    session = session_of(state)
    known = state_of(session)
    if not _note_delete(known, connection, state):
        return  # It was looked at together with the first one of its table.
    table = known.log.pending[state].table
    if session.connection_callable is None:
        for instance in session.deleted:
            if isinstance(instance, WorkflowStateMixin):
                other: InstanceState[Any] = inspect(instance)
                if statements_of(other.class_).table is table:
                    _note_delete(known, connection, other)
    _verify_deletes(known.log, mapper, connection, table)


def _note_delete(
    known: SessionState, connection: Connection, state: InstanceState[Any]
) -> bool:
    log = known.log
    operation = log.pending.get(state)
    if operation is not None and operation.type is OperationType.DELETE:
        return False
    # What post_update has written before the DELETE holds the version that it wrote.
    base = log.check(state) if operation is None else log.passes(operation)
    target = target_of(known, connection, state.mapper)
    note(known, target, OperationType.DELETE, state, state.dict, base)
    return True


def _verify_deletes(
    log: SessionLog, mapper: Mapper[Any], connection: Connection, table: Table
) -> None:
    """Lock the rows that one flush deletes together, and see that none has moved.

    One DELETE alone is checked by its row count. Of several, asyncpg counts none, and
    no driver says which of them was lost.
    """
    doubtful = {
        operation.workflow_key: operation
        for operation in log.pending.values()
        if operation.type is OperationType.DELETE
        and not operation.confirmed
        and operation.connection is connection
        and operation.table is table
    }
    counted = connection.dialect.supports_sane_rowcount and mapper.confirm_deleted_rows
    if not doubtful or (len(doubtful) == 1 and counted):
        return
    statements = next(iter(doubtful.values())).statements
    found = statements.versions(connection, doubtful, lock=True)
    for key, operation in doubtful.items():
        operation.confirmed = key in found and operation.base.matches(
            RowVersion(*found[key])
        )
    lost = sum(not operation.confirmed for operation in doubtful.values())
    if lost:
        raise StaleDataError(
            f"DELETE on table {table.name!r} of {len(doubtful)} row(s): {lost} of them "
            "are at another version or gone"
        )


def refresh_flush(
    state: InstanceState[Any], flush_context: UOWTransaction | None, attributes: Any
) -> None:
    """Note that a statement was sent; each but a DELETE sets the version."""
    if flush_context is None or "version" not in attributes:
        return  # A bulk INSERT; or a row that was created by this very flush.
    known, values = state_of(flush_context.session), state.dict
    version = values["version"]
    operation: Operation | None = state.info.get(OPERATION)
    if operation is None:
        operation = _note_post_update(known, state, values)
    elif operation.sent and version == operation.base.version + 2:
        # By post_update, after its own UPDATE.
        base, connection = known.log.passes(operation), operation.connection
        target = target_of(known, connection, state.mapper)
        operation = note(known, target, OperationType.UPDATE, state, values, base)
    operation.sent = True
    created = operation.type is OperationType.INSERT
    later = flush_context.post_update_states
    # Of a row to be deleted, nothing but post_update sends an UPDATE.
    if not later or created or not flush_context.is_deleted(state):  # type: ignore[no-untyped-call]
        operation.effect_id = effect_id_in(values.get("provenance"))
    flush = known.flush
    if flush is not None and not (created and flush.quiet):
        flush.settle(state, tracked(state))
    if later:
        instance = state.obj()
        if instance is not None:
            # Written by now, it is no reason for another UPDATE.
            set_committed_value(instance, "provenance", values["provenance"])
    # The server's updated_at comes back only with a row that was written.
    if "updated_at" in attributes:
        # One that Python has made does not show that.
        column = operation.statements.columns.updated_at
        made: Any = column.default if created else column.onupdate
        operation.confirmed = made is None or made.is_clause_element


def _note_post_update(
    known: SessionState, state: InstanceState[Any], values: dict[str, Any]
) -> Operation:
    """Note an UPDATE of which no event told: before a DELETE, by post_update."""
    seen, session, mapper = seen_of(state), session_of(state), state.mapper.base_mapper
    if seen is None:
        raise VersionNotSeen(state.class_.__name__, key_of(state))
    instance = state.obj()
    if session.connection_callable is not None and instance is not None:
        connection = session.connection_callable(mapper, instance)
    else:
        connection = session.connection(bind_arguments={"mapper": mapper})
    target = target_of(known, connection, state.mapper)
    operation = note(known, target, OperationType.UPDATE, state, values, seen)
    operation.effect_id = seen.effect_id
    if values["version"] != seen.version + 1:
        raise StaleDataError(
            f"UPDATE on table {operation.table.name!r} of a version that was not seen"
        )
    return operation


def after_write(
    _: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    operation: Operation | None = state.info.get(OPERATION)
    if operation and not (operation.confirmed and operation.workflow_key is not None):
        confirm(connection, state)


def after_update(
    _: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    forget_unwritten(state)
    confirm(connection, state)


def after_flush(session: Session, _: object) -> None:
    known = existing_state_of(session)
    if known is not None:
        for state, operation in known.log.pending.items():
            if not operation.sent and operation.type is not OperationType.INSERT:
                _unmark(state)
        passed, sent = known.log.flushed()
        if are_attached():
            follow_flush(passed, sent)


def _unmark(state: InstanceState[Any]) -> None:
    """Take away from *state* what was there for the flush to compare."""
    instance, was = state.obj(), state.committed_state.get("provenance")
    if instance is None or not isinstance(was, Unstamped):
        return
    if was.looks_like(state.dict.get("provenance")):
        if isinstance(was.was, LoaderCallableStatus):
            session_of(state).expire(instance, ["provenance"])
        else:
            set_committed_value(instance, "provenance", was.was)


def after_commit(session: Session) -> None:
    known = existing_state_of(session)
    if known is not None and not session.in_nested_transaction():
        known.log.forget()
