"""Edits that leave a valid state valid, whatever else is in it.

Their result need not be validated before it counts, so one statement does all the work.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any, Final

from .edits import EditType, item_codec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..payload.separate import SeparateParts
    from .edits import Edit


_LARGEST: Final = 10**18
"""More than an int of 64 bits is not added without a look at the sum."""
_MOST: Final = 1024
"""How many decisions are kept for a class."""


def are_safe(parts: SeparateParts, edits: Sequence[Edit]) -> bool:
    """Return whether *edits* of a valid state make a valid one, if they find a place.

    Each changes another separate part of the state: to a value that was validated by
    the very schema of the part, by an item that the list takes as it takes all others,
    by the sum of an int without bounds, or to the default of a field.
    """
    paths = [tuple(edit.path.keys) for edit in edits]
    apart = not any(one[: len(other)] == other for one, other in permutations(paths, 2))
    return apart and all(_is_safe_once(parts, edit) for edit in edits)


def _is_safe_once(parts: SeparateParts, edit: Edit) -> bool:
    """Decide once for edits of one type at one path."""
    if edit.type is EditType.INCREMENT and abs(edit.value) >= _LARGEST:
        return False
    try:
        place = edit.type, edit.path.keys, edit.path.codec.type_
        known = parts.known.get(place)
    except TypeError:  # A type without a hash.
        return _is_safe(parts, edit)
    if known is None:
        if len(parts.known) >= _MOST:  # The keys of a dict may be any number.
            parts.known.clear()
        known = parts.known[place] = _is_safe(parts, edit)
    return known


def _is_safe(parts: SeparateParts, edit: Edit) -> bool:
    keys = edit.path.keys
    part = parts.at(keys)
    if not keys or part is None:
        return False
    if edit.type is EditType.REMOVE:
        return parts.may_be_missing(keys)
    if edit.type is EditType.INCREMENT:
        return parts.is_plain_int(part)
    codec, schema = edit.path.codec, part
    if edit.type is EditType.APPEND:
        item: Any = parts.item_of(part)
        if item is None:
            return False
        codec, schema = item_codec(codec.type_), item
    return parts.accepts(schema, codec.schema)
