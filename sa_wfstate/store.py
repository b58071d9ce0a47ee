"""Read a workflow and commit to it: in a session, or in a transaction per call.

``get_state`` and ``try_commit`` take part in the transaction of the session they are
given; :class:`CanonicalStore` has one of its own for each call. All of them send
prebuilt Core statements, so none flushes or expires what else the session holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, Session, sessionmaker
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.util import identity_key

from .conflicts import SERIALIZATION_FAILURE, conflict_of, sqlstate
from .connections import Connections
from .errors import (
    ConflictReason,
    PayloadError,
    StateConflict,
    UnflushedChanges,
    WorkflowNotFound,
    WriteSuppressed,
)
from .mixin import WorkflowStateMixin, check_key
from .provenance import Provenance
from .snapshots import StateCommitted, WorkflowSnapshot
from .statements import Statements, Write, statements_of
from .tracking import changed_in_place, rebase

StateT = TypeVar("StateT")
Entity = type[WorkflowStateMixin[StateT]]


def get_state(
    session: Session, entity: Entity[StateT], workflow_key: str
) -> WorkflowSnapshot[StateT]:
    """Read the workflow *workflow_key* of *entity* and return a snapshot of its row.

    Pending changes are flushed first, as by any query, if the session autoflushes. The
    row is read from the database even if the session holds an instance of it.

    Raises WorkflowNotFound if there is no such row.
    """
    statements = statements_of(entity)
    check_key(statements.entity, workflow_key)
    if session.autoflush:
        session.flush()
    return _read(connection_of(session, statements), statements, workflow_key)


def try_commit(
    session: Session,
    entity: Entity[StateT],
    workflow_key: str,
    *,
    expected_version: int,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
) -> StateCommitted[StateT] | StateConflict:
    """Write *state* if the workflow is still at *expected_version*.

    With *expected_version* 0 the workflow is created. The version is always checked,
    also when *state* equals the one that is there. One statement is sent when the
    commit wins, and one more to read the row when it loses; the loss is returned, not
    raised, and the transaction goes on with whatever else it holds. The write is final
    when the caller commits the session. An instance of the row that the session holds
    has the new values afterwards.

    Raises PayloadError if a value cannot be stored, before any SQL is sent;
    UnflushedChanges if the session itself has changed the row; WriteSuppressed if the
    row is at *expected_version* and yet was not written. At REPEATABLE READ and
    SERIALIZABLE the database may refuse the statement and thereby the whole
    transaction: that is raised, as a StateConflict whose reason is ``serialization``.
    """
    statements = statements_of(entity)
    write = prepare(statements, workflow_key, expected_version, state, provenance)
    instance = held_instance(session, statements.mapper, workflow_key)
    try:
        outcome = _compare_and_set(
            connection_of(session, statements), statements, write
        )
    except DBAPIError as error:
        conflict = refused(statements, write, error)
        if conflict is None:
            raise
        raise conflict from error
    if instance is not None and isinstance(outcome, StateCommitted):
        update_instance(instance, statements, write, outcome.snapshot)
    return outcome


class CanonicalStore(Generic[StateT]):
    """Read and commit workflows of one class, each call in a transaction of its own.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine.

    >>> store = CanonicalStore(engine, Order)  # doctest: +SKIP
    >>> store.get_state("order-42").version  # doctest: +SKIP
    7
    """

    def __init__(
        self, bind: Engine | sessionmaker[Any], entity: Entity[StateT]
    ) -> None:
        self._statements = statements_of(entity)
        self._connections = Connections(bind, self._statements.mapper)

    def get_state(self, workflow_key: str) -> WorkflowSnapshot[StateT]:
        """Read the workflow; raises WorkflowNotFound if there is no such row."""
        check_key(self._statements.entity, workflow_key)
        with self._connections.autocommit() as connection:
            return _read(connection, self._statements, workflow_key)

    def try_commit(
        self,
        *,
        workflow_key: str,
        expected_version: int,
        state_prime: StateT,
        provenance: Provenance | Mapping[str, Any],
    ) -> StateCommitted[StateT] | StateConflict:
        """Write *state_prime* and commit, if the workflow is at *expected_version*.

        Behaves as :func:`try_commit`, but a loss is always returned, at every isolation
        level, with the row as it is after the loss.
        """
        statements = self._statements
        write = prepare(
            statements, workflow_key, expected_version, state_prime, provenance
        )
        with self._connections.autocommit() as connection:
            try:
                return _compare_and_set(connection, statements, write)
            except DBAPIError as error:
                connection.rollback()
                conflict = refused(statements, write, error)
                if conflict is None:
                    raise
                current = statements.read(connection, workflow_key)
                found = conflict_of(statements, workflow_key, expected_version, current)
                return conflict if found is None else found


def connection_of(session: Session, statements: Statements[Any]) -> Connection:
    return session.connection(bind_arguments={"mapper": statements.mapper})


def _read(
    connection: Connection, statements: Statements[StateT], workflow_key: str
) -> WorkflowSnapshot[StateT]:
    snapshot = statements.read(connection, workflow_key)
    if snapshot is None:
        raise WorkflowNotFound(statements.entity, workflow_key)
    return snapshot


def prepare(
    statements: Statements[StateT],
    workflow_key: str,
    expected_version: int,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
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
            problems = error.errors(include_url=False, include_input=False)
            path = ".".join(str(part) for part in problems[0]["loc"])
            raise PayloadError(
                f"{where} provenance", path, problems[0]["msg"]
            ) from None
    text = statements.state_type.dump(state, where=f"{where} state")
    return Write(workflow_key, expected_version + 1, text, provenance)


def _compare_and_set(
    connection: Connection, statements: Statements[StateT], write: Write
) -> StateCommitted[StateT] | StateConflict:
    creating = write.version == 1
    send = statements.create if creating else statements.swap
    updated_at = send(connection, write)
    if updated_at is not None:
        return committed(statements, write, updated_at)
    return lost(statements, write, statements.read(connection, write.workflow_key))


def committed(
    statements: Statements[StateT],
    write: Write,
    updated_at: datetime,
    *,
    attempts: int = 1,
) -> StateCommitted[StateT]:
    """Make the outcome of a write that won."""

    def snapshot() -> WorkflowSnapshot[StateT]:
        return WorkflowSnapshot(
            workflow_key=write.workflow_key,
            version=write.version,
            # Read from the text that was written: the caller's own object may be
            # changed after the commit.
            state=statements.state_type.load(write.state_text),
            updated_at=updated_at,
            schema_version=write.schema_version,
            provenance=write.provenance,
        )

    return StateCommitted(
        write.workflow_key, write.version, snapshot, attempts=attempts
    )


def lost(
    statements: Statements[StateT],
    write: Write,
    current: WorkflowSnapshot[StateT] | None,
) -> StateConflict:
    """Make the outcome of a write that changed no row; *current* was read after it."""
    key, expected_version = write.workflow_key, write.version - 1
    conflict = conflict_of(statements, key, expected_version, current)
    if conflict is None:
        raise WriteSuppressed(statements.entity, key, expected_version)
    return conflict


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


def held_instance(session: Session, mapper: Mapper[Any], workflow_key: str) -> Any:
    """Return the session's instance of the row; raise if it has unflushed changes."""
    instance = session.identity_map.get(identity_key(mapper.class_, workflow_key))
    if instance is not None and (
        instance in session.deleted
        or session.is_modified(instance)
        or changed_in_place(instance)
    ):
        raise UnflushedChanges(mapper.class_.__name__, workflow_key)
    return instance


def update_instance(
    instance: Any,
    statements: Statements[Any],
    write: Write,
    snapshot: WorkflowSnapshot[Any],
) -> None:
    """Make *instance* hold what its row holds now."""
    rebase(
        instance,
        "state",
        statements.state_type.load(write.state_text),
        write.state_text,
    )
    set_committed_value(instance, "version", write.version)
    set_committed_value(instance, "updated_at", snapshot.updated_at)
    set_committed_value(instance, "schema_version", write.schema_version)
    set_committed_value(instance, "provenance", write.provenance)
