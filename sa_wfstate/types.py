"""PydanticJSON: a column type that stores what Pydantic can validate as JSON.

The value crosses the driver as text, in both directions: ``to_json`` of the model is
bound and cast to JSONB, and the column is selected as text and given to
``validate_json``. No dict is built in between. PostgreSQL stores JSONB; every other
dialect stores SQLAlchemy's JSON, which is meant for unit tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from sqlalchemy import Dialect, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ColumnElement, operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import JSON, String, TypeDecorator, TypeEngine

from .errors import PayloadError

T = TypeVar("T")

_COMPARES_WHOLE_VALUES = frozenset(
    {operators.eq, operators.ne, operators.is_distinct_from}
    | {operators.is_not_distinct_from, operators.in_op, operators.not_in_op}
)


class _AsText(FunctionElement[str]):
    """The text of a JSON column; a cast where the column is not text already."""

    inherit_cache = True
    type = String()


@compiles(_AsText)
def _plain_text(element: _AsText, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses.clauses[0], **kw)


@compiles(_AsText, "postgresql")
def _cast_to_text(element: _AsText, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses.clauses[0], **kw)} AS TEXT)"


def _path(error: ValidationError) -> tuple[str, str]:
    """The path and the message of the first problem, without the input."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return ".".join(str(part) for part in first["loc"]), first["msg"] + more


class _Comparator(TypeDecorator.Comparator[Any], JSONB.Comparator[Any]):
    """The operators of JSONB."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> ColumnElement[Any]:
        # A part of the state is not a state: it is selected as plain JSON.
        part: ColumnElement[Any] = type_coerce(self.expr, JSONB())[index]
        return part


class PydanticJSON(TypeDecorator[T], Generic[T]):
    """Store *type_*, anything that :class:`pydantic.TypeAdapter` takes, as JSON.

    None is stored as SQL NULL. Aliases are written as declared, computed fields are not
    written, and a value that is not what *type_* says is refused with a
    :exc:`~sa_wfstate.PayloadError` before any SQL is sent.

    >>> PydanticJSON(dict[str, int]).dump({"a": 1})
    '{"a":1}'
    """

    impl = JSONB
    cache_ok = True
    comparator_factory = _Comparator

    def __init__(self, type_: Any) -> None:
        super().__init__()
        self.type_ = type_
        self._adapter: TypeAdapter[T] = TypeAdapter(type_)

    def dump(self, value: T, *, where: str | None = None) -> str:
        """Return the JSON text of *value*; *where* names it in the error."""
        try:
            text = self._adapter.serializer.to_json(
                value, by_alias=True, round_trip=True, warnings="error"
            )
        except (PydanticSerializationError, ValueError) as error:
            problem = f"is not a {self._name}: got {type(value).__name__}"
            if isinstance(value, self._classes):
                problem = "holds a value that its model does not allow; validate it first"
            raise PayloadError(where or self._name, "", problem) from error
        return text.decode()

    def load(self, text: str | bytes, *, where: str | None = None) -> T:
        """Return the value that *text* holds; *where* names it in the error."""
        try:
            value: T = self._adapter.validator.validate_json(text)
        except ValidationError as error:
            raise PayloadError(where or self._name, *_path(error)) from None
        return value

    @property
    def _name(self) -> str:
        return getattr(self.type_, "__name__", str(self.type_))

    @property
    def _classes(self) -> tuple[type, ...]:
        return (self.type_,) if isinstance(self.type_, type) else ()

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return _json_of(dialect)

    def bind_processor(self, dialect: Dialect) -> Callable[[T | None], str | None]:
        dump = self.dump

        def process(value: T | None) -> str | None:
            return None if value is None else dump(value)

        return process

    def literal_processor(self, dialect: Dialect) -> Callable[[T], str]:
        quote = String().literal_processor(dialect)
        return lambda value: quote(self.dump(value))

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        # Coerced back to this type, or the cast's own type would process the result.
        return type_coerce(_AsText(column), self)

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[Any], T | None]:
        load = self.load

        def process(value: Any) -> T | None:
            if value is None:
                return None
            if not isinstance(value, (str, bytes)):
                # A textual SELECT goes around column_expression; psycopg parsed it.
                value = json.dumps(value)
            return load(value)

        return process

    def compare_values(self, x: Any, y: Any) -> bool:
        """Compare as JSON: for Python, True equals 1 and 1.0."""
        if x is y:
            return True
        try:
            return canonical_json(self.dump(x)) == canonical_json(self.dump(y))
        except PayloadError:
            # None, the ORM's marks for "not loaded", or a value that broke since.
            return False

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        if op in _COMPARES_WHOLE_VALUES:
            return self
        return self.impl_instance.coerce_compared_value(op, value)

    def __reduce__(self) -> tuple[type[PydanticJSON[T]], tuple[Any]]:
        return type(self), (self.type_,)

    def __repr__(self) -> str:
        return f"PydanticJSON({self._name})"


class JSONText(TypeDecorator[str]):
    """JSON that was dumped already, bound as it is."""

    impl = JSONB
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return _json_of(dialect)

    def bind_processor(self, dialect: Dialect) -> None:
        return None


def _json_of(dialect: Dialect) -> TypeEngine[Any]:
    return JSONB() if isinstance(dialect, PGDialect) else JSON()


def canonical_json(text: str) -> str:
    """Return *text* with the keys of its objects in order.

    Numbers keep their spelling: 1, 1.0 and true are three values.
    """
    return json.dumps(json.loads(text), sort_keys=True)
