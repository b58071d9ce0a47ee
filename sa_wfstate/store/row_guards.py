"""Guards: lock rows that were read, with those to be written, and compare versions.

Rows are locked FOR NO KEY UPDATE and in one order: by table, then by key. So two
transactions that guard what the other writes wait for each other in turn, and the
second one sees that its row has moved. A transaction that has written rows before holds
locks out of that order. It waits for milliseconds only, which is less than the deadlock
detector of the server takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..errors import ConflictReason, StateConflict
from ..orm.conflicts import conflict_of, conflict_of_all
from ..orm.write_log import written_on
from ..retry import LOCK_NOT_AVAILABLE, SERIALIZATION_FAILURE, sqlstate
from ..row.engine_profiles import profile_of
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


class GuardedRow(NamedTuple):
    """The version of a row that was seen, as which entity; *written*: or only read."""

    connection: Connection
    statements: Statements[Any]
    workflow_key: Key
    seen: RowVersion
    written: bool


def check_rows(rows: Iterable[GuardedRow]) -> StateConflict | None:
    """Lock *rows*; return the conflict of those that were only read and have moved."""
    guards: dict[tuple[Table, Connection], _Guard] = {}
    for connection, statements, key, seen, written in rows:
        place = statements.table, connection
        if place not in guards:
            guards[place] = _Guard(connection, statements, {}, {})
        of_table = guards[place]
        of_role = of_table.written if written else of_table.required
        of_role[key] = _Row(statements, seen)
    return conflict_of_all(
        [
            conflict
            for place in sorted(guards, key=lambda place: place[0].fullname)
            for conflict in guards[place].conflicts()
        ]
    )


class _Row(NamedTuple):
    """The version of a row that was seen, as which entity."""

    statements: Statements[Any]
    seen: RowVersion


class _Guard(NamedTuple):
    """The rows of one table: those that were *required*, and those to be *written*."""

    connection: Connection
    statements: Statements[Any]
    required: dict[Key, _Row]
    written: dict[Key, _Row]

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

    def _judge(self, key: Key, row: _Row, now: RowVersion) -> StateConflict | None:
        statements, seen = row
        conflict = conflict_of(statements, key, seen, now)
        if conflict is None:
            return None
        current = statements.found(self.connection, {key: seen.version}).get(key)
        return conflict_of(statements, key, seen, current) or conflict

    def _lock(
        self, keys: set[Key]
    ) -> tuple[dict[Any, RowVersion], dict[Key, DBAPIError]]:
        """Lock the rows; return the versions found, and what was refused."""
        connection = self.connection
        limited = bool(written_on(connection))
        if not profile_of(connection.dialect).savepoints or not (
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
        self, keys: set[Key]
    ) -> tuple[dict[Any, RowVersion], dict[Key, DBAPIError]]:
        """Lock the rows one by one, without waiting, to see which are refused."""
        found: dict[Any, RowVersion] = {}
        refused: dict[Key, DBAPIError] = {}
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
        self, keys: set[Key], *, nowait: bool = False
    ) -> dict[Any, RowVersion]:
        lock: Lock = "no key nowait" if nowait else "no key"
        found = self.statements.versions(self.connection, keys, lock=lock)
        return {key: RowVersion(*version) for key, version in found.items()}


def _refusal(row: _Row, key: Key, *, moved: bool) -> StateConflict:
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
