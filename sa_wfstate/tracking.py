"""Change detection: what was handed out is compared with what was read, as JSON.

A state is a plain Pydantic model, so nothing tells that it was changed in place. When a
state is handed out, its instance is *touched*: the JSON of the value is kept as its
base (``bases.py``), and the session holds the instance and looks at it in each flush.
What differs from its base then is written; what does not is not, and does not travel
through the flush either. Rows that nobody touched cost nothing.

The session holds touched instances strongly until its transaction ends, because its
identity map would let go of an instance of which only the state is kept. After that it
watches those which somebody else still holds.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.orm.attributes import (
    flag_dirty,
    instance_state,
    set_committed_value,
)

from .bases import (
    BASES,
    Base,
    bases_of,
    is_changed,
    prepare_insert,
    prepare_update,
    take_base,
    tracked,
)
from .types import Unread
from .watches import Watch, existing_watch, watch_of

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from sqlalchemy.orm import SessionTransaction, UOWTransaction

_COMMITTING = "sa_wfstate.committing"


def touch(
    state: InstanceState[Any],
    instance: object,
    key: str,
    value: Any,
    source: str | None = None,
) -> None:
    """Take note that *value*, which *instance* holds, is handed out.

    *source* is the text that it was built from, if that was just now.
    """
    if take_base(state, key, value, source):
        hold(state, instance, key)


def hold(state: InstanceState[Any], instance: object, key: str) -> None:
    """Make the session of *instance*, if it has one, look at it in its next flush.

    *key* is the attribute that was handed out or set.
    """
    session = state.session
    if session is None or state.key is None:
        return
    watch = watch_of(session)
    if watch.flushing and session._flushing:  # noqa: SLF001 - no public way to ask
        # Flagged now, it would only be reset. And what the flush is about to write
        # may be changed by the listener that asked.
        watch.held[state] = instance
        watch.touched.append((state, key))
        encoded = watch.written.get((state, key))
        if encoded is not None:
            encoded.stale = True
    elif session.in_transaction():
        watch.held[state] = instance
        if not state.modified:
            flag_dirty(instance)
    else:
        # Flagging would begin a transaction, by merely reading.
        watch.known.add(state)


def rebase(instance: object, key: str, text: str) -> None:
    """Give *instance* the JSON *text* that was written to its row, not by a flush."""
    state: InstanceState[Any] = instance_state(instance)
    set_committed_value(instance, key, Unread(text))
    bases_of(state).pop(key, None)
    if state.session is not None:
        # As after a flush, the rollback of a savepoint must expire it.
        state.session._register_altered([state])  # noqa: SLF001


def changed_in_place(instance: object) -> bool:
    """Say whether what was handed out of *instance* was changed and not yet flushed."""
    state: InstanceState[Any] = instance_state(instance)
    return any(is_changed(state, key) for key in tracked(state))


def check_unchanged(states: Iterable[InstanceState[Any]]) -> None:
    """See that *states* can be merged without loading, which takes them for their rows.

    Raises InvalidRequestError, as SQLAlchemy does for an assigned change, if one was
    changed in place. One that was only looked at is not dirty once it is detached.
    """
    for state in states:
        if any(is_changed(state, key) for key in tracked(state)):
            raise InvalidRequestError(
                "merge() with load=False does not support a changed "
                f"{state.class_.__name__}, and {state.identity} was changed in place; "
                "flush the change first, or merge with load=True"
            )
        if state.session is None and not _has_changes(state):
            state.modified = False


def _altered(session: Session) -> MutableMapping[InstanceState[Any], object]:
    """Return what the savepoint has written, which its rollback will expire."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None:
        return weakref.WeakKeyDictionary()
    return transaction._dirty  # noqa: SLF001


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, flush_context: UOWTransaction, _: object) -> None:
    watch = existing_watch(session)
    if watch is not None:
        watch.end_flush()  # One that failed before it had a transaction to roll back.
    for instance in session.new:
        state: InstanceState[Any] = instance_state(instance)
        if tracked(state):
            watch = watch_of(session)
            watch.write(state, prepare_insert(state))
    if watch is not None:
        _look_at_held(watch, session, flush_context)
        for encoded in watch.written.values():
            encoded.keep()
        watch.flushing = True


def _look_at_held(
    watch: Watch, session: Session, flush_context: UOWTransaction
) -> None:
    if not watch.held:
        return
    deleted, altered = session.deleted, _altered(session)
    for state, instance in list(watch.held.items()):
        if state.session is not session:
            del watch.held[state]
        elif instance not in deleted:
            watch.write(state, prepare_update(state, instance))
            if not _has_changes(state):
                # Listed, it is not saved: the mapper events of mere readers stay
                # silent, and yet the flush completes, and flags it again.
                flush_context.register_object(state, listonly=True)
                if state not in altered:
                    watch.unchanged.append(state)


def _has_changes(state: InstanceState[Any]) -> bool:
    return bool(state.committed_state or state.__dict__.get("_pending_mutations"))


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _: object) -> None:
    watch = existing_watch(session)
    if watch is None:
        return
    for (state, key), encoded in watch.written.items():
        instance = state.obj()
        if instance is not None and (encoded.bound or not encoded.stale):
            bases_of(state)[key] = Base(encoded.value, encoded.text)
            watch.held[state] = instance


@event.listens_for(Session, "after_flush_postexec")
def _after_flush_postexec(session: Session, _: object) -> None:
    watch = existing_watch(session)
    if watch is None:
        return
    if watch.unchanged:
        altered = _altered(session)
        for state in watch.unchanged:
            # The flush has counted it among the written.
            altered.pop(state, None)
    touched = list(watch.touched)
    watch.end_flush()
    if _COMMITTING not in session.info:
        watch.flag()
        return
    # All of them flagged, a commit would flush without end: only what a listener of
    # this flush has changed goes into another one.
    for state, key in touched:
        instance = state.obj()
        if instance is not None and is_changed(state, key):
            flag_dirty(instance)


@event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    session.info[_COMMITTING] = True


@event.listens_for(Session, "after_rollback")
def _after_rollback(session: Session) -> None:
    """Keep the rollback of a savepoint from expiring what was only looked at."""
    watch = existing_watch(session)
    if watch is None or not session.in_nested_transaction():
        return
    altered = _altered(session)
    for state, instance in watch.held.items():
        if (
            state.modified
            and state not in altered
            and not _has_changes(state)
            and not changed_in_place(instance)
        ):
            state._commit_all(state.dict, session.identity_map)  # noqa: SLF001


@event.listens_for(Session, "after_soft_rollback")
def _after_soft_rollback(session: Session, _: object) -> None:
    session.info.pop(_COMMITTING, None)
    watch = existing_watch(session)
    if watch is not None:
        watch.end_flush()


@event.listens_for(Session, "after_transaction_create")
def _after_transaction_create(
    session: Session, transaction: SessionTransaction
) -> None:
    watch = existing_watch(session)
    if watch is not None and transaction.parent is None:
        for state in watch.known:
            instance = state.obj()
            if instance is not None and state.session is session:
                watch.held[state] = instance
        watch.known.clear()
        watch.flag()


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    boundary = transaction.parent is None or transaction.nested
    watch = existing_watch(session)
    if boundary:
        session.info.pop(_COMMITTING, None)
    if watch is None or not boundary:
        return
    if transaction.nested:
        watch.flag()
    else:
        watch.end_flush()
        watch.known.update(state for state in watch.held if not state.expired)
        watch.held.clear()


@event.listens_for(Session, "detached_to_persistent")
def _attached(_: Session, instance: object) -> None:
    state: InstanceState[Any] = instance_state(instance)
    for key in state.info.get(BASES, ()):
        hold(state, instance, key)
