"""Sharding: tables of workflows, and those beside them, distributed or partitioned.

::

    def upgrade():
        for statement in distribute(Base.metadata):
            op.execute(statement)

A row and what belongs to it, as its history, its intents and its log of actions, have
the same key, and so they are on the same shard: a commit talks to one worker.

On one server a table that is declared with ``postgresql_partition_by`` needs its hash
partitions::

    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = "orders"
        __table_args__ = {"postgresql_partition_by": "HASH (workflow_key)"}


    for statement in hash_partitions(Base.metadata, 16):
        event.listen(Base.metadata, "after_create", statement)

Migrations have operations for the same, see :mod:`sa_wfstate.alembic`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import DDL, MetaData, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase  # noqa: TC002 (for the annotations)

from ._concurrency import require_at_least
from .errors import MappingError
from .row.columns import quoted
from .values.public_names import publish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Table

__all__ = ["distribute", "hash_partitions"]

_KEY: Final = "workflow_key"
_MAX_IDENTIFIER_BYTES: Final = 63
_SQL: Final = (
    "SELECT create_distributed_table({call}) WHERE NOT EXISTS (SELECT FROM "
    "pg_dist_partition WHERE logicalrelid = CAST({name} AS regclass))"
)
_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]


def distribute(
    metadata: MetaData | type[DeclarativeBase], *, column: str = "workflow_key"
) -> list[DDL]:
    """Return the statements that distribute the tables of *metadata* by *column*.

    Execute them after the tables were created, in this order. A table is colocated with
    the first one whose column is of the same type. A table without the column, such as
    that of watermarks, is not distributed. A table that is distributed already is left
    as it is, so a later migration may execute all of them again.

    Where keys are unique within a tenant, distribute by the *column* of the tenant. A
    table that has none, as those beside the workflows, is then distributed by its
    workflow key, which names the tenant too.

    Raises MappingError for a primary key, or a unique constraint or index, without the
    column: Citus cannot keep it.
    """
    if not isinstance(metadata, MetaData):
        metadata = metadata.metadata
    first: dict[tuple[str, str], str] = {}
    statements = []
    for table in metadata.sorted_tables:
        by = next((each for each in (column, _KEY) if each in table.c), None)
        if by is None:
            continue
        _check_unique_sets(table, by, "Citus")
        kind = table.c[by].type.compile(dialect=_DIALECT)
        name = quoted_table(table.name, table.schema)
        beside = first.setdefault((by, kind), name)
        colocated = "default" if beside == name else beside
        statements.append(distribute_table(name, by, colocated))
    return statements


def hash_partitions(
    metadata: MetaData | type[DeclarativeBase],
    count: int,
    *,
    column: str = "workflow_key",
) -> list[DDL]:
    """Return the statements that create *count* partitions of each partitioned table.

    Those are the tables of *metadata* with ``postgresql_partition_by`` and the hash of
    *column*. Execute the statements after the tables were created, or register each as
    a listener of ``after_create``; partitions that exist are kept. Take the same number
    every time: PostgreSQL cannot change it in a table with rows.

    Raises MappingError for a primary key, or a unique constraint or index, without the
    column: PostgreSQL cannot keep it. So it is for the name of a partition that would
    be too long.
    """
    require_at_least(1, count=count)
    if not isinstance(metadata, MetaData):
        metadata = metadata.metadata
    statements = []
    for table in metadata.sorted_tables:
        by = str(table.dialect_options["postgresql"]["partition_by"] or "")
        by_hash = re.fullmatch(r"\s*hash\s*\(\s*(.+?)\s*\)\s*", by, re.IGNORECASE)
        if by_hash is None or by_hash[1].strip('"') != column:
            continue
        _check_unique_sets(table, column, "a partitioned table")
        statements += partition_table(table.name, table.schema, count)
    return statements


def distribute_table(name: str, column: str, colocated: str) -> DDL:
    """Return the statement that distributes the table of the quoted *name*."""
    call = f"{_literal(name)}, {_literal(column)}, "
    call += f"colocate_with => {_literal(colocated)}"
    sql = _SQL.format(call=call, name=_literal(name)).replace("%", "%%")
    return DDL(sql)  # type: ignore[no-untyped-call]


def undistribute_table(name: str) -> DDL:
    """Return the statement that brings the table of the quoted *name* back."""
    sql = undistribution(name).replace("%", "%%")
    return DDL(sql)  # type: ignore[no-untyped-call]


def undistribution(name: str) -> str:
    """Return the SQL that brings the table of the quoted *name* back."""
    return f"SELECT undistribute_table({_literal(name)})"


def partition_table(name: str, schema: str | None, count: int) -> list[DDL]:
    """Return the statements that create *count* hash partitions of a table."""
    if len(f"{name}_p{count - 1}".encode()) > _MAX_IDENTIFIER_BYTES:
        raise MappingError(
            name,
            f"the name of a partition, {name}_p{count - 1}, would have more than "
            f"{_MAX_IDENTIFIER_BYTES} bytes; give the table a shorter name",
        )
    statements = []
    for number in range(count):
        sql = (
            f"CREATE TABLE IF NOT EXISTS {quoted_table(f'{name}_p{number}', schema)} "
            f"PARTITION OF {quoted_table(name, schema)} "
            f"FOR VALUES WITH (MODULUS {count}, REMAINDER {number})"
        )
        ddl: Any = DDL(sql.replace("%", "%%"))  # type: ignore[no-untyped-call]
        statements.append(ddl.execute_if(dialect="postgresql"))
    return statements


def quoted_table(name: str, schema: str | None) -> str:
    """Return the name of a table for SQL, with its schema."""
    return ".".join(map(quoted, filter(None, (schema, name))))


def _check_unique_sets(table: Table, column: str, which: str) -> None:
    for columns in _unique_sets(table):
        if column not in columns:
            raise MappingError(
                table.fullname,
                f"({', '.join(sorted(columns))}) is unique without {column}, which "
                f"{which} cannot keep; add the column, or distribute by another one",
            )


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
