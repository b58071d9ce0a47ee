"""Stale objects outside a flush: ``merge()``, locked loads, refreshes by name.

``Session.merge()`` of a detached object, and ``Session.get(…, with_for_update=…)`` of
one that the session holds, compare versions and raise StaleDataError. An error that
comes out of them is looked at closer. The SELECT of a get passes ``do_orm_execute``; a
merge passes no event, so the method that every merge calls, for each object that it
cascades to, is wrapped when the first workflow class is mapped.

SQLAlchemy compares the version attributes alone, and inserts what it does not find. So
a merge is refused before it copies anything

- if the detached object and the session's own have different bases, which shows a row
  that was deleted and created again, or a version attribute that is expired;
- if the row of a detached object is gone: it was deleted, not to be created again;
- if a new, transient object, the creation of a workflow, meets a row that exists.

``load=False`` reads no row: the object of the session gets the base of the merged one,
and its next flush is checked against that. So does one that is merged from an object
without a base, and cannot be written before it is loaded.

``expire()`` of some attributes expires the version and the provenance together, and so
does ``refresh()``, which then loads them all at once: the base is always of one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.orm.util import identity_key

from ..errors import ConflictReason, StateConflict
from ..retry import SERIALIZATION_FAILURE, sqlstate
from ..values.row_version import NOTHING, RowVersion
from .attempts import explain_unflushed
from .conflicts import conflict_of, read_again
from .entity import statements_of
from .mixin import WorkflowStateMixin
from .routing import connection_for
from .row_keys import key_of, known_key_of
from .session_patch import workflow_mapper
from .tracking import check_unchanged
from .version_guard import OF_A_BASE, seen_of, take_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.orm import InstanceState, ORMExecuteState, Session

    from ..values.keys import Key


def merge(
    method: Callable[..., Any],
    session: Session,
    state: InstanceState[Any],
    state_dict: Any,
    **options: Any,
) -> Any:
    if not issubclass(state.class_, WorkflowStateMixin):
        return method(session, state, state_dict, **options)
    load, held = options["load"], None
    if not load:  # It compares, and sends no SQL.
        check_unchanged(state)
    elif state.key is not None:
        # It is kept until the end: the identity map would let go of it.
        held = _refuse_stale(session, state, options.get("options"))
    elif "workflow_key" in state.dict:
        _refuse_to_replace(session, state)
    try:
        merged = method(session, state, state_dict, **options)
    except StaleDataError as error:
        if type(error) is StaleDataError and session.is_active and held is not None:
            for conflict in _lost(session, state, inspect(held)):
                raise conflict from error
        raise
    # What was loaded for the merge has the base of *state* already, if it has one.
    copied = merged is not state.obj() and state.key is not None and _carries(state)
    if copied and (not load or seen_of(state) is None):
        take_over(inspect(merged), state)
    return merged


def do_orm_execute(execute: ORMExecuteState) -> Any:
    """Execute the SELECT of a ``get(…, with_for_update=…)``, and fetch its row."""
    # Only a private option shows that SQLAlchemy is going to compare versions.
    if not execute.is_select or not getattr(
        execute.load_options, "_version_check", False
    ):
        return None
    mapper = workflow_mapper(execute.bind_mapper)
    if mapper is None:
        return None
    try:
        return execute.invoke_statement().unique().freeze()()
    except (StaleDataError, DBAPIError) as error:
        # An error of the autoflush before it has made the session inactive.
        if execute.session.is_active:
            _translate_get(execute, mapper.class_, error)
        raise


def _refuse_stale(session: Session, state: InstanceState[Any], options: Any) -> Any:
    """Refuse to merge a detached object that is not based on its row.

    Returns the session's own object of the row.
    """
    entity, identity = state.class_, state.identity
    held = session.get(
        entity, identity, identity_token=state.identity_token, options=options
    )
    if held is state.obj():
        return held
    conflicts: list[StateConflict] = []
    if held is None:
        base = seen_of(state) or RowVersion(state.dict.get("version", 1), None)
        conflicts = _conflicts(session, entity, key_of(state), [(base, state)])
    elif _carries(state) and state.dict.get("version") in {None, held.version}:
        # The merge compares the versions only.
        conflicts = _lost(session, state, inspect(held))
    if conflicts:
        raise conflicts[0]
    return held


def _refuse_to_replace(session: Session, state: InstanceState[Any]) -> None:
    identity = state.mapper.primary_key_from_instance(state.obj())
    if None in identity:
        return  # The INSERT makes it.
    there = session.get(state.class_, tuple(identity))
    if there is not None and inspect(there) is not state:
        bases = [(NOTHING, None)]
        for conflict in _conflicts(session, state.class_, key_of(state), bases):
            raise conflict


def _lost(
    session: Session, state: InstanceState[Any], held: InstanceState[Any]
) -> list[StateConflict]:
    """Either the detached or the session's own object may be the stale one."""
    bases = [(seen_of(each), each) for each in (state, held)]
    if held is state or bases[0][0] == bases[1][0]:
        return []
    return _conflicts(session, state.class_, key_of(state), bases)[:1]


def _carries(state: InstanceState[Any]) -> bool:
    """Return whether a merge of *state* copies the value of any column but its key."""
    return any(
        name in state.dict and name != "workflow_key"
        for name in state.mapper.column_attrs.keys()  # noqa: SIM118 - no dict
    )


def expire(state: InstanceState[Any], attributes: Iterable[str] | None) -> None:
    if attributes is None:
        return
    more = _beside(state, attributes)
    if more and state.persistent:
        session: Any = state.session
        session.expire(state.obj(), [*attributes, *more])


def refresh(
    state: InstanceState[Any], _: object, attributes: Iterable[str] | None
) -> None:
    """Load again, together, what a refresh by name has left expired beside it."""
    expired = [
        name for name in _beside(state, attributes) if name in state.expired_attributes
    ]
    if attributes and expired:
        session: Any = state.session
        with session.no_autoflush:
            session.refresh(
                state.obj(), [*OF_A_BASE.intersection(attributes), *expired]
            )


def _beside(state: InstanceState[Any], attributes: Iterable[str] | None) -> list[str]:
    """Return what must be read in one row with *attributes*, and is not among them."""
    if attributes is None or OF_A_BASE.isdisjoint(attributes):
        return []
    return [
        name
        for name in ("version", "provenance")
        if name not in attributes and name in state.unmodified
    ]


def _translate_get(
    execute: ORMExecuteState, entity: type[Any], error: StaleDataError | DBAPIError
) -> None:
    session = execute.session
    identity = tuple(dict(execute.parameters).values())  # type: ignore[arg-type]
    held = session.identity_map.get(identity_key(entity, identity))
    seen = None if held is None else seen_of(inspect(held))
    if seen is None:
        return
    state = inspect(held)
    if isinstance(error, StaleDataError):
        for conflict in _conflicts(session, entity, key_of(state), [(seen, state)]):
            raise conflict from error
    elif sqlstate(error) == SERIALIZATION_FAILURE:
        key, reason = known_key_of(state), ConflictReason.SERIALIZATION
        raise StateConflict(entity.__name__, key, seen.version, None, reason) from error


def _conflicts(
    session: Session,
    entity: type[Any],
    workflow_key: Key,
    bases: Sequence[tuple[RowVersion | None, InstanceState[Any] | None]],
) -> list[StateConflict]:
    """Read the row again; return the conflict of each of *bases* that it is not.

    Each comes with the instance that is based on it, if there is one.
    """
    statements = statements_of(entity)
    connection = connection_for(session, statements.mapper, [workflow_key])
    seen = [(base, state) for base, state in bases if base is not None]
    expected = {workflow_key: max((base.version for base, _ in seen), default=0)}
    again = read_again(connection, statements, expected, whole=True)
    conflicts = []
    for base, state in seen:
        found = again.get(workflow_key)
        conflict = conflict_of(statements, workflow_key, base, found)
        if conflict is not None and state is not None:
            conflict = explain_unflushed(conflict, statements, state)
        if conflict is not None:
            conflicts.append(conflict)
    return conflicts
