"""Operations for migrations of tables that are distributed, partitioned or indexed.

::

    def upgrade():
        op.create_table("orders", ..., postgresql_partition_by="HASH (workflow_key)")
        op.create_hash_partitions("orders", 16)


    def upgrade():
        op.distribute_table("orders")
        op.distribute_table("order_history", colocate_with="orders")


    def upgrade():
        op.replace_workflow_indexes("workflow_state", "recent")

They need nothing of the application, and write the same SQL offline (``--sql``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import op
from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations
from alembic.util import CommandError
from sqlalchemy import BigInteger, Column, DateTime, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import CreateIndex, DropIndex

from ..row.ddl import COMMIT_INDEXES, add_indexes
from ..row.engine_profiles import profile_of
from ..sharding import distribute_table as distribution
from ..sharding import (
    partition_table,
    quoted_table,
    undistribute_table,
    undistribution,
)
from ..values.public_names import publish

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

__all__ = ["create_hash_partitions", "distribute_table", "replace_workflow_indexes"]


def create_hash_partitions(
    table_name: str, count: int, *, schema: str | None = None
) -> None:
    """Create *count* hash partitions of *table_name*, ``orders_p0`` and so on.

    They go with the table when it is dropped. PostgreSQL only.
    """
    op.invoke(HashPartitionsOp(table_name, count, schema=schema))


def distribute_table(
    table_name: str,
    column: str = "workflow_key",
    *,
    colocate_with: str | None = None,
    schema: str | None = None,
) -> None:
    """Distribute *table_name* by *column* on Citus, unless it is distributed.

    Name the first of your tables in *colocate_with* of the others: then a workflow and
    what belongs to it are on one worker. To undo it, execute ``undistribute_table``.
    """
    op.invoke(
        DistributeTableOp(
            table_name, column, colocate_with=colocate_with, schema=schema
        )
    )


def replace_workflow_indexes(
    table_name: str, *wanted: str, schema: str | None = None
) -> None:
    """Drop the indexes on the version and the time of a table; create those *wanted*.

    *wanted* are names as in ``__workflow_indexes__``: none, or ``"recent"`` for a table
    that is followed by a projection; ``"version", "updated"`` bring its B-trees back.
    """
    op.invoke(WorkflowIndexesOp(table_name, *wanted, schema=schema))


class HashPartitionsOp(MigrateOperation):
    """The operation of :func:`create_hash_partitions`."""

    def __init__(
        self, table_name: str, count: int, *, schema: str | None = None
    ) -> None:
        self.table_name = table_name
        self.count = count
        self.schema = schema

    @classmethod
    def create_hash_partitions(
        cls,
        operations: Operations,
        table_name: str,
        count: int,
        *,
        schema: str | None = None,
    ) -> None:
        """Create hash partitions; see the function of the same name."""
        operations.invoke(cls(table_name, count, schema=schema))


class DistributeTableOp(MigrateOperation):
    """The operation of :func:`distribute_table`."""

    def __init__(
        self,
        table_name: str,
        column: str = "workflow_key",
        *,
        colocate_with: str | None = None,
        schema: str | None = None,
        undo: bool = False,
    ) -> None:
        self.table_name = table_name
        self.column = column
        self.colocate_with = colocate_with
        self.schema = schema
        self.undo = undo

    @classmethod
    def distribute_table(
        cls,
        operations: Operations,
        table_name: str,
        column: str = "workflow_key",
        *,
        colocate_with: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Distribute a table; see the function of the same name."""
        operations.invoke(
            cls(table_name, column, colocate_with=colocate_with, schema=schema)
        )

    def reverse(self) -> DistributeTableOp:
        return DistributeTableOp(
            self.table_name,
            self.column,
            colocate_with=self.colocate_with,
            schema=self.schema,
            undo=not self.undo,
        )


class WorkflowIndexesOp(MigrateOperation):
    """The operation of :func:`replace_workflow_indexes`."""

    def __init__(
        self, table_name: str, *wanted: str, schema: str | None = None
    ) -> None:
        self.table_name = table_name
        self.wanted = wanted
        self.schema = schema

    @classmethod
    def replace_workflow_indexes(
        cls,
        operations: Operations,
        table_name: str,
        *wanted: str,
        schema: str | None = None,
    ) -> None:
        """Replace the indexes; see the function of the same name."""
        operations.invoke(cls(table_name, *wanted, schema=schema))


def _create_partitions(operations: Operations, operation: HashPartitionsOp) -> None:
    _require_postgresql(operations, "hash partitions")
    name, schema = operation.table_name, operation.schema
    for statement in partition_table(name, schema, operation.count):
        operations.execute(statement)


def _distribute(operations: Operations, operation: DistributeTableOp) -> None:
    _require_postgresql(operations, "the distribution of a table")
    name = quoted_table(operation.table_name, operation.schema)
    if operation.undo:
        operations.execute(undistribute_table(name))
        return
    beside = operation.colocate_with
    colocated = quoted_table(beside, operation.schema) if beside else "default"
    operations.execute(distribution(name, operation.column, colocated))


def _replace_indexes(operations: Operations, operation: WorkflowIndexesOp) -> None:
    for index in _indexes(operation, COMMIT_INDEXES):
        operations.execute(DropIndex(index, if_exists=True))
    for index in _indexes(operation, operation.wanted):
        operations.execute(CreateIndex(index))


def _indexes(operation: WorkflowIndexesOp, wanted: Any) -> list[Any]:
    """Return the indexes of the names *wanted*."""
    table = Table(
        operation.table_name,
        MetaData(),
        Column("workflow_key", Text, primary_key=True),
        Column("version", BigInteger),
        Column("state", JSONB),
        Column("updated_at", DateTime(timezone=True)),
        Column("schema_version", BigInteger),
        Column("provenance", JSONB),
        schema=operation.schema,
    )
    add_indexes(operation.table_name, table, wanted)
    return sorted(table.indexes, key=lambda index: str(index.name))


def _require_postgresql(operations: Operations, what: str) -> None:
    if not profile_of(operations.get_context().dialect).partitions:
        raise CommandError(f"{what} is for PostgreSQL only")


@renderers.dispatch_for(HashPartitionsOp)
def _render_partitions(context: AutogenContext, operation: HashPartitionsOp) -> str:
    return _call(
        context,
        "create_hash_partitions",
        operation.table_name,
        operation.count,
        schema=operation.schema,
    )


@renderers.dispatch_for(DistributeTableOp)
def _render_distribution(context: AutogenContext, operation: DistributeTableOp) -> str:
    name, schema = operation.table_name, operation.schema
    if operation.undo:
        return _call(context, "execute", undistribution(quoted_table(name, schema)))
    return _call(
        context,
        "distribute_table",
        name,
        operation.column,
        colocate_with=operation.colocate_with,
        schema=schema,
    )


@renderers.dispatch_for(WorkflowIndexesOp)
def _render_indexes(context: AutogenContext, operation: WorkflowIndexesOp) -> str:
    return _call(
        context,
        "replace_workflow_indexes",
        operation.table_name,
        *operation.wanted,
        schema=operation.schema,
    )


def _call(context: AutogenContext, name: str, *arguments: Any, **options: Any) -> str:
    """Return the source of a call, without the options that are None."""
    prefix = context.opts.get("alembic_module_prefix") or ""
    parts = [repr(each) for each in arguments]
    parts += [f"{key}={value!r}" for key, value in options.items() if value is not None]
    return f"{prefix}{name}({', '.join(parts)})"


# As in operations.py, when this module is imported.
for _name, _operation, _implementation in (
    ("create_hash_partitions", HashPartitionsOp, _create_partitions),
    ("distribute_table", DistributeTableOp, _distribute),
    ("replace_workflow_indexes", WorkflowIndexesOp, _replace_indexes),
):
    _class: Any = _operation
    Operations.register_operation(_name)(_class)
    Operations.implementation_for(_class)(_implementation)
publish(globals(), __package__)
