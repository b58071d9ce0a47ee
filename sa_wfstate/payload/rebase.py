"""Rebase: apply the changes of the losing writer to what the winning one has written.

A three-way merge of JSON documents: what only one side has changed since the base is
taken from that side. Where both have changed something, a rule may decide; without one
they overlap, and nothing is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from ..errors import MappingError
from .canonical import canonical_dump
from .changes import ABSENT, document_of, is_appended, is_same

if TYPE_CHECKING:
    from .codec import Codec
    from .roundtrip import Path


T = TypeVar("T")
Rule: TypeAlias = Callable[[Any, Any, Any], Any]
ANY_PART: Final = "*"


class Overlap(ValueError):
    """Both sides have changed something that no rule can merge."""


class Rebase:
    """Rules for a write whose row has moved on, by path.

    Without a rule, changes at disjoint paths both win, and what both have changed is a
    conflict as before. A rule decides for its path as a whole, once both have changed
    something at it or inside it. It is one of :func:`union`, :func:`add`,
    :func:`append`, :func:`mine` and :func:`theirs`, or a function of *(base, mine,
    theirs)*, the JSON values there, None for one that is absent. A function may raise
    ValueError to leave it a conflict.

    A path is the name of a field, as the JSON has it, or of a mapped column beside the
    state; one that begins with a slash is a JSON Pointer, in which ``*`` stands for any
    one key.

    >>> Rebase({"tags": union, "/counters/*": add, "note": theirs})
    Rebase('tags', '/counters/*', 'note')
    """

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self._rules: dict[tuple[str, ...], Rule] = {}
        self.columns: dict[str, Rule] = {}
        """The rules by name; a name may be that of a mapped column."""
        for path, rule in (rules or {}).items():
            if type(path) is not str or not callable(rule):
                problem = "takes rules by path: functions of (base, mine, theirs)"
                raise MappingError("Rebase", problem)
            if path and not path.startswith("/"):
                self.columns[path] = rule
                self._rules[(path,)] = rule
            else:
                self._rules[_parts_of(path)] = rule
        self._paths = tuple(rules or ())

    @property
    def names(self) -> frozenset[str]:
        """The first part of each path."""
        return frozenset(parts[0] for parts in self._rules if parts) - {ANY_PART}

    def __repr__(self) -> str:
        return f"Rebase({', '.join(map(repr, self._paths))})"

    def merge(self, base: Any, mine: Any, theirs: Any) -> Any:
        """Return the document with the changes of both *mine* and *theirs*.

        Raises Overlap, or the ValueError of a rule, if they cannot be merged.
        """
        return self._merge(base, mine, theirs, ())

    def _merge(self, base: Any, mine: Any, theirs: Any, path: Path) -> Any:
        if is_same(mine, base):
            return theirs
        if is_same(theirs, base):
            return mine
        rule = self._rule_at(path)
        if rule is not None:
            return decide(rule, base, mine, theirs)
        if not all(isinstance(each, dict) for each in (base, mine, theirs)):
            raise Overlap
        merged = {
            key: self._merge(
                base.get(key, ABSENT),
                mine.get(key, ABSENT),
                theirs.get(key, ABSENT),
                (*path, key),
            )
            for key in theirs | mine | base
        }
        return {key: value for key, value in merged.items() if value is not ABSENT}

    def _rule_at(self, path: Path) -> Rule | None:
        exact = self._rules.get(path)  # type: ignore[arg-type]  # keys of objects
        if exact is not None:
            return exact
        for pattern, rule in self._rules.items():
            if len(pattern) == len(path) and all(
                part in {ANY_PART, key} for part, key in zip(pattern, path, strict=True)
            ):
                return rule
        return None


def decide(rule: Rule, base: Any, mine_: Any, theirs_: Any) -> Any:
    """Return what *rule* makes of a value that both have changed."""
    if rule is mine:
        return mine_  # Also ABSENT, which the others are not told of.
    if rule is theirs:
        return theirs_
    return rule(*(None if each is ABSENT else each for each in (base, mine_, theirs_)))


def merge_texts(
    rebase: Rebase, codec: Codec[T], base: str, mine: str, theirs: str
) -> tuple[T, bool]:
    """Merge three texts of *codec*; return the value, and whether it is *theirs*.

    The value is validated in full. Raises Overlap or another ValueError, among them the
    PayloadError of a result that the type refuses.
    """
    documents = [document_of(codec, text) for text in (base, mine, theirs)]
    merged = rebase.merge(*documents)
    return codec.value_of(merged), is_same(merged, documents[2])


def union(base: Any, mine: Any, theirs: Any) -> Any:
    """Merge lists as sets: add what either has added, remove what either has removed.

    The elements stand in the order of *theirs*, with the new ones behind.
    """
    before, own = (
        {canonical_dump(value): value for value in _list(each)} for each in (base, mine)
    )
    removed = before.keys() - own.keys()
    kept = {
        name: value
        for value in _list(theirs)
        if (name := canonical_dump(value)) not in removed
    }
    added = {name: own[name] for name in own if name not in before}
    return list((kept | added).values())


def add(base: Any, mine: Any, theirs: Any) -> Any:
    """Merge counters: add to *theirs* what *mine* has added to *base*.

    These are numbers, or the texts that Decimal is stored as. None as the base is 0.
    """
    numbers = [0 if base is None else base, mine, theirs]
    if any(isinstance(each, str) for each in numbers):
        try:
            start, own, other = (Decimal(str(each)) for each in numbers)
        except InvalidOperation:
            raise Overlap from None
        return str(other + (own - start))
    if any(type(each) not in {int, float} for each in numbers):
        raise Overlap
    return numbers[2] + (numbers[1] - numbers[0])


def append(base: Any, mine: Any, theirs: Any) -> Any:
    """Merge lists that were only appended to: the elements of *theirs* come first."""
    before = _list(base)
    if not is_appended(before, mine) or not is_appended(before, theirs):
        raise Overlap
    return [*theirs, *mine[len(before) :]]


def mine(base: Any, mine: Any, theirs: Any) -> Any:  # noqa: ARG001 - a Rule
    """Take what the losing writer has written: its value replaces the other one."""
    return mine


def theirs(base: Any, mine: Any, theirs: Any) -> Any:  # noqa: ARG001 - a Rule
    """Take what the row has: the losing writer's own change is dropped."""
    return theirs


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Overlap
    return value


def _parts_of(pointer: str) -> tuple[str, ...]:
    parts = pointer.split("/")[1:]
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)
