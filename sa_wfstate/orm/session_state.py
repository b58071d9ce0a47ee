"""What one session watches, and of its flush under way what it has found out.

A watch is made when the session first hands out a state, or writes one.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.attributes import flag_dirty

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, Session, UOWTransaction

    from ..row.encoded import Encoded


_KEY = "sa_wfstate.tracking"
_FLUSH = "sa_wfstate.flush"


class Flush:
    """One flush under way.

    It is *executing* from the last before_flush listener on. *partial*: only given
    objects are flushed. *written* is what it may bind, *settled* what rows hold by now,
    *readers* are instances that were read and not changed, *touched* is what listeners
    have come by while it was executing, with what was its committed value then.
    """

    __slots__ = (
        "_context",
        "executing",
        "partial",
        "readers",
        "settled",
        "touched",
        "written",
    )

    def __init__(self, context: UOWTransaction, *, partial: bool) -> None:
        # Weak: a flush that a listener vetoes has no end.
        self._context = weakref.ref(context)
        self.executing = False
        self.partial = partial
        self.written: dict[tuple[InstanceState[Any], str], Encoded] = {}
        self.settled: dict[tuple[InstanceState[Any], str], tuple[Any, str]] = {}
        self.readers: list[InstanceState[Any]] = []
        self.touched: dict[tuple[InstanceState[Any], str], Any] = {}

    @property
    def context(self) -> UOWTransaction | None:
        """SQLAlchemy's unit of work."""
        return self._context()

    def saves(self, state: InstanceState[Any]) -> bool:
        """Return whether an INSERT or UPDATE of *state* is part of the flush."""
        context = self.context
        # Of each: whether it is deleted, and whether it is only listed.
        return context is not None and context.states.get(state) == (False, False)

    def end(self) -> None:
        """Forget what was encoded."""
        for encoded in self.written.values():
            encoded.drop()
        self.written.clear()


class Watch:
    """What one session watches: *held* in a transaction, *known* between two.

    While it commits, *idle* are those that were read again after a flush of which
    nothing came: reading them once more is no reason for another one.
    """

    def __init__(self) -> None:
        self.held: dict[InstanceState[Any], object] = {}
        self.known: weakref.WeakSet[InstanceState[Any]] = weakref.WeakSet()
        self.idle: set[InstanceState[Any]] = set()

    def flag(self) -> None:
        """Make the next flush, autoflush or commit look at what is held."""
        for state, instance in self.held.items():
            if not state.modified:
                flag_dirty(instance)


def flush_of(session: Session) -> Flush | None:
    """Return the flush of *session* that is under way."""
    flush: Flush | None = session.info.get(_FLUSH)
    return flush


def begin_flush(session: Session, context: UOWTransaction, *, partial: bool) -> None:
    """Note that a flush of *session* begins."""
    session.info[_FLUSH] = Flush(context, partial=partial)


def end_flush(session: Session) -> None:
    """Note that the flush of *session*, if there is one, is over."""
    flush: Flush | None = session.info.pop(_FLUSH, None)
    if flush is not None:
        flush.end()


def existing_watch(session: Session) -> Watch | None:
    """Return the watch of *session*, None if it never had to do with a state."""
    watch: Watch | None = session.info.get(_KEY)
    return watch


def watch_of(session: Session) -> Watch:
    """Return the watch of *session*."""
    watch = existing_watch(session)
    if watch is None:
        watch = session.info[_KEY] = Watch()
    return watch
