"""What a workflow's table has beside its columns: CHECK constraints and indexes.

They are added to the table when its class has been mapped, under the names that raw SQL
would give them, so that a table made by hand shows no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import CheckConstraint, Column, Index, Table
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.sql.elements import conv

from .columns import columns_of
from .errors import MappingError

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_IDENTIFIER_BYTES = 63

COUNTERS = ("version", "schema_version")
"""The columns that count from 1, with a CHECK that says so."""


def check_key_references(entity: str, table: Table) -> None:
    """Raise MappingError if a foreign key lets the database change a workflow key."""
    for reference in columns_of(table).workflow_key.foreign_keys:
        rule = reference.onupdate or "NO ACTION"
        if rule.upper() not in {"NO ACTION", "RESTRICT"}:
            raise MappingError(
                entity,
                f"ON UPDATE {rule} of the foreign key of workflow_key would change the "
                "key of a stored row; leave onupdate out",
            )


def add_constraints(table: Table) -> None:
    """Give *table* the CHECKs of its counters, unless it has them."""
    present = {constraint.name for constraint in table.constraints}
    for counter in COUNTERS:
        column = getattr(columns_of(table), counter)
        name = conv(check_constraint_name(table.name, column.name))
        if name not in present:
            condition = f"{_quoted(column)} >= 1"
            table.append_constraint(CheckConstraint(condition, name=name))


def _quoted(column: Column[Any]) -> str:
    """Return the name of *column* as a textual condition holds it."""
    dialect: Any = PGDialect  # Its constructor is not typed.
    preparer = dialect(paramstyle="named").identifier_preparer
    return str(preparer.quote(column.name)).replace(":", "\\:")


def add_indexes(entity: str, table: Table, wanted: Iterable[str]) -> None:
    """Give *table* those of the optional indexes that *entity* has asked for.

    Raises MappingError if there is no such index.
    """
    c = columns_of(table)
    columns: dict[str, tuple[Any, ...]] = {
        "version": (c.workflow_key, c.version),
        "updated": (c.updated_at.desc(),),
        "state": (c.state,),
        "provenance": (c.provenance,),
    }
    for which in wanted:
        if which not in columns:
            raise MappingError(
                entity,
                f"__workflow_indexes__ has {which!r}, not one of {', '.join(columns)}",
            )
        index = Index(conv(f"idx_{table.name}_{which}"), *columns[which])
        if which in {"state", "provenance"}:
            index.dialect_options["postgresql"]["using"] = "gin"


def check_constraint_name(table: str, column: str) -> str:
    """Return the name that PostgreSQL itself gives a CHECK, at most 63 bytes."""
    return _object_name(table, column, "check")


def primary_key_name(table: str) -> str:
    """Return the name that PostgreSQL itself gives a primary key, at most 63 bytes."""
    return _object_name(table, "", "pkey")


def _object_name(table: str, column: str, label: str) -> str:
    """Join the parts of a name, shortened to what PostgreSQL stores of it.

    Source: makeObjectName() in src/backend/commands/indexcmds.c, which shortens the
    longer of the two names first.
    """
    first, second = table.encode(), column.encode()
    room = _MAX_IDENTIFIER_BYTES - len(f"{'_' if column else ''}_{label}")
    while len(first) + len(second) > room:
        if len(first) > len(second):
            first = first[:-1]
        else:
            second = second[:-1]
    parts = (part.decode(errors="ignore") for part in (first, second))
    return "_".join((*filter(None, parts), label))
