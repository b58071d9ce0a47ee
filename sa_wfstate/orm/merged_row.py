"""One row that was rebased: what both have changed, and the instance that gets it."""

from __future__ import annotations

from copy import copy
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel
from sqlalchemy.orm import LoaderCallableStatus, RelationshipDirection
from sqlalchemy.orm.attributes import set_committed_value

from ..errors import PayloadError, StateReplaced
from ..payload.changes import document_of, is_same
from ..payload.rebase import Overlap, Rebase, decide, merge_texts
from ..row.types import PydanticJSON
from ..row.unread import Unread
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from ..values.snapshot import beside_of, source_of
from .attempts import differs, text_of
from .baseline import SQL, Baseline, baselines_of, tracked
from .row_keys import key_of
from .tracking import altered_in, rebase
from .version_guard import saw

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import InstanceState, Session

    from ..row.statements import Statements
    from ..values.snapshot import WorkflowSnapshot
    from .attempts import Value
    from .session_state import SessionState


class Reference(NamedTuple):
    """A value that was replaced, which the application may still hold.

    *name* is its attribute; *text* was its JSON when it was replaced.
    """

    name: str
    value: Any
    text: str


class Outcome(NamedTuple):
    """An attribute of the merged row: what the row holds, and the value to be written.

    *value* is :data:`KEPT` if there is none to be written.
    """

    found: Any
    value: Any


KEPT: Final = object()


class MergedRow:
    """The merge of one instance, *values* and what of them was *changed*, with its row.

    *current* is the row as it is, read with the columns *own* beside it.
    """

    def __init__(
        self,
        statements: Statements[Any],
        rules: Rebase,
        values: Mapping[str, Value],
        changed: frozenset[str],
        current: WorkflowSnapshot[Any],
        own: Sequence[str],
    ) -> None:
        self._statements = statements
        self._rules = rules
        self._loaded = values
        self._changed = changed
        self._current = current
        self._found = dict(zip(own, beside_of(current), strict=True))
        self._outcomes = dict[str, Outcome]()

    def merge(self, *, linked: bool) -> None:
        """Merge each attribute; ValueError if one cannot be.

        *linked*: the unit of work may yet set foreign keys.
        """
        if "state" in self._loaded:
            self._outcomes["state"] = self._merge_state()
        columns = self._statements.mapper.columns
        uncounted = self._statements.mapper.class_.__unversioned__
        for name, (was, now) in self._loaded.items():
            if name == "state":
                continue
            column: Any = columns[name]
            found = self._found[name]
            if isinstance(column.type, PydanticJSON) and found is not None:
                found = Unread(found)
            if not differs(column.type, was, found):
                continue
            if name in uncounted and differs(column.type, was, now):
                continue  # The last one wins.
            if linked and column.foreign_keys:
                raise Overlap
            if isinstance(was, LoaderCallableStatus):
                raise Overlap  # It was assigned, and never loaded.
            value = KEPT
            if name in self._changed:
                value = self._decide(name, column.type, was, now, found)
            self._outcomes[name] = Outcome(found, value)

    def _merge_state(self) -> Outcome:
        source: Any = source_of(self._current)
        theirs = source[1]
        if "state" not in self._changed:
            return Outcome(Unread(theirs), KEPT)
        state_type = self._statements.state_type
        base, mine = (text_of(state_type, each) for each in self._loaded["state"])
        if base is None or mine is None:
            raise Overlap
        value, is_theirs = merge_texts(
            self._rules, state_type.codec, base, mine, theirs
        )
        return Outcome(Unread(theirs), KEPT if is_theirs else value)

    def _decide(self, name: str, type_: Any, was: Any, now: Any, found: Any) -> Any:
        """Return the value of a column that both have changed."""
        rule = self._rules.columns.get(name)
        if rule is None or isinstance(now, SQL):
            raise Overlap
        if not isinstance(type_, PydanticJSON):
            value = decide(rule, was, now, found)
            return KEPT if not differs(type_, value, found) else value
        texts = [text_of(type_, each) for each in (was, now, found)]
        if None in texts:
            raise Overlap
        documents = [document_of(type_.codec, text) for text in texts if text]
        merged = decide(rule, *documents)
        return KEPT if is_same(merged, documents[2]) else type_.codec.value_of(merged)

    def apply(
        self,
        session: Session,
        known: SessionState,
        state: InstanceState[Any],
        seen: RowVersion,
        *,
        linked: bool,
    ) -> None:
        """Give the instance of *state* the row as it is, and what is to be written.

        *linked*: the flush will write a foreign key.
        """
        instance, current = state.obj(), self._current
        assert instance is not None  # noqa: S101 - the flush holds it
        references = known.replaced.setdefault(state, [])
        altered_in(session)[state] = True
        known.touched[state] = instance
        writes = linked or any(n not in self._outcomes for n in self._changed)
        for name, (found, value) in self._outcomes.items():
            writes = writes or value is not KEPT
            if name in tracked(state):
                references += _replace(state, instance, name, found, value)
            else:
                set_committed_value(instance, name, found)
                if value is not KEPT:
                    setattr(instance, name, value)
        self._expire_links(session, state)
        set_committed_value(instance, "version", current.version)
        set_committed_value(instance, "updated_at", current.updated_at)
        set_committed_value(instance, "schema_version", current.schema_version)
        given = state.dict.get("provenance")
        assigned = "provenance" in state.committed_state
        set_committed_value(instance, "provenance", current.provenance)
        saw(state, RowVersion(current.version, current.provenance.effect_id))
        if not writes:
            return
        if not (assigned and isinstance(given, Provenance)):
            given = instance.default_provenance()
        instance.provenance = given.model_copy(update={"rebased_from": seen.version})

    def _expire_links(self, session: Session, state: InstanceState[Any]) -> None:
        """Let objects be loaded again to which the row does not refer any more."""
        columns = self._statements.mapper.columns
        moved = {columns[name] for name in self._outcomes}
        stale = [
            name
            for name, prop in state.mapper.relationships.items()
            if name in state.dict
            and name not in state.committed_state
            and prop.direction is RelationshipDirection.MANYTOONE
            and not moved.isdisjoint(prop.local_columns)
        ]
        if stale:
            session.expire(state.obj(), stale)


def _replace(
    state: InstanceState[Any], instance: Any, name: str, found: Any, value: Any
) -> list[Reference]:
    """Give *instance* the JSON *found* of its row, and *value* to be written, if any.

    An object that the application may hold goes on being the value, where that can be.
    Returns what it may hold beside.
    """
    type_, old = tracked(state)[name], state.dict.get(name)
    unread = isinstance(old, (Unread, NoneType, *SQL))
    if found is None or unread or not type_.changes_in_place():
        if found is None:
            set_committed_value(instance, name, None)
            baselines_of(state).pop(name, None)
        else:
            rebase(instance, name, found.text)
        if value is not KEPT:
            setattr(instance, name, value)
        return []
    was, theirs = type_.dump(old), type_.load(found.text)
    text = type_.dump(theirs)
    new = theirs if value is KEPT else value
    before = _pour(old, new)
    held = new if before is old else old
    set_committed_value(instance, name, held)
    baselines_of(state)[name] = Baseline(held, text)
    return [Reference(name, before, was)]


def _pour(old: Any, new: Any) -> Any:
    """Make *old* hold what *new* holds, if it can; return what it has held before.

    That is *old* itself if it cannot be changed so.
    """
    before = old
    if type(old) is not type(new):
        return before
    if isinstance(old, BaseModel) and not old.model_config.get("frozen"):
        before = old.model_copy()
        for name in ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__"):
            object.__setattr__(old, name, copy(getattr(new, name)))
    elif type(old) is dict:
        before = dict(old)
        old.clear()
        old.update(new)
    elif type(old) is list:
        before = list(old)
        old[:] = new
    return before


def check_replaced(state: InstanceState[Any], references: list[Reference]) -> None:
    """Raise StateReplaced if a value was changed after another one has replaced it."""
    for name, value, text in references:
        type_ = tracked(state)[name]
        try:
            same = type_.codec.same(type_.dump(value), text)
        except PayloadError:
            same = False
        if not same:
            raise StateReplaced(state.class_.__name__, key_of(state), name)
