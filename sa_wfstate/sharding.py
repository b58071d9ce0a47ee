"""Sharding: the tables of workflows, and those beside them, distributed on Citus.

::

    def upgrade():
        for statement in distribute(Base.metadata):
            op.execute(statement)

A row and what belongs to it, as its history, its intents and its log of actions, have
the same key, and so they are on the same shard: a commit talks to one worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import DDL, MetaData, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase  # noqa: TC002 (for the annotations)

from .errors import MappingError
from .values.public_names import publish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Table

__all__ = ["distribute"]

_SQL = (
    "SELECT create_distributed_table({call}) WHERE NOT EXISTS (SELECT FROM "
    "pg_dist_partition WHERE logicalrelid = CAST({name} AS regclass))"
)
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def distribute(
    metadata: MetaData | type[DeclarativeBase], *, column: str = "workflow_key"
) -> list[DDL]:
    """Return the statements that distribute the tables of *metadata* by *column*.

    Execute them after the tables were created, in this order. A table is colocated with
    the first one whose *column* is of the same type. A table without the column, such
    as that of watermarks, is not distributed. A table that is distributed already is
    left as it is, so a later migration may execute all of them again.

    Where keys are unique within a tenant, distribute by the column of the tenant.

    Raises MappingError for a primary key, or a unique constraint or index, without the
    column: Citus cannot keep it.
    """
    if not isinstance(metadata, MetaData):
        metadata = metadata.metadata
    first: dict[str, str] = {}
    statements = []
    for table in metadata.sorted_tables:
        if column not in table.c:
            continue
        for columns in _unique_sets(table):
            if column not in columns:
                raise MappingError(
                    table.fullname,
                    f"({', '.join(sorted(columns))}) is unique without {column}, which "
                    "Citus cannot keep; add the column, or distribute by another one",
                )
        name = _literal(_DIALECT.identifier_preparer.format_table(table))
        kind = table.c[column].type.compile(dialect=_DIALECT)
        beside = first.setdefault(kind, name)
        colocated = _literal("default") if beside == name else beside
        call = f"{name}, {_literal(column)}, colocate_with => {colocated}"
        sql = _SQL.format(call=call, name=name).replace("%", "%%")
        statements.append(DDL(sql))  # type: ignore[no-untyped-call]
    return statements


def _unique_sets(table: Table) -> Iterator[set[str]]:
    """Return the names of the columns of each key."""
    keys: list[Any] = [each for each in table.constraints if _is_unique(each)]
    keys += [index for index in table.indexes if index.unique]
    for key in keys:
        if len(key.columns):
            yield {column.name for column in key.columns}


def _is_unique(constraint: Any) -> bool:
    return constraint is constraint.table.primary_key or isinstance(
        constraint, UniqueConstraint
    )


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


publish(globals())
