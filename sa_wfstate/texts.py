"""The text of a JSON column, as SQL selects it.

A state whose row is at the current schema version comes as its plain text; any other
one as the marked text of :mod:`sa_wfstate.upcasters`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Label, TypeCoerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import String

from .errors import MappingError
from .upcasters import MARK

if TYPE_CHECKING:
    from sqlalchemy.sql import ColumnElement
    from sqlalchemy.sql.compiler import SQLCompiler


class AsText(FunctionElement[str]):
    """The text of a JSON column; a cast where the column is not text already."""

    inherit_cache = True
    type = String()


@compiles(AsText)
def _plain_text(element: AsText, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses.clauses[0], **kw)


@compiles(AsText, "postgresql")
def _cast_to_text(element: AsText, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses.clauses[0], **kw)} AS TEXT)"


class AsMarkedText(AsText):
    """The same for a state: plain text only if its row is at the current version.

    Of the other rows it is the marked text of :mod:`sa_wfstate.upcasters`. Its clauses
    are the state, the row's schema_version and workflow_key, the current version.
    """

    inherit_cache = True


@compiles(AsMarkedText)
def _plain_marked_text(element: AsMarkedText, compiler: SQLCompiler, **kw: Any) -> str:
    state, version, key, current = (
        compiler.process(clause, **kw) for clause in element.clauses.clauses
    )
    marked = (
        f"'{MARK}[' || {version} || ',' || json_quote({key}) || ',' || {state} || ']'"
    )
    return f"CASE WHEN {version} = {current} THEN {state} ELSE {marked} END"


@compiles(AsMarkedText, "postgresql")
def _cast_to_marked_text(
    element: AsMarkedText, compiler: SQLCompiler, **kw: Any
) -> str:
    state, version, key, current = (
        compiler.process(clause, **kw) for clause in element.clauses.clauses
    )
    texts = [
        f"CAST({clause} AS TEXT)" for clause in (version, f"to_jsonb({key})", state)
    ]
    items = " || ',' || ".join(texts)
    marked = f"'{MARK}[' || {items} || ']'"
    return f"CASE WHEN {version} = {current} THEN {texts[-1]} ELSE {marked} END"


def row_of(
    column: ColumnElement[Any], entity: str
) -> tuple[ColumnElement[Any], ColumnElement[Any]] | None:
    """Find schema_version and workflow_key in the row that *column* is a part of.

    None if it is no column of a workflow's row. Raises MappingError if it is one that
    comes by a subquery without them.
    """
    inner: Any = column
    while isinstance(inner, (Label, TypeCoerce)):
        inner = inner.element if isinstance(inner, Label) else inner.clause
    rows = getattr(inner, "table", None)
    tables = [getattr(base, "table", None) for base in inner.base_columns]
    if rows is None or tables[0] is None:
        return None
    names = ("schema_version", "workflow_key")
    if not all(name in tables[0].c for name in names):
        return None
    version, key = (rows.corresponding_column(tables[0].c[name]) for name in names)
    if version is None or key is None:
        raise MappingError(
            entity,
            "a subquery that selects state must select schema_version and workflow_key "
            "as well: the shape of the state depends on its row",
        )
    return version, key
