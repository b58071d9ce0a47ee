"""A workflow that was deleted and created again starts at version 1 again.

So a version alone does not tell one *incarnation* of a key from the next: whoever holds
version 1 of the old row would write over version 1 of the new one. Its provenance does
tell, since no two writes have the same effect id. This module adds ``AND
provenance->>'effect_id' = …`` to the UPDATE and DELETE statements of a flush, next to
the version that SQLAlchemy compares.

Both sides of it cost little, and a session without workflow rows nothing: SQLAlchemy
keeps one statement for each table, to which the criterion is added once, and the
connection that is about to write workflow rows adds the value to their parameters.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Table,
    Text,
    Update,
    bindparam,
    event,
    or_,
    select,
)
from sqlalchemy.sql.selectable import LABEL_STYLE_TABLENAME_PLUS_COL

from .accounts import account_of, on_first_write
from .ledger import ledger_on
from .mixin import WorkflowStateMixin
from .row_sql import effect_id_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Mapper

_PARAMETER = "wfstate_effect_id"
_MARK = "_wfstate_attended"


class _ComparingUpdate(Update):
    """The UPDATE of the unit of work, which asks for the same columns each time."""

    inherit_cache = True

    def return_defaults(self, *columns: Any, **options: Any) -> Any:
        if options:
            return super().return_defaults(*columns, **options)
        variants = _variants.setdefault(self, {})
        if columns not in variants:
            variants[columns] = super().return_defaults(*columns)
        return variants[columns]


class _ComparingDelete(Delete):
    """The DELETE of the unit of work."""

    inherit_cache = True


_variants: WeakKeyDictionary[_ComparingUpdate, dict[Any, Any]] = WeakKeyDictionary()
_compared: WeakSet[Table] = WeakSet()
_COMPARING: dict[str, Any] = {"update": _ComparingUpdate, "delete": _ComparingDelete}


@event.listens_for(WorkflowStateMixin, "after_mapper_constructed", propagate=True)
def _compare_effects(mapper: Mapper[Any], _: type[Any]) -> None:
    if mapper.inherits is None or mapper.concrete:
        table: Any = mapper.local_table
        _compared.add(table)
        # The statements of a concrete class, too, are kept by the mapper of its base.
        base: Any = mapper.base_mapper
        # No public way leads to the statements of the unit of work.
        if not isinstance(base._memo, partial):  # noqa: SLF001
            base._memo = partial(_memo_comparing, base._memo)  # noqa: SLF001


def _memo_comparing(memo: Callable[..., Any], key: Any, make: Callable[[], Any]) -> Any:
    def make_comparing() -> Any:
        statement = make().where(_same_effect(key[1]))
        statement.__class__ = _COMPARING[key[0]]
        return statement

    compares = isinstance(key, tuple) and key[0] in _COMPARING and key[1] in _compared
    return memo(key, make_comparing if compares else make)


def _same_effect(table: Table) -> ColumnElement[bool]:
    # Where the effect is not known, the version alone is compared.
    expected = bindparam(_PARAMETER, None, type_=Text())
    return or_(expected.is_(None), effect_id_of(table) == expected)


@cache
def _attended(connection_class: type[Connection]) -> type[Connection]:
    """Return the class of a connection that adds the effects to what it executes."""
    execute: Any = connection_class.execute

    def execute_with_effects(
        connection: Connection, statement: Any, parameters: Any = None, **options: Any
    ) -> Any:
        if isinstance(statement, (_ComparingUpdate, _ComparingDelete)):
            parameters = _with_effects(connection, statement, parameters)
        return execute(connection, statement, parameters, **options)

    members = {"__slots__": (), "execute": execute_with_effects, _MARK: True}
    return type(connection_class.__name__, (connection_class,), members)


def _attend(connection: Connection) -> None:
    # An event of the connection would cost more than the comparison, and one of its
    # engine would cost every statement of every session.
    connection_class: Any = type(connection)
    if not hasattr(connection_class, _MARK):  # Session after session may come.
        connection.__class__ = _attended(connection_class)


on_first_write.append(_attend)


def _with_effects(
    connection: Connection, statement: Update | Delete, parameters: Any
) -> Any:
    table: Any = statement.table
    name = _key_of_update(table) if isinstance(statement, Update) else "workflow_key"
    ledger, account = ledger_on(connection), account_of(connection)

    def with_effect(row: dict[str, Any]) -> dict[str, Any]:
        effect = ledger and ledger.base_effect(account, table, row[name])
        return {**row, _PARAMETER: effect}

    if isinstance(parameters, dict):
        return with_effect(parameters)
    return [with_effect(row) for row in parameters]


_keys: WeakKeyDictionary[Table, str] = WeakKeyDictionary()


def _key_of_update(table: Table) -> str:
    """Return the parameter of the unit of work's UPDATE that holds the key."""
    if table not in _keys:
        key = select(table.c.workflow_key)
        labelled = key.set_label_style(LABEL_STYLE_TABLENAME_PLUS_COL)
        (_keys[table],) = labelled.selected_columns.keys()
    return _keys[table]
