"""Canonical JSON: compare texts, and predict how JSONB writes numbers."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, Final

from pydantic_core import from_json, to_json

from .roundtrip import children

_FREQUENT = "0123456789aeinorst"

# Pydantic before 2.13 writes 1e23, later ones write 1e+23.
_WRITES_PLUS = b"+" in to_json(1e23)
_EXPONENT = re.compile(r"\de\d")

# json.dumps() would build an encoder each time.
_encode: Final = json.JSONEncoder(sort_keys=True).encode


def holds_nul(text: str) -> bool:
    """Return whether the JSON *text* may hold a NUL."""
    # The search for one character is much faster.
    return "\\" in text and "\\u0000" in text


def canonical_json(text: str) -> str:
    """Return *text* with the keys of its objects sorted.

    Numbers keep their kind: 1, 1.0 and true are three values.
    """
    return canonical_dump(read_json(text))


def canonical_dump(data: Any) -> str:
    """Return the canonical JSON of *data*."""
    return _encode(data)


def read_json(text: str | bytes) -> Any:
    """Return what json.loads() returns, in less time; ValueError if it is not JSON."""
    try:
        return from_json(text)
    except ValueError:  # Also for what is nested deeply, and for half a surrogate pair.
        return json.loads(text)


def may_be_reordered(text: str, other: str) -> bool:
    """Return, at little cost, whether two texts may differ only in their order."""
    return len(text) == len(other) and all(
        text.count(character) == other.count(character) for character in _FREQUENT
    )


def respelled(text: str) -> str:
    """Return the JSON *text* with its numbers as JSONB writes them, without exponents.

    Raises ValueError with the number if one is not JSON.
    """

    def number(spelling: str) -> int | float:
        exact = Decimal(spelling)
        scale = -int(exact.as_tuple().exponent)
        return float(spelling) if scale > 0 else int(exact)

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.dumps(json.loads(text, parse_float=number, parse_constant=refuse))


def may_be_respelled(text: str) -> bool:
    """Return whether :func:`respelled` may change *text*, written by Pydantic."""
    if "NaN" in text or "Infinity" in text:
        return True
    # The search for one character is much faster.
    if _WRITES_PLUS:
        return "+" in text and "e+" in text
    return _EXPONENT.search(text) is not None


class Unordered(list[Any]):
    """The elements of a set, sorted: an index means nothing."""

    __slots__ = ()


def in_one_order(value: Any, data: Any) -> Any:
    """Return *data*, the JSON of *value*, with the sets of *value* sorted."""
    if not isinstance(data, (dict, list)):
        return data
    if getattr(type(value), "__pydantic_root_model__", False):
        value = value.root
    if isinstance(data, list) and isinstance(value, (list, tuple, set, frozenset)):
        parts = [in_one_order(*each) for each in zip(value, data, strict=False)]
        if len(parts) != len(data):
            return data  # A serializer has changed it.
        is_set = isinstance(value, (set, frozenset))
        return Unordered(sorted(parts, key=canonical_dump)) if is_set else parts
    if not isinstance(data, dict):
        return data
    if isinstance(value, dict):
        if len(value) != len(data):
            return data
        of_key = dict(zip(data, value.values(), strict=True))
    else:
        fields = getattr(type(value), "__pydantic_fields__", {})
        of_key = {
            getattr(fields.get(name), "serialization_alias", None) or name: part
            for name, part in children(value)
        }
    return {key: in_one_order(of_key.get(key), part) for key, part in data.items()}
