"""Columns that do not count: a flush that changes nothing else is not a commit.

The listener is called before those that prepare a versioned write. It sends an UPDATE
of its own, and gives the values to the instance as those of its row. So SQLAlchemy
finds nothing left to send, and no version is checked or counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.attributes import set_committed_value

from ..errors import ConflictReason, MappingError, StateConflict, WriteSuppressed
from ..retry import SERIALIZATION_FAILURE, sqlstate
from ..row.columns import Columns
from .baseline import baselines_of, tracked
from .collecting import Follower, Kept, is_same
from .entity import statements_of
from .refusals import refusing
from .row_keys import key_columns_of, key_of
from .session_state import existing_state_of
from .version_guard import EXPECTED, seen_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Column, Connection
    from sqlalchemy.orm import InstanceState, Mapper


@refusing
def after_mapper_constructed(mapper: Mapper[Any], cls: type[Any]) -> None:
    names = cls.__unversioned__
    if not isinstance(names, (frozenset, set, tuple, list)):
        _refuse(cls, "must be a set of attribute names", names)
    for name in names:
        if name in Columns._fields:
            _refuse(cls, "takes columns of your own, and not one of the row", name)
        if name not in mapper.column_attrs:
            _refuse(
                cls,
                "takes names of column attributes; of a relationship, that of its "
                "foreign key",
                name,
            )
        keys = key_columns_of(mapper).columns
        special = (*mapper.primary_key, *keys, mapper.polymorphic_on)
        if any(
            c is each for c in mapper.column_attrs[name].columns for each in special
        ):
            _refuse(cls, "cannot hold a key or the discriminator", name)


def _refuse(cls: type[Any], problem: str, found: object) -> None:
    raise MappingError(cls.__name__, f"__unversioned__ {problem}: {found!r}")


def write_uncounted(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    """Write *state*, if nothing but unversioned columns has changed."""
    names = state.class_.__unversioned__
    if EXPECTED in state.info:
        return
    changed = _changed(state)
    if not changed or not changed <= set(names):
        return
    for table, columns in _by_table(mapper, changed).items():
        try:
            _write(mapper, connection, state, table, columns)
        except DBAPIError as error:
            if sqlstate(error) != SERIALIZATION_FAILURE:
                raise
            raise _conflict(state, ConflictReason.SERIALIZATION) from error
    known = None if state.session is None else existing_state_of(state.session)
    if known is not None and known.flush is not None:
        known.flush.settle(state, tracked(state))


def _changed(state: InstanceState[Any]) -> set[str]:
    """Return the names of the column attributes that differ from the row."""
    columns, found = state.mapper.columns, set()
    for key, was in state.committed_state.items():
        if key not in columns or isinstance(was, Follower):
            continue
        same = not was.seems_changed if isinstance(was, Kept) else is_same(state, key)
        if not same:
            found.add(key)
    return found


def _by_table(
    mapper: Mapper[Any], names: Iterable[str]
) -> dict[Table, dict[str, Column[Any]]]:
    tables: dict[Table, dict[str, Column[Any]]] = {}
    for name in sorted(names):
        column: Any = mapper.columns[name]
        tables.setdefault(column.table, {})[name] = column
    return tables


def _write(
    mapper: Mapper[Any],
    connection: Connection,
    state: InstanceState[Any],
    table: Table,
    columns: dict[str, Column[Any]],
) -> None:
    instance: Any = state.obj()
    unversioned = {
        prop.key: prop.columns[0]
        for prop in mapper.column_attrs
        if prop.key in state.class_.__unversioned__ and prop.columns[0].table is table
    }
    # What the row makes by itself comes back as well.
    made = {
        name: column
        for name, column in unversioned.items()
        if column.onupdate is not None or column.server_onupdate is not None
    }
    returned = columns | made
    # Versioned columns keep what an onupdate would change.
    values: dict[Any, Any] = {
        column: column
        for column in table.c
        if column.onupdate is not None and column not in returned.values()
    }
    values |= {column: state.dict[name] for name, column in columns.items()}
    row = connection.execute(
        update(table)
        .where(*_identity(mapper, state, table))
        .values(values)
        .returning(*returned.values())
    ).first()
    if row is None:
        _explain(connection, state)
    for name, value in zip(returned, row or (), strict=True):
        # A type that the application changes in place keeps its object.
        sent = state.dict.get(name)
        given = name in columns and not hasattr(sent, "__clause_element__")
        set_committed_value(instance, name, sent if given else value)
        baselines_of(state).pop(name, None)  # What was bound is its new one.


def _identity(
    mapper: Mapper[Any], state: InstanceState[Any], table: Table
) -> list[Any]:
    """Return the criteria for the row of *state* in one of its tables."""
    values = {
        mapper.get_property_by_column(column).key: value
        for column, value in zip(mapper.primary_key, state.identity or (), strict=True)
    }
    return [
        column == values[mapper.get_property_by_column(column).key]
        for column in table.primary_key
    ]


def _explain(connection: Connection, state: InstanceState[Any]) -> None:
    """Raise the error of an UPDATE that has met no row."""
    statements, key = statements_of(state.class_), key_of(state)
    found = statements.versions(connection, [key])
    if key in found:
        raise WriteSuppressed(statements.entity, key, found[key][0])
    raise _conflict(state, ConflictReason.MISSING)


def _conflict(state: InstanceState[Any], reason: ConflictReason) -> StateConflict:
    seen = seen_of(state)
    version = 0 if seen is None else seen.version
    return StateConflict(state.class_.__name__, key_of(state), version, None, reason)
