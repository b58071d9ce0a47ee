"""Every event of SQLAlchemy that the package listens to, in the order of the calls.

The listeners of mappings and of their rows are registered when the package is imported,
those of Session when the first class is mapped that has a PydanticJSON column, and so
with the first workflow class. What an engine, a session or a connection needs beyond
that is registered by the functions at the end.
"""

from __future__ import annotations

from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import (
    InstrumentedAttribute,
    Mapper,
    Session,
    SessionTransactionOrigin,
)

from ..row import auxiliary
from ..row.auxiliary import AuxiliaryTable
from ..row.types import PydanticJSON
from . import (
    attempts,
    attributes,
    conflicts,
    error_details,
    flush,
    mixin,
    rebasing,
    row_keys,
    schema_version,
    stale_loads,
    statement_guard,
    tracking,
    unit_of_work,
    unversioned,
    version_guard,
    write_log,
)
from .mixin import WorkflowStateMixin as Workflow
from .session_patch import patch_session
from .session_state import INNER, existing_state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import SessionTransaction


def _attribute_instrument(
    cls: type[Any], key: str, attribute: InstrumentedAttribute[Any]
) -> None:
    column_type = attributes.attribute_instrument(cls, key, attribute)
    if column_type is None:
        return
    _listen_to_sessions()
    if column_type.eager:
        event.listen(cls, "load", tracking.build_eager, raw=True)
        event.listen(cls, "refresh", tracking.build_eager, raw=True)


def _class_mapped(mapper: Mapper[Any], _: type[Any]) -> None:
    if any(isinstance(column.type, PydanticJSON) for column in mapper.columns):
        _listen_to_sessions()


def _workflow_mapped(_: Mapper[Any], cls: type[Any]) -> None:
    options = {"raw": True, "retval": True, "include_key": True}
    event.listen(cls.workflow_key, "set", row_keys.set_workflow_key, **options)
    _patch_sessions()


def _after_begin(_: Session, __: object, connection: Connection) -> None:
    attend(connection.engine)


def _transaction_begun(session: Session, transaction: SessionTransaction) -> None:
    """Note that a transaction begins: of a session, a savepoint, or a flush."""
    known = existing_state_of(session)
    if known is None:
        return
    if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
        flush = known.flush
        context = None if flush is None or flush.executing else flush.context
        if flush is None or context is None:
            return
        if rebasing.may_rebase(known, context):
            rebasing.rebase_changed(session, transaction, known, flush, context)
            if known.flush is not flush or flush.executing:
                return  # The SQL of that has begun another one.
        if context.has_work:  # Or the listener of a flush has begun it.
            unit_of_work.prepare(session, transaction, known, flush, context)
    elif transaction.nested:
        known.log.mark(transaction)
    else:
        tracking.look_again(session, known)


def _transaction_ended(session: Session, transaction: SessionTransaction) -> None:
    known = existing_state_of(session)
    if known is None:
        return
    tracking.end_transaction(known, transaction)
    if transaction.origin not in INNER:
        known.log.undo(transaction)  # Nothing is left to undo if it was committed.
        known.log.forget()
        if known.replaced:
            rebasing.forget_replaced(known)


def _of(base: type[Any], listener: Callable[..., None]) -> Callable[..., None]:
    """Return *listener* of a mapper and its class for the subclasses of *base*.

    SQLAlchemy registers what is propagated again for each class.
    """

    @wraps(listener)
    def listen(mapper: Mapper[Any], cls: type[Any]) -> None:
        if issubclass(cls, base):
            listener(mapper, cls)

    return listen


MAPPED: Final = "after_mapper_constructed"
ALL: Final = {"propagate": True}
RAW: Final = {"propagate": True, "raw": True}
# So SQLAlchemy calls the listener itself, without a function around it.
PLAIN: Final = RAW | {"retval": True}
# Also before the listeners that the application has registered by then.
FIRST: Final = {"insert": True}

LISTENERS: Final[tuple[tuple[Any, str, Callable[..., Any], dict[str, bool]], ...]] = (
    # A class is mapped.
    (Mapper, "instrument_class", _of(Workflow, row_keys.instrument_class), {}),
    (object, "attribute_instrument", _attribute_instrument, ALL),
    (Mapper, MAPPED, attributes.after_mapper_constructed, {}),
    (Mapper, MAPPED, _class_mapped, {}),
    (Mapper, MAPPED, _of(Workflow, mixin.after_mapper_constructed), {}),
    (Mapper, MAPPED, _of(Workflow, _workflow_mapped), {}),
    (Mapper, MAPPED, _of(Workflow, schema_version.after_mapper_constructed), {}),
    (Mapper, MAPPED, _of(Workflow, unversioned.after_mapper_constructed), {}),
    (Mapper, MAPPED, _of(Workflow, rebasing.after_mapper_constructed), {}),
    (Mapper, MAPPED, _of(AuxiliaryTable, auxiliary.after_mapper_constructed), {}),
    # A transaction begins, that of a flush behind every listener of before_flush.
    (Session, "after_transaction_create", _transaction_begun, FIRST),
    (Session, "after_begin", _after_begin, FIRST),
    # A row is loaded, refreshed, expired or attached.
    (Session, "do_orm_execute", statement_guard.do_orm_execute, FIRST),
    (Session, "do_orm_execute", stale_loads.do_orm_execute, FIRST),
    (Workflow, "load", version_guard.load, RAW),
    (Workflow, "refresh", stale_loads.refresh, RAW | {"restore_load_context": True}),
    (Workflow, "refresh", version_guard.refresh, RAW),
    (Workflow, "expire", stale_loads.expire, RAW),
    (Session, "detached_to_persistent", tracking.detached_to_persistent, FIRST | RAW),
    # A flush.
    (Session, "before_flush", unit_of_work.before_flush, FIRST),
    (Workflow, "before_insert", flush.before_insert, PLAIN),
    (Workflow, "before_update", flush.before_update, PLAIN),
    (Workflow, "refresh_flush", flush.refresh_flush, RAW),
    (Workflow, "after_insert", flush.after_write, PLAIN),
    (Workflow, "after_update", flush.after_update, PLAIN),
    (Workflow, "before_delete", flush.before_delete, PLAIN),
    (Workflow, "after_delete", flush.after_write, PLAIN),
    (Session, "after_flush", unit_of_work.after_flush, FIRST),
    (Session, "after_flush", flush.after_flush, FIRST),
    (Session, "after_flush_postexec", unit_of_work.after_flush_postexec, FIRST),
    # A transaction ends.
    (Session, "before_commit", tracking.before_commit, FIRST),
    (Session, "after_commit", flush.after_commit, FIRST),
    (Session, "after_rollback", attempts.after_rollback, FIRST),
    (Session, "after_rollback", tracking.after_rollback, FIRST),
    (Session, "after_soft_rollback", tracking.after_soft_rollback, FIRST),
    (Session, "after_soft_rollback", conflicts.after_soft_rollback, FIRST),
    (Session, "after_transaction_end", _transaction_ended, FIRST),
)

METHODS: Final[dict[str, Callable[..., Any]]] = {
    "_merge": stale_loads.merge,  # Every way to merge calls it.
    "bulk_save_objects": statement_guard.bulk_save_objects,
    # The two bulk_…_mappings() call it.
    "_bulk_save_mappings": statement_guard.bulk_save_mappings,
}
"""The methods of Session that send no event: what is put around them."""


def listen_to_mappings() -> None:
    """Listen to what happens to mapped classes and their rows."""
    for target, name, listener, options in LISTENERS:
        if target is not Session:
            event.listen(target, name, listener, **options)


@cache
def _listen_to_sessions() -> None:
    for target, name, listener, options in reversed(LISTENERS):
        if target is Session:
            event.listen(target, name, listener, **options)


@cache
def _patch_sessions() -> None:
    patch_session(METHODS)


_engines: WeakSet[Engine] = WeakSet()
_with_savepoints: WeakSet[Engine] = WeakSet()


def attend(engine: Engine) -> None:
    """Listen to the errors of *engine*.

    By its dialect: an engine with a listener of its own, whatever the event, makes
    SQLAlchemy dispatch four events around each statement.
    """
    if engine in _engines:
        return
    _engines.add(engine)
    # Several engines may share a dialect, which is listened to once.
    if engine.hide_parameters:
        event.listen(engine.dialect, "handle_error", error_details.handle_error)
    event.listen(engine.dialect, "handle_error", conflicts.handle_error)


def attend_savepoints(engine: Engine) -> None:
    """Listen to the savepoints of *engine*, once a workflow row is written in one."""
    if engine in _with_savepoints:
        return
    _with_savepoints.add(engine)
    event.listen(engine, "savepoint", write_log.savepoint)
    event.listen(engine, "release_savepoint", write_log.release_savepoint)
    event.listen(engine, "rollback_savepoint", write_log.rollback_savepoint)


write_log.WriteLog.attend_savepoints = attend_savepoints


def on_checkin(engine: Engine, listener: Callable[..., None]) -> None:
    """Call *listener* when a connection comes back to the pool of *engine*."""
    event.listen(engine.pool, "checkin", listener)


def on_begin(session: Session, listener: Callable[..., None]) -> None:
    """Call *listener* when *session* begins a transaction on a connection."""
    event.listen(session, "after_begin", listener)


def on_commit(session: Session, listener: Callable[[Session], None]) -> None:
    """Call *listener* before *session* commits, behind those there are already."""
    event.listen(session, "before_commit", listener)


def on_statement(connection: Connection, listener: Callable[..., None]) -> None:
    """Call *listener* before *connection* executes a statement."""
    event.listen(connection, "before_cursor_execute", listener)


def after_statement(connection: Connection, listener: Callable[..., None]) -> None:
    """Call *listener* after *connection* has executed a statement."""
    event.listen(connection, "after_cursor_execute", listener)


def off_statement(connection: Connection, listener: Callable[..., None]) -> None:
    """Undo on_statement()."""
    if event.contains(connection, "before_cursor_execute", listener):
        event.remove(connection, "before_cursor_execute", listener)
