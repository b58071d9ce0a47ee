"""A stand-in for a value of a type, which records access to fields and items.

:class:`Field` knows models, dataclasses, TypedDicts, lists, tuples, dicts, and their
unions. It records the JSON keys of the path, and refuses a field that does not exist.
"""

from __future__ import annotations

import dataclasses
import json
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, RootModel

from ..errors import MappingError
from ..payload.codec import Codec

Key = str | int


class Field:
    """Stand in for the value of *type_* at *keys*."""

    def __init__(self, type_: Any, keys: tuple[Key, ...]) -> None:
        # No field of a Pydantic model starts with an underscore.
        self._type = type_
        self._keys = keys

    def __getattr__(self, name: str) -> Field:
        found = [
            part
            for each in _choices(self._type)
            if (part := _attribute(each, name)) is not None
        ]
        return self._part(found, f"field {name!r}")

    def __getitem__(self, key: Any) -> Field:
        found = [
            part
            for each in _choices(self._type)
            if (part := _item(each, key)) is not None
        ]
        return self._part(found, f"item of type {type(key).__name__}")

    def _part(self, found: list[tuple[tuple[Key, ...], Any]], what: str) -> Field:
        keys = {keys for keys, _ in found}
        if len(keys) != 1:
            name = getattr(self._type, "__name__", str(self._type))
            raise MappingError(name, f"has no {what}, at {list(self._keys)}")
        type_: Any = Union[tuple(type_ for _, type_ in found)]  # noqa: UP007
        return Field(type_, self._keys + keys.pop())


def _choices(type_: Any) -> list[Any]:
    """Return the types that a value of *type_* may have, except None."""
    if type(type_).__name__ == "TypeAliasType":
        return _choices(type_.__value__)
    if get_origin(type_) is Annotated:
        return _choices(get_args(type_)[0])
    if get_origin(type_) in {Union, types.UnionType}:
        return [each for arg in get_args(type_) for each in _choices(arg)]
    return [] if type_ is type(None) else [type_]


def _attribute(type_: Any, name: str) -> tuple[tuple[Key, ...], Any] | None:
    cls = get_origin(type_) or type_
    if isinstance(cls, type) and issubclass(cls, RootModel) and name == "root":
        return (), type_.model_fields["root"].annotation
    fields = getattr(type_, "__pydantic_fields__", {})
    if name in fields:
        field = fields[name]
        return (field.serialization_alias or name,), field.rebuild_annotation()
    if dataclasses.is_dataclass(cls) and name in cls.__dataclass_fields__:
        return (name,), get_type_hints(cls, include_extras=True)[name]
    return None


def _item(type_: Any, key: Any) -> tuple[tuple[Key, ...], Any] | None:
    origin, arguments = get_origin(type_) or type_, get_args(type_)
    if hasattr(origin, "__required_keys__"):  # A TypedDict of any module.
        hints = get_type_hints(origin)
        return ((key,), hints[key]) if key in hints else None
    if origin is Any:
        return (key,), Any
    if not isinstance(origin, type) or issubclass(origin, (str, BaseModel)):
        return None
    if issubclass(origin, dict):
        key_type, value_type = arguments or (Any, Any)
        of_key: Any = dict[key_type, None]  # type: ignore[valid-type]
        (text,) = json.loads(Codec[Any](of_key).dump({key: None}))
        return (text,), value_type
    if issubclass(origin, (list, tuple)) and isinstance(key, int):
        one_each = origin is tuple and arguments and arguments[-1] is not Ellipsis
        return (key,), arguments[key if one_each else 0] if arguments else Any
    return None
