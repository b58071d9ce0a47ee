"""Lose a race on demand, and undo all commits of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy import Connection, Engine, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from ..errors import WorkflowNotFound
from ..orm.entity import statements_of
from ..orm.events import after_statement
from ..orm.mixin import WorkflowStateMixin
from ..orm.row_keys import key_of
from ..retry import sqlstate
from ..row.statements import Statements
from ..store.compare_and_set import compare_and_set, prepare
from ..store.connections import limit_lock_waits
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker


StateT = TypeVar("StateT")

_LOCK_NOT_AVAILABLE = "55P03"


def lose_race(
    session: Session,
    instance: WorkflowStateMixin[StateT],
    *,
    change: Callable[[StateT], StateT | None],
) -> StateCommitted[StateT]:
    """Commit a rival write of the row of *instance*, so that *session* loses its next.

    *change* gets the state in the database, and changes it or returns another one. The
    rival has a transaction of its own, so call this before *session* flushes a change
    of the row, which would lock it. In :func:`one_transaction`, where both share a
    connection, the rival's write outlives the next rollback of *session*.

    Returns the commit of the rival. With an AsyncSession:
    ``await session.run_sync(lose_race, order, change=…)``.
    """
    statements = statements_of(type(instance))
    # Without a load: an expired instance would be read again, later than the session.
    key: str = key_of(inspect(instance, raiseerr=True))
    bind = session.get_bind(statements.mapper)
    if isinstance(bind, Connection):
        return _Rival(statements, key, change, bind).commit_again_after_rollback()
    with bind.begin() as connection:
        limit_lock_waits(connection)
        return _Rival(statements, key, change, connection).commit()


class _Rival(Generic[StateT]):
    """A writer that commits first."""

    def __init__(
        self,
        statements: Statements[StateT],
        key: str,
        change: Callable[[StateT], StateT | None],
        connection: Connection,
    ) -> None:
        self._statements = statements
        self._connection = connection
        snapshot = statements.read(connection, key)
        if snapshot is None:
            raise WorkflowNotFound(statements.entity, key)
        row = RowVersion(snapshot.version, snapshot.provenance.effect_id)
        state = change(snapshot.state)
        state = snapshot.state if state is None else state
        provenance = Provenance.now(rival=True)
        self._write = prepare(statements, key, row, state, provenance)
        self._is_done = False

    def commit(self) -> StateCommitted[StateT]:
        try:
            outcome = compare_and_set(self._connection, self._statements, self._write)
        except DBAPIError as error:
            if sqlstate(error) != _LOCK_NOT_AVAILABLE:
                raise
            raise AssertionError(
                f"{self._statements.entity} {self._write.workflow_key!r} is locked, so "
                "a rival cannot win; call lose_race() before the session flushes"
            ) from error
        assert isinstance(outcome, StateCommitted)  # noqa: S101
        return outcome

    def commit_again_after_rollback(self) -> StateCommitted[StateT]:
        """Commit within the savepoint of the session, whose rollback undoes it."""
        after_statement(self._connection, self._executed)
        return self.commit()

    def _executed(self, _: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("ROLLBACK TO SAVEPOINT") and not self._is_done:
            self._is_done = True
            self.commit()


@overload
def one_transaction(
    engine: Engine,
) -> AbstractContextManager[sessionmaker[Session]]: ...
@overload
def one_transaction(
    engine: AsyncEngine,
) -> AbstractAsyncContextManager[async_sessionmaker[AsyncSession]]: ...
def one_transaction(engine: Any) -> Any:
    """Make sessions in one outer transaction, which is rolled back at the end.

    A commit of such a session ends a savepoint, so that the next one sees it, and
    nothing of it is left after the block. Give the sessionmaker to CanonicalStore,
    ReducerService and run_transaction where they take an engine in production. It is
    one connection, so it is for one thread, or one task.

    ::

        with one_transaction(engine) as sessions:
            service = ReducerService(sessions, Order, reducer)

    With an AsyncEngine: ``async with``.
    """
    if isinstance(engine, Engine):
        return _one_transaction(engine)
    return _one_async_transaction(engine)


@contextmanager
def _one_transaction(engine: Engine) -> Iterator[sessionmaker[Session]]:
    with engine.connect() as connection:
        transaction = connection.begin()
        try:
            yield sessionmaker(connection, join_transaction_mode="create_savepoint")
        finally:
            transaction.rollback()


@asynccontextmanager
async def _one_async_transaction(
    engine: AsyncEngine,
) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    from sqlalchemy.ext.asyncio import async_sessionmaker

    async with engine.connect() as connection:
        transaction = await connection.begin()
        try:
            yield async_sessionmaker(
                connection, join_transaction_mode="create_savepoint"
            )
        finally:
            await transaction.rollback()
