"""One compare-and-set: checked before it is sent, sent, and judged by its answer.

What ``try_commit``, the store, the bulk and the reducer service have in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from .codec import canonical_json, first_problem
from .conflicts import conflict_of
from .errors import ConflictReason, PayloadError, StateConflict, WriteSuppressed
from .mixin import check_key
from .provenance import Provenance
from .snapshots import StateCommitted, WorkflowSnapshot
from .sqlstates import SERIALIZATION_FAILURE, sqlstate
from .statements import Statements, Write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

StateT = TypeVar("StateT")


def prepare(
    statements: Statements[StateT],
    workflow_key: str,
    expected_version: int,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    *,
    expected_effect_id: str | None = None,
) -> Write:
    """Check everything that can be checked before any SQL is sent."""
    entity = statements.entity
    check_key(entity, workflow_key)
    where = f"{entity} {workflow_key!r}"
    if type(expected_version) is not int:  # True is an int, but no version
        raise PayloadError(where, "expected_version", "must be an int")
    if not 0 <= expected_version < 2**63 - 1:
        problem = f"must be 0 or a version that was read, got {expected_version}"
        raise PayloadError(where, "expected_version", problem)
    if not isinstance(provenance, Provenance):
        try:
            provenance = Provenance.model_validate(provenance)
        except ValidationError as error:
            found = first_problem(error)
            raise PayloadError(f"{where} provenance", *found) from None
    text = statements.state_type.codec.encode(state, where=f"{where} state")
    return Write(
        workflow_key,
        expected_version + 1,
        text,
        provenance,
        statements.schema.write_version,
        expected_effect_id,
    )


def compare_and_set(
    connection: Connection,
    statements: Statements[StateT],
    write: Write,
    *,
    again: bool = False,
) -> StateCommitted[StateT] | StateConflict:
    """Send *write*; *again* says that it was sent before, and the answer was lost."""
    creating = write.version == 1
    send = statements.create if creating else statements.swap
    updated_at = send(connection, write)
    if updated_at is not None:
        return statements.committed(write, updated_at)
    current = statements.read(connection, write.workflow_key)
    if current is not None and _is_own(statements, write, current, again=again):
        return StateCommitted(
            current.workflow_key, write.version, current, replayed=True
        )
    return lost(statements, write, current)


def _is_own(
    statements: Statements[StateT],
    write: Write,
    current: WorkflowSnapshot[StateT],
    *,
    again: bool,
) -> bool:
    """Say whether *current* is what *write* itself has written, some time before."""
    if current.version != write.version or current.provenance != write.provenance:
        return False
    # An effect id that is used twice by mistake must not pass for a replay.
    text = statements.state_type.dump(current.state)
    return again or canonical_json(text) == canonical_json(write.state_text)


def lost(
    statements: Statements[StateT],
    write: Write,
    current: WorkflowSnapshot[StateT] | None,
) -> StateConflict:
    """Make the outcome of a write that changed no row; *current* was read after it."""
    conflict = conflict_of_write(statements, write, current)
    if conflict is None:
        raise WriteSuppressed(statements.entity, write.workflow_key, write.version - 1)
    return conflict


def conflict_of_write(
    statements: Statements[StateT],
    write: Write,
    current: WorkflowSnapshot[StateT] | None,
) -> StateConflict | None:
    """Judge *write* by the row read after it; None: nobody else wrote the row."""
    return conflict_of(
        statements,
        write.workflow_key,
        write.version - 1,
        current,
        write.base_effect_id,
    )


def refused(
    statements: Statements[Any], write: Write, error: DBAPIError
) -> StateConflict | None:
    """Return the conflict that *error* stands for, as far as it is known by itself."""
    if sqlstate(error) != SERIALIZATION_FAILURE:
        return None
    return StateConflict(
        statements.entity,
        write.workflow_key,
        write.version - 1,
        None,
        ConflictReason.SERIALIZATION,
    )
