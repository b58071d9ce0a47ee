"""Stale objects that SQLAlchemy notices outside a flush: ``merge()`` and locked loads.

``Session.merge()`` of a detached object, and ``Session.get(…, with_for_update=…)`` of
one that the session holds, compare versions and raise StaleDataError. SQLAlchemy offers
no event there, so these methods are wrapped when the first workflow class is mapped.
The wrapper calls the method, and looks closer at an error that comes out.

A new, transient object is the creation of a workflow. Merged over a row that exists it
would take over that row's version and write over it unseen, so that is a conflict too.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError, NoInspectionAvailable
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError
from sqlalchemy.orm.util import identity_key

from .conflicts import conflict_of, conflict_of_all, read_again
from .guards import NOTHING, Seen, key_of, seen_of
from .mixin import WorkflowStateMixin
from .races import ConflictReason, StateConflict
from .session_methods import around
from .sqlstates import SERIALIZATION_FAILURE, sqlstate
from .statements import statements_of
from .tracking import check_unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@around("merge")
def _merge(
    method: Callable[..., Any], session: Session, instance: Any, **options: Any
) -> Any:
    if options.get("load") is False:  # It compares, and sends no SQL.
        check_unchanged(_Merging(session, [instance]).workflows())
        return method(session, instance, **options)
    with _Merging(session, [instance]):
        return method(session, instance, **options)


@around("merge_all")
def _merge_all(
    method: Callable[..., Any],
    session: Session,
    instances: Iterable[Any],
    **options: Any,
) -> Any:
    instances = list(instances)
    if options.get("load") is False:
        check_unchanged(_Merging(session, instances).workflows())
        return method(session, instances, **options)
    with _Merging(session, instances):
        return method(session, instances, **options)


@around("get")
def _get(
    method: Callable[..., Any],
    session: Session,
    entity: Any,
    ident: Any,
    **options: Any,
) -> Any:
    try:
        return method(session, entity, ident, **options)
    except (StaleDataError, DBAPIError) as error:
        # An error of the autoflush before it has made the session inactive.
        if options.get("with_for_update") and session.is_active:
            _translate_get(session, entity, ident, error)
        raise


class _Merging:
    """What is looked at around a merge."""

    def __init__(self, session: Session, instances: list[Any]) -> None:
        self._session = session
        self._instances = instances

    def __enter__(self) -> None:
        for state in self.workflows():
            if state.key is None:
                if "workflow_key" in state.dict:
                    self._refuse_to_replace(state)
                continue
            held = self._held(state)
            if held is not None and "version" not in inspect(held).dict:
                # With an expired version nothing would be compared.
                with suppress(ObjectDeletedError):
                    held.version  # noqa: B018 - to load it

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if type(error) is not StaleDataError or not self._session.is_active:
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
            try:
                state: InstanceState[Any] = inspect(instance)
            except NoInspectionAvailable:
                continue
            reached = state.mapper.cascade_iterator("merge", state)
            for each in (state, *(found[2] for found in reached)):
                if issubclass(each.class_, WorkflowStateMixin):
                    yield each

    def _refuse_to_replace(self, state: InstanceState[Any]) -> None:
        key = key_of(state)
        there = self._session.get(state.class_, key)
        if there is not None and inspect(there) is not state:
            conflicts = _conflicts(self._session, state.class_, key, [NOTHING])
            if conflicts:
                raise conflicts[0]

    def _lost(self, state: InstanceState[Any]) -> list[StateConflict]:
        """Either the detached or the session's own object may be the stale one."""
        held = self._held(state)
        if held is None or inspect(held) is state:
            return []
        bases = [seen_of(state), seen_of(inspect(held))]
        if None in bases or bases[0] == bases[1]:
            return []
        return _conflicts(self._session, state.class_, key_of(state), bases)[:1]

    def _held(self, state: InstanceState[Any]) -> Any:
        """Return the session's own object of the row."""
        return self._session.identity_map.get(identity_key(state.class_, key_of(state)))


def _translate_get(
    session: Session, entity: Any, ident: Any, error: StaleDataError | DBAPIError
) -> None:
    mapper = inspect(entity, raiseerr=False)
    if not isinstance(mapper, Mapper) or not issubclass(
        mapper.class_, WorkflowStateMixin
    ):
        return
    key = ident[0] if isinstance(ident, tuple) else ident
    key = key["workflow_key"] if isinstance(key, dict) else key
    held = session.identity_map.get(identity_key(mapper.class_, key))
    seen = None if held is None else seen_of(inspect(held))
    if seen is None:
        return
    if isinstance(error, StaleDataError):
        for conflict in _conflicts(session, mapper.class_, key, [seen]):
            raise conflict from error
    elif sqlstate(error) == SERIALIZATION_FAILURE:
        raise StateConflict(
            mapper.class_.__name__,
            key,
            seen.version,
            None,
            ConflictReason.SERIALIZATION,
        ) from error


def _conflicts(
    session: Session, entity: type[Any], workflow_key: str, bases: list[Seen | None]
) -> list[StateConflict]:
    """Read the row again; return the conflict of each of *bases* that it is not."""
    statements = statements_of(entity)
    connection = session.connection(bind_arguments={"mapper": statements.mapper})
    seen = [base for base in bases if base is not None]
    expected = {workflow_key: max((base.version for base in seen), default=0)}
    found = read_again(connection, statements, expected).get(workflow_key)
    judged = [
        conflict_of(statements, workflow_key, base.version, found, base.effect_id)
        for base in seen
    ]
    return [conflict for conflict in judged if conflict is not None]
