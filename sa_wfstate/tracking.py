"""Change detection: what was handed out is compared with what was read, as JSON.

A state is a plain Pydantic model, so nothing tells that it was changed in place. When
the attribute of an instance is read or set, the instance is *touched*: the JSON that its
row holds is kept as the *base*, and the session holds the instance and looks at it in
each flush. What differs from its base then is written; what does not is not, and does
not travel through the flush either. Rows that nobody touched cost nothing.

The base is kept in the instance's ``InstanceState.info``, so that it goes along when the
instance is detached, pickled, or added to another session. It belongs to one value: when
the attribute holds another one without having been set, it was refreshed, and the base
is void.

The session holds touched instances strongly until its transaction ends, because its
identity map would let go of an instance of which only the state is kept. After that it
watches those which somebody else still holds.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from sqlalchemy import event, inspect
from sqlalchemy.orm import InstanceState, Session, SessionTransaction, UOWTransaction
from sqlalchemy.orm.attributes import (
    InstrumentedAttribute,
    flag_dirty,
    flag_modified,
    set_committed_value,
)

from .errors import PayloadError
from .types import PydanticJSON, canonical_json

_KEY = "sa_wfstate.tracking"
_COMMITTING = "sa_wfstate.committing"
_TRACKED = "_sa_wfstate_tracked"


class _Base(NamedTuple):
    """The JSON *text* that the row held when *value* was read from it."""

    value: Any
    text: str


class _Watch:
    """What one session watches: *held* in a transaction, *known* between two."""

    __slots__ = ("held", "known", "written")

    def __init__(self) -> None:
        self.held: dict[InstanceState[Any], object] = {}
        self.known: weakref.WeakSet[InstanceState[Any]] = weakref.WeakSet()
        self.written: list[tuple[InstanceState[Any], str, _Base]] = []

    def flag(self) -> None:
        """Make the next flush, autoflush or commit look at what is held."""
        for state, instance in self.held.items():
            if not state.modified:
                flag_dirty(instance)


class TrackedAttribute(InstrumentedAttribute[Any]):
    """The ORM attribute of a PydanticJSON column whose value may change in place."""

    __slots__ = ()
    inherit_cache = True

    def __get__(self, instance: object | None, owner: Any) -> Any:
        value = super().__get__(instance, owner)
        if instance is not None and value is not None:
            _touch(instance, self.key, value)
        return value

    def __set__(self, instance: object, value: Any) -> None:
        # The old value may have been changed in place: its base must be taken first.
        old = inspect(instance).dict.get(self.key)
        super().__set__(instance, value)
        _touch(instance, self.key, old)


def track(cls: type[Any], key: str) -> None:
    """Detect changes in place of *cls.key*, the attribute of a PydanticJSON column."""
    getattr(cls, key).__class__ = TrackedAttribute
    setattr(cls, _TRACKED, {*getattr(cls, _TRACKED, ()), key})


def rebase(instance: object, key: str, value: Any, text: str) -> None:
    """Give *instance* the value that was just written to its row as *text*."""
    state: InstanceState[Any] = inspect(instance)
    if not state.modified:
        flag_dirty(instance)  # So that the rollback of a savepoint expires it.
    set_committed_value(instance, key, value)
    _bases(state)[key] = _Base(value, text)


def _bases(state: InstanceState[Any]) -> dict[str, _Base]:
    bases: dict[str, _Base] = state.info.setdefault(_KEY, {})
    return bases


def _dump(state: InstanceState[Any], key: str, value: Any) -> str:
    column = state.mapper.columns[key]
    where = f"{state.class_.__name__} {state.dict.get('workflow_key')!r} {key}"
    if value is None:
        raise PayloadError(where, "", "must not be None; assign a value or delete the row")
    column_type: PydanticJSON[Any] = column.type
    return column_type.dump(value, where=where)


def _may_be_none(state: InstanceState[Any], key: str) -> bool:
    column = state.mapper.columns[key]
    return bool(column.nullable or column.default or column.server_default)


def _touch(instance: object, key: str, value: Any) -> None:
    """Take the base of *value*, what the row held, and watch *instance*."""
    state: InstanceState[Any] = inspect(instance)
    if not state.has_identity:
        return  # An INSERT writes whatever is there; the flush takes the base.
    bases = _bases(state)
    base = bases.get(key)
    if value is not None and (
        base is None
        or (base.value is not value and key not in state.committed_state)
    ):
        bases[key] = _Base(value, _dump(state, key, value))
    session = state.session
    if session is not None:
        _hold(session, state, instance)


def _hold(session: Session, state: InstanceState[Any], instance: object) -> None:
    watch: _Watch | None = session.info.get(_KEY)
    if watch is None:
        watch = session.info[_KEY] = _Watch()
    if session.in_transaction():
        watch.held[state] = instance
        if not state.modified:
            flag_dirty(instance)
    else:
        # Flagging would begin a transaction, by merely reading.
        watch.known.add(state)


def _changed(watch: _Watch, state: InstanceState[Any], instance: object) -> bool:
    """Say whether *instance* has anything to write; tell SQLAlchemy of its state."""
    for key, base in list(_bases(state).items()):
        value = state.dict.get(key)
        if base.value is not value and key not in state.committed_state:
            del _bases(state)[key]
            continue
        if value is None and _may_be_none(state, key):
            continue
        text = _dump(state, key, value)
        if text != base.text and canonical_json(text) != canonical_json(base.text):
            flag_modified(instance, key)
        elif key in state.committed_state:
            set_committed_value(instance, key, value)
        watch.written.append((state, key, _Base(value, text)))
    return bool(state.committed_state or state.__dict__.get("_pending_mutations"))


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, flush_context: UOWTransaction, _: object) -> None:
    watch: _Watch | None = session.info.get(_KEY)
    for instance in session.new:
        for key in getattr(instance, _TRACKED, ()):
            watch = watch or session.info.setdefault(_KEY, _Watch())
            state: InstanceState[Any] = inspect(instance)
            value = state.dict.get(key)
            if value is not None or not _may_be_none(state, key):
                base = _Base(value, _dump(state, key, value))
                watch.written.append((state, key, base))
    if watch is None:
        return
    for state, instance in list(watch.held.items()):
        if state.session is not session:
            del watch.held[state]
        elif not state.deleted and not _changed(watch, state, instance):
            # Listed, it is not saved: the mapper events of mere readers stay silent,
            # and yet the flush completes, so that what it flagged is flagged again.
            flush_context.register_object(state, listonly=True)


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _: object) -> None:
    watch: _Watch | None = session.info.get(_KEY)
    if watch is not None:
        for state, key, base in watch.written:
            instance = state.obj()
            if instance is not None:
                _bases(state)[key] = base
                watch.held[state] = instance


@event.listens_for(Session, "after_flush_postexec")
def _after_flush_postexec(session: Session, _: object) -> None:
    watch: _Watch | None = session.info.get(_KEY)
    if watch is not None:
        watch.written.clear()
        if _COMMITTING not in session.info:
            # Flagged while committing, a session would flush without end.
            watch.flag()


@event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    session.info[_COMMITTING] = True


@event.listens_for(Session, "after_soft_rollback")
def _after_soft_rollback(session: Session, _: object) -> None:
    session.info.pop(_COMMITTING, None)
    watch: _Watch | None = session.info.get(_KEY)
    if watch is not None:
        watch.written.clear()


@event.listens_for(Session, "after_transaction_create")
def _after_transaction_create(
    session: Session, transaction: SessionTransaction
) -> None:
    watch: _Watch | None = session.info.get(_KEY)
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
    watch: _Watch | None = session.info.get(_KEY)
    if boundary:
        session.info.pop(_COMMITTING, None)
    if watch is None or not boundary:
        return
    if transaction.nested:
        watch.flag()
    else:
        watch.known.update(state for state in watch.held if not state.expired)
        watch.held.clear()


@event.listens_for(Session, "detached_to_persistent")
def _attached(session: Session, instance: object) -> None:
    state: InstanceState[Any] = inspect(instance)
    if state.info.get(_KEY):
        _hold(session, state, instance)
