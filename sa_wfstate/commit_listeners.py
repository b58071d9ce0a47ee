"""Commit listeners: called with each commit of a class, in its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from sqlalchemy import inspect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Mapper

    from .values.keys import Key
    from .values.snapshot import StateCommitted


class CommitListener(Protocol):
    """Called with what a transaction has just written to the rows of one class."""

    def written(
        self, connection: Connection, commits: Sequence[StateCommitted[Any]]
    ) -> None:
        """Follow *commits*; no key is in them twice, and all their rows are locked."""

    def passed(
        self, connection: Connection, commits: Sequence[StateCommitted[Any]]
    ) -> None:
        """Follow *commits* whose rows are one version further: the flush wrote twice.

        It does with ``relationship(post_update=True)``. The second commits come next.
        """

    def deleted(self, connection: Connection, workflow_keys: Sequence[Key]) -> None:
        """Follow the deletion of *workflow_keys* by a flush."""


@runtime_checkable
class KeepsEffects(Protocol):
    """A commit listener that can tell later which effects were committed."""

    def keeps(
        self, connection: Connection, workflow_key: Key, effect_ids: Sequence[str]
    ) -> bool:
        """Return whether a version is kept that one of *effect_ids* wrote."""


_listeners: WeakKeyDictionary[Mapper[Any], tuple[CommitListener, ...]] = (
    WeakKeyDictionary()
)


def attach(entity: type[Any], listener: CommitListener) -> None:
    """Call *listener* for each commit of *entity* and its subclasses from now on."""
    mapper: Mapper[Any] = inspect(entity)
    _listeners[mapper] = (*_listeners.get(mapper, ()), listener)


def are_attached() -> bool:
    """Return whether there are commit listeners, of any class."""
    return bool(_listeners)


def listeners_of(mapper: Mapper[Any]) -> tuple[CommitListener, ...]:
    """Return the commit listeners of the class of *mapper*, its parents' first."""
    if not _listeners:
        return ()
    lineage = lineage_of(mapper)
    return tuple(one for each in lineage for one in _listeners.get(each, ()))


def lineage_of(mapper: Mapper[Any]) -> list[Mapper[Any]]:
    """Return *mapper* and its parents whose rows are rows of its own, eldest first."""
    lineage = [mapper]
    while lineage[0].inherits is not None and not lineage[0].concrete:
        lineage.insert(0, lineage[0].inherits)
    return lineage


def follow(
    connection: Connection, mapper: Mapper[Any], commits: Sequence[StateCommitted[Any]]
) -> None:
    """Call the commit listeners of *mapper* with *commits*."""
    for listener in listeners_of(mapper):
        listener.written(connection, commits)
