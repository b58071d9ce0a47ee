"""What the package knows of one session, under one key of its ``info``."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import SessionTransactionOrigin
from sqlalchemy.orm.attributes import flag_dirty

from ..row.encoded import drop_all
from .session_log import SessionLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection
    from sqlalchemy.orm import (
        InstanceState,
        Mapper,
        Session,
        SessionTransaction,
        UOWTransaction,
    )

    from ..row.encoded import Encoded
    from ..row.statements import Statements
    from ..values.row_version import RowVersion


_KEY = "sa_wfstate"

INNER: Final = (
    SessionTransactionOrigin.SUBTRANSACTION,
    SessionTransactionOrigin.BEGIN_NESTED,
)
"""The transactions of a session that are part of another one."""


class Flush:
    """One flush under way.

    It is *executing* after the last before_flush listener. *partial*: only given
    objects are flushed. *quiet*: no listener of the application is called for its rows,
    so what a new row holds need not be noted as soon as it is written. *deletes*: there
    may be instances to delete. *stamps* are effect ids and texts of the provenances
    that it makes. *targets* are where the rows of each class are written, by its mapper
    and the connection. *written* is what it may bind, *settled* what rows hold by now,
    *doubtful* what new ones were bound with, if texts differed. *readers* are instances
    that were read and not changed, *touched* is what listeners have read or assigned
    while it was executing, with its committed value then.
    """

    __slots__ = (
        "_context",
        "deletes",
        "doubtful",
        "executing",
        "partial",
        "quiet",
        "readers",
        "settled",
        "stamps",
        "targets",
        "touched",
        "written",
    )

    def __init__(self, context: UOWTransaction, *, partial: bool) -> None:
        # Weak: a flush that a listener vetoes has no end.
        self._context = weakref.ref(context)
        self.executing = False
        self.partial = partial
        self.quiet = False
        self.deletes = True  # Unless it is known that it does not.
        self.stamps: Iterator[tuple[str, str]] | None = None
        self.targets: dict[tuple[Mapper[Any], Connection], Any] = {}
        self.written: dict[tuple[InstanceState[Any], str], Encoded] = {}
        self.settled: dict[tuple[InstanceState[Any], str], tuple[Any, str]] = {}
        self.doubtful: list[tuple[InstanceState[Any], str]] = []
        self.readers: list[InstanceState[Any]] = []
        self.touched: dict[tuple[InstanceState[Any], str], Any] = {}

    @property
    def context(self) -> UOWTransaction | None:
        """SQLAlchemy's unit of work."""
        return self._context()

    def settle(self, state: InstanceState[Any], keys: Iterable[str]) -> None:
        """Note what the row of *state* holds, now that it was written.

        A listener may change the value from now on, and bind it to a statement of its
        own.
        """
        for key in keys:
            place = state, key
            encoded = self.written.get(place)
            if encoded is not None and encoded.bound:
                text = self.text_of(state, encoded)
                if text is not None:
                    self.settled.setdefault(place, (encoded.value, text))

    def text_of(self, state: InstanceState[Any], encoded: Encoded) -> str | None:
        """Return the text that the flush writes of a value."""
        new = self.quiet and state.key is None
        return (encoded.stored if new else None) or encoded.text

    def saves(self, state: InstanceState[Any]) -> bool:
        """Return whether an INSERT or UPDATE of *state* is part of the flush."""
        context = self.context
        # Of each: whether it is deleted, and whether it is only listed.
        return context is not None and context.states.get(state) == (False, False)


class SessionState:
    """What the package knows of one session.

    *touched* are the instances that were touched in its transaction, *between* those
    that were before it, if they are still alive. While it commits, which *committing*
    does, *idle* are those that were read again after a flush that wrote nothing:
    reading them once more is no reason for another flush. *log* is what it writes. If
    it *rebases*, *replaced* are values that the application may still hold. *required*
    are the versions of rows that it must find at COMMIT, by class and key; None as long
    as none ever was.
    """

    between: weakref.WeakSet[InstanceState[Any]] | None = None
    committing: SessionTransaction | None = None
    flush: Flush | None = None
    rebases = False
    required: dict[tuple[Statements[Any], str], RowVersion] | None = None

    def __init__(self) -> None:
        self.touched: dict[InstanceState[Any], object] = {}
        self.idle: set[InstanceState[Any]] = set()
        self.replaced: dict[InstanceState[Any], list[Any]] = {}
        self.log = SessionLog()

    def flag(self) -> None:
        """Make the next flush, autoflush or commit look at the touched instances."""
        for state, instance in self.touched.items():
            if not state.modified:
                flag_dirty(instance)

    def keep_between(self, state: InstanceState[Any]) -> None:
        """Look at *state* again in the next transaction."""
        if self.between is None:
            self.between = weakref.WeakSet()
        self.between.add(state)

    def end_commit(self, transaction: SessionTransaction) -> None:
        """Note that *transaction* has ended, if it is the one that commits."""
        if transaction.origin not in INNER or transaction is self.committing:
            self.committing = None

    def end_flush(self) -> None:
        """Forget the flush under way, if there is one, and what it has encoded."""
        if self.flush is not None:
            drop_all(self.flush.written.values())
            self.flush.written.clear()
            self.flush = None


def existing_state_of(session: Session) -> SessionState | None:
    """Return the state of *session*, None if it has none yet."""
    known: SessionState | None = session.info.get(_KEY)
    return known


def state_of(session: Session) -> SessionState:
    """Return the state of *session*."""
    known: SessionState = session.info.get(_KEY) or session.info.setdefault(
        _KEY, SessionState()
    )
    return known


def log_of(session: Session) -> SessionLog:
    """Return what *session* writes."""
    return state_of(session).log
