"""PydanticJSON: a column type that stores values of Pydantic types as JSON.

A value crosses the driver as text, in both directions: ``to_json`` of the model is
bound as text and cast to JSONB, and the column is selected as text and passed to
``validate_json``. No dict is built in between, and no JSON codec of the connection is
called. PostgreSQL stores JSONB; other dialects store SQLAlchemy's JSON, for unit tests.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from sqlalchemy import Dialect, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import LoaderCallableStatus
from sqlalchemy.sql import ColumnElement, operators
from sqlalchemy.types import String, TypeDecorator, TypeEngine

from ..errors import PayloadError
from ..payload.batch import BatchCodec
from ..payload.codec import Codec
from ..payload.provenance import ProvenanceCodec
from ..values.provenance import Provenance
from .encoded import encoded_at
from .json_text import (
    JSON_OIDS,
    AsText,
    FromText,
    TextOf,
    json_of,
    state_text,
    text_getter,
    textual_refuser,
)
from .unread import Before, Unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..payload.schema_versions import PayloadSchema


T = TypeVar("T")

_COMPARES_WHOLE_VALUES = frozenset(
    {operators.eq, operators.ne, operators.is_distinct_from}
    | {operators.is_not_distinct_from, operators.in_op, operators.not_in_op}
)

_MANY: Final = 16
"""From how many values on it is worth to encode them at once."""


class _Comparator(TypeDecorator.Comparator[Any], JSONB.Comparator[Any]):
    """The operators of JSONB."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> ColumnElement[Any]:
        # A part of the state is not a state: it is selected as plain JSON.
        json: Any = self.type
        whole: Any = super() if json is _PLAIN else type_coerce(self.expr, _PLAIN)
        part: ColumnElement[Any] = whole.__getitem__(index)
        return part


class PydanticJSON(TypeDecorator[T], Generic[T]):
    """Store *type_*, anything that :class:`pydantic.TypeAdapter` takes, as JSON.

    None is stored as SQL NULL. Aliases are written as declared, computed fields are not
    written. A value that does not fit *type_*, or would be read back as a different
    one, raises a PayloadError before any SQL is sent. A value of another type that is
    read back as an equal one is written as that. Equal numbers are the same: if the
    type is not declared as float, 1e16 is read back as an int, and 1e23 is refused,
    because JSONB would store an int that is not equal.

    *accept* names the fields that may be lost: ``accept={"Login.password"}``.
    *round_trip* can be turned off for states so large that reading each back before it
    is written takes too long; then only Pydantic's own checks apply. *mutable* sets
    whether the ORM looks for changes in place; by default it does unless *type_* is
    deeply frozen. *eager* makes the ORM build each value when its row is loaded, not
    when it is first read: for code that looks into ``vars()`` of an instance.

    >>> PydanticJSON(dict[str, int]).dump({"a": 1})
    '{"a":1}'
    """

    impl = JSONB
    cache_ok = True
    comparator_factory = _Comparator
    _selected_alone = True
    column_name: str | None = None
    """The mapped class and the column, as errors name them, where they are known."""

    def __init__(
        self,
        type_: Any,
        *,
        accept: Iterable[str] = (),
        round_trip: bool = True,
        mutable: bool | None = None,
        eager: bool = False,
        payload_schema: PayloadSchema | None = None,
    ) -> None:
        super().__init__()
        self.type_ = type_
        self.payload_schema = payload_schema
        self.accept = frozenset(accept)
        self.round_trip = round_trip
        self.mutable = mutable
        self.eager = eager
        of_type: Any = ProvenanceCodec if type_ is Provenance else Codec
        self.codec: Codec[T] = of_type(
            type_,
            accept=accept,
            round_trip=round_trip,
            payload_schema=payload_schema,
        )
        try:
            hash(type_)
        except TypeError:
            self.cache_ok = False

    def with_schema(self, payload_schema: PayloadSchema) -> Self:
        """Return the type for a class with these schema versions."""
        options = self._options() | {"payload_schema": payload_schema}
        return type(self)(self.type_, **options)

    def unread(self) -> UnreadJSON:
        """Return the type for the ORM, which loads the text first."""
        unread = UnreadJSON(self.type_, payload_schema=self.payload_schema)
        unread.column_name = self.column_name
        return unread

    def stored(self, text: str) -> str:
        """Return *text*, from :meth:`dump`, in the shape that is stored."""
        schema = self.payload_schema
        return text if schema is None else schema.write(text)

    def dump(self, value: T, *, where: str | None = None) -> str:
        """Return the JSON text of *value*; *where* names it in the error."""
        return self.codec.dump(value, where=where)

    def load(self, text: str | bytes, *, where: str | None = None) -> T:
        """Return the value in *text*; *where* names it in the error."""
        return self.codec.load(text, where=where)

    @cached_property
    def batch_codec(self) -> BatchCodec[T]:
        """The codec for many values at once."""
        return BatchCodec(self.codec, round_trip=self.codec.round_trip)

    def dump_all(self, values: list[T], *, check: bool = False) -> list[str] | None:
        """Return the texts of *values*, at once; None if it has to be one by one.

        They are as many as are worth it, and a *check* refuses none of them.
        """
        if len(values) < _MANY:
            return None
        if not check:
            return self.batch_codec.dump(values)
        encoded = self.batch_codec.encode(values)
        return None if encoded is None else encoded[0]

    def changes_in_place(self) -> bool:
        """Return whether a value may change without being assigned."""
        return not self.codec.frozen if self.mutable is None else self.mutable

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return json_of(dialect)

    def bind_expression(self, bindparam: Any) -> ColumnElement[Any]:
        return FromText(type_coerce(bindparam, self._text))

    @cached_property
    def _text(self) -> TextOf:
        return TextOf(self)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:
        type_id, encode, schema = id(self.type_), self.codec.encode, self.payload_schema
        text_of: Callable[[str], str] = str if schema is None else schema.read
        stored: Callable[[str], str] = str
        if schema is not None and schema.write_version != schema.version:
            stored = schema.write

        def process(value: Any) -> str | None:
            if value is None:
                return None
            if isinstance(value, Unread):
                return stored(text_of(value.text))
            kept = encoded_at((type_id, id(value)))
            if kept is not None and kept.value is value:
                return stored(kept.bind())
            try:
                return stored(encode(value))
            except PayloadError as error:
                name = self.column_name or error.where
                cause = error.__cause__
                raise PayloadError(name, error.path, error.problem) from cause

        return process

    def literal_processor(self, dialect: Dialect) -> Callable[[T], str]:
        string: Any = String()
        quote, encode = string.literal_processor(dialect), self.codec.encode
        return lambda value: quote(self.stored(encode(value)))

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        schema = self.payload_schema
        text: ColumnElement[Any] = (
            AsText(column)
            if schema is None
            else state_text(column, schema, alone=self._selected_alone)
        )
        # Coerced to this type, or the type of the cast would process the result.
        return type_coerce(text, self)

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[Any], T | None]:
        schema = self.payload_schema
        if schema is not None and schema.upcasters and coltype in JSON_OIDS:
            return textual_refuser(schema)
        load, text_of = self.codec.load, self._text_getter(coltype)
        return lambda value: None if value is None else load(text_of(value))

    def _text_getter(self, coltype: object) -> Callable[[Any], str]:
        return text_getter(coltype, self.column_name or self.codec.name)

    def compare_values(self, x: Any, y: Any) -> bool:
        """Compare as JSON: for Python, True equals 1 and 1.0.

        A value that is not loaded, or a text that was not read, equals only itself.
        """
        if isinstance(y, Before) and x is not None:
            return y.is_still(x)
        if x is y:
            return True
        if x is None or y is None or isinstance(y, (LoaderCallableStatus, Unread)):
            return False
        try:
            return self.codec.same(self.dump(x), self.dump(y))
        except PayloadError:
            return False

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        if op in _COMPARES_WHOLE_VALUES:
            return self
        json: TypeEngine[Any] = self.impl_instance
        coerced = json.coerce_compared_value(op, value)
        return _PLAIN if coerced is json else coerced

    @cached_property
    def _static_cache_key(self) -> Any:
        # Kept, because each flush builds its statement anew, and so the key of it.
        key: Any = super()._static_cache_key
        # SQLAlchemy builds the key from the positional parameters only.
        options = (self.accept, self.round_trip, id(self.payload_schema))
        return (*key, *options) if isinstance(key, tuple) else key

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.type_, self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "accept": self.accept,
            "round_trip": self.round_trip,
            "mutable": self.mutable,
            "eager": self.eager,
            "payload_schema": self.payload_schema,
        }

    def __repr__(self) -> str:
        return f"PydanticJSON({self.codec.name})"


class UnreadJSON(PydanticJSON[Any]):
    """The type for the ORM, which builds a value on first access."""

    cache_ok = True
    _selected_alone = False  # The instance has its key.

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[Any], Any]:
        load, text_of = self.load, self._text_getter(coltype)
        if coltype in JSON_OIDS:
            return lambda value: None if value is None else Unread(text_of(value), load)

        def process(value: Any) -> Unread | None:
            if isinstance(value, str):
                return Unread(value, load)
            return None if value is None else Unread(text_of(value), load)

        return process


def _restore(cls: Any, type_: Any, options: dict[str, Any]) -> Any:
    return cls(type_, **options)


_PLAIN = PydanticJSON[Any](Any, round_trip=False)
"""JSON of any type: a part of a value, or a value to compare with one."""
