"""Refuse statements that would write over a version that the code has not seen.

The version that a write is checked against, its *base*, is the one that came *with the
state*. It is noted when a row is loaded, and survives what SQLAlchemy forgets: the
attributes that a commit, a rollback or ``expire()`` takes away. So of two lines in one
program

::

    session.commit()  # expires order
    order.state = decided_before

the second is based on the version of the first, also if another writer came between.
Reading anything of the order loads its row, and moves the base to what was read.

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
the version then, so that a writer based on the old one loses. Bulk updates by primary
key are refused in any case. A bulk INSERT can only create.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Delete, Insert, Update, inspect
from sqlalchemy.orm import FromStatement

from ..errors import UnversionedWrite
from .inserts import check_rows, values_of
from .mixin import WorkflowStateMixin
from .row_keys import key_attributes
from .session_patch import workflow_mapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.orm import Mapper, ORMExecuteState, Session


UNVERSIONED: Final = "wfstate_unversioned"
_UPSERT: Final = "on_conflict_do_update"


_BY_NAME = "or give the statement the execution option wfstate_unversioned=True"
_NO_RENAME = "create a workflow with the new key and delete the old one"
_MANY = "use try_commit_many, which checks each row"
_DELETE = (
    "load the rows and use session.delete(), which checks each row as try_commit_many "
    "does"
)


def do_orm_execute(execute: ORMExecuteState) -> None:
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
        check_rows(mapper, execute.parameters, any_version=unversioned)
        rows = list(values_of(mapper, statement))
        check_rows(mapper, rows, any_version=unversioned)
        _check_upsert(execute, mapper, statement)
    elif isinstance(statement, Update):
        if execute.is_executemany:
            raise UnversionedWrite(entity, "bulk UPDATE by primary key", _MANY)
        _allow(execute, entity, "UPDATE")
        if execute.is_from_statement:
            what, instead = "from_statement() with an UPDATE", "execute it by itself"
            raise UnversionedWrite(entity, what, instead)
        written = _names(statement._values)  # noqa: SLF001 - no public name
        _keep_keys(mapper, written)
        version = mapper.class_.version
        execute.statement = statement.values({version: version + 1})
    elif isinstance(statement, Delete):
        _allow(execute, entity, "DELETE", _DELETE)


def _check_upsert(
    execute: ORMExecuteState, mapper: Mapper[Any], statement: Insert
) -> None:
    clauses: Iterable[Any] = statement.get_children()
    for upsert in (each for each in clauses if each.__visit_name__ == _UPSERT):
        entity, what = mapper.class_.__name__, "INSERT … ON CONFLICT DO UPDATE"
        _allow(execute, entity, what)
        written = _names(dict(upsert.update_values_to_set))
        _keep_keys(mapper, written)
        if not written & {"version", mapper.columns["version"].key}:
            instead = f"let it set version to {entity}.version + 1 too"
            raise UnversionedWrite(entity, what, instead)


def _keep_keys(mapper: Mapper[Any], written: set[str]) -> None:
    for name in key_attributes(mapper):
        if written & {name, mapper.columns[name].key}:
            entity, what = mapper.class_.__name__, f"a change of {name}"
            raise UnversionedWrite(entity, what, _NO_RENAME)


def _names(columns: Iterable[Any] | None) -> set[str]:
    return {getattr(column, "key", column) for column in columns or ()}


def _allow(
    execute: ORMExecuteState, entity: str, what: str, instead: str = _MANY
) -> None:
    if not execute.execution_options.get(UNVERSIONED, False):
        raise UnversionedWrite(entity, what, f"{instead}, {_BY_NAME}")


def bulk_save_objects(
    method: Callable[..., None],
    session: Session,
    objects: Iterable[object],
    **options: Any,
) -> None:
    objects = list(objects)  # All of them, before the first is sent.
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


def bulk_save_mappings(
    method: Callable[..., None],
    session: Session,
    mapper: Any,
    mappings: Iterable[Any],
    *,
    isupdate: bool,
    isstates: bool,
    **options: Any,
) -> None:
    workflow = workflow_mapper(mapper)
    if workflow is not None and not isstates:
        if isupdate:
            name = workflow.class_.__name__
            raise UnversionedWrite(name, "bulk_update_mappings()", _MANY)
        mappings = list(mappings)
        check_rows(workflow, mappings)
    options |= {"isupdate": isupdate, "isstates": isstates}
    method(session, mapper, mappings, **options)
