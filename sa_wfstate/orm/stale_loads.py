"""Stale objects outside a flush: ``merge()``, locked loads, refreshes by name.

``Session.merge()`` of a detached object, and ``Session.get(…, with_for_update=…)`` of
one that the session holds, compare versions and raise StaleDataError. An error that
comes out of them is looked at closer. The SELECT of a get passes ``do_orm_execute``; a
merge passes no event, so it is wrapped when the first workflow class is mapped.

SQLAlchemy compares the version attributes alone, and inserts what it does not find. So
a merge is refused before it copies anything

- if the detached object and the session's own have different bases, which shows a row
  that was deleted and created again, or a version attribute that is expired;
- if the row of a detached object is gone: it was deleted, not to be created again;
- if a new, transient object, the creation of a workflow, meets a row that exists.

``load=False`` reads no row: the object of the session gets the base of the merged one,
and its next flush is checked against that. So does one that is merged from an object
without a base, and cannot be written before it is loaded.

``refresh()`` and ``expire()`` of some attributes take the version and the provenance
together, so that the base is always of one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstanceState, ORMExecuteState, Session
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.orm.util import identity_key

from ..errors import ConflictReason, StateConflict
from ..retry import SERIALIZATION_FAILURE, sqlstate
from ..values.row_version import NOTHING, RowVersion
from .attempts import explain_unflushed
from .conflicts import conflict_of, conflict_of_all, read_again
from .entity import statements_of
from .mixin import WorkflowStateMixin
from .routing import connection_for
from .row_keys import key_of, known_key_of
from .session_patch import workflow_mapper
from .tracking import check_unchanged
from .version_guard import OF_A_BASE, seen_of, take_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ..values.keys import Key


def merge(
    method: Callable[..., Any], session: Session, instance: Any, **options: Any
) -> Any:
    with _Merging(session, [instance], options):
        return method(session, instance, **options)


def merge_all(
    method: Callable[..., Any],
    session: Session,
    instances: Iterable[Any],
    **options: Any,
) -> Any:
    instances = list(instances)
    with _Merging(session, instances, options):
        return method(session, instances, **options)


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


class _Merging:
    """Check the instances of a merge before it, and translate its errors."""

    def __init__(
        self, session: Session, instances: list[Any], options: Mapping[str, Any]
    ) -> None:
        self._session = session
        self._instances = instances
        self._load = options.get("load", True)
        self._options = options.get("options")
        self._kept: list[object] = []  # The identity map would let go of them.

    def __enter__(self) -> None:
        if not self._load:  # It compares, and sends no SQL.
            check_unchanged(self.workflows())
            return
        for state in self.workflows():
            if state.key is not None:
                self._refuse_stale(state)
            elif "workflow_key" in state.dict:
                self._refuse_to_replace(state)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            for state in self.workflows():
                self._hand_over(state)
        if (
            type(error) is not StaleDataError
            or not self._session.is_active
            or not self._load
        ):
            return
        with self._session.no_autoflush:
            conflict = conflict_of_all(
                [each for state in self.workflows() for each in self._lost(state)]
            )
        if conflict is not None:
            raise conflict from error

    def workflows(self) -> Iterator[InstanceState[Any]]:
        """Return the workflow instances that the merge cascades to."""
        for instance in self._instances:
            state: Any = inspect(instance, raiseerr=False)
            if not isinstance(state, InstanceState):
                continue  # SQLAlchemy says what is wrong.
            reached = state.mapper.cascade_iterator("merge", state)
            for each in (state, *(found[2] for found in reached)):
                if issubclass(each.class_, WorkflowStateMixin):
                    yield each

    def _refuse_stale(self, state: InstanceState[Any]) -> None:
        """Refuse to merge a detached object that is not based on its row."""
        held = self._session.get(
            state.class_,
            state.key[1],  # type: ignore[index]
            identity_token=state.identity_token,
            options=self._options,
        )
        if held is state.obj():
            return
        conflicts: list[StateConflict] = []
        if held is None:
            base = seen_of(state) or RowVersion(state.dict.get("version", 1), None)
            bases = [(base, state)]
            conflicts = _conflicts(self._session, state.class_, key_of(state), bases)
        elif _carries(state) and state.dict.get("version") in {None, held.version}:
            conflicts = self._lost(state)  # The merge compares the versions only.
        if conflicts:
            raise conflicts[0]
        self._kept.append(held)

    def _hand_over(self, state: InstanceState[Any]) -> None:
        """Give the session's own object the base of *state*, whose values it has now.

        What was loaded for the merge has the same one, but if *state* has none.
        """
        held = None if state.key is None else self._held(state)
        if held is None or held is state.obj() or not _carries(state):
            return
        if not self._load or seen_of(state) is None:
            take_over(inspect(held), state)

    def _refuse_to_replace(self, state: InstanceState[Any]) -> None:
        identity = state.mapper.primary_key_from_instance(state.obj())
        if None in identity:
            return  # The INSERT makes it.
        key = key_of(state)
        there = self._session.get(state.class_, tuple(identity))
        if there is not None and inspect(there) is not state:
            bases = [(NOTHING, None)]
            conflicts = _conflicts(self._session, state.class_, key, bases)
            if conflicts:
                raise conflicts[0]

    def _lost(self, state: InstanceState[Any]) -> list[StateConflict]:
        """Either the detached or the session's own object may be the stale one."""
        held = self._held(state)
        if held is None or inspect(held) is state:
            return []
        states = [state, inspect(held)]
        bases = [(seen_of(each), each) for each in states]
        if bases[0][0] == bases[1][0]:
            return []
        return _conflicts(self._session, state.class_, key_of(state), bases)[:1]

    def _held(self, state: InstanceState[Any]) -> Any:
        """Return the session's own object of the row."""
        identity = state.key or state.mapper.identity_key_from_instance(state.obj())
        return self._session.identity_map.get(identity)


def _carries(state: InstanceState[Any]) -> bool:
    """Return whether a merge of *state* copies the value of any column but its key."""
    return any(
        name in state.dict and name != "workflow_key"
        for name in state.mapper.column_attrs.keys()  # noqa: SIM118 - no dict
    )


def expire(state: InstanceState[Any], attributes: Iterable[str] | None) -> None:
    more = _beside(state, attributes)
    if attributes is not None and more and state.persistent:
        session: Any = state.session
        session.expire(state.obj(), [*attributes, *more])


def refresh(
    method: Callable[..., None],
    session: Session,
    instance: object,
    attribute_names: Iterable[str] | None = None,
    **options: Any,
) -> None:
    state = inspect(instance, raiseerr=False)
    if isinstance(instance, WorkflowStateMixin) and attribute_names and state:
        attribute_names = [*attribute_names]
        attribute_names += _beside(state, attribute_names)
    method(session, instance, attribute_names, **options)


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
