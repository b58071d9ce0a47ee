"""Traits of a payload type, found in its Pydantic core schema.

They spare a value some of the work: :func:`is_frozen` returns whether it can be changed
in place, :func:`reads_alike` whether it reads back as it was written.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel

from .roundtrip import has_own_equality

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


Schema = dict[str, Any]

_IMMUTABLE = {
    *("none", "bool", "int", "float", "decimal", "complex", "str", "bytes", "uuid"),
    *("date", "time", "datetime", "timedelta", "literal", "enum", "url"),
    *("multi-host-url", "tuple", "frozenset", "dataclass-args", "dataclass-field"),
    *("model-fields", "model-field", "definition-ref", "definitions", "nullable"),
    *("default", "union", "tagged-union", "function-before", "function-after"),
    *("function-wrap", "json-or-python", "lax-or-strict", "chain", "json"),
}
NOT_SCHEMAS = {"serialization", "metadata", "config", "computed_fields"}
PARTS = (dict, list, tuple)
_NO_NODES = NOT_SCHEMAS | {"function"}


def fields_in(fields: Any) -> Iterator[tuple[str, Schema]]:
    """Return the fields of a model, a typed dictionary or a dataclass."""
    if isinstance(fields, dict):
        yield from fields.items()
    else:
        for field in fields:
            if isinstance(field, dict):  # A dataclass also lists its plain names.
                yield field["name"], field


class Traits(NamedTuple):
    """Traits of every value of a type; see the functions of the same names."""

    is_frozen: bool
    has_one_spelling: bool
    holds_sets: bool
    reads_alike: bool
    compares_by_value: bool
    runs_validators: bool


def traits_of(schema: Schema) -> Traits:
    """Return the traits of the values of *schema*."""
    every = nodes(schema)
    return Traits(
        is_frozen(every),
        has_one_spelling(every),
        holds_sets(every),
        reads_alike(schema),
        compares_by_value(every),
        runs_validators(every),
    )


def is_frozen(every: Iterable[Schema]) -> bool:
    """Return whether no value with *every* of these schemas can be changed in place.

    A validator is assumed to return the type that its field is annotated with.
    """
    return all(_is_frozen_itself(node) for node in every)


def _is_frozen_itself(node: Schema) -> bool:
    if node["type"] == "model":
        config = node["cls"].model_config
        return bool(config.get("frozen")) and config.get("extra") != "allow"
    if node["type"] == "dataclass":
        return bool(node["cls"].__dataclass_params__.frozen)
    return node["type"] in _IMMUTABLE


def holds_sets(every: Iterable[Schema]) -> bool:
    """Return whether there is a set, whose JSON is in arbitrary order."""
    return any(node["type"] in {"set", "frozenset"} for node in every)


def has_one_spelling(every: Iterable[Schema]) -> bool:
    """Return whether equal values have the same JSON, byte by byte.

    The keys of a model have the order of its fields, those of a dict any order.
    """
    fixed = _IMMUTABLE - {"frozenset"} | {"list", "dataclass"}
    return all(
        node["type"] in fixed
        or (
            node["type"] == "model" and node["cls"].model_config.get("extra") != "allow"
        )
        for node in every
    )


def compares_by_value(every: Iterable[Schema]) -> bool:
    """Return whether ``==`` compares every part of a value with *every* schema.

    An ``__eq__`` of the application may ignore a part, and a dataclass may exclude a
    field. The values of validators are compared by their JSON.
    """
    return all(
        _is_equality_of_pydantic(node["cls"])
        if node["type"] == "model"
        else not has_own_equality(node["cls"])
        for node in every
        if "cls" in node
    )


def _is_equality_of_pydantic(cls: type[BaseModel]) -> bool:
    if cls.__eq__ is BaseModel.__eq__:
        return True
    from pydantic import RootModel  # An application that has none need not load it.

    return cls.__eq__ is RootModel.__eq__


def runs_validators(every: Iterable[Schema]) -> bool:
    """Return whether validators may return values of any class."""
    made = {"function-plain", "function-after", "function-wrap"}
    return any(node["type"] in made for node in every)


def names_in(schema: Schema) -> frozenset[str]:
    """Return the names in *schema*: fields, aliases, tags, types.

    They are part of the code, so an error may show them; other keys are payload.
    """
    found: set[str] = set()
    for node in nodes(schema):
        found.add(node["type"])
        for name, field in fields_in(node.get("fields") or {}):
            aliases = (field.get("validation_alias"), field.get("serialization_alias"))
            found.update((name, *_strings(aliases)))
        if node["type"] == "tagged-union":
            found.update(str(tag) for tag in node["choices"])
        if "cls" in node:
            found.add(node["cls"].__name__)
    return frozenset(found)


def _strings(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, (list, tuple)):
        for each in part:
            yield from _strings(each)


def nodes(part: Any) -> list[Schema]:
    """Return each schema in *part* of a schema."""
    found, pending = [], [part]
    for each in pending:
        if isinstance(each, dict):
            if isinstance(each.get("type"), str):
                found.append(each)
            pending += [v for k, v in each.items() if k not in _NO_NODES]
        elif isinstance(each, (list, tuple)):
            pending += each
    return found


_PLAIN = {
    *("any", "none", "bool", "int", "float", "decimal", "str", "bytes", "uuid"),
    *("date", "time", "datetime", "timedelta", "literal", "enum"),
    *("list", "tuple", "set", "frozenset", "dict", "nullable", "union", "tagged-union"),
    *("model", "model-fields", "model-field", "typed-dict", "typed-dict-field"),
    *("dataclass", "dataclass-args", "dataclass-field"),
    *("default", "definitions", "definition-ref"),
}
_CODE = {"default_factory", "post_init", "custom_init", "function", "now_op"}
_NEVER_SCHEMAS = {"metadata", "config", "computed_fields", "default", "cls", "expected"}
_CONSTANTS = (
    *(type(None), bool, int, float, str, bytes, Enum),
    *(Decimal, UUID, date, time, datetime, timedelta),
)


def reads_alike(part: Any) -> bool:
    """Return whether a text of a schema, or a *part* of one, has one reading."""
    if isinstance(part, (list, tuple)):
        return all(reads_alike(child) for child in part)
    if not isinstance(part, dict):
        return True
    if not isinstance(part.get("type"), str):  # A dict of schemas by name.
        return all(reads_alike(child) for child in part.values())
    return (
        part["type"] in _PLAIN
        and not any(part[key] for key in _CODE & part.keys())
        and not callable(part.get("discriminator"))
        and (part["type"] != "enum" or not _finds_missing(part["cls"]))
        and _is_constant(part.get("default"))
        and "function" not in (part.get("serialization") or {})
        and all(
            reads_alike(child)
            for key, child in part.items()
            if isinstance(child, PARTS)
            and key not in _NEVER_SCHEMAS
            and key != "serialization"
        )
    )


def _finds_missing(enum: Any) -> bool:
    return enum._missing_.__func__ is not Enum._missing_.__func__  # type: ignore[attr-defined]


def _is_constant(default: Any) -> bool:
    """Return whether no change of a value can change its *default*."""
    if isinstance(default, _CONSTANTS):
        return True
    try:
        hash(default)
    except TypeError:
        return True  # Pydantic copies a default without a hash.
    return isinstance(default, (tuple, frozenset)) and all(map(_is_constant, default))
