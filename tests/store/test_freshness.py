"""A reader of a replica that lags behind sees what it has committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, Update, create_engine, event, select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

from sa_wfstate import (
    CanonicalStore,
    Provenance,
    StateCommitted,
    WorkflowNotFound,
    asyncio,
    get_state,
    run_transaction,
    try_commit,
)
from sa_wfstate.errors import StateBehind
from sa_wfstate.testing import temporary_database
from sa_wfstate.versions import RowVersion

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL


@pytest.fixture
def primary(engine: Engine) -> Engine:
    """Return an engine of the database that is written."""
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def replica(database: URL) -> Iterator[Engine]:
    """Return an engine of a database that gets rows only when a test copies them."""
    with temporary_database(database) as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()


@pytest.fixture
def sessions(primary: Engine, replica: Engine) -> sessionmaker[Session]:
    """Make sessions that write to the one and read from the other."""

    class RoutingSession(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:  # type: ignore[override]
            if self._flushing or isinstance(clause, Update):
                return primary
            return replica

    return sessionmaker(class_=RoutingSession)


def commit(engine: Engine, version: int, effect_id: str) -> RowVersion:
    """Commit a version, and return its token."""
    with Session(engine) as session, session.begin():
        outcome = try_commit(
            session,
            Order,
            "o-1",
            expected_version=version - 1,
            state=OrderState(status=f"v{version}"),
            provenance=Provenance.now(effect_id),
        )
    assert isinstance(outcome, StateCommitted)
    return outcome.token


def test_read_falls_back_to_the_primary(
    sessions: sessionmaker[Session], primary: Engine
) -> None:
    """What has not arrived after the wait is read where it was written."""
    token = commit(primary, 1, "a")
    store = CanonicalStore(sessions, Order)
    with sessions() as session:
        with pytest.raises(WorkflowNotFound):
            get_state(session, Order, "o-1")
        read = get_state(session, Order, "o-1", min_version=token, max_wait=0.01)
    assert (read.version, read.provenance.effect_id) == (1, "a")
    assert store.get_state("o-1", min_version=1, max_wait=0.0) == read
    with pytest.raises(WorkflowNotFound):
        store.get_state("o-1")


def test_read_waits_for_the_replica(
    sessions: sessionmaker[Session], primary: Engine, replica: Engine
) -> None:
    """The row is polled, and comes from the replica as soon as it is there."""
    token, polls, asked = commit(primary, 1, "a"), [], []

    def arrive(*_: object) -> None:
        polls.append(None)
        if len(polls) == 3:
            with Session(replica) as session, session.begin():
                session.add(
                    Order(
                        workflow_key="o-1",
                        state=OrderState(),
                        provenance=Provenance.now("a"),
                    )
                )

    event.listen(primary, "before_cursor_execute", lambda *_: asked.append(None))
    event.listen(replica, "before_cursor_execute", arrive)
    store = CanonicalStore(sessions, Order)
    read = store.get_state("o-1", min_version=token, max_wait=20.0)
    assert (read.version, read.state.status) == (1, "new")
    assert asked == []


def test_created_again_is_not_the_version_of_a_token(
    sessions: sessionmaker[Session], primary: Engine, replica: Engine
) -> None:
    """The same version by another effect does not do; a number accepts it."""
    commit(replica, 1, "another")
    token = commit(primary, 1, "a")
    with sessions() as session:
        read = get_state(session, Order, "o-1", min_version=1)
        assert read.provenance.effect_id == "another"
        read = get_state(session, Order, "o-1", min_version=token, max_wait=0.0)
        assert read.provenance.effect_id == "a"


def test_version_that_the_primary_does_not_have_is_an_error(engine: Engine) -> None:
    """A server that lags, or a row that was deleted and created again, is told."""
    Base.metadata.create_all(engine)
    commit(engine, 1, "a")
    with Session(engine) as session:
        with pytest.raises(StateBehind, match="version 2 is required, found 1"):
            get_state(session, Order, "o-1", min_version=2, max_wait=0.0)
        with pytest.raises(ValueError, match="max_wait must be 0 or more"):
            get_state(session, Order, "o-1", max_wait=-1)


def lag(primary: Engine, replica: Engine) -> None:
    """Leave the replica one version behind."""
    for engine in (primary, replica):
        commit(engine, 1, "a")
    commit(primary, 2, "b")


def read_and_write(session: Session, seen: list[tuple[int, ...]]) -> None:
    """Read a row in some ways, and change it."""
    order = session.get_one(Order, "o-1")
    table = Order.__table__
    seen.append(
        (
            order.version,
            session.scalars(select(Order.version).where(Order.version > 0)).one(),
            session.execute(select(table.c.version)).scalar_one(),
            session.scalars(select(Order).from_statement(text("TABLE orders")))
            .one()
            .version,
            get_state(session, Order, "o-1").version,
        )
    )
    order.state.status = "mine"


def test_retry_reads_from_the_primary(
    sessions: sessionmaker[Session], primary: Engine, replica: Engine
) -> None:
    """A read that lags costs one attempt, not all of them."""
    lag(primary, replica)
    seen: list[tuple[int, ...]] = []
    run_transaction(sessions, lambda session: read_and_write(session, seen))
    assert seen == [(1,) * 5, (2,) * 5]
    with Session(primary) as session:
        assert get_state(session, Order, "o-1").version == 3


async def test_retry_in_asyncio_reads_from_the_primary(
    primary: Engine, replica: Engine
) -> None:
    """The session that SQLAlchemy's manual has for asyncio does the same."""
    lag(primary, replica)
    there = create_async_engine(primary.url)
    behind = create_async_engine(replica.url)

    class RoutingSession(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:  # type: ignore[override]
            writes = self._flushing or isinstance(clause, Update)
            return (there if writes else behind).sync_engine

    seen: list[tuple[int, ...]] = []

    async def work(session: AsyncSession) -> None:
        await session.run_sync(read_and_write, seen)

    routing = async_sessionmaker(sync_session_class=RoutingSession)
    await asyncio.run_transaction(routing, work)
    assert seen == [(1,) * 5, (2,) * 5]
    await there.dispose()
    await behind.dispose()


async def test_waits_in_asyncio(async_engine: AsyncEngine, database: URL) -> None:
    """The awaitable counterparts have the same parameters."""
    engine = create_engine(database)
    Base.metadata.create_all(engine)
    token = commit(engine, 1, "a")
    engine.dispose()
    async with async_sessionmaker(async_engine)() as session:
        read = await asyncio.get_state(session, Order, "o-1", min_version=token)
        assert read.version == 1
        with pytest.raises(StateBehind):
            await asyncio.get_state(session, Order, "o-1", min_version=2, max_wait=0.01)
    store = asyncio.CanonicalStore(async_engine, Order)
    assert (await store.get_state("o-1", min_version=token)) == read
