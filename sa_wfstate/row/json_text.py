"""The text of a JSON column, as SQL selects it, and JSON from a text that is bound.

A state whose row is at the current schema version comes as its plain text, with the key
of the row after it; any other one as the marked text of
:mod:`sa_wfstate.payload.schema_versions`.

What is selected depends on the query. One that groups rows has several in one: they are
named by one of them, and must all be of one schema version. In one that drops rows
which are alike (DISTINCT, UNION) no key is added, or none would be alike.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import CompoundSelect, Label, TypeCoerce, literal_column, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import BindParameter, Null
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import JSON, String, Text, TypeDecorator

from ..errors import MappingError, PayloadError
from ..payload.schema_versions import BEFORE_KEY, MARK, MIXED
from .columns import column_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.sql import ColumnElement
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

    from ..payload.schema_versions import PayloadSchema


_JSON_OIDS = frozenset({114, 3802})
"""The types json and jsonb of PostgreSQL."""


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


class FromText(FunctionElement[Any]):
    """The JSON in a text, which is bound as text: a driver may encode JSON again."""

    inherit_cache = True


@compiles(FromText)
def _plain(element: FromText, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses.clauses[0], **kw)


@compiles(FromText, "postgresql")
def _cast_to_json(element: FromText, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses.clauses[0], **kw)} AS JSONB)"


class TextOf(TypeDecorator[Any]):
    """The text that another type, *json*, makes of a value."""

    impl = Text
    cache_ok = True

    def __init__(self, json: TypeDecorator[Any]) -> None:
        super().__init__()
        self._json = json

    def bind_processor(self, dialect: Dialect) -> Any:
        return self._json.bind_processor(dialect)

    def literal_processor(self, dialect: Dialect) -> Any:
        return self._json.literal_processor(dialect)


class JSONText(TypeDecorator[str]):
    """JSON that was dumped already, bound as it is."""

    impl = Text
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> ColumnElement[Any]:
        return FromText(type_coerce(bindparam, Text()))


class AsMarkedText(AsText):
    """The same for a state: plain text only if its row is at the current version.

    Of the other rows it is the marked text of
    :mod:`sa_wfstate.payload.schema_versions`. Its clauses are the state, the row's
    schema_version, the current version, and the row's workflow_key where it is there.
    """

    inherit_cache = True
    names_row = False


class AsNamedText(AsMarkedText):
    """The same, for a query that may not select the key: plain text tells it, too."""

    inherit_cache = True
    names_row = True


@compiles(AsMarkedText)
def _plain_marked_text(element: AsMarkedText, compiler: SQLCompiler, **kw: Any) -> str:
    return _marked(element, compiler, "{}", "json_quote({})", "char", kw)


@compiles(AsMarkedText, "postgresql")
def _cast_to_marked_text(
    element: AsMarkedText, compiler: SQLCompiler, **kw: Any
) -> str:
    as_json = "CAST(to_jsonb({}) AS TEXT)"
    return _marked(element, compiler, "CAST({} AS TEXT)", as_json, "chr", kw)


def _marked(
    element: AsMarkedText,
    compiler: SQLCompiler,
    as_text: str,
    as_json: str,
    character: str,
    kw: dict[str, Any],
) -> str:
    state, version, current, *keys = (
        compiler.process(clause, **kw) for clause in element.clauses.clauses
    )
    if _drops_rows(compiler):
        keys = []
    if _groups_rows(compiler):
        lowest, highest = f"min({version})", f"max({version})"
        version = f"CASE WHEN {lowest} = {highest} THEN {lowest} ELSE {MIXED} END"
        keys = [f"min({key})" for key in keys]
    text = as_text.format(state)
    as_key = as_json.format(keys[0]) if keys else "'null'"
    items = " || ',' || ".join((as_text.format(version), as_key, text))
    marked = f"'{MARK}[' || {items} || ']'"
    if element.names_row and keys:
        text = f"{text} || {character}({ord(BEFORE_KEY)}) || {keys[0]}"
    return f"CASE WHEN {version} = {current} THEN {text} ELSE {marked} END"


def _drops_rows(compiler: SQLCompiler) -> bool:
    """Say whether rows are compared as they are selected."""
    for entry in compiler.stack:
        query: Any = entry["selectable"]
        if isinstance(query, CompoundSelect):
            if query.keyword.value != "UNION ALL":
                return True
        elif getattr(query, "_distinct", False) and not query._distinct_on:  # noqa: SLF001
            return True
    return False


def _groups_rows(compiler: SQLCompiler) -> bool:
    query: Any = compiler.current_executable
    return bool(getattr(query, "_group_by_clauses", ()))


def state_text(
    column: ColumnElement[Any], schema: PayloadSchema, *, names_row: bool
) -> AsText:
    """Return the text of the state in *column*.

    Raises MappingError unless the schema_version of its row is there, too.
    """
    inner: Any = column
    while isinstance(inner, (Label, TypeCoerce)):
        inner = inner.element if isinstance(inner, Label) else inner.clause
    if isinstance(inner, (BindParameter, Null)):
        return AsText(column)
    rows = getattr(inner, "table", None)
    stored = next((getattr(base, "table", None) for base in inner.base_columns), None)
    version, key = (
        rows.corresponding_column(there)
        if rows is not None
        and stored is not None
        and (there := column_of(stored, name)) is not None
        else None
        for name in ("schema_version", "workflow_key")
    )
    if version is None:
        raise MappingError(
            schema.entity,
            "its state is selected without the schema_version of its row, on which its "
            "shape depends; a subquery that selects state must select schema_version "
            "as well, and workflow_key to have it named in errors; of an expression "
            "select the plain JSON, with type_coerce(…, JSONB)",
        )
    current: ColumnElement[int] = literal_column(str(schema.version))
    kind = AsNamedText if names_row else AsMarkedText
    return kind(column, version, current, *([] if key is None else [key]))


def json_of(dialect: Dialect) -> TypeEngine[Any]:
    """Return the type that a *dialect* stores JSON as."""
    return JSONB() if isinstance(dialect, PGDialect) else JSON()


def text_getter(coltype: object, name: str) -> Callable[[Any], str]:
    """Return what gets the JSON text of a result of the database's type *coltype*.

    *name* is that of the column, for the error if it has none.
    """
    if coltype not in _JSON_OIDS:
        return lambda value: value if isinstance(value, str) else json.dumps(value)
    # A textual SELECT goes around column_expression: the driver has parsed it.

    def text_of(value: Any) -> str:
        try:
            return json.dumps(value)
        except TypeError:
            problem = (
                "the JSON codec of the connection has made of it what is not JSON; let "
                "a textual SELECT name it as CAST(column AS TEXT)"
            )
            raise PayloadError(name, "", problem) from None

    return text_of
