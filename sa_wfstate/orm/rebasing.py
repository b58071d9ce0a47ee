"""Rebase the rows of a flush: merge what it would write with what others have written.

A session does so when it is asked to, for classes that declare ``__rebase__``. When a
flush begins, and before anything else looks at what it may write, the changed rows are
locked in the order of their keys. One that has moved on since it was read is merged in
memory: the instance is then based on the row as it is. A row that cannot be merged is
left alone, and its write is the conflict that it would have been.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel
from sqlalchemy import Column
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import (
    InstanceState,
    Mapper,
    RelationshipDirection,
    Session,
    SessionTransaction,
)

from ..errors import (
    ConflictReason,
    MappingError,
    PayloadError,
    SchemaVersionAhead,
    StateConflict,
)
from ..payload.rebase import Rebase
from ..retry import SERIALIZATION_FAILURE, sqlstate
from ..row.columns import Columns
from ..row.sql import CANONICAL_COLUMNS
from .attempts import Value, differs, value_of
from .baseline import is_changed, tracked
from .conflicts import conflict_of_all
from .criteria import select_rows
from .entity import statements_of
from .merged_row import MergedRow, check_replaced
from .refusals import refusing
from .routing import by_shard, connection_for
from .row_keys import key_of
from .version_guard import EXPECTED, seen_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import UOWTransaction

    from .session_state import Flush, SessionState


OPTION: Final = "sa_wfstate_rebase"
"""The execution option of a session, of its engine, or of its connection."""

_RULES: Final = "sa_wfstate.rebase"


class _Row(NamedTuple):
    """A changed instance, and its loaded columns with their changes.

    *linked*: an object that it refers to was assigned.
    """

    state: InstanceState[Any]
    values: dict[str, Value]
    changed: frozenset[str]
    linked: bool


@refusing
def after_mapper_constructed(mapper: Mapper[Any], cls: type[Any]) -> None:
    rules = cls.__rebase__
    if rules is None:
        return
    if not isinstance(rules, Rebase):
        raise MappingError(cls.__name__, "__rebase__ must be a Rebase")
    state_type: Any = mapper.columns["state"].type
    type_ = state_type.type_
    if isinstance(type_, type) and issubclass(type_, BaseModel):
        fields = {
            field.serialization_alias or field.alias or name
            for name, field in type_.model_fields.items()
        }
        unknown = rules.names - fields - {*mapper.columns.keys()}
        if unknown and type_.model_config.get("extra") != "allow":
            problem = f"__rebase__ names {min(unknown)!r}, no field or column of it"
            raise MappingError(cls.__name__, problem)
    mapper.class_manager.info[_RULES] = rules


def may_rebase(known: SessionState, context: UOWTransaction) -> bool:
    """Return whether a flush has anything to do here."""
    for mapper in context.mappers:
        if _RULES in mapper.class_manager.info:
            return True
    for state in known.touched:
        if _RULES in state.manager.info:
            return True
    return bool(known.replaced)


def rebase_changed(
    session: Session,
    transaction: SessionTransaction,
    known: SessionState,
    flush: Flush,
    context: UOWTransaction,
) -> None:
    """Rebase the rows that a flush, of which *transaction* has begun, may write."""
    groups, entity = dict[type[Any], list[_Row]](), None
    try:
        for state, references in known.replaced.items():
            check_replaced(state, references)
        groups = _changed_rows(session, known, flush, context)
        for entity in sorted(groups, key=lambda each: each.__name__):
            _rebase(session, known, context, groups[entity])
    except DBAPIError as error:
        # As a flush does when a statement of its own fails.
        transaction.rollback()
        if entity is not None and sqlstate(error) == SERIALIZATION_FAILURE:
            refused = [_refused(row.state) for row in groups[entity]]
            raise conflict_of_all(refused) from error  # type: ignore[misc]
        raise
    except BaseException:
        transaction.close()  # As if it had not begun: nothing was written.
        known.end_flush()
        raise


def forget_replaced(known: SessionState) -> None:
    """Forget references to what an expired instance held, void in any case."""
    for state in [*known.replaced]:
        if state.expired or state.obj() is None:
            del known.replaced[state]


def _changed_rows(
    session: Session, known: SessionState, flush: Flush, context: UOWTransaction
) -> dict[type[Any], list[_Row]]:
    """Return the rows that may be rebased, by class."""
    states = [
        state
        for state, (deleted, _) in context.states.items()
        if _RULES in state.manager.info and not deleted and state.key is not None
    ]
    if not flush.partial:
        states += [
            state
            for state in known.touched
            if _RULES in state.manager.info and state not in context.states
        ]
    if not states:
        return {}
    groups = defaultdict[type[Any], list[_Row]](list)
    asked = dict[Mapper[Any], bool]()
    for state in states:
        mapper = state.mapper
        if mapper not in asked:
            asked[mapper] = _is_asked(session, known, state)
        if (
            asked[mapper]
            and state.session is session
            and state.obj() not in session.deleted
            and seen_of(state) is not None
            # What the application has named is checked as it is.
            and EXPECTED not in state.info
        ):
            try:
                row = _row_of(state)
            except PayloadError:
                continue  # The flush raises it, with the name of the row.
            if row.changed or row.linked:
                groups[state.class_].append(row)
    return groups


def _row_of(state: InstanceState[Any]) -> _Row:
    values, columns = dict(_values_of(state)), state.mapper.columns
    changed = (
        name for name, value in values.items() if differs(columns[name].type, *value)
    )
    linked = any(
        prop.direction is RelationshipDirection.MANYTOONE
        and name in state.committed_state
        and state.attrs[name].history.has_changes()
        for name, prop in state.mapper.relationships.items()
    )
    # Those that do not count are no reason to look at the row.
    counted = frozenset(changed).difference(state.class_.__unversioned__)
    return _Row(state, values, counted, linked)


def _is_asked(session: Session, known: SessionState, state: InstanceState[Any]) -> bool:
    """Return whether flushes of *session* rebase rows of the class of *state*."""
    # The options of a session are new in SQLAlchemy 2.1.
    options = getattr(session, "execution_options", {})
    if known.rebases or OPTION in options:
        return known.rebases or bool(options[OPTION])
    connection = connection_for(session, state.mapper, [key_of(state)])
    return bool(connection.get_execution_options().get(OPTION))


def _values_of(state: InstanceState[Any]) -> Iterator[tuple[str, Value]]:
    """Return the loaded columns of the application, before and now."""
    for name, column in state.mapper.columns.items():
        if name not in state.dict or not isinstance(column, Column):
            continue
        if name != "state" and (name in Columns._fields or column.primary_key):
            continue
        value = value_of(state, name)
        in_place = name in tracked(state) and is_changed(state, name)
        yield name, Value(value.before, state.dict[name]) if in_place else value


def _rebase(
    session: Session, known: SessionState, context: UOWTransaction, rows: list[_Row]
) -> None:
    """Lock *rows*, of one class, and merge those that have moved on."""
    entity = rows[0].state.class_
    statements, rules = statements_of(entity), rows[0].state.manager.info[_RULES]
    own = sorted({name for row in rows for name in row.values} - {"state"})
    by_key = {key_of(row.state): row for row in rows}
    names = (*CANONICAL_COLUMNS[1:], *own)
    linked = _sets_foreign_keys(context)
    keys, found = sorted(by_key), list[Any]()
    for shard in by_shard(session, statements.mapper, keys):
        own_keys = [keys[index] for index in shard]
        found += select_rows(session, statements, names, own_keys, lock=True)
    for row in found:
        state, values, changed, assigned = by_key[row[0]]
        seen: Any = seen_of(state)
        if row[1] <= seen.version:
            continue  # It has not moved, or it was re-created.
        try:
            current = statements.snapshot_of(row)
            merged = MergedRow(statements, rules, values, changed, current, own)
            merged.merge(linked=linked)
        except (ValueError, SchemaVersionAhead):
            continue  # The flush loses, and says to whom.
        merged.apply(session, known, state, seen, linked=assigned)


def _sets_foreign_keys(context: UOWTransaction) -> bool:
    """Return whether the unit of work may yet set foreign keys, from relationships."""
    for state, (deleted, _) in context.states.items():
        names = set(state.mapper.relationships.keys())
        pending = state.__dict__.get("_pending_mutations") or ()
        if names and (
            deleted or not names.isdisjoint({*state.committed_state, *pending})
        ):
            return True
    return False


def _refused(state: InstanceState[Any]) -> StateConflict:
    seen: Any = seen_of(state)
    reason = ConflictReason.SERIALIZATION
    return StateConflict(
        state.class_.__name__, key_of(state), seen.version, None, reason
    )
