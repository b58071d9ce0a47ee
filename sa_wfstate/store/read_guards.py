"""Guards on what was only read: its version is checked when the session commits.

Before the last flush of a transaction, the rows that were only read are locked together
with those that are about to be written, FOR NO KEY UPDATE and in one order: by table,
then by key. Two transactions that guard what the other writes then wait for each other
in turn, and the second one sees that its row has moved. A transaction that has written
rows before its COMMIT holds locks out of that order. It waits for milliseconds only,
which is less than the deadlock detector of the server takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from sqlalchemy import inspect, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import InstanceState, Session

from ..errors import ConflictReason, StateConflict, VersionNotSeen
from ..orm.conflicts import conflict_of, conflict_of_all
from ..orm.entity import statements_of
from ..orm.events import on_commit
from ..orm.mixin import WorkflowStateMixin
from ..orm.routing import connection_for
from ..orm.row_keys import key_of
from ..orm.session_state import SessionState, state_of
from ..orm.tracking import changed_in_place
from ..orm.version_guard import seen_of
from ..orm.write_log import written_on
from ..retry import LOCK_NOT_AVAILABLE, SERIALIZATION_FAILURE, sqlstate
from ..values.row_version import NOTHING, RowVersion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection, Table

    from ..row.sql import Lock
    from ..row.statements import Statements
    from ..values.keys import Key


LOCK_TIMEOUT: Final = "30ms"
"""How long a transaction that has written rows waits for those that it has read."""

_REFUSED: Final = {SERIALIZATION_FAILURE, LOCK_NOT_AVAILABLE}
_SNAPSHOTS: Final = {"REPEATABLE READ", "SERIALIZABLE"}


class HasSession(Protocol):
    """An AsyncSession."""

    @property
    def sync_session(self) -> Session:
        """The session that it runs."""


def require_version(
    session: Session | HasSession, instance: WorkflowStateMixin[Any]
) -> None:
    """Let the transaction commit only if the row of *instance* is as it was read.

    *instance* is one that *session*, also an AsyncSession, has loaded and that it does
    not write; what it writes is checked anyway. At COMMIT the row is locked and its
    version is compared with the one that the code has seen by now. If it has moved, or
    another writer holds it, the commit raises a StateConflict whose *role* is ``read``.
    Call ``rollback()`` then, as after any error of a commit.

    Raises VersionNotSeen if the version was not loaded with the state, and
    InvalidRequestError if *instance* does not belong to *session*.
    """
    session = getattr(session, "sync_session", session)
    state: InstanceState[Any] = inspect(instance)
    if state.session is not session or not state.persistent:
        raise InvalidRequestError(
            f"require_version() takes an instance that the session has loaded, and "
            f"this {type(instance).__name__} does not belong to it; load it first"
        )
    seen, key = seen_of(state), key_of(state)
    if seen is None:
        raise VersionNotSeen(type(instance).__name__, key)
    known = state_of(session)
    if known.required is None:
        on_commit(session, _check)
        known.required = {}
    # The first one counts: a decision was made on it.
    known.required.setdefault((statements_of(type(instance)), key), seen)


def _check(session: Session) -> None:
    known = state_of(session)
    if not known.required or session.in_nested_transaction():
        return  # The end of a savepoint is no COMMIT.
    with session.no_autoflush:
        lost = [
            conflict
            for guard in _guards(session, known)
            for conflict in guard.conflicts()
        ]
    conflict = conflict_of_all(lost)
    if conflict is not None:
        raise conflict


def _guards(session: Session, known: SessionState) -> Iterator[_Guard]:
    """Return a guard for each table in each database, in one order."""
    guards: dict[tuple[Table, Connection], _Guard] = {}

    def guard_of(statements: Statements[Any], key: Key) -> _Guard:
        connection = connection_for(session, statements.mapper, [key])
        place = statements.table, connection
        if place not in guards:
            guards[place] = _Guard(connection, statements, {}, {})
        return guards[place]

    for (statements, key), seen in (known.required or {}).items():
        guard_of(statements, key).required[key] = _Row(statements, seen)
    for instance in _written(session):
        statements, state = statements_of(type(instance)), inspect(instance)
        row = _Row(statements, seen_of(state) or NOTHING)
        key = key_of(state)
        guard_of(statements, key).written[key] = row
    for place in sorted(guards, key=lambda place: place[0].fullname):
        yield guards[place]


def _written(session: Session) -> Iterable[WorkflowStateMixin[Any]]:
    """Return the workflows whose rows the next flush is going to write."""
    for instance in session.deleted:
        if isinstance(instance, WorkflowStateMixin):
            yield instance
    for instance in session.dirty:
        if isinstance(instance, WorkflowStateMixin) and (
            session.is_modified(instance) or changed_in_place(instance)
        ):
            yield instance


class _Row(NamedTuple):
    """The version of a row that was seen, as which entity."""

    statements: Statements[Any]
    seen: RowVersion


class _Guard(NamedTuple):
    """The rows of one table: those that were *required*, and those to be *written*."""

    connection: Connection
    statements: Statements[Any]
    required: dict[str, _Row]
    written: dict[str, _Row]

    def conflicts(self) -> Iterator[StateConflict]:
        """Lock the rows; return the conflicts of those that were required.

        And of those to be written that another writer holds for too long.
        """
        # What this transaction has written before is locked; it had replaced this.
        own = {
            operation.workflow_key: operation.base
            for operation in reversed(written_on(self.connection))
            if operation.table is self.statements.table
        }
        keys = (self.required.keys() | self.written.keys()) - own.keys()
        found, refused = self._lock(keys) if keys else ({}, {})
        for key, row in (self.written | self.required).items():
            role: Literal["write", "read"] = "read" if key in self.required else "write"
            conflict: StateConflict | None = None
            if key in refused:
                moved = sqlstate(refused[key]) == SERIALIZATION_FAILURE
                if role == "read" or not moved:  # Or the flush knows more about it.
                    conflict = _refusal(row, key, moved=moved)
            elif role == "read":
                conflict = self._judge(key, row, own.get(key, found.get(key, NOTHING)))
            if conflict is not None:
                conflict.role = role
                yield conflict

    def _judge(self, key: str, row: _Row, now: RowVersion) -> StateConflict | None:
        statements, seen = row
        conflict = conflict_of(statements, key, seen, now)
        if conflict is None:
            return None
        current = statements.found(self.connection, {key: seen.version}).get(key)
        return conflict_of(statements, key, seen, current) or conflict

    def _lock(
        self, keys: set[str]
    ) -> tuple[dict[Any, RowVersion], dict[str, DBAPIError]]:
        """Lock the rows; return the versions found, and what was refused."""
        connection = self.connection
        limited = bool(written_on(connection))
        if not isinstance(connection.dialect, PGDialect) or not (
            limited or _has_snapshot(connection)
        ):
            return self._versions(keys), {}
        # An error within a savepoint leaves the transaction usable.
        savepoint = connection.begin_nested()
        try:
            before = _limit_locks(connection) if limited else None
            found = self._versions(keys)
            if before is not None:
                _limit_locks(connection, before)
        except DBAPIError as error:
            savepoint.rollback()
            if sqlstate(error) not in _REFUSED:
                raise
            return self._lock_singly(keys)
        savepoint.commit()
        return found, {}

    def _lock_singly(
        self, keys: set[str]
    ) -> tuple[dict[Any, RowVersion], dict[str, DBAPIError]]:
        """Lock the rows one by one, without waiting, to see which are refused."""
        found: dict[Any, RowVersion] = {}
        refused: dict[str, DBAPIError] = {}
        for key in sorted(keys):
            savepoint = self.connection.begin_nested()
            try:
                found |= self._versions({key}, nowait=True)
            except DBAPIError as error:
                savepoint.rollback()
                if sqlstate(error) not in _REFUSED:
                    raise
                refused[key] = error
            else:
                savepoint.commit()
        return found, refused

    def _versions(
        self, keys: set[str], *, nowait: bool = False
    ) -> dict[Any, RowVersion]:
        lock: Lock = "no key nowait" if nowait else "no key"
        found = self.statements.versions(self.connection, keys, lock=lock)
        return {key: RowVersion(*version) for key, version in found.items()}


def _refusal(row: _Row, key: str, *, moved: bool) -> StateConflict:
    """Return the conflict of a row that could not be locked."""
    reason = ConflictReason.SERIALIZATION if moved else ConflictReason.MOVED
    entity, version = row.statements.entity, row.seen.version
    return StateConflict(entity, key, version, None, reason)


def _has_snapshot(connection: Connection) -> bool:
    """Return whether a row that has moved refuses to be locked."""
    options = connection.get_execution_options()
    level = options.get("isolation_level") or connection.default_isolation_level
    return level in _SNAPSHOTS


def _limit_locks(connection: Connection, limit: str = LOCK_TIMEOUT) -> str:
    """Set the lock timeout of the transaction; return what it was before."""
    before: str = connection.execute(
        text(
            "SELECT current_setting('lock_timeout'),"
            " set_config('lock_timeout', :limit, true)"
        ),
        {"limit": limit},
    ).one()[0]
    return before
