"""Compare two JSON documents: the paths at which they differ, as JSON Pointers.

Objects are compared key by key. A list that has only got new elements at its end
differs in these; any other list differs as a whole, since an index means another
element once one was inserted. Numbers keep their kind: 1, 1.0 and true are three
values.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic_core import from_json

from .canonical import Unordered, in_one_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .codec import Codec
    from .roundtrip import Path


class _Absent:
    """What is there where a document has no value; None is JSON's null."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


class Change(NamedTuple):
    """One difference: its path, and the values there, ABSENT where there is none."""

    path: Path
    before: Any
    after: Any

    @property
    def pointer(self) -> str:
        """The path as a JSON Pointer."""
        return pointer_of(self.path)


def document_of(codec: Codec[Any], text: str) -> Any:
    """Return the JSON document that *codec* writes for the value in *text*.

    So defaults of new fields are there, older schema versions are in the current
    shape, and sets have one order. *text* may be marked.
    """
    value = codec.load(text)
    document = from_json(codec.dump(value))
    return in_one_order(value, document) if codec.traits.holds_sets else document


def pointers_of(
    codec: Codec[Any], base: str, mine: str, theirs: str
) -> tuple[list[str], list[str]]:
    """Return where the texts *mine* and *theirs* of *codec* differ from *base*."""
    before, *after = (document_of(codec, text) for text in (base, mine, theirs))
    own, other = (
        [each.pointer for each in changes_between(before, document)]
        for document in after
    )
    return own, other


def changes_between(before: Any, after: Any, path: Path = ()) -> Iterator[Change]:
    """Yield the differences of two JSON documents, the outermost of each branch."""
    if is_same(before, after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before | after:
            old, new = before.get(key, ABSENT), after.get(key, ABSENT)
            yield from changes_between(old, new, (*path, key))
    elif is_appended(before, after):
        for index, value in zip(count(len(before)), after[len(before) :], strict=False):
            yield Change((*path, index), ABSENT, value)
    else:
        yield Change(path, before, after)


def is_appended(before: Any, after: Any) -> bool:
    """Return whether *after* is the list *before*, or that with new last elements."""
    return (
        isinstance(before, list)
        and isinstance(after, list)
        and not isinstance(before, Unordered)
        and len(before) <= len(after)
        and is_same(before, after[: len(before)])
    )


def is_same(one: Any, other: Any) -> bool:
    """Return whether two JSON documents are the same, kinds of numbers included."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            is_same(value, other[key]) for key, value in one.items()
        )
    return bool(one == other)


def pointer_of(path: Iterable[str | int]) -> str:
    """Return *path* as a JSON Pointer (RFC 6901)."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return "".join(f"/{part}" for part in parts)
