"""Delete workflows at the versions that were read, without loading them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import delete
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..commit_listeners import listeners_of
from ..errors import (
    MappingError,
    StateConflict,
    WriteSuppressed,
)
from ..orm.conflicts import conflict_of
from ..orm.criteria import filtering, hide, visible
from ..orm.entity import statements_of
from ..orm.routing import by_shard
from ..orm.session_state import log_of
from ..row.chunks import chunks
from ..row.json_text import AsText
from ..values.keys import Key
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted
from .api import Entity, connection_of
from .compare_and_set import check_version, refused
from .instances import held_instances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from ..row.statements import Statements


StateT = TypeVar("StateT")


def try_delete(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key,
    *,
    expected_version: int | RowVersion,
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Delete the workflow if it is still at *expected_version*.

    The snapshot of the outcome is the deleted row, its version the last one. A row that
    has moved, was re-created, or is gone is a StateConflict, which is returned; the
    transaction stays usable. The deletion is final when the caller commits the session.
    An instance of the row in the session is expired.

    Raises UnflushedChanges if the session itself has changed the row; WriteSuppressed
    if it is at *expected_version* but was not deleted; MappingError if the class has
    columns in a second table. At REPEATABLE READ and SERIALIZABLE the database may
    refuse the statement: a StateConflict with the reason ``serialization`` is raised.
    """
    (outcome,) = try_delete_many(session, entity, {workflow_key: expected_version})
    return outcome


def try_delete_many(
    session: Session,
    entity: Entity[StateT],
    expected_versions: Mapping[Any, int | RowVersion],
) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
    """Delete each workflow that is at its expected version.

    *expected_versions* are by key. Returns one outcome per key, in their order; each
    wins or loses by itself. For each 1,000 rows one statement locks them, in the order
    of their keys, and one deletes. Otherwise it behaves as :func:`try_delete`.
    """
    statements = statements_of(entity)
    if statements.mapper.local_table is not statements.table:
        raise MappingError(
            statements.entity,
            "has columns in a second table, so try_delete cannot delete a row; delete "
            "an instance by a session instead",
        )
    expected = {
        key: _expected(statements, key, version)
        for key, version in expected_versions.items()
    }
    if not expected:
        return []
    held = held_instances(session, statements.mapper, expected)
    keys, outcomes = list(expected), dict[Any, Any]()
    for indices in by_shard(session, statements.mapper, keys):
        own = {keys[index]: expected[keys[index]] for index in indices}
        outcomes |= _try(session, statements, own, held)
    return [outcomes[key] for key in keys]


def _try(
    session: Session,
    statements: Statements[StateT],
    expected: Mapping[Any, RowVersion],
    held: Mapping[Any, Any],
) -> dict[Any, StateCommitted[StateT] | StateConflict[StateT]]:
    """Delete rows of one shard; return outcomes by key."""
    connection = connection_of(session, statements, list(expected))
    try:
        rows, found = _send(connection, statements, expected, filtering(session))
    except DBAPIError as error:
        lost = {key: base.version for key, base in expected.items()}
        conflict = refused(statements, lost, error)
        if conflict is None:
            raise
        raise conflict from error
    if rows:
        deleted = {key: expected[key] for key in rows}
        log_of(session).record_deletes(connection, statements, deleted)
        for listener in listeners_of(statements.mapper):
            listener.deleted(connection, list(rows))
    for key in held.keys() & rows.keys():
        session.expire(held[key])
    return {
        key: StateCommitted(
            key, base.version, partial(statements.snapshot_of, rows[key])
        )
        if key in rows
        else _lost(statements, key, base, found.get(key))
        for key, base in expected.items()
    }


def _send(
    connection: Connection,
    statements: Statements[Any],
    expected: Mapping[Any, RowVersion],
    session: Session | None,
) -> tuple[dict[Any, Any], Mapping[Any, Any]]:
    """Return what the deleted rows held, and what the others hold, by key.

    The criteria of *session*, if given, filter the rows that may be deleted.
    """
    keys = sorted(expected)
    if session is not None:
        seen = visible(session, statements, keys, lock=True)
        keys = [key for key in keys if key in seen]
    rows: dict[Any, Any] = {}
    for chunk in chunks(keys):
        rows |= _delete(connection, statements, chunk, expected)
    lost = {key: base.version for key, base in expected.items() if key not in rows}
    found = statements.found(connection, lost) if lost else {}
    return rows, hide(session, statements, found, lost)


def _lost(
    statements: Statements[Any], key: Any, base: RowVersion, found: Any
) -> StateConflict:
    conflict = conflict_of(statements, key, base, found)
    if conflict is None:
        raise WriteSuppressed(statements.entity, key, base.version)
    return conflict


def _expected(
    statements: Statements[Any], key: Key, version: int | RowVersion
) -> RowVersion:
    statements.check_key(key)
    expected = RowVersion.of(version)
    check_version(statements.entity, key, expected.version)
    return expected


def _delete(
    connection: Connection,
    statements: Statements[Any],
    keys: Sequence[Any],
    expected: Mapping[Any, RowVersion],
) -> dict[Any, Any]:
    """Lock the rows, and delete those at their versions; return what they held."""
    there = {
        key: RowVersion(*version)
        for key, version in statements.versions(connection, keys, lock=True).items()
    }
    mine = [key for key in keys if key in there and expected[key].matches(there[key])]
    if not mine:
        return {}
    c = statements.columns
    columns: dict[str, Any] = {**c._asdict(), "workflow_key": statements.keys.value}
    columns |= {name: AsText(columns[name]) for name in ("state", "provenance")}
    deleted = connection.execute(
        delete(statements.table)
        .where(statements.keys.among(mine), statements.own_rows)
        .returning(*columns.values())
    )
    return {row[0]: row for row in deleted}
