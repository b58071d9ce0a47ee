"""Adopt a table with rows: its new columns are filled before they are NOT NULL.

PostgreSQL refuses to add a NOT NULL column without a default to a table with rows. So
the columns are added as nullable, then comes an UPDATE as a template, commented out,
and then they are made NOT NULL. An empty table is migrated as it is; one with rows
raises until the template is filled in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.autogenerate import renderers
from alembic.operations import ops
from sqlalchemy import MetaData, Table

from ..row.columns import Columns, column_of, quoted
from ..row.types import PydanticJSON

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alembic.autogenerate.api import AutogenContext
    from sqlalchemy import Column


class BackfillOp(ops.MigrateOperation):
    """A template of the UPDATE that fills *columns*, by attribute, of a table.

    *key* are the columns of its primary key, of which the template makes the key.
    """

    def __init__(
        self,
        table_name: str,
        columns: dict[str, str],
        *,
        key: Sequence[str] = (),
        schema: str | None = None,
    ) -> None:
        self.table_name = table_name
        self.columns = columns
        self.key = key
        self.schema = schema

    def reverse(self) -> BackfillOp:
        return BackfillOp(self.table_name, {}, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("backfill", self.schema, self.table_name, list(self.columns.values()))


def split_additions(autogen_context: AutogenContext, upgrade_ops: Any) -> None:
    """Put a backfill between the addition of columns of a workflow and NOT NULL."""
    mapped = autogen_context.sorted_tables
    by_name = {(table.schema, table.name): table for table in mapped}
    given = list(upgrade_ops.ops)
    upgrade_ops.ops.clear()
    for operation in given:
        table = None
        if isinstance(operation, ops.ModifyTableOps):
            table = by_name.get((operation.schema, operation.table_name))
        upgrade_ops.ops.extend(
            [operation] if table is None else _split(operation, table)
        )


def _split(operation: ops.ModifyTableOps, table: Table) -> Iterator[Any]:
    """Yield *operation* in parts, with a backfill, if it adds such columns."""
    if not isinstance(getattr(column_of(table, "state"), "type", None), PydanticJSON):
        yield operation
        return
    ours = {column_of(table, name).name: name for name in Columns._fields}
    additions: list[Any] = []
    rest: list[Any] = []
    filled: dict[str, str] = {}
    name, schema = operation.table_name, operation.schema
    for each in operation.ops:
        if not isinstance(each, ops.AddColumnOp):
            rest.append(each)
            continue
        column = each.column
        if column.name in ours and not column.nullable and not column.server_default:
            filled[ours[column.name]] = column.name
            each = ops.AddColumnOp(name, _nullable(column), schema=schema)  # noqa: PLW2901
        additions.append(each)
    if not filled:
        yield operation
        return
    types = {each.column.name: each.column.type for each in additions}
    required = [
        ops.AlterColumnOp(
            name,
            column_name,
            schema=schema,
            existing_type=types[column_name],
            existing_nullable=True,
            modify_nullable=False,
        )
        for column_name in filled.values()
    ]
    yield ops.ModifyTableOps(name, additions, schema=schema)
    key = [column.name for column in table.primary_key if column.name not in ours]
    yield BackfillOp(name, filled, key=key, schema=schema)
    yield ops.ModifyTableOps(name, [*required, *rest], schema=schema)


def _nullable(column: Column[Any]) -> Column[Any]:
    """Return a copy of *column* that may be NULL, of a table that has only it."""
    copy = column._copy()  # noqa: SLF001 - as Alembic copies it
    copy.primary_key, copy.nullable, copy.unique, copy.index = False, True, None, None
    Table(column.table.name, MetaData(), copy, schema=column.table.schema)
    return copy


_TEMPLATES = {
    "state": "jsonb_build_object('status', status)",
    "provenance": "jsonb_build_object('effect_id', 'adopted', 'timestamp', now())",
}


@renderers.dispatch_for(BackfillOp)
def _render(autogen_context: AutogenContext, operation: BackfillOp) -> list[str]:
    if not operation.columns:
        return []
    prefix = autogen_context.opts.get("alembic_module_prefix") or ""
    names = ", ".join(operation.columns.values())
    table = ".".join(filter(None, (operation.schema, operation.table_name)))
    key = " || '-' || ".join(map(quoted, operation.key or ["id"]))
    templates = _TEMPLATES | {"workflow_key": f"'{operation.table_name}-' || {key}"}
    values = [
        f"{column} = {templates.get(attribute, '…')}"
        for attribute, column in operation.columns.items()
    ]
    lines = [
        f"The rows that {table} has by now need a value in {names}.",
        "Make it of their other columns, as in this example:",
        f"{prefix}execute(",
        '    """',
        f"    UPDATE {table} SET",
        *(f"        {value}," for value in values[:-1]),
        f"        {values[-1]}",
        '    """',
        ")",
    ]
    return [f"# {line}" for line in lines]
