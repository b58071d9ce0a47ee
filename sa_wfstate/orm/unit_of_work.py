"""Prepare what a flush may write, and note what its rows hold afterwards.

It is prepared when its own transaction begins: behind every listener of before_flush,
and before any event of a mapper. Nothing has been sent by then, so what cannot be
stored is refused without an end to the transaction.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Session,
)
from sqlalchemy.orm.attributes import flag_dirty, flag_modified

from ..row.unread import Unread
from .baseline import BASELINES, Baseline, baselines_of, changed_among, tracked
from .collecting import Kept, prepare_update, reconsider
from .mixin import WorkflowStateMixin
from .new_rows import calls_listeners, prepare_inserts
from .session_state import Flush, state_of
from .tracking import altered_in

if TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction, UOWTransaction

    from .session_state import SessionState


def before_flush(
    session: Session, flush_context: UOWTransaction, objects: object
) -> None:
    known = state_of(session)
    if known.flush is not None:  # It failed before it had a transaction to roll back.
        known.end_flush()
    known.flush = Flush(flush_context, partial=bool(objects))


def prepare(
    session: Session,
    transaction: SessionTransaction,
    known: SessionState,
    flush: Flush,
    context: UOWTransaction,
) -> None:
    """Find out what a flush is going to write, of which *transaction* has begun."""
    flush.executing = True
    try:
        _look(known, session, flush, context)
    except BaseException:
        transaction.close()  # As if it had not begun: nothing was sent.
        reconsider(known.touched)
        known.end_flush()
        raise


def _look(
    known: SessionState, session: Session, flush: Flush, context: UOWTransaction
) -> None:
    new, deletes = [], False
    for state, (is_deleted, _) in list(context.states.items()):
        if is_deleted:
            deletes = True
            _expect_deletion(known, state)
        elif state.key is None:
            new.append(state)
    if new or known.touched:
        others = [each.manager.mapper for each in known.touched]
        updates = not (new or deletes)
        flush.quiet = not calls_listeners({*context.mappers, *others}, updates=updates)
    if new:
        flush.deletes = bool(session.deleted)
        prepare_inserts(new, flush.written, fresh=flush.quiet)
    if known.touched:
        _look_at_touched(known, session, flush, context)


def _expect_deletion(known: SessionState, state: InstanceState[Any]) -> None:
    if issubclass(state.class_, WorkflowStateMixin) and any(
        each.post_update for each in state.mapper.relationships
    ):
        # It is written before any event of its own.
        known.log.check(state)


def _look_at_touched(
    known: SessionState, session: Session, flush: Flush, context: UOWTransaction
) -> None:
    readers = set()
    for state, instance in list(known.touched.items()):
        # Whether it is deleted, and whether it is only listed.
        listed = context.states.get(state)
        if state.session_id != session.hash_key:
            del known.touched[state]
        elif listed[0] if listed else flush.partial:
            continue
        elif prepare_update(state, instance, flush):
            if listed is None:
                context.register_object(state)
        else:
            # Listed, it is not saved: the mapper events of mere readers stay
            # silent, and yet the flush completes, and flags it again.
            if listed:
                context.remove_state_actions(state)  # type: ignore[no-untyped-call]
            else:
                context.register_object(state, listonly=True)
            readers.add(state)
    if readers:
        altered = altered_in(session)
        flush.readers += [state for state in readers if state not in altered]
    known.idle = readers if len(readers) == len(context.states) else set()


def after_flush(session: Session, _: object) -> None:
    known = state_of(session)
    flush = known.flush
    if flush is None:
        return
    settled, touched = flush.settled, known.touched
    in_place: dict[tuple[type[Any], str], bool] = {}
    for place, encoded in flush.written.items():
        state, key = place
        found, new = settled.get(place), state.key is None
        if new and flush.quiet and encoded.bound and encoded.stored is None:
            flush.doubtful.append(place)
        if found is None:
            text = flush.text_of(state, encoded)
            if text is None or not (encoded.bound or new):
                continue
            found = settled[place] = encoded.value, text
        instance = state.obj()
        if instance is not None:
            of_class = state.manager.class_, key
            changes = in_place.get(of_class)
            if changes is None:
                changes = in_place[of_class] = tracked(state)[key].changes_in_place()
            if changes:
                baselines_of(state)[key] = Baseline(*found)
            elif BASELINES in state.info:
                baselines_of(state).pop(key, None)
            touched[state] = instance


def after_flush_postexec(session: Session, _: object) -> None:
    known = state_of(session)
    flush = known.flush
    known.end_flush()
    if flush is None:
        return
    if flush.readers:
        altered = altered_in(session)
        for state in flush.readers:
            # The flush has counted it among the written.
            altered.pop(state, None)
    _judge_touched(session, flush)
    for state, key in flush.doubtful:
        _write_again(session, state, key)
    if known.committing is None:
        known.flag()
        return
    # All of them flagged, a commit would flush without end: only what a listener of
    # this flush has changed, also one that has kept the value, goes into another one.
    for state, instance in changed_among(known.touched):
        if state.session is session:
            flag_dirty(instance)


def _judge_touched(session: Session, flush: Flush) -> None:
    """Note what listeners have assigned after its row was written, or without a row."""
    for (state, key), was in flush.touched.items():
        value, baseline = state.dict.get(key), baselines_of(state).get(key)
        before = was.text if isinstance(was, Kept) else None
        settled, text = flush.settled.get(
            (state, key), (baseline and baseline.value, before)
        )
        if value is settled or isinstance(value, (Unread, NoneType)):
            continue
        if text is not None:
            # Assigned after its row was written, it has that row to differ from.
            baselines_of(state)[key] = Baseline(value, text)
        elif isinstance(was, LoaderCallableStatus):
            # Assigned to an instance that was expired, it has nothing to differ from.
            _write_again(session, state, key)


def _write_again(session: Session, state: InstanceState[Any], key: str) -> None:
    """Let the next flush write a value, whatever its row holds."""
    instance = state.obj()
    if instance is not None and state.session is session and key in state.dict:
        flag_modified(instance, key)
