"""Codec: dump values of a Pydantic type as JSON text, and load them.

A codec checks the round trip: it reads each text back and compares the values, unless
the types of its parts tell that it survives (:mod:`~sa_wfstate.payload.exact`). So a
value that JSON or the model cannot keep is refused, with its path, before any SQL is
sent. Errors name paths and types, never the payload: a key that the type does not name
is shown as ``*``.
"""

from __future__ import annotations

import json
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from ..errors import PayloadError
from .canonical import (
    canonical_json,
    holds_nul,
    may_be_reordered,
    may_be_respelled,
    respelled,
)
from .losses import losses
from .roundtrip import ANY, culprit, difference, unordered, unstorable
from .schema_versions import STORED_TWICE, is_stored_twice
from .traits import Schema, Traits, names_in, traits_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .exact import Survive
    from .roundtrip import Path
    from .schema_versions import PayloadSchema


T = TypeVar("T")

_TELLING = '"01e'
_LONGEST_PATH = 8
_SHORT = 400
"""Characters up to which reading a text takes no longer than looking at its value."""
AS_STORED: dict[str, Any] = {"by_alias": True, "round_trip": True}
# Problems whose description may hold a part of the input.
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
        self.type_ = type_
        self.name: str = getattr(type_, "__name__", str(type_))
        self._payload_schema = payload_schema
        self.accept = frozenset(accept)
        self.round_trip = round_trip
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

    @cached_property
    def losses(self) -> dict[str, str]:
        """What no value of the type can keep, by ``Model.field``."""
        return losses(self.schema)

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

    def encode(self, value: T, *, where: str | None = None) -> str:
        """Return the JSON text of *value*, having checked that it survives."""
        text = self.dump(value, where=where)
        self.check(value, text, where=where)
        return text

    def check(self, value: T, text: str, *, where: str | None = None) -> T | None:
        """Raise PayloadError unless *text*, the JSON of *value*, reads as the same.

        Returns what it was read as; None without the round trip, and if it survives for
        sure.
        """
        self.refuse_nul(text, where=where)
        if not self.round_trip or (
            len(text) > _SHORT and self.survive_for_sure([value], text)
        ):
            return None
        return self._read_back(value, text, where)

    @cached_property
    def survive_for_sure(self) -> Survive:
        """A function that tells of values without a doubt; others must be read back."""
        from .exact import exact_check

        return exact_check(self.schema) or (lambda *_: False)

    def _read_back(self, value: T, text: str, where: str | None) -> T:
        copy, traits = self._reread(text, where), self.traits
        found = None
        if copy != value or not traits.compares_by_value:
            found = difference(value, copy, self.accept)
        # Something in it may have been compared by code of the application.
        by_json = traits.runs_validators or not traits.compares_by_value
        if by_json and not (found or self.accept or self.same(text, self.dump(copy))):
            found = (), "would be read back as another value"
        if (
            found
            and not found[0]
            and isinstance(value, dict)
            and not isinstance(copy, dict)
        ):
            found = (), f"is a dict, not {self.name}; make it one: {self.name}(**…)"
        if found is None and may_be_respelled(text):
            found = self._lost_by_jsonb(value, text, where)
        if found:
            raise self.refusal(where, *found)
        return copy

    def _reread(self, text: str, where: str | None) -> T:
        try:
            return self._validate(text)
        except ValidationError as error:
            path, problem = first_problem(error)
            first = error.errors(include_input=False)[0]
            if first["type"] == "json_invalid":
                problem = "is nested too deeply"
                if "out of range" in first["msg"]:
                    problem = "holds an integer of more than 4,300 digits"
            raise self.refusal(where, path, problem) from None

    def _lost_by_jsonb(
        self, value: T, text: str, where: str | None
    ) -> tuple[Path, str] | None:
        try:
            stored = respelled(text)
        except ValueError as error:
            found = unstorable(json.loads(text, parse_constant=lambda _: "\0"))
            return found and (found[0], f"holds {error}, which is not JSON")
        found = difference(value, self._reread(stored, where), self.accept)
        return found and (found[0], f"{found[1]}; declare it as float to keep it")

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

    def _second_look(self, value: Any, where: str | None) -> str | PayloadError:
        """Return the JSON of a value of another type that is read back as equal.

        Otherwise return the error. This is slow, but only runs after a failed dump.
        """
        try:
            text = self._adapter.dump_json(value, warnings=False, **AS_STORED).decode()
            self.refuse_nul(text, where=where)
            return self._adapter.dump_json(
                self._read_back(value, text, where), warnings="error", **AS_STORED
            ).decode()
        except PayloadError as error:
            return error
        except (PydanticSerializationError, ValueError, RecursionError):
            return self._cannot_dump(value, where)

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


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


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
