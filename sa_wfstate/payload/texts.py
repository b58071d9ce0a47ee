"""Texts: the JSON of values of a Pydantic type, which is dumped, loaded and compared.

Errors name paths and types, never the payload: a key that the type does not name is
shown as ``*``.
"""

from __future__ import annotations

import json
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from ..errors import PayloadError
from .canonical import canonical_json, holds_nul, may_be_reordered
from .roundtrip import ANY, culprit, unordered, unstorable
from .schema_versions import STORED_TWICE, is_stored_twice
from .traits import Schema, Traits, names_in, traits_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from .roundtrip import Path
    from .schema_versions import PayloadSchema


T = TypeVar("T")

_TELLING = '"01e'
_LONGEST_PATH = 8
AS_STORED: dict[str, Any] = {"by_alias": True, "round_trip": True}
# Problems whose description may hold a part of the input.
_INDISCREET = frozenset(
    {"value_error", "assertion_error", "union_tag_invalid", "url_syntax_violation"}
)


class Texts(Generic[T]):
    """The texts of values of *type_*, anything that TypeAdapter takes.

    With *payload_schema*, text of an older schema version is upcast when it is loaded.
    """

    def __init__(
        self, type_: Any, *, payload_schema: PayloadSchema | None = None
    ) -> None:
        self.type_ = type_
        self.name: str = getattr(type_, "__name__", str(type_))
        self._payload_schema = payload_schema
        self._adapter: TypeAdapter[T] = TypeAdapter(type_)
        self._names: frozenset[str] | None = None

    @property
    def schema(self) -> Schema:
        """Pydantic's core schema of the type.

        Raises PydanticUserError while a name that the type refers to is not defined.
        """
        if not self._adapter.pydantic_complete:
            self._adapter.rebuild(raise_errors=True)
        schema: Any = self._adapter.core_schema
        return dict(schema)

    @cached_property
    def frozen(self) -> bool:
        """Whether a value cannot be changed in place, at any depth."""
        return self.traits.is_frozen

    @cached_property
    def reads_alike(self) -> bool:
        """Whether a text is read as the same value each time."""
        return self.traits.reads_alike

    @cached_property
    def traits(self) -> Traits:
        """The traits of every value of the type."""
        return traits_of(self.schema)

    def dump(self, value: T, *, where: str | None = None) -> str:
        """Return the JSON text of *value*; *where* names it in the error."""
        try:
            text = self._adapter.serializer.to_json(
                value, by_alias=True, round_trip=True, warnings="error"
            )
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            looked_at = self._second_look(value, where)
            if isinstance(looked_at, PayloadError):
                # Pydantic's message shows the value; an error of the application's own
                # serializer stays the cause.
                raise looked_at from error.__cause__
            return looked_at
        return text.decode()

    def _second_look(self, value: Any, where: str | None) -> str | PayloadError:
        """Return the text of a value that Pydantic does not dump, or the error."""
        return self._cannot_dump(value, where)

    def load(self, text: str | bytes, *, where: str | None = None) -> T:
        """Return the value in *text*; *where* names it in the error."""
        schema, read = self._payload_schema, text
        if schema is not None and isinstance(text, str):
            read = schema.read(text)
        try:
            # Not by _validate(): a state is loaded for each row that is read.
            return self._adapter.validator.validate_json(read)  # type: ignore[no-any-return]
        except ValidationError as error:
            if where is None:
                where = self.name if schema is None else schema.where(str(text))
            if _is_stored_twice(read):
                raise PayloadError(where, "", STORED_TWICE) from None
            raise self.refusal(where, *first_problem(error)) from None

    def value_of(self, document: Any) -> T:
        """Return the value of a JSON *document*, validated in full."""
        return self.load(to_json(document, inf_nan_mode="constants").decode())

    def _validate(self, text: str | bytes) -> T:
        value: T = self._adapter.validator.validate_json(text)
        return value

    def refuse_nul(self, text: str, *, where: str | None = None) -> None:
        """Raise PayloadError if there is a NUL in the JSON *text*."""
        if not holds_nul(text):
            return
        try:
            plain = from_json(text)
        except ValueError:  # An integer of more than 4,300 digits, say.
            plain = json.loads(text, parse_int=float)
        found = unstorable(plain)
        if found is not None:
            raise self.refusal(where, *found)

    def refusal(self, where: str | None, path: Path, problem: str) -> PayloadError:
        if self._names is None:
            self._names = names_in(self.schema)
        return PayloadError(where or self.name, shown(path, self._names), problem)

    def stands_for(self, stored: str, text: str) -> tuple[bool, T | None]:
        """Return whether *stored*, read from a row, is the value dumped as *text*.

        JSONB has its own order of keys and its own spacing. Also returns the value of
        *stored* if it had to be read.
        """
        if stored == text:
            return True, None
        if any(stored.count(each) != text.count(each) for each in _TELLING):
            return False, None  # Much faster than the comparison below.
        copy = self.load(stored)
        return self.same(text, self.dump(copy)), copy

    def same(self, text: str, other: str) -> bool:
        """Return whether two texts from :meth:`dump` stand for the same value."""
        if text == other:
            return True
        traits = self.traits
        if traits.has_one_spelling or not may_be_reordered(text, other):
            return False
        if canonical_json(text) == canonical_json(other):
            return True
        return traits.holds_sets and self._without_order(text) == self._without_order(
            other
        )

    def _without_order(self, text: str) -> Any:
        try:
            plain = self._adapter.dump_python(self.load(text), **AS_STORED)
        except TypeError:
            return text  # A set of models: as dicts, they cannot be in a set.
        return unordered(plain)

    def _cannot_dump(self, value: Any, where: str | None) -> PayloadError:
        try:
            plain = self._adapter.dump_python(value, warnings=False, **AS_STORED)
            found = unstorable(plain)
        except Exception:  # noqa: BLE001 - a serializer may raise any error
            found = None
        if found is None:
            path, part, problem = culprit(value, partial(self._dumps, value))
            kind = type(part).__name__
            other = "" if path or kind == self.name else f", not {self.name}"
            problem = problem or f"is of type {kind}{other}, and cannot be dumped"
            found = path, problem
        return self.refusal(where, *found)

    def _dumps(self, value: Any, include: Any) -> bool:
        try:
            self._adapter.serializer.to_json(
                value, include=include, warnings="error", **AS_STORED
            )
        except Exception:  # noqa: BLE001 - a serializer may raise any error
            return False
        return True


def shown(path: Path, declared: Collection[str]) -> str:
    """Return *path* as a text; names that are not *declared* are part of a payload."""
    parts = [
        str(part) if isinstance(part, int) or part in declared else ANY
        for part in path[:_LONGEST_PATH]
    ]
    return ".".join(parts + ["…"] * (len(path) > _LONGEST_PATH))


def _is_stored_twice(text: str | bytes) -> bool:
    try:
        return is_stored_twice(from_json(text))
    except ValueError:
        return False


def first_problem(error: ValidationError) -> tuple[Path, str]:
    """Return the path and the message of the first problem, without the input."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[
        0
    ]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    problem = first["msg"]
    if first["type"] in _INDISCREET or "parsing" in first["type"]:
        problem = f"is not valid ({first['type']})"
    return first["loc"], problem + more
