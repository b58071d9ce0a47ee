"""Dirty checking: compare what was handed out with what was read, as JSON.

A state is a plain Pydantic model, which sends no event when it is changed in place.
When a state is handed out, its instance is *touched*: the JSON of the value is kept as
its baseline (``baseline.py``), and the session compares the two in each flush. A value
that differs is written; one that does not is left out of the flush. Rows that were not
touched cost nothing.

The session holds touched instances strongly until its transaction ends, because its
identity map would release an instance of which only the state is kept. After that it
refers weakly to those that are still in use.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Session,
    SessionTransactionOrigin,
)
from sqlalchemy.orm.attributes import flag_dirty, instance_state, set_committed_value

from ..row.unread import Unread
from .baseline import (
    BASELINES,
    Baseline,
    baselines_of,
    is_changed,
    original,
    tracked,
)
from .collecting import has_changes, prepare_again
from .session_state import INNER, existing_state_of, state_of

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from sqlalchemy.orm import SessionTransaction

    from .session_state import Flush, SessionState


def hold(
    state: InstanceState[Any], instance: object, key: str, *, assigned: bool = False
) -> None:
    """Make the session of *instance*, if it has one, look at it in its next flush.

    *key* is the attribute that was handed out or *assigned*.
    """
    session = state.session
    if session is None:
        return
    known = state_of(session)
    if known.flush is not None and known.flush.executing:
        _hold_for(known, known.flush, state, instance, key, assigned=assigned)
    elif state.key is None:
        return
    elif state in known.touched or session.in_transaction():
        known.touched[state] = instance
        if not state.modified and not (known.committing and state in known.idle):
            flag_dirty(instance)
    else:
        # Flagging would begin a transaction, by merely reading.
        known.keep_between(state)


def _hold_for(
    known: SessionState,
    flush: Flush,
    state: InstanceState[Any],
    instance: object,
    key: str,
    *,
    assigned: bool,
) -> None:
    """Write in *flush* what a listener changes, or in the next one if it is too late.

    Flagged now, the instance would only be reset.
    """
    saved = flush.saves(state)
    if flush.quiet and state.key is None:
        flush.settle(state, (key,))
    if saved:
        prepare_again(state, key, flush, assigned=assigned)
    was = state.committed_state.get(key)
    flush.touched[state, key] = was or flush.touched.get((state, key))
    if state.key is None:
        return
    known.touched[state] = instance
    if assigned and not saved:
        before = original(state, key)
        if before is not None:
            baselines_of(state)[key] = Baseline(state.dict[key], before)
        elif not isinstance(was, LoaderCallableStatus):
            return
        set_committed_value(instance, key, state.dict[key])
        if not has_changes(state):
            session: Any = state.session
            state._commit_all(state.dict, session.identity_map)  # noqa: SLF001


def rebase(instance: object, key: str, text: str) -> None:
    """Give *instance* the JSON *text* that was written to its row, not by a flush."""
    state: InstanceState[Any] = instance_state(instance)
    set_committed_value(instance, key, Unread(text))
    baselines_of(state).pop(key, None)
    build_eager(state)
    if state.session is not None:
        # As after a flush, the rollback of a savepoint must expire it.
        altered_in(state.session)[state] = True


def build_eager(state: InstanceState[Any], *_: object) -> None:
    """Build the values of a loaded or refreshed instance whose types are eager."""
    instance = state.obj()
    for key, column_type in tracked(state).items():
        if column_type.eager and isinstance(state.dict.get(key), Unread):
            getattr(instance, key)


def changed_in_place(instance: object) -> bool:
    """Return whether *instance* was changed in place and not yet flushed."""
    state: InstanceState[Any] = instance_state(instance)
    return any(is_changed(state, key) for key in [*baselines_of(state)])


def check_unchanged(state: InstanceState[Any]) -> None:
    """Check that *state* can be merged without loading, as the content of its row.

    Raises InvalidRequestError, as SQLAlchemy does for an assigned change, if one was
    changed in place. One that was only looked at is not dirty once it is detached.
    """
    if any(is_changed(state, key) for key in tracked(state)):
        raise InvalidRequestError(
            "merge() with load=False does not support a changed "
            f"{state.class_.__name__}, and {state.identity} was changed in place; "
            "flush the change first, or merge with load=True"
        )
    if state.session is None and not has_changes(state):
        state.modified = False


def altered_in(session: Session) -> MutableMapping[InstanceState[Any], object]:
    """Return what the savepoint has written, which its rollback will expire."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None:
        return weakref.WeakKeyDictionary()
    return transaction._dirty  # noqa: SLF001


def before_commit(session: Session) -> None:
    known = state_of(session)
    if known.committing is None:  # A listener may commit a savepoint meanwhile.
        current = session.get_nested_transaction() or session.get_transaction()
        known.committing = current
        known.flag()  # What a load has built was not flagged, since loads undo that.


def after_rollback(session: Session) -> None:
    """Keep the rollback of a savepoint from expiring what was only looked at."""
    known = existing_state_of(session)
    if known is None or not session.in_nested_transaction():
        return
    altered = altered_in(session)
    for state, instance in known.touched.items():
        if (
            state.modified
            and state not in altered
            and not has_changes(state)
            and not changed_in_place(instance)
        ):
            state._commit_all(state.dict, session.identity_map)  # noqa: SLF001


def after_soft_rollback(session: Session, transaction: SessionTransaction) -> None:
    known = existing_state_of(session)
    if known is not None:
        known.end_commit(transaction)
        if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
            known.end_flush()


def look_again(session: Session, known: SessionState) -> None:
    """Look at what was touched before, in the transaction that begins now."""
    for state in known.between or ():
        instance = state.obj()
        if instance is not None and state.session is session:
            known.touched[state] = instance
    known.between = None
    known.flag()


def end_transaction(known: SessionState, transaction: SessionTransaction) -> None:
    """Note that *transaction* has ended, and keep what was touched in it."""
    if known.committing is not None:
        known.end_commit(transaction)
    if transaction.origin not in INNER:
        if known.flush is not None:
            known.end_flush()
        known.idle.clear()
        if known.required:
            known.required.clear()
        for state in known.touched:
            # Those of a session that is closed have left it by now.
            if state.session_id is not None and not state.expired:
                known.keep_between(state)
        known.touched.clear()
    elif transaction.nested:
        known.idle.clear()
        known.flag()


def detached_to_persistent(_: Session, state: InstanceState[Any]) -> None:
    for key in state.info.get(BASELINES, ()):
        hold(state, state.obj(), key)
