"""Guards: what would write over a version that the code has not seen is refused.

The version that a write is checked against, its *base*, is the one that came *with the
state*. It is noted when a row is loaded, and survives what SQLAlchemy forgets: the
attributes that a commit, a rollback or ``expire()`` takes away. So of two lines in one
program

::

    session.commit()  # expires order
    order.state = decided_before

the second is based on the version of the first, whoever has written in between. Reading
anything of the order loads its row, and moves the base to what was read.

A row may arrive in part. One rule says what the code has seen then: *when a state
arrives, the version and the effect that the instance holds become its base*. They came
in the same row, or before it. What arrives without a state moves no base; it makes one
only for an instance that has neither a base nor a state. A refresh by name that brings
the state, the version or the provenance brings the version and the provenance, so that
these two are of one row. An instance that never had a provenance is checked by its
version alone.

Statements that would write workflow rows past the unit of work, ``update(Order)``,
``delete(Order)`` and ON CONFLICT DO UPDATE, check no version at all. They are refused
unless they carry the execution option ``wfstate_unversioned=True``; an UPDATE counts
the version then, so that whoever holds the old one loses. Bulk updates by primary key
are refused in any case. A bulk INSERT can only create.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic_core import from_json
from sqlalchemy import (
    Connection,
    Delete,
    Insert,
    Update,
    event,
    inspect,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import (
    FromStatement,
    InstanceState,
    ORMExecuteState,
    Session,
)
from sqlalchemy.orm.attributes import set_committed_value

from .errors import (
    MappingError,
    UnversionedWrite,
    VersionNotSeen,
)
from .expectations import Expected
from .inserts import check_rows, values_of
from .mixin import WorkflowStateMixin
from .provenance import Provenance
from .session_methods import around, workflow_mapper
from .types import Unread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from sqlalchemy.orm import Mapper

UNVERSIONED: Final = "wfstate_unversioned"

OF_A_BASE: Final = frozenset({"state", "version", "provenance"})
"""The attributes that tell which version of a row an instance holds."""

_KEY = "sa_wfstate.seen"
_UPSERTS = (postgresql.dml.OnConflictDoUpdate, sqlite.dml.OnConflictDoUpdate)


class Seen(NamedTuple):
    """The version that the code has seen, and the effect that wrote it, if known."""

    version: int
    effect_id: str | None

    def matches(self, other: Seen) -> bool:
        """Say whether *other* is the same version, written by the same effect."""
        return self.version == other.version and (
            None in {self.effect_id, other.effect_id}
            or self.effect_id == other.effect_id
        )


NOTHING: Final = Seen(0, None)
"""What the creation of a workflow is based on."""


def seen_of(state: InstanceState[Any]) -> Seen | None:
    """Return the version that the code has seen, None if it has seen none."""
    noted = state.info.get(_KEY)
    if noted is None or isinstance(noted, Seen):
        return noted
    version, provenance = noted
    return Seen(version, effect_id_in(provenance))


def effect_id_in(provenance: Any) -> str | None:
    """Return the effect id of what an instance holds as its provenance."""
    if isinstance(provenance, Unread):
        # Whoever wrote a row by hand may have left it out; that is no error here.
        stored = from_json(provenance.text)
        effect_id = stored.get("effect_id") if isinstance(stored, dict) else None
        return effect_id if isinstance(effect_id, str) else None
    return provenance.effect_id if isinstance(provenance, Provenance) else None


def saw(state: InstanceState[Any], seen: Seen | None) -> None:
    """Note that the code sees *seen*: it has read it, or has just written it."""
    if seen is None:
        state.info.pop(_KEY, None)
    else:
        state.info[_KEY] = seen


def take_over(state: InstanceState[Any], other: InstanceState[Any]) -> None:
    """Give *state* the base of *other*, whose values it holds."""
    state.info[_KEY] = other.info.get(_KEY)


@event.listens_for(WorkflowStateMixin, "load", propagate=True, raw=True)
def _loaded(state: InstanceState[Any], _: object) -> None:
    values = state.dict
    if "version" in values or "state" in values:
        _see(state, values)


@event.listens_for(WorkflowStateMixin, "refresh", propagate=True, raw=True)
def _refreshed(state: InstanceState[Any], _: object, attributes: Any | None) -> None:
    values = state.dict
    # A load in part leaves behind what it defers, as it was, and how to load it.
    deferred = OF_A_BASE & values.keys() & state.callables.keys()
    for name in deferred:
        del state.callables[name]  # The next load is going to tell for itself.
    if attributes is not None:
        deferred = OF_A_BASE.difference(attributes)
    arrived = OF_A_BASE & values.keys() - deferred
    if "state" in arrived or ("version" in arrived and _KEY not in state.info):
        _see(state, values, stale=deferred if attributes is None else ())


def _see(
    state: InstanceState[Any], values: Mapping[str, Any], stale: Collection[str] = ()
) -> None:
    """Make what *state* holds its base; None if a state came without its version."""
    if "version" not in values:
        state.info.setdefault(_KEY, None)
        return
    version, provenance = values["version"], None
    if "provenance" not in stale:
        provenance = state.committed_state.get("provenance", values.get("provenance"))
    known = seen_of(state) if provenance is None else None
    if known is None or known.version != version:
        state.info[_KEY] = (version, provenance)


def expect_seen(state: InstanceState[Any]) -> Seen:
    """Make the flush check *state* against the version that the code has seen."""
    seen = seen_of(state)
    workflow_key = key_of(state)
    if seen is None:
        raise VersionNotSeen(state.class_.__name__, workflow_key)
    instance = state.obj()
    if instance is not None:
        # Loaded in the middle of the flush, they would be those of another version.
        if seen.effect_id is not None:
            set_committed_value(
                instance, "version", Expected(seen.version, seen.effect_id)
            )
        elif state.dict.get("version") != seen.version:
            set_committed_value(instance, "version", seen.version)
        if "workflow_key" not in state.dict:
            set_committed_value(instance, "workflow_key", workflow_key)
    return seen


def key_of(state: InstanceState[Any]) -> str:
    """Return the key of the row, even if the attribute is expired or was changed."""
    identity = state.identity
    key: str = state.dict["workflow_key"] if identity is None else identity[0]
    return key


def require_row_counts(connection: Connection, entity: str) -> None:
    """Refuse a dialect on which a lost update could not be seen."""
    dialect = connection.dialect
    if not dialect.supports_sane_rowcount and not dialect.update_returning:
        raise MappingError(
            entity,
            f"the dialect {dialect.name!r} reports neither row counts nor UPDATE … "
            "RETURNING, so a lost update could not be noticed",
        )


_BY_NAME = "or give the statement the execution option wfstate_unversioned=True"
_NO_RENAME = "create a workflow with the new key and delete the old one"
_MANY = "use try_commit_many, which checks each row"


@event.listens_for(Session, "do_orm_execute")
def _refuse_unversioned(execute: ORMExecuteState) -> None:
    if execute.is_select:
        return
    mapper, statement = workflow_mapper(execute.bind_mapper), execute.statement
    if mapper is None:
        return
    entity = mapper.class_.__name__
    if isinstance(statement, FromStatement):
        statement = statement.element
    if isinstance(statement, Insert):
        unversioned = execute.execution_options.get(UNVERSIONED, False)
        check_rows(entity, execute.parameters, any_version=unversioned)
        rows = list(values_of(mapper, statement))
        check_rows(entity, rows, any_version=unversioned)
        _check_upsert(execute, mapper, statement)
    elif isinstance(statement, Update):
        if execute.is_executemany:
            raise UnversionedWrite(entity, "bulk UPDATE by primary key", _MANY)
        _allow(execute, entity, "UPDATE")
        if execute.is_from_statement:
            what, instead = "from_statement() with an UPDATE", "execute it by itself"
            raise UnversionedWrite(entity, what, instead)
        written = _names(statement._values)  # noqa: SLF001 - no public name
        if written & {"workflow_key", mapper.columns["workflow_key"].key}:
            raise UnversionedWrite(entity, "a change of workflow_key", _NO_RENAME)
        version = mapper.class_.version
        execute.statement = statement.values({version: version + 1})
    elif isinstance(statement, Delete):
        _allow(execute, entity, "DELETE")


def _check_upsert(
    execute: ORMExecuteState, mapper: Mapper[Any], statement: Insert
) -> None:
    upsert: Any = statement._post_values_clause  # noqa: SLF001 - no public name
    if isinstance(upsert, _UPSERTS):
        entity, what = mapper.class_.__name__, "INSERT … ON CONFLICT DO UPDATE"
        _allow(execute, entity, what)
        written = _names(dict(upsert.update_values_to_set))
        if written & {"workflow_key", mapper.columns["workflow_key"].key}:
            raise UnversionedWrite(entity, "a change of workflow_key", _NO_RENAME)
        if not written & {"version", mapper.columns["version"].key}:
            instead = f"let it set version to {entity}.version + 1 too"
            raise UnversionedWrite(entity, what, instead)


def _names(columns: Iterable[Any] | None) -> set[str]:
    return {getattr(column, "key", column) for column in columns or ()}


def _allow(execute: ORMExecuteState, entity: str, what: str) -> None:
    if not execute.execution_options.get(UNVERSIONED, False):
        raise UnversionedWrite(entity, what, f"{_MANY}, {_BY_NAME}")


@around("bulk_save_objects")
def _bulk_save(
    method: Callable[..., None],
    session: Session,
    objects: Iterable[object],
    **options: Any,
) -> None:
    objects = list(objects)
    for instance in objects:
        state: Any = inspect(instance, raiseerr=False)
        if isinstance(instance, WorkflowStateMixin) and state is not None:
            if state.key is not None:
                entity, instead = (
                    state.class_.__name__,
                    "flush them, by add_all() or merge()",
                )
                raise UnversionedWrite(entity, "bulk_save_objects()", instead)
            if "provenance" not in state.dict:
                instance.provenance = instance.default_provenance()
    method(session, objects, **options)


@around("bulk_insert_mappings")
def _bulk_insert(
    method: Callable[..., None],
    session: Session,
    mapper: Any,
    mappings: Iterable[Any],
    **options: Any,
) -> None:
    workflow = workflow_mapper(mapper)
    if workflow is not None:
        mappings = list(mappings)
        check_rows(workflow.class_.__name__, mappings)
    method(session, mapper, mappings, **options)


@around("bulk_update_mappings")
def _bulk_update(
    method: Callable[..., None], session: Session, mapper: Any, mappings: Iterable[Any]
) -> None:
    workflow = workflow_mapper(mapper)
    if workflow is not None:
        name = workflow.class_.__name__
        raise UnversionedWrite(name, "bulk_update_mappings()", _MANY)
    method(session, mapper, mappings)
