"""What one session watches, and of its flush under way what it has found out.

A watch is made when the session first hands out a state, or writes one.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.attributes import flag_dirty

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import InstanceState, Session

    from .types import Encoded

_KEY = "sa_wfstate.tracking"


class Watch:
    """What one session watches: *held* in a transaction, *known* between two.

    Of a flush under way: what it has *written*, which of the held are *unchanged*, and
    which were *touched* by listeners since it looked at them.
    """

    def __init__(self) -> None:
        self.held: dict[InstanceState[Any], object] = {}
        self.known: weakref.WeakSet[InstanceState[Any]] = weakref.WeakSet()
        self.flushing = False
        self.written: dict[tuple[InstanceState[Any], str], Encoded] = {}
        self.unchanged: list[InstanceState[Any]] = []
        self.touched: list[tuple[InstanceState[Any], str]] = []

    def flag(self) -> None:
        """Make the next flush, autoflush or commit look at what is held."""
        for state, instance in self.held.items():
            if not state.modified:
                flag_dirty(instance)

    def write(
        self, state: InstanceState[Any], encoded: Iterable[tuple[str, Encoded]]
    ) -> None:
        """Note what the flush is going to write of *state*, by attribute."""
        for key, each in encoded:
            self.written[state, key] = each

    def end_flush(self) -> None:
        for encoded in self.written.values():
            encoded.drop()
        self.written.clear()
        self.unchanged.clear()
        self.touched.clear()
        self.flushing = False


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
