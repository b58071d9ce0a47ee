"""Typed paths into a state: a field of its model as an SQL expression.

::

    tier = field_of(Order.state, lambda state: state.customer.tier)

    select(Order).where(tier == Tier.GOLD)
    Index("idx_orders_tier", tier)

The lambda is called with a stand-in for the state that knows its model. So a wrong name
fails when the expression is built, and a type checker infers the type of the
expression. A value that it is compared with is dumped like the field, and a selected
value is loaded like the field.

A field whose JSON is a string is compared as text (``#>>``); numbers, booleans and
times are cast; any other field is JSONB (``#>``), with its operators. A null or missing
field is SQL NULL. The path is part of the SQL text, so that an index on the same
expression is used. A ``datetime`` cannot be indexed, because PostgreSQL's cast depends
on the session.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from sqlalchemy import (
    Boolean,
    Cast,
    DateTime,
    Dialect,
    Double,
    Interval,
    Numeric,
    String,
    TypeCoerce,
    bindparam,
    cast,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql import ColumnElement, operators
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator, TypeEngine

from ..errors import MappingError
from ..payload.codec import Codec
from .engine_profiles import profile_of
from .fields import Field, Key
from .types import PydanticJSON

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler


T = TypeVar("T")
V = TypeVar("V")

_TEXTS = {"str", "uuid", "date", "time", "url", "multi-host-url"}
_CASTS: dict[str, TypeEngine[Any]] = {
    "int": Numeric(),
    "float": Double(),
    "decimal": Numeric(),
    "datetime": DateTime(timezone=True),
    "timedelta": Interval(),
}
_COMPARISONS = {
    *(operators.eq, operators.ne, operators.lt, operators.le, operators.gt),
    *(operators.ge, operators.in_op, operators.not_in_op, operators.between_op),
    *(operators.is_distinct_from, operators.is_not_distinct_from),
}


@overload
def field_of(
    column: InstrumentedAttribute[T | None], pick: Callable[[T], V]
) -> ColumnElement[V]: ...
@overload
def field_of(
    column: ColumnElement[T | None], pick: Callable[[T], V]
) -> ColumnElement[V]: ...
@overload
def field_of(column: ColumnElement[T], pick: Callable[[T], V]) -> ColumnElement[V]: ...
def field_of(column: Any, pick: Callable[[Any], Any]) -> ColumnElement[Any]:
    """Return the part of *column* that *pick* returns, as an SQL expression.

    *column* is the attribute of a PydanticJSON column, also of an alias, or a model
    that this function returned: go on so after a field that may be None. *pick* may use
    attributes of models and dataclasses, keys of dicts and TypedDicts, indexes
    of lists and tuples.

    Raises MappingError if there is no such field.
    """
    part = column if isinstance(column, _Part) else column.__clause_element__()
    if not isinstance(part.type, PydanticJSON):
        raise MappingError("field_of", "takes a PydanticJSON column, or a model in one")
    picked = pick(Field(part.type.type_, getattr(part, "keys", ())))
    if not isinstance(picked, Field):
        raise MappingError("field_of", "the lambda must return a field of its argument")
    type_, keys = vars(picked).values()
    return _expression(getattr(part, "root", part), type_, keys)


class Path(NamedTuple):
    """The place that an expression of :func:`field_of` stands for.

    *kind* is that of the schema of the field: "int", "list", "model" and so on.
    """

    root: ColumnElement[Any]
    keys: tuple[Key, ...]
    codec: Codec[Any]
    kind: str


def path_of(expression: Any) -> Path | None:
    """Return the path in *expression*, None if it is not one of :func:`field_of`."""
    part = expression
    while isinstance(part, (Cast, TypeCoerce)):
        part = part.clause
    if not isinstance(part, _Part):
        return None
    return Path(part.root, part.keys, part.codec, _kind(part.codec.schema))


def _expression(
    root: ColumnElement[Any], type_: Any, keys: tuple[Key, ...]
) -> ColumnElement[Any]:
    column_type: PydanticJSON[Any] = PydanticJSON(type_)
    codec = column_type.codec
    kind = _kind(codec.schema)
    if kind in _TEXTS:
        return _TextPart(root, keys, _Scalar(type_, kind), codec)
    if kind == "bool":
        return cast(_TextPart(root, keys, String(), codec), Boolean())
    if kind in _CASTS:
        number = cast(_TextPart(root, keys, String(), codec), _CASTS[kind])
        return type_coerce(number, _Scalar(type_, kind))
    return _Part(root, keys, column_type, codec)


def _kind(schema: Any) -> str:
    while "schema" in schema:
        schema = schema["schema"]
    kind: str = schema["type"]
    if kind in {"literal", "enum"}:
        values = schema.get("expected") or [each.value for each in schema["members"]]
        kind = "str" if all(isinstance(each, str) for each in values) else kind
    return kind


class _Part(FunctionElement[Any]):
    """The JSON at *keys* in *root*."""

    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy makes the cache key of it
        *FunctionElement._traverse_internals,  # noqa: SLF001
        ("type", InternalTraversal.dp_type),
    ]

    def __init__(
        self,
        root: ColumnElement[Any],
        keys: tuple[Key, ...],
        type_: TypeEngine[Any],
        codec: Codec[Any],
    ) -> None:
        self.root = root
        self.keys = keys
        self.type = type_
        self.codec = codec
        # Part of the SQL text: an index is on an expression with the same path.
        path = bindparam(None, keys, type_=_Path(), unique=True, literal_execute=True)
        super().__init__(root, path)


class _TextPart(_Part):
    """The JSON at *keys* in *root*, as text."""

    inherit_cache = True


@compiles(_Part)
def _json_part(element: _Part, compiler: SQLCompiler, **kw: Any) -> str:
    root, path = (compiler.process(each, **kw) for each in element.clauses)
    profile = profile_of(compiler.dialect)
    if not profile.is_postgresql:
        return f"NULLIF({root} -> {path}, 'null')"
    if not profile.has_jsonb:  # JSON cannot be compared, not even with null.
        root = f"CAST({root} AS JSONB)"
    return f"NULLIF({root} #> {path}, 'null')"


@compiles(_TextPart)
def _text_part(element: _TextPart, compiler: SQLCompiler, **kw: Any) -> str:
    root, path = (compiler.process(each, **kw) for each in element.clauses)
    by_array = profile_of(compiler.dialect).is_postgresql
    return f"({root} {'#>>' if by_array else '->>'} {path})"


def array_text(keys: tuple[Key, ...]) -> str:
    """Return *keys* in the syntax of a text array."""
    # Only these two are special in an array; "\\t" would be a plain "t".
    escaped = (str(k).replace("\\", "\\\\").replace('"', '\\"') for k in keys)
    return "{" + ",".join(f'"{key}"' for key in escaped) + "}"


class _Path(TypeDecorator[tuple[Key, ...]]):
    """A path in the syntax of the dialect: a text array or a JSON path."""

    impl = String
    cache_ok = True

    def process_literal_param(
        self, value: tuple[Key, ...] | None, dialect: Dialect
    ) -> str:
        keys = value or ()
        if profile_of(dialect).is_postgresql:
            return array_text(keys)
        steps = (
            f"[{key}]"
            if isinstance(key, int)
            else f".{json.dumps(key, ensure_ascii=False)}"
            for key in keys
        )
        return "$" + "".join(steps)


class _Scalar(TypeDecorator[Any]):
    """A value that SQL can compare, dumped and loaded like a field of *type_*."""

    impl = String
    cache_ok = True

    def __init__(self, type_: Any, kind: str) -> None:
        super().__init__()
        self.type_ = type_
        self.kind = kind
        self.codec: Codec[Any] = Codec(type_)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(_CASTS.get(self.kind, String()))

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        if op not in _COMPARISONS:
            return _CASTS.get(self.kind, String())
        if value is not None:
            self.codec.encode(value)  # A value that the field cannot hold fails now.
        return self

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None
        dumped = json.loads(self.codec.encode(value))
        if self.kind == "decimal":
            return Decimal(dumped)
        return value if self.kind in {"datetime", "timedelta"} else dumped

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None or self.kind in {"datetime", "timedelta"}:
            return value
        plain = {"decimal": str, "int": int}.get(self.kind)
        return self.codec.load(json.dumps(plain(value) if plain else value))
