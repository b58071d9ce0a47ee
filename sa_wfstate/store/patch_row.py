"""Patch one row: send the patch, validate the result, and build the outcome.

In a transaction of the caller the row is locked, what its state would be is read and
validated, and only then it is written: a patch that is refused leaves nothing to undo.
A patch with its own transaction writes first, and rolls back. One whose edits cannot
make a state invalid needs no transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ..commit_listeners import follow, listeners_of
from ..errors import (
    ConflictReason,
    MappingError,
    PayloadError,
    SchemaVersionAhead,
    StateConflict,
    WriteSuppressed,
)
from ..orm.conflicts import conflict_of
from ..orm.criteria import visible
from ..row.direct import first_row
from ..row.engine_profiles import profile_of
from ..row.patch_sql import NO_PLACE
from ..row.patch_statements import patch_statements_of
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from ..values.write import Write, Written

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection
    from sqlalchemy.orm import Session

    from ..row.statements import Statements
    from .patch_checks import Prepared


StateT = TypeVar("StateT")

_TRIES = 3
"""How often a row that meets all conditions, but was not written, is tried again."""


def patch_row(
    connection: Connection,
    statements: Statements[StateT],
    patch: Prepared,
    when: ColumnElement[bool] | None,
    *,
    session: Session | None,
    own: bool,
) -> tuple[Write | None, StateCommitted[StateT] | StateConflict[StateT]]:
    """Send *patch*; return what it has written, if anything, and its outcome.

    The criteria of *session*, if given, filter the rows that may be written. *own*: an
    error rolls the transaction back.
    """
    require_postgresql(connection, statements)
    key = patch.workflow_key
    send = _update if own else _look_and_write
    version = 0
    for _ in range(_TRIES):
        if session is not None and not visible(session, statements, [key], lock=True):
            return None, missing(statements, patch)
        sent = send(connection, statements, patch, when)
        if sent is not None:
            write, written = sent
            follow_patches(connection, statements, [(write, written)])
            return write, statements.committed(write, written)
        lost = judge_row(connection, statements, patch, when)
        if not isinstance(lost, int):
            return None, lost
        version = lost  # It was changed meanwhile, and meets the conditions now.
    raise WriteSuppressed(statements.entity, key, version)


def require_postgresql(connection: Connection, statements: Statements[Any]) -> None:
    """Raise MappingError on an engine without columns of JSONB."""
    if not profile_of(connection.dialect).has_jsonb:
        raise MappingError(
            statements.entity,
            f"a patch needs PostgreSQL, not {connection.dialect.name}; read the state "
            "and commit it with try_commit there",
        )


def _parameters(statements: Statements[Any], patch: Prepared) -> dict[str, Any]:
    key = patch.workflow_key
    (provenance,) = statements.provenance_texts([key], [patch.provenance])
    parameters: dict[str, Any] = {
        f"wfs_{name}": value for name, value in patch.values.items()
    }
    if patch.expected is not None:
        parameters["wfs_expected_version"] = patch.expected.version
        parameters["wfs_base_effect_id"] = patch.expected.effect_id
    parameters |= statements.keys.parameters(key)
    return parameters | {"wfs_provenance": provenance}


def _update(
    connection: Connection,
    statements: Statements[Any],
    patch: Prepared,
    when: ColumnElement[bool] | None,
) -> tuple[Write, Written] | None:
    """Write, then validate what was written."""
    sql = patch_statements_of(statements).update(patch.shape, when)
    row = connection.execute(sql, _parameters(statements, patch)).first()
    if row is None:
        return None
    updated_at, version, text = row
    return write_of(statements, patch, version, text), Written(updated_at, version)


def patch_alone(
    connection: Connection,
    statements: Statements[StateT],
    patch: Prepared,
    when: ColumnElement[bool] | None,
) -> StateCommitted[StateT] | None:
    """Write a row that edits cannot make invalid; None if it was not written.

    The state is read from its text when the outcome is asked for it.
    """
    require_postgresql(connection, statements)
    sql = patch_statements_of(statements).update_safely(patch.shape, when)
    parameters = _parameters(statements, patch)
    if when is None:
        row = first_row(connection, sql, parameters)
    else:  # The statement is built anew each time.
        row = connection.execute(sql, parameters).first()
    if row is None:
        return None
    updated_at, version, text = row
    return patched_to(statements, patch, version, text, updated_at)


def patched_to(
    statements: Statements[StateT],
    patch: Prepared,
    version: int,
    text: str,
    updated_at: datetime,
) -> StateCommitted[StateT]:
    """Return the outcome of a patch that has written *text*, which is not read yet."""
    key, schema_version = patch.workflow_key, statements.schema.version
    write = Write(key, version, text, patch.provenance, schema_version)
    return statements.committed(write, Written(updated_at, version))


def _look_and_write(
    connection: Connection,
    statements: Statements[Any],
    patch: Prepared,
    when: ColumnElement[bool] | None,
) -> tuple[Write, Written] | None:
    """Lock the row, validate what it would hold, then write."""
    sql = patch_statements_of(statements)
    parameters = _parameters(statements, patch)
    found = connection.execute(sql.look(patch.shape, when), parameters).first()
    if found is None:
        return None
    version, effect_id, text = found
    write = write_of(statements, patch, version + 1, text, effect_id)
    parameters["wfs_version"] = version
    row = connection.execute(sql.write(patch.shape), parameters).first()
    if row is None:
        raise WriteSuppressed(statements.entity, patch.workflow_key, version)
    return write, Written(*row)


def write_of(
    statements: Statements[Any],
    patch: Prepared,
    version: int,
    text: str,
    effect_id: str | None = None,
) -> Write:
    """Return the write of *text*, the new state; PayloadError if it is none."""
    where = f"{statements.entity} {patch.workflow_key!r} state"
    if text == NO_PLACE:
        raise _no_place(statements, patch, where)
    return Write(
        patch.workflow_key,
        version,
        text,
        patch.provenance,
        statements.schema.version,
        effect_id,
        copy=statements.state_type.load(text, where=where),
    )


def _no_place(statements: Statements[Any], patch: Prepared, where: str) -> PayloadError:
    """Return the error of the edits that may have found no place."""
    indexed = [
        edit for edit in patch.edits if any(isinstance(k, int) for k in edit.path.keys)
    ]
    edit, *others = indexed or patch.edits
    problem = f"there is nothing that {edit.type}() can change"
    if indexed:
        problem = f"the list has no such item for {edit.type}()"
    if others:
        problem += f", or so for one of {len(others)} other edits"
    return edit.refusal(statements.state_type, where, problem)


def follow_patches(
    connection: Connection,
    statements: Statements[Any],
    written: Sequence[tuple[Write, Written]],
) -> None:
    """Call the commit listeners with what patches have *written*."""
    if written and listeners_of(statements.mapper):
        commits = [
            # The copy is for the caller.
            statements.committed(write._replace(copy=None), row)
            for write, row in written
        ]
        follow(connection, statements.mapper, commits)


def judge_row(
    connection: Connection,
    statements: Statements[StateT],
    patch: Prepared,
    when: ColumnElement[bool] | None,
) -> StateCommitted[StateT] | StateConflict[StateT] | int:
    """Read the row that was not written, and return the outcome of *patch*.

    That is the version of the row if it meets all conditions. Raises what is wrong with
    a row that cannot be patched.
    """
    key, expected = patch.workflow_key, patch.expected
    sql = patch_statements_of(statements).found(when)
    row = connection.execute(sql, statements.keys.parameters(key)).first()
    if row is None:
        return missing(statements, patch)
    *columns, met = row
    try:
        current = statements.snapshot_of(columns)
    except (PayloadError, SchemaVersionAhead):
        # Another version is the better reason not to write it.
        moved = RowVersion(columns[1], None)
        conflict = expected and conflict_of(statements, key, expected, moved)
        if conflict is None:
            raise
        return conflict
    if expected is not None:
        conflict = conflict_of(statements, key, expected, current)
        if conflict is not None:
            version = expected.version + 1
            if (current.version, current.provenance) == (version, patch.provenance):
                return StateCommitted(key, version, current, replayed=True)
            return conflict
    _refuse_other_shape(statements, current)
    if met:
        return current.version
    return StateConflict(
        statements.entity,
        key,
        0 if expected is None else expected.version,
        current.version,
        ConflictReason.CONDITION,
        current,
    )


def _refuse_other_shape(
    statements: Statements[Any], current: WorkflowSnapshot[Any]
) -> None:
    if current.schema_version != statements.schema.version:
        raise PayloadError(
            f"{statements.entity} {current.workflow_key!r}",
            "schema_version",
            f"is {current.schema_version}, and the edits of a patch are for version "
            f"{statements.schema.version}; read the state and commit it with "
            "try_commit, or upcast the rows first",
        )


def missing(statements: Statements[Any], patch: Prepared) -> StateConflict:
    """Return the conflict of a *patch* without a row."""
    return StateConflict(
        statements.entity,
        patch.workflow_key,
        patch.expected_version,
        None,
        ConflictReason.MISSING,
    )
