"""One compare-and-set: check the write, send it, and build its outcome.

Shared by ``try_commit``, CanonicalStore, ``try_commit_many`` and ReducerService.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from ..errors import ConflictReason, PayloadError, StateConflict, WriteSuppressed
from ..orm.conflicts import conflict_of, conflict_of_all
from ..orm.criteria import hide, read_visible, visible
from ..payload.canonical import canonical_json
from ..payload.provenance import plain
from ..payload.texts import first_problem
from ..retry import SERIALIZATION_FAILURE, sqlstate
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot, source_of
from ..values.write import Write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from ..row.statements import Statements
    from ..values.keys import Key


StateT = TypeVar("StateT")

_LAST_VERSION = 2**63 - 1


def target_of(
    workflow_key: Key | None,
    expected_version: int | RowVersion | None,
    base: WorkflowSnapshot[Any] | None,
) -> tuple[Key, int | RowVersion]:
    """Return the key and the version that a commit expects: what *base* has, if any.

    What is given counts more; prepare() then refuses a *base* that contradicts it.
    """
    if base is not None:
        workflow_key = base.workflow_key if workflow_key is None else workflow_key
        if expected_version is None:
            expected_version = base.version
    if workflow_key is None or expected_version is None:
        raise TypeError("a commit takes workflow_key and expected_version, or base=")
    return workflow_key, expected_version


def prepare(
    statements: Statements[StateT],
    workflow_key: Key,
    expected_version: int | RowVersion,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    *,
    expected_effect_id: str | None = None,
    base: WorkflowSnapshot[StateT] | None = None,
) -> Write:
    """Check everything that can be checked before any SQL is sent."""
    entity, codec = statements.entity, statements.state_type.codec
    provenance = check_target(statements, workflow_key, expected_version, provenance)
    version, expected_effect_id = RowVersion.of(expected_version, expected_effect_id)
    if base is not None:
        _check_base(statements, workflow_key, version, base)
        expected_effect_id = expected_effect_id or base.provenance.effect_id
    unchanged = False
    copy: Any = None
    try:
        text = codec.dump(state)
        # Only if it is the one that the statement is going to look for.
        if base is not None and expected_effect_id == base.provenance.effect_id:
            unchanged, copy = _is_unchanged(statements, base, text)
        if copy is None or copy != state:
            copy = codec.check(state, text)
    except PayloadError as error:
        where = f"{entity} {workflow_key!r} state"
        raise PayloadError(where, error.path, error.problem) from error.__cause__
    return Write(
        workflow_key,
        version + 1,
        text,
        provenance,
        statements.schema.write_version,
        expected_effect_id,
        unchanged,
        copy,
    )


def check_target(
    statements: Statements[Any],
    workflow_key: Key,
    expected_version: int | RowVersion,
    provenance: Provenance | Mapping[str, Any],
) -> Provenance:
    """Check the parts of a write other than its state; return the provenance."""
    entity = statements.entity
    statements.check_key(workflow_key)
    version = RowVersion.of(expected_version).version
    check_version(entity, workflow_key, version, least=0)
    if isinstance(provenance, Provenance):
        return plain(provenance, f"{entity} {workflow_key!r} provenance")
    return _provenance_of(entity, workflow_key, provenance)


def check_version(
    entity: str, workflow_key: Key, version: object, *, least: int = 1
) -> None:
    """Raise PayloadError unless *version* can be that of a row, or 0 if that is due."""
    # True is an int, but no version.
    if type(version) is int and least <= version < _LAST_VERSION:
        return
    problem = "must be an int"
    if type(version) is int:
        zero = "" if least else "0 or "
        problem = f"must be {zero}a version that was read, got {version}"
    raise PayloadError(f"{entity} {workflow_key!r}", "expected_version", problem)


def _provenance_of(
    entity: str, workflow_key: Key, provenance: Mapping[str, Any]
) -> Provenance:
    try:
        return Provenance.model_validate(provenance)
    except ValidationError as error:
        path, problem = first_problem(error)
        shown = ".".join(str(part) for part in path)
        where = f"{entity} {workflow_key!r} provenance"
        raise PayloadError(where, shown, problem) from None


def _check_base(
    statements: Statements[Any],
    workflow_key: Key,
    version: int,
    base: WorkflowSnapshot[Any],
) -> None:
    problem, source = None, source_of(base)
    if (base.workflow_key, base.version) != (workflow_key, version):
        problem = (
            f"must be a snapshot of version {version}, is one of "
            f"{base.workflow_key!r} at version {base.version}"
        )
    elif source is not None and source[0] != statements.table.fullname:
        problem = f"must be a snapshot of this row, is one of table {source[0]!r}"
    if problem:
        raise PayloadError(f"{statements.entity} {workflow_key!r}", "base", problem)


def named_by_client(
    base: WorkflowSnapshot[Any] | None, workflow_key: Key, expected: int | RowVersion
) -> RowVersion | None:
    """Return *expected* if it names another version of the row than *base*.

    The client has decided on the one, and the state to write is made of the other.
    """
    if (
        base is None
        or not isinstance(expected, RowVersion)
        or base.workflow_key != workflow_key
        or _version_of(base).matches(expected)
    ):
        return None
    return expected


def _version_of(snapshot: WorkflowSnapshot[Any]) -> RowVersion:
    return RowVersion(snapshot.version, snapshot.provenance.effect_id)


def conflict_of_bases(
    connection: Connection,
    statements: Statements[StateT],
    base: WorkflowSnapshot[StateT],
    expected: RowVersion,
    session: Session | None,
) -> StateConflict:
    """Return the conflict of a write that is based on both, and is not sent."""
    key = base.workflow_key
    current = read_visible(connection, statements, [key], session).get(key)
    conflict = conflict_of(statements, key, expected, current)
    # The client is right: it is the snapshot that was read too early.
    conflict = conflict or conflict_of(statements, key, _version_of(base), current)
    assert conflict is not None  # noqa: S101 - they differ
    return conflict


def _is_unchanged(
    statements: Statements[StateT], base: WorkflowSnapshot[StateT], text: str
) -> tuple[bool, StateT | None]:
    """Return whether the row of *base* holds *text*, in the shape that is written.

    Returns also the state of the row, if it was decoded.
    """
    source = source_of(base)
    if source is None or base.schema_version != statements.schema.write_version:
        return False, None
    return statements.state_type.codec.stands_for(source[1], text)


def compare_and_set(
    connection: Connection,
    statements: Statements[StateT],
    write: Write,
    *,
    again: bool = False,
    session: Session | None = None,
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Send *write*; *again* if it was sent before and the answer was lost.

    The criteria of *session*, if given, filter the rows that may be written.
    """
    key, expected = write.workflow_key, write.version - 1
    send = statements.swap if expected else statements.create
    if (
        session is not None
        and expected
        and not visible(session, statements, [key], lock=True)
    ):
        return unwritten(statements, write, None)
    written = send(connection, write)
    if written is not None:
        return statements.committed(write, written)
    found = statements.found(connection, {key: expected})
    current = hide(session, statements, found, {key: expected}).get(key)
    if isinstance(current, RowVersion) and current.version == expected:
        # No other writer won: reading the row raises what is wrong with it.
        statements.read(connection, key)
    return unwritten(statements, write, current, again=again)


def unwritten(
    statements: Statements[StateT],
    write: Write,
    current: WorkflowSnapshot[StateT] | RowVersion | None,
    *,
    again: bool = False,
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Return the outcome of a write without effect; *current* was read after it."""
    if isinstance(current, WorkflowSnapshot) and _is_own(
        statements, write, current, again=again
    ):
        return StateCommitted(
            current.workflow_key, write.version, current, replayed=True
        )
    conflict = conflict_of_write(statements, write, current)
    if conflict is None:
        raise WriteSuppressed(statements.entity, write.workflow_key, write.version - 1)
    return conflict


def _is_own(
    statements: Statements[StateT],
    write: Write,
    current: WorkflowSnapshot[StateT],
    *,
    again: bool,
) -> bool:
    """Return whether *write* itself has written *current* before."""
    if current.version != write.version or current.provenance != write.provenance:
        return False
    # Two writes that share an effect id by mistake are no replay.
    text = statements.state_type.dump(current.state)
    return again or canonical_json(text) == canonical_json(write.state_text)


def conflict_of_write(
    statements: Statements[StateT],
    write: Write,
    current: WorkflowSnapshot[StateT] | RowVersion | None,
) -> StateConflict | None:
    """Return the conflict of *write* with the row read after it, None if they agree."""
    return conflict_of(statements, write.workflow_key, write.base, current)


def refused(
    statements: Statements[Any], expected: Mapping[Any, int], error: BaseException
) -> StateConflict | None:
    """Return the conflict of all rows that *error* refused, None if it is another one.

    *expected* are their versions, by key. The current rows are not read.
    """
    if sqlstate(error) != SERIALIZATION_FAILURE:
        return None
    reason = ConflictReason.SERIALIZATION
    return conflict_of_all(
        [
            StateConflict(statements.entity, key, version, None, reason)
            for key, version in expected.items()
        ]
    )
