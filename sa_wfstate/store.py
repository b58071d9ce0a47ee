"""Read a workflow and commit to it: in a session, or in a transaction per call.

``get_state`` and ``try_commit`` take part in the transaction of the session they are
given; :class:`CanonicalStore` has one of its own for each call. All of them send
prebuilt Core statements, so none flushes or expires what else the session holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, Session, sessionmaker
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.util import identity_key

from .conflicts import SERIALIZATION_FAILURE, conflict_of, sqlstate
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
from .tracking import rebase

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
    return _read(_connection(session, statements), statements, workflow_key)


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
    write = _prepare(statements, workflow_key, expected_version, state, provenance)
    instance = _held(session, statements.mapper, workflow_key)
    try:
        outcome = _compare_and_set(_connection(session, statements), statements, write)
    except DBAPIError as error:
        conflict = _refused(statements, write, error)
        if conflict is None:
            raise
        raise conflict from error
    if instance is not None and isinstance(outcome, StateCommitted):
        _update_instance(instance, statements, write, outcome.snapshot)
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
        self._bind = bind
        self._statements = statements_of(entity)

    def get_state(self, workflow_key: str) -> WorkflowSnapshot[StateT]:
        """Read the workflow; raises WorkflowNotFound if there is no such row."""
        check_key(self._statements.entity, workflow_key)
        with self._connect() as connection:
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
        write = _prepare(
            statements, workflow_key, expected_version, state_prime, provenance
        )
        with self._connect() as connection:
            try:
                return _compare_and_set(connection, statements, write)
            except DBAPIError as error:
                connection.rollback()
                conflict = _refused(statements, write, error)
                if conflict is None:
                    raise
                current = statements.read(connection, workflow_key)
                return (
                    conflict_of(statements, workflow_key, expected_version, current)
                    or conflict
                )

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        """A connection that commits by itself: half the round trips of BEGIN, COMMIT."""
        autocommit = {"isolation_level": "AUTOCOMMIT"}
        if isinstance(self._bind, Engine):
            with self._bind.connect() as connection:
                yield connection.execution_options(**autocommit)
        else:
            with self._bind() as session:
                yield session.connection(
                    bind_arguments={"mapper": self._statements.mapper},
                    execution_options=autocommit,
                )


def _connection(session: Session, statements: Statements[Any]) -> Connection:
    return session.connection(bind_arguments={"mapper": statements.mapper})


def _read(
    connection: Connection, statements: Statements[StateT], workflow_key: str
) -> WorkflowSnapshot[StateT]:
    snapshot = statements.read(connection, workflow_key)
    if snapshot is None:
        raise WorkflowNotFound(statements.entity, workflow_key)
    return snapshot


def _prepare(
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
    if not isinstance(expected_version, int) or isinstance(expected_version, bool):
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
    key = write.workflow_key
    if updated_at is not None:

        def snapshot() -> WorkflowSnapshot[StateT]:
            return WorkflowSnapshot(
                workflow_key=key,
                version=write.version,
                # Read from the text that was written: the caller's own object may be
                # changed after the commit.
                state=statements.state_type.load(write.state_text),
                updated_at=updated_at,
                schema_version=write.schema_version,
                provenance=write.provenance,
            )

        return StateCommitted(key, write.version, snapshot)
    current = statements.read(connection, key)
    conflict = conflict_of(statements, key, write.version - 1, current)
    if conflict is None:
        raise WriteSuppressed(statements.entity, key, write.version - 1)
    return conflict


def _refused(
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


def _held(session: Session, mapper: Mapper[Any], workflow_key: str) -> Any:
    """Return the session's instance of the row; raise if it has unflushed changes."""
    instance = session.identity_map.get(identity_key(mapper.class_, workflow_key))
    if instance is not None and (
        instance in session.deleted or session.is_modified(instance)
    ):
        raise UnflushedChanges(mapper.class_.__name__, workflow_key)
    return instance


def _update_instance(
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
