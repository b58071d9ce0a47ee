"""Compare a value with the copy that is read back from its JSON.

:func:`difference` finds the first part of a value that is lost. An error may show paths
and names of types, never values. A path is a tuple of names and numbers; a key that is
not a text is a ``*``.
"""

from __future__ import annotations

import dataclasses
from types import WrapperDescriptorType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator


Path = tuple[str | int, ...]
Parts = list[tuple[str | int, Any, Any]]

ANY = "*"
_DEEP = 100


def difference(
    value: Any, copy: Any, accepted: Collection[str] = (), path: Path = ()
) -> tuple[Path, str] | None:
    """Return path and kind of the first difference between *value* and *copy*, or None.

    Models are compared field by field, except for *accepted* fields
    (``"OrderState.password"``). Private attributes and cached properties are not part
    of a payload.
    """
    if value is copy:
        return None
    parts = _parts(value, copy, accepted)
    if isinstance(parts, str):
        return path, parts
    for key, part, other in parts:
        found = difference(part, other, accepted, (*path, key))
        if found:
            return found
    return None


def _parts(value: Any, copy: Any, accepted: Collection[str]) -> Parts | str:
    """Return the parts to compare one by one, or the difference found here."""
    same_type = type(value) is type(copy)
    if isinstance(value, dict) and isinstance(copy, dict):
        return _items(value, copy)
    if same_type and (isinstance(value, BaseModel) or dataclasses.is_dataclass(value)):
        name = type(value).__name__
        return [
            part for part in _fields(value, copy) if f"{name}.{part[0]}" not in accepted
        ]
    if same_type and isinstance(value, (list, tuple)) and len(value) == len(copy):
        return list(zip(range(len(value)), value, copy, strict=True))
    if _is_kept(value, copy):
        return []
    before, after = type(value).__name__, type(copy).__name__
    another = "another value" if same_type else f"a {after}"
    return f"holds a {before} that would be read back as {another}"


def _is_kept(value: Any, copy: Any) -> bool:
    """Return whether *copy* equals *value*, which has no parts to compare.

    An ``__eq__`` of the application is called only for objects of one type; their JSON
    is compared as well then.
    """
    if type(value) is type(copy):
        # An object without __eq__ equals only itself, and a NaN not even itself.
        is_nan = value != value and copy != copy  # noqa: PLR0124
        has_equality = "__eq__" in _defined_by(type(value))
        return is_nan or value == copy or not has_equality
    return not (has_own_equality(type(value)) or has_own_equality(type(copy))) and (
        bool(value == copy)
    )


def has_own_equality(cls: type[Any]) -> bool:
    """Return whether ``==`` of *cls* is a Python function, which may ignore parts."""
    return not isinstance(cls.__eq__, WrapperDescriptorType)


def _items(value: dict[Any, Any], copy: dict[Any, Any]) -> Parts | str:
    for key in value:
        if key not in copy:
            return f"has a key of type {type(key).__name__}, which JSON changes"
    if len(value) != len(copy):
        return "has keys that are equal in JSON"
    return [(_shown(key), part, copy[key]) for key, part in value.items()]


def _shown(key: object) -> str:
    return key if isinstance(key, str) else ANY


def _defined_by(cls: type[Any]) -> set[str]:
    return {name for base in cls.__mro__[:-1] for name in base.__dict__}


def _fields(value: Any, copy: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield key, value.__dict__.get(key), copy.__dict__.get(key)
        for key, extra in (value.model_extra or {}).items():
            yield key, extra, (copy.model_extra or {}).get(key)
    else:
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name), getattr(copy, field.name)


def culprit(value: Any, dumps: Callable[[Any], bool]) -> tuple[Path, Any, str | None]:
    """Find the innermost part of *value* that cannot be dumped.

    *dumps* returns whether the part that Pydantic's *include* selects can be dumped.
    Returns the path, the part, and the problem if it lies in the nesting itself.
    """
    keys: tuple[Any, ...] = ()
    path: Path = ()
    above = [value]
    while len(keys) < _DEEP:
        bad = (
            (key, part)
            for key, part in children(above[-1])
            if not dumps(_include((*keys, key)))
        )
        found = next(bad, None)
        if found is None:
            return path, above[-1], None
        key, part = found
        is_dict = isinstance(above[-1], dict)
        keys, path = (*keys, key), (*path, _shown(key) if is_dict else key)
        if any(part is each for each in above):
            return path, part, "holds itself"
        above.append(part)
    return path, above[-1], "is nested too deeply"


def children(value: Any) -> list[tuple[Any, Any]]:
    """Return the parts of *value* by name, key or number; a set has none."""
    if isinstance(value, BaseModel):
        return [*value.__dict__.items(), *(value.model_extra or {}).items()]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names]
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else []


def _include(keys: tuple[Any, ...]) -> Any:
    include: Any = {keys[-1]}
    for key in reversed(keys[:-1]):
        include = {key: include}
    return include


def unstorable(value: Any, path: Path = ()) -> tuple[Path, str] | None:
    """Return path and kind of the first text in *value* that PostgreSQL refuses.

    *value* consists of JSON types and sets.
    """
    if isinstance(value, str):
        problem = unstorable_text(value)
        return (path, problem) if problem else None
    is_dict = isinstance(value, dict)
    if isinstance(value, (set, frozenset)):
        value = list(value)
    for key, part in children(value):
        problem = unstorable_text(key) if isinstance(key, str) else None
        if problem:
            return path, f"has a key that {problem}"
        found = unstorable(part, (*path, _shown(key) if is_dict else key))
        if found:
            return found
    return None


def unstorable_text(text: str) -> str | None:
    """Return why PostgreSQL cannot store *text*, None if it can."""
    if "\0" in text:
        return "contains NUL, which PostgreSQL cannot store"
    if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
        return "contains a lone surrogate, which is not a character"
    return None


def unordered(value: Any) -> Any:
    """Return *value*, dumped as Python, in a form in which equal sets are equal."""
    if isinstance(value, dict):
        return {repr(key): unordered(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [unordered(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(repr(unordered(part)) for part in value)}
    return repr(value)
