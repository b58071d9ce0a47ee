"""Compare CHECK constraints, defaults and primary keys of workflow tables.

Alembic compares CHECK constraints by name and server defaults, each if env.py enables
it, and never primary keys. A workflow table without ``CHECK (version >= 1)``,
``DEFAULT 1`` or its key is broken, so these are always compared. A CHECK is compared by
its text and may have any name. PostgreSQL only, except for defaults; other databases
cannot add a constraint to an existing table.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from alembic.autogenerate import renderers
from alembic.operations import ops
from sqlalchemy import CheckConstraint, Column, DefaultClause, Table
from sqlalchemy.sql.elements import conv

from ..row.columns import column_of
from ..row.ddl import COUNTERS, check_constraint_name, primary_key_name
from ..row.engine_profiles import profile_of
from ..row.types import PydanticJSON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alembic.autogenerate.api import AutogenContext


_CAST = re.compile(r"::[a-z ]+")


def compare_table(
    autogen_context: AutogenContext,
    modify_table_ops: ops.ModifyTableOps,
    _schema: str | None,
    _table_name: str,
    existing: Table | None,
    mapped: Table | None,
) -> None:
    """Add to *modify_table_ops* what an existing workflow table lacks."""
    if existing is None or mapped is None:
        return
    checks = _own_checks(mapped)
    if not checks:
        return
    if not autogen_context.opts.get("compare_server_default"):
        _compare_defaults(modify_table_ops, existing, mapped)
    if profile_of(autogen_context.dialect).is_postgresql:
        _compare_checks(autogen_context, modify_table_ops, existing, checks)
        _compare_key(autogen_context, modify_table_ops, mapped)


def _compare_checks(
    autogen_context: AutogenContext,
    modify_table_ops: ops.ModifyTableOps,
    existing: Table,
    wanted: dict[str, CheckConstraint],
) -> None:
    found = autogen_context.inspector.get_check_constraints(
        modify_table_ops.table_name, schema=modify_table_ops.schema
    )
    texts = {_plain(check["sqltext"]) for check in found}
    by_name = {check["name"]: check["sqltext"] for check in found}
    # Alembic's own comparison may be enabled, too.
    done = {getattr(op, "constraint_name", None) for op in modify_table_ops.ops}
    for name, check in wanted.items():
        if name in done or _plain(str(check.sqltext)) in texts:
            continue
        if name in by_name:
            other = CheckConstraint(by_name[name], name=conv(name), table=existing)
            modify_table_ops.ops.append(ops.DropConstraintOp.from_constraint(other))
        modify_table_ops.ops.append(ops.AddConstraintOp.from_constraint(check))


def _compare_defaults(
    modify_table_ops: ops.ModifyTableOps, existing: Table, mapped: Table
) -> None:
    altered = {
        op.column_name: op
        for op in modify_table_ops.ops
        if isinstance(op, ops.AlterColumnOp)
    }
    for attribute in (*COUNTERS, "updated_at"):
        should_be = column_of(mapped, attribute)
        name = should_be.name
        is_ = existing.c.get(name)
        if is_ is None or _default(is_) == _default(should_be):
            continue
        if attribute == "updated_at" and (
            is_.server_default or not _default(should_be)
        ):
            continue  # Any time of the server will do.
        if name not in altered:
            altered[name] = ops.AlterColumnOp(
                modify_table_ops.table_name,
                name,
                schema=modify_table_ops.schema,
                existing_type=is_.type,
                existing_nullable=is_.nullable,
            )
            modify_table_ops.ops.append(altered[name])
        altered[name].existing_server_default = is_.server_default
        altered[name].modify_server_default = should_be.server_default


def _compare_key(
    autogen_context: AutogenContext,
    modify_table_ops: ops.ModifyTableOps,
    mapped: Table,
) -> None:
    name, schema = modify_table_ops.table_name, modify_table_ops.schema
    inspector = autogen_context.inspector
    found = inspector.get_pk_constraint(name, schema=schema)
    before = _Key(found["name"], found["constrained_columns"])
    after = _Key(
        str(mapped.primary_key.name or primary_key_name(name)),
        [str(column.name) for column in mapped.primary_key],
    )
    if {*before.columns} == {*after.columns}:
        return
    referring = [
        ".".join(filter(None, referring_key))
        for referring_key, foreign_keys in inspector.get_multi_foreign_keys(
            schema=schema
        ).items()
        for foreign_key in foreign_keys
        if (foreign_key["referred_schema"], foreign_key["referred_table"])
        == (schema, name)
        and {*foreign_key["referred_columns"]} == {*before.columns}
    ]
    modify_table_ops.ops.append(
        _ChangeKeyOp(name, before, after, schema=schema, referring=sorted(referring))
    )


class _Key(NamedTuple):
    """A primary key; without a name, the table has none."""

    name: str | None
    columns: Sequence[str]


class _ChangeKeyOp(ops.MigrateOperation):
    """Another primary key, which Alembic can neither compare nor render.

    *referring* names the tables with foreign keys to the key of *before*: their changes
    cannot be generated, so the migration raises.
    """

    def __init__(
        self,
        table_name: str,
        before: _Key,
        after: _Key,
        *,
        schema: str | None,
        referring: Sequence[str],
    ) -> None:
        self.table_name = table_name
        self.before = before
        self.after = after
        self.schema = schema
        self.referring = referring

    def reverse(self) -> _ChangeKeyOp:
        return _ChangeKeyOp(
            self.table_name,
            self.after,
            self.before,
            schema=self.schema,
            referring=self.referring,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        before, after = list(self.before.columns), list(self.after.columns)
        return ("modify_primary_key", self.schema, self.table_name, before, after)


@renderers.dispatch_for(_ChangeKeyOp)
def _render_change_key(autogen_context: AutogenContext, op: _ChangeKeyOp) -> list[str]:
    before, after = op.before, op.after
    if op.referring:
        problem = (
            f"the primary key of {op.table_name} changes from "
            f"({', '.join(before.columns)}) to ({', '.join(after.columns)}), and "
            f"foreign keys of {', '.join(op.referring)} refer to it: drop these "
            "foreign keys, change the primary key, and create them for the new one"
        )
        return [f"raise NotImplementedError({problem!r})"]
    if autogen_context.opts.get("render_as_batch"):
        prefix, table, schema = "batch_op.", "", ""
    else:
        prefix = autogen_context.opts.get("alembic_module_prefix") or ""
        table = f"{str(op.table_name)!r}, "
        schema = f", schema={str(op.schema)!r}" if op.schema else ""
    lines = []
    if before.name:
        name = f"{prefix}f({before.name!r})"
        lines.append(f"{prefix}drop_constraint({name}, {table}type_='primary'{schema})")
    if after.name:
        name, columns = f"{prefix}f({after.name!r})", list(after.columns)
        lines.append(f"{prefix}create_primary_key({name}, {table}{columns!r}{schema})")
    return lines


def _own_checks(table: Any) -> dict[str, CheckConstraint]:
    """Return the CHECKs that the mixin gave *table*, by name."""
    if not isinstance(getattr(column_of(table, "state"), "type", None), PydanticJSON):
        return {}
    names = (column_of(table, counter).name for counter in COUNTERS)
    ours = {check_constraint_name(table.name, name) for name in names}
    return {
        str(constraint.name): constraint
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint) and constraint.name in ours
    }


def _plain(condition: str) -> str:
    """Remove the casts and parentheses that PostgreSQL adds to a condition."""
    return _CAST.sub("", condition).replace("(", "").replace(")", "").strip()


def _default(column: Column[Any]) -> str | None:
    if column.server_default is None:
        return None
    default = cast("DefaultClause", column.server_default)
    return _plain(str(default.arg)).strip("'")
