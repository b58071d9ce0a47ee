"""A JSON column as text in SQL: how it is selected, and how a text is bound.

The state of a row is selected with the row's schema version and key, as the marked text
of :mod:`sa_wfstate.payload.schema_versions`. For the ORM, which has the key, the state
of a row at the current version is selected as plain text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    CompoundSelect,
    Label,
    Select,
    TypeCoerce,
    case,
    literal_column,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import BindParameter, Null
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import JSON, String, Text, TypeDecorator

from ..errors import MappingError, PayloadError
from ..payload.schema_versions import MARK
from .columns import column_of, key_columns
from .engine_profiles import profile_of
from .keys import KeyText

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.sql import ColumnElement
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

    from ..payload.schema_versions import PayloadSchema


JSON_OIDS = frozenset({114, 3802})
"""The types json and jsonb of PostgreSQL."""


class AsText(FunctionElement[str]):
    """The text of a JSON column; on PostgreSQL a cast."""

    inherit_cache = True
    type = String()


@compiles(AsText)
def _as_text(element: AsText, compiler: SQLCompiler, **kw: Any) -> str:
    json = compiler.process(element.clauses.clauses[0], **kw)
    casts = profile_of(compiler.dialect).is_postgresql
    return f"CAST({json} AS TEXT)" if casts else json


class FromText(FunctionElement[Any]):
    """JSON that is bound as text, because a driver may encode JSON again."""

    inherit_cache = True


@compiles(FromText)
def _from_text(element: FromText, compiler: SQLCompiler, **kw: Any) -> str:
    text = compiler.process(element.clauses.clauses[0], **kw)
    profile = profile_of(compiler.dialect)
    if not profile.is_postgresql:
        return text
    return f"CAST({text} AS {'JSONB' if profile.has_jsonb else 'JSON'})"


class TextOf(TypeDecorator[Any]):
    """A value bound as the text that the type *json* dumps."""

    impl = Text
    cache_ok = True

    def __init__(self, json: TypeDecorator[Any]) -> None:
        super().__init__()
        self._json = json

    def bind_processor(self, dialect: Dialect) -> Any:
        return self._json.bind_processor(dialect)

    def literal_processor(self, dialect: Dialect) -> Any:
        return self._json.literal_processor(dialect)


_TEXT: Final = Text()


class JSONText(TypeDecorator[str]):
    """JSON text that is bound unchanged."""

    impl = Text
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> ColumnElement[Any]:
        return FromText(type_coerce(bindparam, _TEXT))


class MarkedText(AsText):
    """The marked text of a state.

    Its clauses are the state and the schema_version of its row, and the workflow_key if
    it is known. It is made when a statement is compiled, so no cache key includes it.
    """

    inherit_cache = False

    def __init__(self, entity: str, *clauses: Any, alone: bool) -> None:
        super().__init__(*clauses)
        self.entity = entity
        self.alone = alone
        """The state is selected as a column, not with its entity."""


@compiles(MarkedText)
def _marked_text(element: MarkedText, compiler: SQLCompiler, **kw: Any) -> str:
    on_postgresql = profile_of(compiler.dialect).is_postgresql
    as_json = "CAST(to_jsonb({}) AS TEXT)" if on_postgresql else "json_quote({})"
    state, version, *keys = (
        compiler.process(clause, **kw) for clause in element.clauses.clauses
    )
    if element.alone and any(_compares(e, state, compiler) for e in compiler.stack):
        raise MappingError(
            element.entity,
            "its state cannot be selected with DISTINCT, GROUP BY or UNION, which "
            "compare it as it is stored, in the shape of any schema version; select "
            "the entity, or the plain JSON, with cast(…, JSONB)",
        )
    key = as_json.format(keys[0]) if keys else "'null'"
    items = f"CAST({version} AS TEXT) || ',' || {key} || ',' || CAST({state} AS TEXT)"
    return f"'{MARK}[' || {items} || ']'"


def _compares(entry: Any, state: str, compiler: Any) -> bool:
    """Return whether the query in *entry* compares rows by the column *state*."""
    query = entry["selectable"]
    if isinstance(query, CompoundSelect):
        return query.keyword.value != "UNION ALL"
    if not isinstance(query, Select):
        return False
    distinct = compiler.get_select_precolumns(query)
    grouped = compiler.group_by_clause(query).removeprefix(" GROUP BY ")
    return distinct.strip() == "DISTINCT" or state in grouped.split(", ")


def state_text(
    column: ColumnElement[Any], schema: PayloadSchema, *, alone: bool
) -> ColumnElement[Any]:
    """Return the text of the state in *column*.

    *alone* marks each text. Raises MappingError unless the row's schema_version is
    selected, too, and if the query compares states that are selected *alone*.
    """
    inner: Any = column
    while isinstance(inner, (Label, TypeCoerce)):
        inner = inner.element if isinstance(inner, Label) else inner.clause
    if isinstance(inner, (BindParameter, Null)):
        return AsText(column)
    rows = getattr(inner, "table", None)
    stored = next((getattr(base, "table", None) for base in inner.base_columns), None)
    there = [column_of(stored, "schema_version")] if stored is not None else []
    if there and column_of(stored, "workflow_key") is not None:
        there += key_columns(stored)
    version, *keys = (
        None if rows is None or each is None else rows.corresponding_column(each)
        for each in there or [None]
    )
    if version is None:
        raise MappingError(
            schema.entity,
            "its state is selected without the schema_version of its row, on which its "
            "shape depends; a subquery that selects state must select schema_version "
            "as well, and workflow_key to have it named in errors; of an expression "
            "select the plain JSON, with type_coerce(…, JSONB)",
        )
    if any(key is None for key in keys):
        keys = []
    elif len(keys) > 1:
        keys = [KeyText(*keys)]
    marked = MarkedText(schema.entity, column, version, *keys, alone=alone)
    if alone:
        return marked
    current: ColumnElement[int] = literal_column(str(schema.version))
    return case((version == current, AsText(column)), else_=marked)


def json_of(dialect: Dialect) -> TypeEngine[Any]:
    """Return the type of JSON columns on *dialect*."""
    return JSONB() if profile_of(dialect).has_jsonb else JSON()


def text_getter(coltype: object, name: str) -> Callable[[Any], str]:
    """Return a function that returns the JSON text of a result of type *coltype*.

    *name* is that of the column, for errors.
    """
    if coltype not in JSON_OIDS:
        return lambda value: value if isinstance(value, str) else json.dumps(value)
    # A textual SELECT skips column_expression, so the driver has parsed the JSON.

    def text_of(value: Any) -> str:
        try:
            return json.dumps(value)
        except TypeError:
            problem = (
                "the JSON codec of the connection returned a value that is not JSON; "
                "in a textual SELECT, select CAST(column AS TEXT)"
            )
            raise PayloadError(name, "", problem) from None

    return text_of


def textual_refuser(schema: PayloadSchema) -> Callable[[Any], None]:
    """Return what refuses a state that textual SQL has selected as plain JSON.

    Every other statement selects it as text, marked with its schema version.
    """

    def refuse(value: Any) -> None:
        if value is not None:
            raise MappingError(
                schema.entity,
                "its state is selected by textual SQL without its schema version, on "
                "which its shape depends; give from_statement() the text() without "
                "columns(), or call the column plain JSON: column('state', JSONB)",
            )

    return refuse
