"""Changes: what the losing writer and the winning one have changed, as paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Changes:
    """What two writers have changed since the version that both had read.

    *mine* are the changes of the write that lost, *theirs* those of the row as it was
    read after the loss, *overlapping* what both have touched. Each is a sorted tuple of
    JSON Pointers (RFC 6901) into the state: ``"/lines"`` is a part of it, ``""`` the
    state as a whole. A mapped column beside the state stands by its name, without a
    slash.

    Pointers may hold keys of the payload, so the ``repr()`` shows only their number.
    """

    __slots__ = ("mine", "overlapping", "theirs")

    def __init__(self, mine: Iterable[str], theirs: Iterable[str]) -> None:
        self.mine = tuple(sorted(mine))
        self.theirs = tuple(sorted(theirs))
        self.overlapping = tuple(sorted(_overlap(self.mine, self.theirs)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Changes):
            return NotImplemented
        return (self.mine, self.theirs) == (other.mine, other.theirs)

    def __hash__(self) -> int:
        return hash((self.mine, self.theirs))

    def __repr__(self) -> str:
        return (
            f"<Changes: {len(self.mine)} mine, {len(self.theirs)} theirs, "
            f"{len(self.overlapping)} overlapping>"
        )


def _overlap(mine: tuple[str, ...], theirs: tuple[str, ...]) -> set[str]:
    """Return the paths that both have touched, of nested ones the inner one."""
    return _inside(mine, theirs) | _inside(theirs, mine)


def _inside(inner: tuple[str, ...], outer: tuple[str, ...]) -> set[str]:
    roots = set(outer)
    return {path for path in inner if not roots.isdisjoint(_with_parents(path))}


def _with_parents(path: str) -> list[str]:
    """Return *path* and what it is inside of; a column is inside of nothing."""
    if not path.startswith("/"):
        return [path]
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
