"""What a flush does to workflow rows is noted in the session's ledger.

The mapper events before a write note its entries, and those after it that they are won.
When the RETURNING of an UPDATE or an INSERT comes back with a row, that one is won
before the next statement is sent. Rows that are deleted together are looked at first.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Table, event, inspect
from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Mapper,
    Session,
    SessionTransaction,
    UOWTransaction,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.exc import StaleDataError

from ..commit_listeners import CommitListener, _listeners, follow, listeners_of
from ..errors import PayloadError, VersionNotSeen
from ..row.keys import check_key
from ..row.types import Unread
from ..values.row_version import NOTHING, RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from .collecting import Unstamped, will_write
from .entity import statements_of
from .mixin import WorkflowStateMixin
from .session_state import flush_of
from .unit_of_work import on_deletion, settle
from .version_guard import effect_id_in, key_of, require_row_counts, seen_of
from .write_log import (
    Deed,
    Entry,
    Ledger,
    account_of,
    attend,
    existing_ledger,
    ledger_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


def _session(state: InstanceState[Any]) -> Session:
    """Return the session that flushes *state*."""
    session: Session = state.session  # type: ignore[assignment]
    return session


def _note(
    deed: Deed, connection: Connection, state: InstanceState[Any], base: RowVersion
) -> Entry:
    statements = statements_of(state.class_)
    require_row_counts(connection, statements.entity)
    effect_id = effect_id_in(state.dict.get("provenance"))
    ledger = ledger_of(_session(state))
    account = account_of(connection)
    key = "" if _gets_key(state) else key_of(state)
    entry = Entry(deed, statements, key, base, effect_id, account, state)
    ledger.expect(state, entry)
    attend(connection)
    return entry


def _expect_deletion(session: Session, state: InstanceState[Any]) -> None:
    if issubclass(state.class_, WorkflowStateMixin) and any(
        each.post_update for each in state.mapper.relationships
    ):
        # It is written before any event tells of it.
        ledger_of(session).check(state)


on_deletion.append(_expect_deletion)


def _gets_key(state: InstanceState[Any]) -> bool:
    """Return whether the INSERT makes the key; PayloadError if there is none."""
    if state.identity is not None or state.dict.get("workflow_key") is not None:
        return False
    column = statements_of(state.class_).columns.workflow_key
    if column.default is None and column.server_default is None:
        problem = "is missing; set it, or give its column a default"
        raise PayloadError(state.class_.__name__, "workflow_key", problem)
    return True


@event.listens_for(WorkflowStateMixin, "before_insert", propagate=True, raw=True)
def _before_insert(
    _: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    session = _session(state)
    identity = state.mapper.identity_key_from_instance(state.obj())
    replaced = session.identity_map.get(identity)
    if replaced is not None and replaced in session.deleted:
        # The unit of work makes one UPDATE of a DELETE and an INSERT of one key.
        _note(
            Deed.UPDATE, connection, state, ledger_of(session).check(inspect(replaced))
        )
    else:
        _note(Deed.INSERT, connection, state, NOTHING)


@event.listens_for(WorkflowStateMixin, "before_update", propagate=True, raw=True)
def _before_update(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    likely = will_write(state)
    if not likely and seen_of(state) is None:
        return  # If another listener changes it, _returned() refuses to write it.
    _stamp(mapper, state)
    base = ledger_of(_session(state)).check(state)
    entry = _note(Deed.UPDATE, connection, state, base)
    entry.likely = likely


def _stamp(mapper: Mapper[Any], state: InstanceState[Any]) -> None:
    """Give *state* a provenance of its own, to be written if anything else is."""
    flush = flush_of(_session(state))
    context = None if flush is None else flush.context
    if context is not None and any(
        each.post_update for other in context.mappers for each in other.relationships
    ):
        # An UPDATE that post_update sends is to write the provenance as well.
        _, columns = context.post_update_states[mapper.base_mapper]
        columns.add(mapper.columns["provenance"])
    if "provenance" not in state.committed_state:
        instance: Any = state.obj()
        instance.provenance = instance.default_provenance()
        was, stamp = state.committed_state["provenance"], state.dict["provenance"]
        state.committed_state["provenance"] = Unstamped(state, was, stamp)


@event.listens_for(WorkflowStateMixin, "before_delete", propagate=True, raw=True)
def _before_delete(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    session = _session(state)
    ledger = ledger_of(session)
    if not _note_delete(ledger, connection, state):
        return  # It was looked at together with the first one of its table.
    table = ledger.pending[state].table
    if session.connection_callable is None:
        for instance in session.deleted:
            if isinstance(instance, WorkflowStateMixin):
                other: InstanceState[Any] = inspect(instance)
                if statements_of(other.class_).table is table:
                    _note_delete(ledger, connection, other)
    _verify_deletes(ledger, mapper, connection, table)


def _note_delete(
    ledger: Ledger, connection: Connection, state: InstanceState[Any]
) -> bool:
    entry = ledger.pending.get(state)
    if entry is not None and entry.deed is Deed.DELETE:
        return False
    # What post_update has written before the DELETE holds the version that it wrote.
    base = ledger.check(state) if entry is None else ledger.passes(entry)
    _note(Deed.DELETE, connection, state, base)
    return True


def _verify_deletes(
    ledger: Ledger, mapper: Mapper[Any], connection: Connection, table: Table
) -> None:
    """Lock the rows that one flush deletes together, and see that none has moved.

    One DELETE alone is checked by its row count. Of several, asyncpg counts none, and
    no driver says which of them was lost.
    """
    doubtful = {
        entry.workflow_key: entry
        for entry in ledger.pending.values()
        if entry.deed is Deed.DELETE
        and not entry.won
        and entry.connection is connection
        and entry.table is table
    }
    counted = connection.dialect.supports_sane_rowcount and mapper.confirm_deleted_rows
    if not doubtful or (len(doubtful) == 1 and counted):
        return
    statements = next(iter(doubtful.values())).statements
    found = statements.versions(connection, doubtful, lock=True)
    for key, entry in doubtful.items():
        entry.won = key in found and entry.base.matches(RowVersion(*found[key]))
    lost = sum(not entry.won for entry in doubtful.values())
    if lost:
        raise StaleDataError(
            f"DELETE on table {table.name!r} of {len(doubtful)} row(s): {lost} of them "
            "are at another version or gone"
        )


@event.listens_for(WorkflowStateMixin, "refresh_flush", propagate=True, raw=True)
def _returned(
    state: InstanceState[Any], flush_context: UOWTransaction | None, attributes: Any
) -> None:
    """Note that a statement was sent; each but a DELETE sets the version."""
    if flush_context is None or "version" not in attributes:
        return  # A bulk INSERT; or a row that was created by this very flush.
    ledger, version = ledger_of(flush_context.session), state.dict["version"]
    entry = ledger.pending.get(state)
    if entry is None:
        entry = _note_post_update(state, version)
    elif version == entry.base.version + 2:  # By post_update, after its own UPDATE.
        base, account = ledger.passes(entry), entry.account
        entry = _note(Deed.UPDATE, account.connection, state, base)
    entry.sent = True
    if not flush_context.is_deleted(state):  # type: ignore[no-untyped-call]
        entry.effect_id = effect_id_in(state.dict.get("provenance"))
    settle(state)
    instance = state.obj()
    if flush_context.post_update_states and instance is not None:
        # Written by now, it is no reason for another UPDATE.
        set_committed_value(instance, "provenance", state.dict["provenance"])
    # The server's updated_at comes back only with a row that was written.
    if "updated_at" in attributes:
        # One that Python has made tells nothing.
        column = entry.statements.columns.updated_at
        made: Any = column.default if entry.deed is Deed.INSERT else column.onupdate
        entry.won = made is None or made.is_clause_element


def _note_post_update(state: InstanceState[Any], version: int) -> Entry:
    """Note an UPDATE of which no event told: before a DELETE, by post_update."""
    seen, session, mapper = seen_of(state), _session(state), state.mapper.base_mapper
    if seen is None:
        raise VersionNotSeen(state.class_.__name__, key_of(state))
    instance = state.obj()
    if session.connection_callable is not None and instance is not None:
        connection = session.connection_callable(mapper, instance)
    else:
        connection = session.connection(bind_arguments={"mapper": mapper})
    entry = _note(Deed.UPDATE, connection, state, seen)
    entry.effect_id = seen.effect_id
    if version != seen.version + 1:
        raise StaleDataError(
            f"UPDATE on table {entry.table.name!r} of a version that was not seen"
        )
    return entry


@event.listens_for(WorkflowStateMixin, "after_insert", propagate=True, raw=True)
@event.listens_for(WorkflowStateMixin, "after_update", propagate=True, raw=True)
@event.listens_for(WorkflowStateMixin, "after_delete", propagate=True, raw=True)
def _done(_: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    entry = ledger_of(_session(state)).pending.get(state)
    if entry is None:
        return
    if not entry.workflow_key:  # It has got one now.
        entry.workflow_key = state.dict["workflow_key"]
        check_key(entry.statements.entity, entry.workflow_key)
    if entry.won:
        return
    if entry.deed is Deed.UPDATE:
        if not entry.sent:
            return
        if not connection.dialect.supports_sane_rowcount:
            problem = f"UPDATE on table {entry.table.name!r} returned no row"
            raise StaleDataError(problem)
    entry.won = True


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _: object) -> None:
    ledger = existing_ledger(session)
    if ledger is not None:
        for state in ledger.pending:
            _unmark(state)
        ledger.flushed()


def _unmark(state: InstanceState[Any]) -> None:
    """Take away from *state* what was there for the flush to compare."""
    instance, was = state.obj(), state.committed_state.get("provenance")
    if instance is None or not isinstance(was, Unstamped):
        return
    if was.looks_like(state.dict.get("provenance")):
        if isinstance(was.was, LoaderCallableStatus):
            _session(state).expire(instance, ["provenance"])
        else:
            set_committed_value(instance, "provenance", was.was)


@event.listens_for(Session, "after_transaction_create")
def _begun(session: Session, transaction: SessionTransaction) -> None:
    ledger = existing_ledger(session)
    if ledger is not None and transaction.nested:
        ledger.mark(transaction)


@event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    ledger = existing_ledger(session)
    if ledger is not None and not session.in_nested_transaction():
        ledger.forget()


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    ledger = existing_ledger(session)
    if ledger is not None and transaction.parent is None:
        ledger.undo(transaction)  # Nothing is left to undo if it was committed.
        ledger.forget()


_KEY = "sa_wfstate.side_writes"


def attach(entity: type[WorkflowStateMixin[Any]], writer: CommitListener) -> None:
    """Call *writer* for every commit of *entity* and of its subclasses from now on."""
    mapper: Mapper[Any] = inspect(entity)
    if mapper not in _listeners:
        for name, listener in _LISTENERS.items():
            event.listen(entity, name, listener, propagate=True, raw=True)
    if not event.contains(Session, "after_flush", _follow_flush):
        event.listen(Session, "before_flush", _forget_failed_flush)
        event.listen(Session, "after_flush", _follow_flush)
    _listeners[mapper] = (*_listeners.get(mapper, ()), writer)


class _Noted(NamedTuple):
    """A row that a flush may write: its version before, or for a deletion its key."""

    connection: Connection
    mapper: Mapper[Any]
    what: Any


class _Flushed:
    """What one flush is writing, by instance.

    Where side writers are attached to a class and to a subclass of it, the events of an
    instance come twice.
    """

    def __init__(self) -> None:
        self.saved: dict[InstanceState[Any], _Noted] = {}
        self.deleted: dict[InstanceState[Any], _Noted] = {}


def _flushed(state: InstanceState[Any]) -> _Flushed | None:
    session = state.session
    if session is None:
        return None
    flushed: _Flushed = session.info.setdefault(_KEY, _Flushed())
    return flushed


def _note_version_before(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    flushed, instance = _flushed(state), state.obj()
    if flushed is not None and instance is not None:
        flushed.saved[state] = _Noted(connection, mapper, int(instance.version))


def _after_write(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    flushed = _flushed(state)
    if flushed is not None and state not in flushed.saved:
        before = state.dict["version"] - 1
        flushed.saved[state] = _Noted(connection, mapper, before)


def _after_delete(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    flushed = _flushed(state)
    if flushed is not None:
        key = state.dict["workflow_key"]
        flushed.deleted[state] = _Noted(connection, mapper, key)


_LISTENERS = {
    "before_update": _note_version_before,
    "after_insert": _after_write,
    "after_update": _after_write,
    "after_delete": _after_delete,
}


def _snapshot(
    mapper: Mapper[Any], state: InstanceState[Any], version: int
) -> WorkflowSnapshot[Any]:
    """Read the row from its instance; the state is a copy, as from the database."""
    instance: Any = state.obj()
    column_type: Any = mapper.columns["state"].type
    value = state.dict.get("state")
    if value is None:
        value = instance.state
    text = value.text if isinstance(value, Unread) else column_type.dump(value)
    return WorkflowSnapshot(
        workflow_key=instance.workflow_key,
        version=version,
        state=column_type.load(text),
        updated_at=instance.updated_at,
        schema_version=instance.schema_version,
        provenance=instance.provenance,
    )


def _forget_failed_flush(session: Session, *_: object) -> None:
    session.info.pop(_KEY, None)  # A flush that failed has left its notes.


def _follow_flush(session: Session, *_: object) -> None:
    flushed: _Flushed | None = session.info.pop(_KEY, None)
    if flushed is None:
        return
    for (connection, mapper), keys in _grouped(flushed.deleted):
        for writer in listeners_of(mapper):
            writer.deleted(connection, keys)
    passed: dict[InstanceState[Any], _Noted] = {}
    last: dict[InstanceState[Any], _Noted] = {}
    for state, (connection, mapper, before) in flushed.saved.items():
        version = _version_of(state)
        # An UPDATE has counted the version; without one there was nothing to write.
        if version > before:
            last[state] = _Noted(connection, mapper, _commit(mapper, state, version))
        if version > before + 1:
            commit = _commit(mapper, state, version - 1)
            passed[state] = _Noted(connection, mapper, commit)
    for (connection, mapper), commits in _grouped(passed):
        for writer in listeners_of(mapper):
            writer.passed(connection, commits)
    for (connection, mapper), commits in _grouped(last):
        follow(connection, mapper, commits)


def _version_of(state: InstanceState[Any]) -> int:
    instance: Any = state.obj()
    return int(instance.version)


def _commit(
    mapper: Mapper[Any], state: InstanceState[Any], version: int
) -> StateCommitted[Any]:
    return StateCommitted(
        state.dict["workflow_key"], version, lambda: _snapshot(mapper, state, version)
    )


def _grouped(
    noted: dict[InstanceState[Any], _Noted],
) -> Iterable[tuple[tuple[Connection, Mapper[Any]], list[Any]]]:
    groups: defaultdict[tuple[Connection, Mapper[Any]], list[Any]] = defaultdict(list)
    for connection, mapper, what in noted.values():
        groups[connection, mapper].append(what)
    return groups.items()
