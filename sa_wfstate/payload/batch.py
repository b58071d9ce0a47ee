"""Encode many values of one codec by two calls of Pydantic's core.

A call for each value costs more than the dump of a small value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import (
    PydanticSerializationError,
    SchemaSerializer,
    SchemaValidator,
    core_schema,
)

from .canonical import holds_nul, may_be_respelled
from .texts import AS_STORED

if TYPE_CHECKING:
    from .codec import Codec

T = TypeVar("T")

_REFUSED = (PydanticSerializationError, ValidationError, ValueError, RecursionError)


class BatchCodec(Generic[T]):
    """Encode many values as *codec* encodes each; without *round_trip*, dump them."""

    def __init__(self, codec: Codec[T], *, round_trip: bool) -> None:
        self._codec = codec
        self._round_trip = round_trip
        schema: Any = codec.schema
        config = _config_of(codec.type_, schema)
        # With round_trip, Pydantic's Json[…] dumps its content as text.
        texts = core_schema.list_schema(core_schema.json_schema(schema))
        self._usable = (
            config is not None and not codec.accept and codec.traits.compares_by_value
        )
        self._validates = codec.traits.runs_validators
        self._serializer = SchemaSerializer(texts, config)
        self._validator = SchemaValidator(texts, config)

    def encode(self, values: list[T]) -> tuple[list[str], list[Any]] | None:
        """Return the texts of *values*, and the values read back from them.

        Each of these is None without the round trip, and if all survive for sure.
        Returns None if the codec must encode the values one by one, because it may
        refuse one of them.
        """
        if not self._usable:
            return None
        copies: list[Any] = [None] * len(values)
        try:
            texts = self._dump(values)
            together = " ".join(texts)
            read_back = self._round_trip and not self._codec.survive_for_sure(
                values, together
            )
            if read_back:
                copies = self._validator.validate_python(texts)
        except _REFUSED:
            return None
        if holds_nul(together) or may_be_respelled(together):
            return None
        if read_back and (
            copies != values or (self._validates and self._dump(copies) != texts)
        ):
            return None
        return texts, copies

    def dump(self, values: list[T]) -> list[str] | None:
        """Return the texts of *values*, unchecked; None if it has to be one by one."""
        if not self._usable:
            return None
        try:
            return self._dump(values)
        except _REFUSED:
            return None

    def _dump(self, values: list[T]) -> list[str]:
        texts: list[str] = self._serializer.to_python(
            values, mode="json", warnings="error", **AS_STORED
        )
        return texts


def _config_of(type_: Any, schema: Any) -> Any:
    """Return the configuration for dumping values of *type_*, None if not known."""
    if get_origin(type_) in {dict, list}:
        return {}
    if not (isinstance(type_, type) and issubclass(type_, BaseModel)):
        return None
    # A recursive model is one of the definitions.
    for part in (schema, *schema.get("definitions", ())):
        model = part
        while model is not None and model["type"] != "model":
            model = model.get("schema")  # Validators wrap the schema of the model.
        if model is not None and model["cls"] is type_:
            return model.get("config", {})
    return None
