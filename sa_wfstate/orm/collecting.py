"""What a flush writes is decided when SQLAlchemy collects the columns of an UPDATE.

Every listener has been called by then. So what the row holds is put in place of the
committed value, as an object that SQLAlchemy compares the value with: :class:`Kept` for
a value that may have changed in place, :class:`Follower` for a column that is written
only if another one is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import Column
from sqlalchemy.orm.attributes import flag_dirty, instance_dict, set_committed_value

from ..errors import PayloadError
from ..row.encoded import Encoded, keep_encoded
from ..row.unread import Before, Unread
from .baseline import (
    BASELINES,
    SQL,
    Baseline,
    baselines_of,
    dump,
    located,
    original,
    refuse_none,
    text_of,
    tracked,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from sqlalchemy.orm import InstanceState

    from .session_state import Flush

    Written: TypeAlias = MutableMapping[tuple[InstanceState[Any], str], Encoded]
    _Changed: TypeAlias = list[tuple[str, "Kept | None"]]
    """Keys, and what the values are compared with if it is known."""
    _Same: TypeAlias = list[tuple[str, Any, str]]
    """Keys, values and their JSON."""

NOT_VALUES: Final = (Unread, *SQL)


class Kept(Before):
    """The baseline of a value that a flush is about to write, unless it is the same.

    *text* is the JSON of the row. *changed* is what it looked like when the flush
    began, and *found* the JSON of a value that differed then. *same* is whether it need
    not be written, once that is settled: when it is collected, or before in a flush
    that is quiet. *written* is the flush's.
    """

    __slots__ = ("_changed", "_found", "_key", "_state", "_written", "same")

    def __init__(
        self,
        state: InstanceState[Any],
        key: str,
        text: str,
        written: Written,
        *,
        changed: bool = True,
        found: str | None = None,
        quiet: bool = False,
    ) -> None:
        self._state, self._key, self.text = state, key, text
        self._written = written
        self.same: bool | None = not changed if quiet else None
        self._changed, self._found = changed, found

    @property
    def seems_changed(self) -> bool:
        """Whether the value is, or is likely to be, written."""
        return self._changed if self.same is None else not self.same

    def is_still(self, value: Any) -> bool:
        if self.same is None and not isinstance(value, Unread):
            encoded = will_bind(self._written, self._state, self._key, value)
            text = encoded.dump()
            self.same = self._holds(text)
            if not self.same:
                encoded.check(text)
                encoded.fresh = True
        return self.same is not False

    def looks_like(self, value: Any) -> bool:
        if self.same is not None or isinstance(value, Unread):
            return self.same is not False
        try:
            return self._holds(tracked(self._state)[self._key].codec.dump(value))
        except PayloadError:
            return False

    def _holds(self, text: str) -> bool:
        if text == self._found:
            return False  # It was compared already, which takes longer.
        return tracked(self._state)[self._key].codec.same(text, self.text)


def will_bind(
    written: Written, state: InstanceState[Any], key: str, value: Any
) -> Encoded:
    """Return what encodes *value* when the flush binds it."""
    place = state, key
    encoded = written.get(place)
    if encoded is None or encoded.value is not value:
        codec = state.manager.info[BASELINES][key].codec
        encoded = written[place] = keep_encoded(codec, value, located, place)
    return encoded


def prepare_update(state: InstanceState[Any], instance: object, flush: Flush) -> bool:
    """Check what has changed, and let SQLAlchemy compare what may change until then.

    Returns whether there is anything that a flush may write.
    """
    baselines, committed = baselines_of(state), state.committed_state
    # Looked at first, so that a refused value leaves nothing behind.
    changed, unchanged = _find(state, instance_dict(instance), baselines, flush)
    for key, kept in changed:
        if kept is not None:
            # The history shows what the row holds, not the mutated value.
            committed[key] = kept
    for key, value, text in unchanged:
        if key in committed:
            set_committed_value(instance, key, value)
            baselines[key] = Baseline(value, text)
    if changed and not state.modified:
        flag_dirty(instance)
    if not changed and not has_changes(state):
        return False
    for key, *_ in unchanged:
        if key in baselines:  # Or it cannot change in place.
            before = text_of(state, key, baselines[key])
            committed[key] = Kept(
                state, key, before, flush.written, changed=False, quiet=flush.quiet
            )
    return True


def _find(
    state: InstanceState[Any],
    held: dict[str, Any],
    baselines: dict[str, Baseline],
    flush: Flush,
) -> tuple[_Changed, _Same]:
    """Return what of *held* differs from the row of *state*, and what does not."""
    committed, written, quiet = state.committed_state, flush.written, flush.quiet
    changed: _Changed = []
    unchanged: _Same = []
    for key, column_type in tracked(state).items():
        assigned, baseline = key in committed, baselines.get(key)
        if not assigned and baseline is None:
            continue
        value = held.get(key)
        if baseline is not None and not assigned and baseline.value is not value:
            del baselines[key]
        elif value is None:
            refuse_none(state, key)
        elif not isinstance(value, NOT_VALUES):
            text = dump(state, key, value)
            was = committed[key] if assigned else value
            before = (
                text_of(state, key, baseline)
                if baseline is not None and baseline.value is was
                else original(state, key)
            )
            same = before is not None and column_type.codec.same(text, before)
            if assigned or not same:
                encoded = will_bind(written, state, key, value)
                encoded.check(text)  # The same text may be a loss.
                encoded.fresh = quiet
            if same:
                unchanged.append((key, value, text))
            elif before is None:
                changed.append((key, None))
            else:
                kept = Kept(state, key, before, written, found=text, quiet=quiet)
                changed.append((key, kept))
    return changed, unchanged


def prepare_again(
    state: InstanceState[Any], key: str, flush: Flush, *, assigned: bool
) -> None:
    """Let SQLAlchemy compare a value that a listener has read or set in the flush."""
    value, committed = state.dict.get(key), state.committed_state
    written, was = flush.written, committed.get(key)
    if flush.quiet and isinstance(was, Kept):
        was.same = None
    if value is None or isinstance(value, NOT_VALUES):
        return
    encoded, baseline = written.get((state, key)), baselines_of(state).get(key)
    if encoded is not None:
        encoded.fresh = False
    if assigned:
        will_bind(written, state, key, value)
        if isinstance(was, Before) or state.key is None:
            return
        mutable = tracked(state)[key].changes_in_place()
        before = original(state, key) if mutable else None
        if before is not None:
            committed[key] = Kept(state, key, before, written)
    elif key not in committed and baseline is not None and baseline.value is value:
        committed[key] = Kept(state, key, text_of(state, key, baseline), written)


def reconsider(states: Iterable[InstanceState[Any]]) -> None:
    """Let what a flush has settled be compared again: it was refused."""
    for state in states:
        for was in state.committed_state.values():
            if isinstance(was, Kept):
                was.same = None


def has_changes(state: InstanceState[Any]) -> bool:
    """Return whether an attribute was set, or marked by prepare_update."""
    return bool(state.committed_state or state.__dict__.get("_pending_mutations"))


def will_write(state: InstanceState[Any], *, collecting: bool = False) -> bool:
    """Return whether there are columns for an UPDATE of the row of *state* to set.

    Before SQLAlchemy is *collecting* them, a listener may yet change the answer.
    """
    for key, was in state.committed_state.items():
        if isinstance(was, Follower):
            continue
        if isinstance(was, Kept):
            if was.same is not None:
                written = not was.same
            elif not collecting:
                written = was.seems_changed
            else:
                value = state.dict.get(key)
                written = value is None or not was.is_still(value)
        else:
            column = state.mapper.columns.get(key)
            written = isinstance(column, Column) and not is_same(state, key)
        if written:
            return True
    return False


def is_same(state: InstanceState[Any], key: str) -> bool:
    """Return whether the attribute *key* of *state* need not be written by now."""
    committed = state.committed_state
    if key not in committed:
        return True
    was = committed[key]
    if isinstance(was, Kept) and was.same is not None:
        return was.same
    value = state.dict.get(key)
    if _is_sql(value):
        return False
    if isinstance(was, Before):
        return value is not None and was.looks_like(value)
    impl: Any = state.manager[key].impl
    return impl.is_equal(value, was) is True


def _is_sql(value: Any) -> bool:
    """Return whether *value* is SQL that an UPDATE sets a column to.

    A Pydantic model looks for an attribute that it lacks in all its parts, and so does
    its class in those of its metaclass.
    """
    return isinstance(value, SQL) or (
        not hasattr(type(value), "__pydantic_validator__")
        and hasattr(type(value), "__clause_element__")
    )


class Follower:
    """What the row holds of a column that is written only if others are."""

    __slots__ = ()
