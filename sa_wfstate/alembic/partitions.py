"""Leave partitions alone: they are tables that no class is mapped to.

Autogenerate would remove them. Those of a mapped table with workflow keys belong to it:
they come and go with it, or by a migration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alembic.operations import ops
from sqlalchemy import text

from ..row.columns import column_of
from ..row.engine_profiles import profile_of

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext


_PARTITIONS: Final = text(
    "SELECT mine.nspname, child.relname, theirs.nspname, parent.relname"
    " FROM pg_class AS child"
    " JOIN pg_namespace AS mine ON mine.oid = child.relnamespace"
    " JOIN pg_class AS parent ON parent.oid = pg_partition_root(child.oid)"
    " JOIN pg_namespace AS theirs ON theirs.oid = parent.relnamespace"
    " WHERE child.relispartition"
)


def leave_partitions(autogen_context: AutogenContext, upgrade_ops: Any) -> None:
    """Remove from *upgrade_ops* what concerns partitions of mapped tables."""
    connection = autogen_context.connection
    dropped = [op for op in upgrade_ops.ops if isinstance(op, ops.DropTableOp)]
    if (
        not dropped
        or connection is None
        or not profile_of(connection.dialect).partitions
    ):
        return
    default = connection.dialect.default_schema_name
    mapped = {
        (table.schema or default, table.name)
        for table in autogen_context.sorted_tables
        if column_of(table, "workflow_key") is not None
    }
    ours = {
        (schema, name)
        for schema, name, *root in connection.execute(_PARTITIONS)
        if tuple(root) in mapped
    }
    upgrade_ops.ops[:] = [
        op
        for op in upgrade_ops.ops
        if not isinstance(op, (ops.DropTableOp, ops.ModifyTableOps))
        or (op.schema or default, op.table_name) not in ours
    ]
