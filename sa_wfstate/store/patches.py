"""Patches in the transaction of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..errors import StateConflict
from ..orm.criteria import filtering
from ..orm.entity import statements_of
from ..row.edits import Edit
from ..values.keys import Key
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted
from ..values.write import Batch
from .api import Entity, connection_of
from .compare_and_set import refused
from .instances import adopt, held_instances
from .patch_checks import check_condition, prepare_patch
from .patch_row import patch_row

StateT = TypeVar("StateT")


def try_patch(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key,
    edits: Sequence[Edit],
    *,
    provenance: Provenance | Mapping[str, Any],
    when: ColumnElement[bool] | None = None,
    expected_version: int | RowVersion | None = None,
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Apply *edits* to the state in the database, if the row meets *when*.

    The edits are applied in order. The result is validated by the type of the state
    before it is written. The row is locked until the transaction ends, also by a patch
    whose result is refused. A patch without *expected_version* applies to whatever
    version the row has; sent again, it is applied again.

    A row that is missing, at another version than *expected_version*, or does not meet
    *when*, is a StateConflict, which is returned. The transaction stays usable, also
    after a PayloadError. An instance of the row in the session has the new values
    afterwards.

    Raises PayloadError if a value does not fit its field, before any SQL is sent; if
    the result is no valid state, or a path leads to an item that a list does not have;
    and if the row has an older schema version. Raises SchemaVersionAhead,
    UnflushedChanges, WriteSuppressed and the StateConflict ``serialization`` as
    :func:`~sa_wfstate.try_commit` does.
    """
    statements = statements_of(entity)
    patch = prepare_patch(statements, workflow_key, edits, provenance, expected_version)
    check_condition(statements, when)
    held = held_instances(session, statements.mapper, [workflow_key])
    connection = connection_of(session, statements, [workflow_key])
    try:
        write, outcome = patch_row(
            connection, statements, patch, when, session=filtering(session), own=False
        )
    except DBAPIError as error:
        conflict = refused(statements, {workflow_key: patch.expected_version}, error)
        if conflict is None:
            raise
        raise conflict from error
    if write is not None:
        adopt(session, connection, statements, Batch.of([write]), [outcome], held)
    return outcome
