"""Edits of a state: what a patch does at a path, and the values that it sends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, overload

from sqlalchemy import ColumnElement

from ..errors import MappingError, PayloadError
from ..payload.codec import Codec
from .fields import Field
from .paths import path_of

if TYPE_CHECKING:
    from .paths import Path
    from .types import PydanticJSON


V = TypeVar("V")
NumberT = TypeVar("NumberT", int, float, Decimal)

_NUMBERS: Final[dict[str, tuple[type[Any], ...]]] = {
    "int": (int,),
    "float": (int, float),
    "decimal": (int, Decimal),
}
_LISTS: Final = {"list", "tuple"}


class EditType(StrEnum):
    """What an edit does."""

    SET = "set_to"
    INCREMENT = "increment"
    APPEND = "append"
    REMOVE = "remove"


class EditShape(NamedTuple):
    """What the SQL of an edit depends on: not its keys, and not its value.

    *steps* says of each key whether it is an index of a list.
    """

    type: EditType
    kind: str
    steps: tuple[bool, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Edit:
    """One change of a state, at one path; made by :func:`set_to` and the like."""

    type: EditType
    path: Path
    value: Any = None

    @property
    def shape(self) -> EditShape:
        """What the SQL of the edit depends on."""
        kind = self.path.kind if self.type is EditType.INCREMENT else ""
        steps = tuple(isinstance(key, int) for key in self.path.keys)
        return EditShape(self.type, kind, steps)

    @property
    def path_text(self) -> str:
        """The path as the text of a JSON array of strings."""
        return json.dumps([str(key) for key in self.path.keys], ensure_ascii=False)

    def value_text(self, state_type: PydanticJSON[Any], where: str) -> str | None:
        """Return the value as it is bound; PayloadError, with *where*, if it is wrong.

        A value is JSON, that of an increment a number.
        """
        if self.type is EditType.REMOVE:
            return None
        try:
            if self.type is EditType.INCREMENT:
                return self._number()
            codec = self.path.codec
            if self.type is EditType.APPEND:
                codec = item_codec(codec.type_)
            return codec.encode(self.value)
        except PayloadError as error:
            refused = self.refusal(state_type, where, error.problem)
            path = ".".join(filter(None, (refused.path, error.path)))
            raise PayloadError(where, path, error.problem) from error.__cause__

    def _number(self) -> str:
        kinds, number = _NUMBERS[self.path.kind], self.value
        if type(number) not in kinds or not isfinite(number):  # True is an int.
            names = " or ".join(each.__name__ for each in kinds)
            raise PayloadError("", "", f"is incremented by a finite {names} only")
        return str(number)

    def refusal(
        self, state_type: PydanticJSON[Any], where: str, problem: str
    ) -> PayloadError:
        """Return the error of this edit; a key that no type names is not shown."""
        return state_type.codec.refusal(where, self.path.keys, problem)

    def __repr__(self) -> str:
        # Neither the value nor the keys: they are payload.
        return f"<{self.type} of {self.path.codec.name}>"


@lru_cache(maxsize=256)
def item_codec(type_: Any) -> Codec[Any]:
    """Return the codec of the items of the list *type_*."""
    type_of_item, _ = vars(Field(type_, ())[0]).values()
    return Codec(type_of_item)


def set_to(path: ColumnElement[V], value: V) -> Edit:
    """Set the field at *path*; missing parents are created as objects."""
    return Edit(EditType.SET, _checked(EditType.SET, path), value)


@overload
def increment(path: ColumnElement[NumberT], amount: NumberT) -> Edit: ...
@overload
def increment(path: ColumnElement[NumberT | None], amount: NumberT) -> Edit: ...
def increment(path: Any, amount: Any) -> Edit:
    """Add *amount* to the number at *path*; a missing one, or None, counts as 0.

    Raises MappingError unless the field is an int, a float or a Decimal.
    """
    edit = Edit(EditType.INCREMENT, _checked(EditType.INCREMENT, path), amount)
    if edit.path.kind not in _NUMBERS:
        problem = f"takes the path of a number, got one of {edit.path.codec.name}"
        raise MappingError(EditType.INCREMENT, problem)
    return edit


@overload
def append(path: ColumnElement[list[V]], item: V) -> Edit: ...
@overload
def append(path: ColumnElement[list[V] | None], item: V) -> Edit: ...
@overload
def append(path: ColumnElement[tuple[V, ...]], item: V) -> Edit: ...
@overload
def append(path: ColumnElement[tuple[V, ...] | None], item: V) -> Edit: ...
def append(path: Any, item: Any) -> Edit:
    """Append *item* to the list at *path*; a missing one, or None, counts as empty.

    Raises MappingError unless the field is a list or a tuple.
    """
    edit = Edit(EditType.APPEND, _checked(EditType.APPEND, path), item)
    if edit.path.kind not in _LISTS:
        problem = f"takes the path of a list, got one of {edit.path.codec.name}"
        raise MappingError(EditType.APPEND, problem)
    return edit


def remove(path: ColumnElement[Any]) -> Edit:
    """Remove the field, the key of a dict or the item of a list at *path*.

    A key that is missing stays missing; an index out of range is refused. A field of a
    model has its default from then on.
    """
    edit = Edit(EditType.REMOVE, _checked(EditType.REMOVE, path))
    if not edit.path.keys:
        raise MappingError(EditType.REMOVE, "cannot remove the state; delete the row")
    return edit


def _checked(type_: EditType, path: Any) -> Path:
    found = path_of(path)
    if found is None:
        raise MappingError(type_, "takes a path that field_of() has returned")
    return found
