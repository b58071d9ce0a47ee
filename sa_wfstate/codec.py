"""Codec: a Pydantic type, and its values as JSON text.

What a codec encodes has made the round trip: its text was read back and found to be the
same value. So what JSON or the model cannot keep is refused, with its path, before any
SQL is sent. Errors name paths and types, never the payload.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from .errors import PayloadError
from .payloads import Schema, has_one_spelling, holds_sets, is_frozen
from .roundtrip import difference, unordered, unstorable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .upcasters import PayloadSchema

T = TypeVar("T")

_FREQUENT = "0123456789aeinorst"
_AS_STORED: dict[str, Any] = {"by_alias": True, "round_trip": True}
# Problems that Pydantic describes with a piece of the input, or an application with
# whatever it likes.
_INDISCREET = frozenset(
    {"value_error", "assertion_error", "union_tag_invalid", "url_syntax_violation"}
)


class Codec(Generic[T]):
    """Dump and load values of *type_*, anything that TypeAdapter takes.

    *accept* and *round_trip* are those of :class:`~sa_wfstate.PydanticJSON`. With
    *payload_schema*, text of an older schema version is upcast when it is loaded.

    >>> Codec(dict[str, int]).encode({"a": 1})
    '{"a":1}'
    """

    def __init__(
        self,
        type_: Any,
        *,
        accept: Iterable[str] = (),
        round_trip: bool = True,
        payload_schema: PayloadSchema | None = None,
    ) -> None:
        self.name: str = getattr(type_, "__name__", str(type_))
        self._payload_schema = payload_schema
        self.accept = frozenset(accept)
        self.round_trip = round_trip
        self._adapter: TypeAdapter[T] = TypeAdapter(type_)
        self._traits: tuple[bool, bool, bool] | None = None

    @property
    def schema(self) -> Schema:
        """Pydantic's core schema of the type.

        Raises PydanticUserError while a name that the type refers to is not defined.
        """
        if not self._adapter.pydantic_complete:
            self._adapter.rebuild(raise_errors=True)
        schema: Any = self._adapter.core_schema
        return dict(schema)

    @property
    def frozen(self) -> bool:
        """Whether a value cannot be changed in place, at any depth."""
        return self._known_traits()[0]

    def _known_traits(self) -> tuple[bool, bool, bool]:
        if self._traits is None:
            schema = self.schema
            traits = (is_frozen(schema), has_one_spelling(schema), holds_sets(schema))
            self._traits = traits
        return self._traits

    def dump(self, value: T, *, where: str | None = None) -> str:
        """Return the JSON text of *value*; *where* names it in the error."""
        try:
            text = self._adapter.serializer.to_json(
                value, by_alias=True, round_trip=True, warnings="error"
            )
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            # Pydantic's message shows the value. Only what a serializer of the
            # application raised is passed on.
            raise self._cannot_dump(value, where) from error.__cause__
        return text.decode()

    def load(self, text: str | bytes, *, where: str | None = None) -> T:
        """Return the value that *text* holds; *where* names it in the error."""
        schema, read = self._payload_schema, text
        if schema is not None and isinstance(text, str):
            read = schema.read(text)
        try:
            value: T = self._adapter.validator.validate_json(read)
        except ValidationError as error:
            if where is None:
                where = self.name if schema is None else schema.where(str(text))
            raise PayloadError(where, *first_problem(error)) from None
        return value

    def encode(self, value: T, *, where: str | None = None) -> str:
        """Return the JSON text of *value*, having checked that it survives."""
        text = self.dump(value, where=where)
        self.check(value, text, where=where)
        return text

    def check(self, value: T, text: str, *, where: str | None = None) -> None:
        """Raise PayloadError unless *text*, the JSON of *value*, reads as the same."""
        found = None
        if "\\u0000" in text:
            found = unstorable(from_json(text))
        if found is None and self.round_trip:
            copy = self.load(text, where=where)
            if copy != value:
                found = difference(value, copy, self.accept)
        if found:
            raise PayloadError(where or self.name, *found)

    def same(self, text: str, other: str) -> bool:
        """Say whether two texts that :meth:`dump` returned stand for the same value."""
        if text == other:
            return True
        _, has_one_spelling, holds_sets = self._known_traits()
        if has_one_spelling or not _may_be_reordered(text, other):
            return False
        if canonical_json(text) == canonical_json(other):
            return True
        return holds_sets and self._without_order(text) == self._without_order(other)

    def _without_order(self, text: str) -> Any:
        try:
            plain = self._adapter.dump_python(self.load(text), **_AS_STORED)
        except TypeError:
            return text  # A set of models: as Python, dicts, which no set can hold.
        return unordered(plain)

    def _cannot_dump(self, value: Any, where: str | None) -> PayloadError:
        """Find out why: slowly, but only after it has failed."""
        where = where or self.name
        try:
            text = self._adapter.dump_json(value, warnings=False, **_AS_STORED)
            self.check(value, text.decode(), where=where)
        except PayloadError as error:
            return error
        except (PydanticSerializationError, ValueError, RecursionError):
            pass
        try:
            plain = self._adapter.dump_python(value, warnings=False, **_AS_STORED)
            found = unstorable(plain)
        except Exception:  # noqa: BLE001 - whatever a serializer raises, once more
            found = None
        problem = (
            f"is a {type(value).__name__} that is not a {self.name}, or holds what "
            "cannot be dumped"
        )
        return PayloadError(where, *(found or ("", problem)))


def canonical_json(text: str) -> str:
    """Return *text* with the keys of its objects in order.

    Numbers keep their spelling: 1, 1.0 and true are three values.
    """
    return json.dumps(json.loads(text), sort_keys=True)


def _may_be_reordered(text: str, other: str) -> bool:
    """Say, at little cost, whether two texts can differ in the order of keys only."""
    return len(text) == len(other) and all(
        text.count(character) == other.count(character) for character in _FREQUENT
    )


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the path and the message of the first problem, without the input."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[
        0
    ]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    problem = first["msg"]
    if first["type"] in _INDISCREET or "parsing" in first["type"]:
        problem = f"is not valid ({first['type']})"
    return ".".join(str(part) for part in first["loc"]), problem + more
