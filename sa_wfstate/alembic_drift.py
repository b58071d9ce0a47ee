"""What Alembic does not compare by itself: our CHECKs and our counters' defaults.

Alembic compares CHECK constraints by name, since 1.19.2, and server defaults, each if
env.py asks for it. A workflow table without ``CHECK (version >= 1)`` or ``DEFAULT 1``
is broken, so for these two columns the comparison is always made. It is made by
meaning: a CHECK of the same text may have any name. PostgreSQL only; elsewhere a
constraint cannot be added to a table that is there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from alembic.operations import ops
from sqlalchemy import CheckConstraint, Column, DefaultClause, Table
from sqlalchemy.dialects.postgresql.base import PGDialect

from .types import PydanticJSON

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

_CAST = re.compile(r"::[a-z ]+")


class _AddCheck(ops.CreateCheckConstraintOp):
    """``op.create_check_constraint``, which Alembic before 1.19 cannot render."""


class _DropCheck(ops.DropConstraintOp):
    """``op.drop_constraint`` that can be undone on every version of Alembic."""

    def reverse(self) -> ops.AddConstraintOp:
        return self._reverse or super().reverse()


def register_renderers() -> None:
    """Say how :class:`_AddCheck` is written into a revision."""
    from alembic.autogenerate import renderers

    renderers.dispatch_for(_AddCheck)(_render_add_check)


def register_comparators(comparators: Any) -> None:
    """Compare after everybody else: what Alembic has found already is not repeated."""
    try:
        from alembic.util import DispatchPriority
    except ImportError:
        last = {}  # Alembic before 1.18 keeps to the order of registration.
    else:
        last = {"priority": DispatchPriority.LAST}
    comparators.dispatch_for("table", **last)(compare_checks)
    # Of a table as well, not of a column: a run may have found out about us at a later
    # column of the same table.
    comparators.dispatch_for("table", **last)(compare_defaults)


def _render_add_check(autogen_context: AutogenContext, op: _AddCheck) -> str:
    prefix = autogen_context.opts.get("alembic_module_prefix") or "op."
    sa = autogen_context.opts.get("sqlalchemy_module_prefix") or "sa."
    name = f"{prefix}f({str(op.constraint_name)!r})"
    schema = f", schema={str(op.schema)!r}" if op.schema else ""
    condition = f"{sa}text({str(op.condition)!r})"
    table = repr(str(op.table_name))
    return f"{prefix}create_check_constraint({name}, {table}, {condition}{schema})"


def compare_checks(
    autogen_context: AutogenContext,
    modify_table_ops: ops.ModifyTableOps,
    schema: str | None,
    table_name: str,
    existing: Table | None,
    mapped: Table | None,
) -> None:
    """Add what the table's CHECK constraints lack to *modify_table_ops*."""
    if existing is None or mapped is None:
        return
    wanted = _own_checks(mapped)
    if not wanted or not isinstance(autogen_context.dialect, PGDialect):
        return
    found = autogen_context.inspector.get_check_constraints(table_name, schema=schema)
    texts = {_plain(check["sqltext"]) for check in found}
    by_name = {check["name"]: check["sqltext"] for check in found}
    # Alembic's own comparison may have been asked for as well.
    done = {getattr(op, "constraint_name", None) for op in modify_table_ops.ops}
    for name, text in wanted.items():
        if name in done or text in texts:
            continue
        if name in by_name:
            undo = _AddCheck(name, table_name, by_name[name], schema=schema)
            drop = _DropCheck(name, table_name, "check", schema=schema, _reverse=undo)
            modify_table_ops.ops.append(drop)
        modify_table_ops.ops.append(_AddCheck(name, table_name, text, schema=schema))


def compare_defaults(
    autogen_context: AutogenContext,
    modify_table_ops: ops.ModifyTableOps,
    schema: str | None,
    table_name: str,
    existing: Table | None,
    mapped: Table | None,
) -> None:
    """Add to *modify_table_ops* what sets the defaults of the counters right."""
    if (
        existing is None
        or mapped is None
        or not _own_checks(mapped)
        or autogen_context.opts.get("compare_server_default")
    ):
        return
    altered = {
        op.column_name: op
        for op in modify_table_ops.ops
        if isinstance(op, ops.AlterColumnOp)
    }
    for name in ("version", "schema_version"):
        is_, should_be = existing.c.get(name), mapped.c.get(name)
        if is_ is None or should_be is None or _default(is_) == _default(should_be):
            continue
        if name not in altered:
            altered[name] = ops.AlterColumnOp(
                table_name,
                name,
                schema=schema,
                existing_type=is_.type,
                existing_nullable=is_.nullable,
            )
            modify_table_ops.ops.append(altered[name])
        altered[name].existing_server_default = is_.server_default
        altered[name].modify_server_default = should_be.server_default


def _own_checks(table: Any) -> dict[str, str]:
    """Return the text of the CHECKs that the mixin gave *table*, by name."""
    if not isinstance(getattr(table.c.get("state"), "type", None), PydanticJSON):
        return {}
    # This module may be imported while the mixin is.
    from .constraints import COUNTERS, check_constraint_name

    ours = {check_constraint_name(table.name, counter) for counter in COUNTERS}
    return {
        str(constraint.name): _plain(str(constraint.sqltext))
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint) and constraint.name in ours
    }


def _plain(condition: str) -> str:
    """Take away what PostgreSQL adds to a condition when it shows it again."""
    return _CAST.sub("", condition).replace("(", "").replace(")", "").strip()


def _default(column: Column[Any]) -> str | None:
    if column.server_default is None:
        return None
    default = cast("DefaultClause", column.server_default)
    return _plain(str(default.arg)).strip("'")
