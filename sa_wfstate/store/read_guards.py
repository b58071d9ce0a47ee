"""require_version: what was only read is checked when the session commits.

Before the last flush of a transaction, the rows that were only read are locked and
compared, together with those that are about to be written (``row_guards.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import InstanceState, Session, scoped_session

from ..errors import VersionNotSeen
from ..orm.entity import statements_of
from ..orm.events import on_commit
from ..orm.mixin import WorkflowStateMixin
from ..orm.routing import connection_for
from ..orm.row_keys import key_of
from ..orm.session_state import SessionState, state_of
from ..orm.tracking import changed_in_place
from ..orm.version_guard import seen_of
from ..values.row_version import NOTHING
from .row_guards import GuardedRow, check_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class HasSession(Protocol):
    """An AsyncSession."""

    @property
    def sync_session(self) -> Session:
        """The session that it runs."""


def require_version(
    session: Session | HasSession, instance: WorkflowStateMixin[Any]
) -> None:
    """Let the transaction commit only if the row of *instance* is as it was read.

    *instance* is one that *session*, also an AsyncSession, has loaded and that it does
    not write; what it writes is checked anyway. At COMMIT the row is locked and its
    version is compared with the one that the code has seen by now. If it has moved, or
    another writer holds it, the commit raises a StateConflict whose *role* is ``read``.
    Call ``rollback()`` then, as after any error of a commit.

    Raises VersionNotSeen if the version was not loaded with the state, and
    InvalidRequestError if *instance* does not belong to *session*.
    """
    session = getattr(session, "sync_session", session)
    if isinstance(session, scoped_session):
        session = session()
    state: InstanceState[Any] = inspect(instance)
    if state.session is not session or not state.persistent:
        raise InvalidRequestError(
            f"require_version() takes an instance that the session has loaded, and "
            f"this {type(instance).__name__} does not belong to it; load it first"
        )
    seen, key = seen_of(state), key_of(state)
    if seen is None:
        raise VersionNotSeen(type(instance).__name__, key)
    known = state_of(session)
    if known.required is None:
        on_commit(session, _check)
        known.required = {}
    # The first one counts: a decision was made on it.
    known.required.setdefault((statements_of(type(instance)), key), seen)


def _check(session: Session) -> None:
    known = state_of(session)
    if not known.required or session.in_nested_transaction():
        return  # The end of a savepoint is no COMMIT.
    with session.no_autoflush:
        conflict = check_rows(_rows(session, known))
    if conflict is not None:
        raise conflict


def _rows(session: Session, known: SessionState) -> Iterator[GuardedRow]:
    """Return the rows that are required, and those that are about to be written."""
    for (statements, key), seen in (known.required or {}).items():
        connection = connection_for(session, statements.mapper, [key])
        yield GuardedRow(connection, statements, key, seen, written=False)
    for instance in _written(session):
        statements, state = statements_of(type(instance)), inspect(instance)
        key, seen = key_of(state), seen_of(state) or NOTHING
        connection = connection_for(session, statements.mapper, [key])
        yield GuardedRow(connection, statements, key, seen, written=True)


def _written(session: Session) -> Iterable[WorkflowStateMixin[Any]]:
    """Return the workflows whose rows the next flush is going to write."""
    for instance in session.deleted:
        if isinstance(instance, WorkflowStateMixin):
            yield instance
    for instance in session.dirty:
        if isinstance(instance, WorkflowStateMixin) and (
            session.is_modified(instance) or changed_in_place(instance)
        ):
            yield instance
