"""A workflow that was deleted and created again starts at version 1 again.

So a version alone does not tell one *incarnation* of a key from the next: whoever holds
version 1 of the old row would write over version 1 of the new one. Its provenance does
tell, since no two writes have the same effect id. This module adds ``AND
provenance->>'effect_id' = …`` to the UPDATE and DELETE statements of a flush, next to
the version that SQLAlchemy compares.

The criterion is added by an event of the engine that writes workflow rows; a listener
for each connection would cost more than all the rest of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Engine,
    Table,
    Text,
    Update,
    bindparam,
    event,
    func,
    select,
)
from sqlalchemy.sql.selectable import LABEL_STYLE_TABLENAME_PLUS_COL

from .ledger import Entry, on_first_write, pending_on
from .statements import effect_id_of

if TYPE_CHECKING:
    _Added = tuple[str, ColumnElement[bool]]

_PARAMETER = "wfstate_effect_id"


def _compare_effects(
    connection: Connection, statement: Any, many: Any, one: Any, _: object
) -> tuple[Any, Any, Any]:
    if not isinstance(statement, (Update, Delete)):
        return statement, many, one
    table = statement.table
    entries = {
        entry.workflow_key: entry
        for entry in pending_on(connection)
        if entry.table is table
    }
    if not entries or not isinstance(table, Table):
        return statement, many, one
    key_of_update, criterion = _added_to(table)
    name = key_of_update if isinstance(statement, Update) else "workflow_key"
    parameters = one or many[0]
    if name not in parameters or _PARAMETER in parameters:
        # Not a statement of the unit of work; or an engine with options of its own,
        # which passes on the events of the one that it was made from.
        return statement, many, one
    statement = statement.where(criterion)
    if one:
        return statement, many, _with_effect(one, name, entries)
    return statement, [_with_effect(each, name, entries) for each in many], one


_attended: WeakSet[Engine] = WeakSet()


def _listen(connection: Connection) -> None:
    if connection.engine not in _attended:
        _attended.add(connection.engine)
        event.listen(connection.engine, "before_execute", _compare_effects, retval=True)


on_first_write.append(_listen)


def _with_effect(
    parameters: dict[str, Any], name: str, entries: dict[str, Entry]
) -> dict[str, Any]:
    entry = entries.get(parameters[name])
    return {**parameters, _PARAMETER: None if entry is None else entry.base.effect_id}


_added: WeakKeyDictionary[Table, _Added] = WeakKeyDictionary()


def _added_to(table: Table) -> _Added:
    """Return the parameter of an UPDATE that holds the key, and what is to be added."""
    added = _added.get(table)
    if added is None:
        key = select(table.c.workflow_key).set_label_style(
            LABEL_STYLE_TABLENAME_PLUS_COL
        )
        effect_id = effect_id_of(table)
        # Where the effect is not known, the version alone is compared.
        expected = func.coalesce(bindparam(_PARAMETER, type_=Text()), effect_id)
        (name,) = key.selected_columns.keys()
        added = _added[table] = name, effect_id == expected
    return added
