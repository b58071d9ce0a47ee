"""Codec: check that the values of a Pydantic type survive as JSON text.

A codec checks the round trip: it reads each text back and compares the values, unless
the types of its parts tell that it survives (:mod:`~sa_wfstate.payload.exact`). So a
value that JSON or the model cannot keep is refused, with its path, before any SQL is
sent.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from ..errors import PayloadError
from .canonical import may_be_respelled, respelled
from .losses import losses
from .roundtrip import difference, unstorable
from .texts import AS_STORED, Texts, first_problem
from .traits import nodes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .exact import Survive
    from .roundtrip import Path
    from .schema_versions import PayloadSchema


T = TypeVar("T")

_SHORT = 40
"""Characters up to which reading a text takes no longer than looking at one part."""
_NOT_LOOKED_AT = frozenset(
    {"bool", "default", "enum", "list", "model-field", "model-fields", "str"}
)


class Codec(Texts[T]):
    """Dump and load values of *type_*, anything that TypeAdapter takes, and check them.

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
        super().__init__(type_, payload_schema=payload_schema)
        self.accept = frozenset(accept)
        self.round_trip = round_trip

    @cached_property
    def losses(self) -> dict[str, str]:
        """What no value of the type can keep, by ``Model.field``."""
        return losses(self.schema)

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
        if "\\" in text:
            self.refuse_nul(text, where=where)
        if not self.round_trip or (
            len(text) > self._short and self.survive_for_sure([value], text)
        ):
            return None
        return self._read_back(value, text, where)

    @cached_property
    def _short(self) -> int:
        """Characters up to which reading a text takes no longer."""
        every = nodes(self.schema)
        return _SHORT * sum(node["type"] not in _NOT_LOOKED_AT for node in every)

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
