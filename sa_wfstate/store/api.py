"""Read a workflow and commit to it: in a session, or in a transaction per call.

``get_state`` and ``try_commit`` take part in the transaction of the session they are
given; :class:`CanonicalStore` has one of its own for each call. All of them send
prebuilt Core statements, so none flushes or expires what else the session holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.util import identity_key
from tenacity import Retrying, retry_if_exception

from .._concurrency import Blocking, Waiting, refuse_async
from ..errors import OutcomeUnknown, StateConflict, UnflushedChanges, WorkflowNotFound
from ..orm import flush as flushes  # noqa: F401 - they listen
from ..orm import stale_loads  # noqa: F401 - they listen
from ..orm.criteria import filtering, read_visible
from ..orm.entity import statements_of
from ..orm.error_details import hide_details
from ..orm.mixin import WorkflowStateMixin
from ..orm.tracking import changed_in_place, rebase
from ..orm.version_guard import saw
from ..orm.write_log import record
from ..retry import ErrorKind, RetryPolicy, classify
from ..row.keys import check_key
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from ..values.write import Batch, Write
from .compare_and_set import compare_and_set, conflict_of_write, prepare, refused
from .connections import Connections, limit_lock_waits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Mapper, Session, sessionmaker

    from ..row.statements import Statements
    from ..values.provenance import Provenance


StateT = TypeVar("StateT")
NOT_GIVEN: Any = ...
"""The default of a parameter for a state, which may be None; no JSON is like it."""

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
    connection = connection_of(session, statements)
    if session.autoflush:
        session.flush()
    return _read(connection, statements, workflow_key, filtering(session))


def try_commit(
    session: Session,
    entity: Entity[StateT],
    workflow_key: str,
    *,
    expected_version: int,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    expected_effect_id: str | None = None,
    base: WorkflowSnapshot[StateT] | None = None,
) -> StateCommitted[StateT] | StateConflict:
    """Write *state* if the workflow is still at *expected_version*.

    With *expected_version* 0 the workflow is created. Where workflows are deleted and
    created again, *expected_effect_id*, that of the provenance that was read, tells
    a re-created row from the one before. The version is always checked,
    also when *state* equals the one that is there. One statement is sent when the
    commit wins, and one more to read the row when it loses; the loss is returned, not
    raised, and the transaction goes on with whatever else it holds. The write is final
    when the caller commits the session. An instance of the row that the session holds
    has the new values afterwards.

    *base*, the snapshot that was read, if it is at hand, tells two things more. A
    *state* that it holds already is not sent: only the version, the time and the
    provenance are written. And a workflow that was deleted and created again since is a
    conflict, as with *expected_effect_id*.

    Raises PayloadError if a value cannot be stored, before any SQL is sent;
    UnflushedChanges if the session itself has changed the row; WriteSuppressed if the
    row is at *expected_version* and yet was not written. At REPEATABLE READ and
    SERIALIZABLE the database may refuse the statement and thereby the whole
    transaction: that is raised, as a StateConflict whose reason is ``serialization``.
    """
    statements = statements_of(entity)
    write = prepare(
        statements,
        workflow_key,
        expected_version,
        state,
        provenance,
        expected_effect_id=expected_effect_id,
        base=base,
    )
    instance = held_instance(session, statements.mapper, workflow_key)
    connection = connection_of(session, statements)
    try:
        outcome = compare_and_set(
            connection, statements, write, session=filtering(session)
        )
    except DBAPIError as error:
        conflict = refused(statements, write, error)
        if conflict is None:
            raise
        raise conflict from error
    held = {} if instance is None else {workflow_key: instance}
    adopt(session, connection, statements, Batch.of([write]), [outcome], held)
    return outcome


class CanonicalStore(Generic[StateT]):
    """Read and commit workflows of one class, each call in a transaction of its own.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine. When the
    answer to a commit is lost, *resolve* says for how long and how often to ask again.

    >>> store = CanonicalStore(engine, Order)  # doctest: +SKIP
    >>> store.get_state("order-42").version  # doctest: +SKIP
    7
    """

    _waiting: ClassVar[type[Waiting]] = Blocking

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        entity: Entity[StateT],
        *,
        resolve: RetryPolicy = RetryPolicy.held(),  # noqa: B008 - it is frozen
    ) -> None:
        self._resolve = resolve
        self._wait = self._waiting()
        self._statements = statements_of(entity)
        self._connections = Connections(bind, self._statements.mapper)

    def get_state(self, workflow_key: str) -> WorkflowSnapshot[StateT]:
        """Read the workflow; raises WorkflowNotFound if there is no such row."""
        check_key(self._statements.entity, workflow_key)
        with self._connections.autocommit() as connection:
            session = self._connections.filtering(connection)
            return _read(connection, self._statements, workflow_key, session)

    def try_commit(
        self,
        *,
        workflow_key: str,
        expected_version: int,
        provenance: Provenance | Mapping[str, Any],
        state: StateT = NOT_GIVEN,
        state_prime: StateT = NOT_GIVEN,
        expected_effect_id: str | None = None,
        base: WorkflowSnapshot[StateT] | None = None,
    ) -> StateCommitted[StateT] | StateConflict:
        """Write *state* and commit, if the workflow is at *expected_version*.

        *state_prime* is another name of *state*; give exactly one of the two.
        Behaves as :func:`try_commit`, but a loss is always returned, at every isolation
        level, with the row as it is after the loss. A connection that is lost on the
        way leaves open whether the commit was done. It is sent again then: either it
        wins, or the row has its effect id and the outcome is *replayed*.

        Raises OutcomeUnknown if that could not be found out.
        """
        write = prepare(
            self._statements,
            workflow_key,
            expected_version,
            _the_one(state, state_prime),
            provenance,
            expected_effect_id=expected_effect_id,
            base=base,
        )
        statements, sent = self._statements, False
        try:
            with self._connections.commit() as connection:
                sent = True
                session = self._connections.filtering(connection)
                return compare_and_set(connection, statements, write, session=session)
        except (DBAPIError, OSError) as error:
            conflict = refused(statements, write, error)
            if conflict is None:
                if classify(error, committing=sent) is not ErrorKind.UNKNOWN:
                    raise
                return self._commit_again(write, error)
        # By a statement or by COMMIT: the row is read when that is over.
        with self._connections.autocommit() as connection:
            session = self._connections.filtering(connection)
            found = read_visible(connection, statements, [workflow_key], session)
        current = found.get(workflow_key)
        if current is None and session is not None:
            return conflict  # A row that is hidden is not the same as none.
        return conflict_of_write(statements, write, current) or conflict

    def _commit_again(
        self, write: Write, cause: BaseException
    ) -> StateCommitted[StateT] | StateConflict:
        """Send *write* again, until its outcome is known.

        As long as the first one may still be in progress, its row lock keeps the second
        waiting; and whichever of the two is done first makes the other one lose.
        """
        retrying = Retrying(
            stop=self._resolve.stop,
            wait=self._resolve.wait,
            sleep=self._wait.sleep,
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            outcome = retrying(self._send_again, write)
        except (DBAPIError, OSError, PoolTimeoutError):
            outcome = None
        if outcome is None or (
            isinstance(outcome, StateConflict)
            and outcome.actual_version not in {write.version - 1, write.version}
        ):
            # Other commits have replaced the version that would tell.
            raise OutcomeUnknown(
                self._statements.entity,
                write.workflow_key,
                (write.provenance.effect_id,),
            ) from cause
        return outcome

    def _send_again(self, write: Write) -> StateCommitted[StateT] | StateConflict:
        with self._connections.transaction("READ COMMITTED") as connection:
            limit_lock_waits(connection)
            session = self._connections.filtering(connection)
            return compare_and_set(
                connection, self._statements, write, again=True, session=session
            )


def _the_one(state: StateT, state_prime: StateT) -> StateT:
    if (state is NOT_GIVEN) is (state_prime is NOT_GIVEN):
        raise TypeError("try_commit() takes either state= or state_prime=")
    return state_prime if state is NOT_GIVEN else state


def _may_pass(error: BaseException) -> bool:
    kinds = {ErrorKind.TRANSIENT, ErrorKind.UNKNOWN}
    return classify(error, committing=True) in kinds


def connection_of(session: Session, statements: Statements[Any]) -> Connection:
    """Return the connection on which *session* reads and writes these rows."""
    refuse_async(session)
    connection = session.connection(bind_arguments={"mapper": statements.mapper})
    hide_details(connection.engine)
    return connection


def _read(
    connection: Connection,
    statements: Statements[StateT],
    workflow_key: str,
    session: Session | None,
) -> WorkflowSnapshot[StateT]:
    found = read_visible(connection, statements, [workflow_key], session)
    if not found:
        raise WorkflowNotFound(statements.entity, workflow_key)
    return found[workflow_key]


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


def adopt(
    session: Session,
    connection: Connection,
    statements: Statements[Any],
    batch: Batch,
    outcomes: Sequence[object],
    held: Mapping[str, Any],
) -> None:
    """Let *session* know what of *batch* was committed.

    *held* are those instances of the rows that it holds, by key.
    """
    own = [
        index
        for index, each in enumerate(outcomes)
        # What an earlier transaction wrote is no evidence of this one.
        if isinstance(each, StateCommitted) and not each.replayed
    ]
    if own:
        record(session, connection, statements, batch.take(own), held)
    if held:
        for write, outcome in zip(batch, outcomes, strict=True):
            if write.workflow_key in held and isinstance(outcome, StateCommitted):
                _update_instance(held[write.workflow_key], write, outcome.snapshot)


def _update_instance(
    instance: Any, write: Write, snapshot: WorkflowSnapshot[Any]
) -> None:
    """Make *instance* hold what its row holds now."""
    rebase(instance, "state", write.state_text)
    set_committed_value(instance, "version", snapshot.version)
    set_committed_value(instance, "updated_at", snapshot.updated_at)
    set_committed_value(instance, "schema_version", write.schema_version)
    set_committed_value(instance, "provenance", write.provenance)
    saw(inspect(instance), RowVersion(snapshot.version, write.provenance.effect_id))
