"""Find the columns of a workflow's table by attribute; their names may differ."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import CheckConstraint, ForeignKeyConstraint
from sqlalchemy.dialects.postgresql.base import PGDialect

if TYPE_CHECKING:
    from sqlalchemy import Column, Table
    from sqlalchemy.orm import Mapper


ATTRIBUTE: Final = "sa_wfstate.attribute"
"""Where a column notes the attribute that is mapped to it."""

_TENANT: Final = "sa_wfstate.tenant"


class Columns(NamedTuple):
    """The columns of a workflow row, by attribute."""

    workflow_key: Column[str]
    version: Column[int]
    state: Column[Any]
    updated_at: Column[Any]
    schema_version: Column[int]
    provenance: Column[Any]


def quoted(name: str) -> str:
    """Return *name* as SQL text for PostgreSQL, with quotation marks if it needs them.

    A percent sign is not doubled: what takes SQL text does that itself.
    """
    return str(_preparer().quote(name))


@cache
def _preparer() -> Any:
    dialect: Any = PGDialect  # Its constructor is not typed.
    return dialect(paramstyle="named").identifier_preparer


def note_columns(mapper: Mapper[Any], table: Table) -> Columns:
    """Note in the columns of *table* the attributes that *mapper* maps to them.

    A copy of the table keeps the note.
    """
    for name in Columns._fields:
        mapper.columns[name].info[ATTRIBUTE] = name
    return columns_of(table)


def columns_of(table: Any) -> Columns:
    """Return the columns of a workflow's *table*."""
    found = {column.info.get(ATTRIBUTE): column for column in table.c}
    return Columns(*(found[n] if n in found else table.c[n] for n in Columns._fields))


def column_of(table: Any, name: str) -> Any:
    """Return the column of the attribute *name* in *table*; None if it has none."""
    for column in table.c:
        if getattr(column, "info", {}).get(ATTRIBUTE) == name:
            return column
    return table.c.get(name)


def note_tenant(column: Column[Any]) -> None:
    """Note in *column* that the workflow keys of its table are unique within it.

    A copy of the table keeps the note.
    """
    column.info[_TENANT] = True


def key_columns(table: Any) -> tuple[Column[Any], ...]:
    """Return the columns of the keys of *table*: of the tenant, if any, and its key."""
    tenant = (column for column in table.c if _TENANT in column.info)
    return (*tenant, column_of(table, "workflow_key"))


def makes_value(column: Column[Any]) -> bool:
    """Return whether an INSERT without a value for *column* gets one."""
    return (
        column.default is not None
        or column.server_default is not None
        or column.table.autoincrement_column is column
    )


def without_value(table: Table) -> str | None:
    """Return a column of the primary key that an INSERT would leave empty, if any."""
    keys = key_columns(table)
    missing = (c for c in table.primary_key if c not in keys and not makes_value(c))
    return next((column.name for column in missing), None)


def conflict_target(table: Table) -> list[Column[Any]] | None:
    """Return the columns of ON CONFLICT for a new row: the key.

    None where nothing else can conflict: a foreign table allows no columns there.
    """
    keys = set(key_columns(table))
    others = (CheckConstraint, ForeignKeyConstraint)
    unique: list[Any] = [c for c in table.constraints if not isinstance(c, others)]
    unique += [index for index in table.indexes if index.unique]
    other = any(set(each.columns) != keys for each in unique)
    return list(key_columns(table)) if other else None


def evaluates(table: Table, *, inserting: bool) -> bool:
    """Return whether Python computes a value for each row written to *table*.

    A callable ``default`` or ``onupdate`` of the application's own columns does that.
    The columns of a workflow are written by value.
    """
    own = set(columns_of(table))  # `in` of a tuple would build SQL: column == column.
    made = (
        column.default if inserting else column.onupdate
        for column in table.c
        if column not in own
    )
    return any(each is not None and each.is_callable for each in made)
