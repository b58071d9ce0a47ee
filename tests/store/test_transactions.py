"""Contract: a lost answer to COMMIT is not a no, over every driver."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    Engine,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

import sa_wfstate.asyncio
from sa_wfstate import (
    CanonicalStore,
    Commit,
    Provenance,
    RetryPolicy,
    StateCommitted,
    StateConflict,
    run_transaction,
    try_commit,
    try_commit_many,
)
from sa_wfstate.errors import OutcomeUnknown

from ..orders import Base, Order, OrderState

NOT_AT_ALL = RetryPolicy(max_attempts=1)
SHORTLY = RetryPolicy(max_attempts=None, base_delay=0.05, deadline=1.5)


ORDERS = select(Order)


@pytest.fixture
def winner(
    sessions: sessionmaker[Session], create_tables: Callable[..., None]
) -> sessionmaker[Session]:
    """Place an order, and make the sessions of the one who wins."""
    create_tables(Base.metadata)
    with sessions.begin() as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))
    return sessions


def pay(winner: sessionmaker[Session]) -> None:
    """Commit the next version."""
    with winner.begin() as session:
        order = session.get_one(Order, "o-1")
        order.state = OrderState(status=f"paid {order.version}")


class Faults:
    """Cuts the connection of an engine at COMMIT, *times* times.

    *done* says whether the server has committed by then; *meanwhile* is called then.
    """

    def __init__(self, engine: Engine) -> None:
        self.times = 0
        self.done = True
        self.meanwhile: Callable[[], None] = lambda: None
        self._dialect: Any = engine.dialect
        self._commit = self._dialect.do_commit
        self._execute = self._dialect.do_execute
        self._dialect.do_commit = self._cut_commit

    def also_updates(self) -> None:
        """Treat an UPDATE that commits by itself alike."""
        self._dialect.do_execute = self._cut_execute

    def _cut_commit(self, connection: Any) -> None:
        if not self.times:
            self._commit(connection)
            return
        if self.done:
            self._commit(connection)
        self._lose(connection)

    def _cut_execute(self, cursor: Any, statement: str, *rest: Any) -> None:
        cut = self.times and statement.startswith(("UPDATE", "INSERT"))
        if not cut or self.done:
            self._execute(cursor, statement, *rest)
        if cut:
            adapted = getattr(cursor, "_adapt_connection", None)
            self._lose(adapted or cursor.connection)

    def _lose(self, connection: Any) -> None:
        self.times -= 1
        raw = getattr(connection, "driver_connection", connection)
        cut = raw.pgconn.finish if hasattr(raw, "pgconn") else raw.terminate
        cut()
        if self.done:
            self.meanwhile()
        raise self._dialect.loaded_dbapi.OperationalError("connection is closed")


def refuse_one_commit(engine: Engine) -> None:
    """Fail the next COMMIT by 40001, as an engine that is always serializable may."""
    dialect: Any = engine.dialect
    commit = dialect.do_commit

    def refuse(connection: Any) -> None:
        dialect.do_commit = commit
        dialect.do_rollback(connection)
        raise dialect.loaded_dbapi.errors.SerializationFailure("refused")

    dialect.do_commit = refuse


@pytest.fixture
def faults(engine: Engine) -> Faults:
    """Make the faults of the engine."""
    return Faults(engine)


def decide(session: Session) -> str:
    """Change the order on what is read."""
    order = session.get_one(Order, "o-1")
    order.state = OrderState(status=f"decided on {order.version}")
    return order.state.status


def versions(winner: sessionmaker[Session]) -> dict[str, int]:
    """Read all versions."""
    with winner() as session:
        return {order.workflow_key: order.version for order in session.scalars(ORDERS)}


@pytest.mark.contract
def test_conflict_is_retried(engine: Engine, winner: sessionmaker[Session]) -> None:
    """The function runs again, in a fresh session, and what it returns comes out."""
    sessions: list[Session] = []

    def fn(session: Session) -> str:
        sessions.append(session)
        decided = decide(session)
        if len(sessions) < 3:
            pay(winner)
        return decided

    assert run_transaction(sessionmaker(engine), fn) == "decided on 3"
    assert len({id(session) for session in sessions}) == 3
    assert versions(winner) == {"o-1": 4}


@pytest.mark.contract
def test_last_conflict_comes_out(engine: Engine, winner: sessionmaker[Session]) -> None:
    """When the attempts are used up, the last error is the one that is raised."""
    calls = []

    def fn(session: Session) -> None:
        calls.append(decide(session))
        pay(winner)

    with pytest.raises(StateConflict) as caught:
        run_transaction(sessionmaker(engine), fn, retry=RetryPolicy(max_attempts=2))
    assert caught.value.actual_version == 3
    assert len(calls) == 2


@pytest.mark.contract
def test_other_errors_come_out_at_once(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """What a retry would not help is not retried, and nothing is committed."""
    calls = []

    def fn(session: Session) -> None:
        calls.append(decide(session))
        session.add(Order(workflow_key="o-2", state=OrderState()))
        session.flush()
        session.execute(text("INSERT INTO orders SELECT * FROM orders"))

    with pytest.raises(IntegrityError):
        run_transaction(sessionmaker(engine), fn)
    with pytest.raises(ZeroDivisionError):
        run_transaction(sessionmaker(engine), lambda _: 1 / 0)
    assert len(calls) == 1
    assert versions(winner) == {"o-1": 1}


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
def test_lost_answer_is_found_out(
    engine: Engine, faults: Faults, winner: sessionmaker[Session], done: bool
) -> None:
    """Whether the COMMIT was done or not, the change is there once."""
    faults.times, faults.done = 2, done
    sessions = sessionmaker(engine)
    decided = run_transaction(sessions, decide)
    assert decided == "decided on 1"
    assert versions(winner) == {"o-1": 2}

    def create(session: Session) -> None:
        session.add(Order(workflow_key="o-2", state=OrderState()))

    faults.times = 1
    run_transaction(sessions, create)
    assert versions(winner) == {"o-1": 2, "o-2": 1}

    def delete(session: Session) -> None:
        order = session.get(Order, "o-2")
        if order is not None:
            session.delete(order)

    faults.times = 1
    run_transaction(sessions, delete)
    assert versions(winner) == {"o-1": 2}

    faults.times = 1
    assert run_transaction(sessions, lambda s: s.get_one(Order, "o-1").version) == 2


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
def test_what_a_commit_hook_writes_is_found_out_too(
    engine: Engine, faults: Faults, winner: sessionmaker[Session], done: bool
) -> None:
    """A listener that writes at the last moment makes a reading transaction write."""
    faults.times, faults.done = 1, done

    class AuditedSession(Session):
        pass

    @event.listens_for(AuditedSession, "before_commit")
    def audit(session: Session) -> None:
        order = session.get_one(Order, "o-1")
        order.state = OrderState(status=f"audited {order.version}")

    sessions = sessionmaker(engine, class_=AuditedSession)
    run_transaction(sessions, lambda session: session.get(Order, "o-1"))
    assert versions(winner) == {"o-1": 2}


@pytest.mark.contract
@pytest.mark.parametrize("many", [True, False])
def test_what_was_replayed_is_no_evidence(
    engine: Engine, faults: Faults, winner: sessionmaker[Session], *, many: bool
) -> None:
    """An earlier transaction wrote it, whatever has become of this one."""
    with winner.begin() as session:
        session.add(Order(workflow_key="o-2", state=OrderState()))
    again = Commit(
        "o-2",
        expected_version=1,
        state=OrderState(),
        provenance=Provenance.now("import-1"),
    )

    def work(session: Session) -> None:
        if many:
            (outcome,) = try_commit_many(session, Order, [again])
        else:
            outcome = try_commit(
                session,
                Order,
                "o-2",
                expected_version=1,
                state=again.state,
                provenance=again.provenance,
            )
        assert isinstance(outcome, StateCommitted)
        decide(session)

    run_transaction(sessionmaker(engine), work)
    assert versions(winner) == {"o-1": 2, "o-2": 2}
    faults.times, faults.done = 1, False
    run_transaction(sessionmaker(engine), work)
    assert versions(winner) == {"o-1": 3, "o-2": 2}


@pytest.mark.contract
def test_replaced_evidence_is_not_guessed(
    engine: Engine, faults: Faults, winner: sessionmaker[Session]
) -> None:
    """If others have written since, the outcome is unknown, and the error says so."""
    faults.times = 1
    faults.meanwhile = lambda: pay(winner)
    with pytest.raises(OutcomeUnknown) as caught:
        run_transaction(sessionmaker(engine), decide)
    assert caught.value.workflow_key == "o-1"
    assert len(caught.value.effect_ids) == 1
    assert isinstance(caught.value.__cause__, DBAPIError)
    faults.also_updates()
    faults.times = 1
    with pytest.raises(OutcomeUnknown):
        commit(CanonicalStore(engine, Order), 3)


@pytest.mark.contract
def test_commit_that_hangs_is_waited_for(
    engine: Engine, faults: Faults, winner: sessionmaker[Session]
) -> None:
    """While the row is locked the outcome is open, however the row looks."""
    faults.times, faults.done = 1, False
    with winner() as hanging:
        hanging.execute(text("SELECT 1 FROM orders FOR UPDATE"))
        faults.also_updates()
        with pytest.raises(OutcomeUnknown):
            commit(CanonicalStore(engine, Order, resolve=SHORTLY), 1)
    assert versions(winner) == {"o-1": 1}


def commit(store: CanonicalStore[OrderState], expected_version: int) -> Any:
    """Commit by a store."""
    return store.try_commit(
        workflow_key="o-1",
        expected_version=expected_version,
        state=OrderState(status="committed"),
        provenance=Provenance.now(),
    )


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
def test_store_finds_out_too(
    engine: Engine, faults: Faults, winner: sessionmaker[Session], done: bool
) -> None:
    """A store sends the same commit again: one of the two wins."""
    faults.also_updates()
    faults.times, faults.done = 2, done
    outcome = commit(CanonicalStore(engine, Order), 1)
    assert isinstance(outcome, StateCommitted)
    assert outcome.replayed is done
    assert (outcome.version, outcome.snapshot.version) == (2, 2)
    assert outcome.snapshot.state.status == "committed"
    assert versions(winner) == {"o-1": 2}


@pytest.mark.contract
def test_store_finds_out_that_it_lost(
    engine: Engine, faults: Faults, winner: sessionmaker[Session]
) -> None:
    """If another commit took the version, the answer is a conflict."""
    faults.also_updates()
    faults.times, faults.done = 1, False
    lose = faults._lose

    def lose_and_pay(connection: Any) -> None:
        try:
            lose(connection)
        finally:
            pay(winner)

    faults._lose = lose_and_pay  # type: ignore[method-assign]
    outcome = commit(CanonicalStore(engine, Order), 1)
    assert isinstance(outcome, StateConflict)
    assert outcome.actual_version == 2


@pytest.mark.contract
def test_server_that_cannot_be_reached_is_no_unknown(database: URL) -> None:
    """What was never sent was not done; the error is the driver's own."""
    nowhere = create_engine(database.set(host="/nowhere", query={}))
    with pytest.raises(DBAPIError):
        commit(CanonicalStore(nowhere, Order), 1)
    with pytest.raises(DBAPIError):
        run_transaction(sessionmaker(nowhere), decide, retry=NOT_AT_ALL)


async def test_async_function(
    async_engine: AsyncEngine, winner: sessionmaker[Session]
) -> None:
    """The async counterpart awaits the function, and retries alike."""
    calls = []

    async def fn(session: AsyncSession) -> str:
        order = await session.get_one(Order, "o-1")
        order.state = OrderState(status=f"decided on {order.version}")
        calls.append(session)
        if len(calls) == 1:
            pay(winner)
        return order.state.status

    sessions = async_sessionmaker(async_engine)
    faults = Faults(async_engine.sync_engine)
    faults.times = 1
    assert await sa_wfstate.asyncio.run_transaction(sessions, fn) == "decided on 2"
    assert len(calls) == 2
    assert versions(winner) == {"o-1": 3}


async def test_cancelled_commit_can_be_repeated(
    async_engine: AsyncEngine, winner: sessionmaker[Session]
) -> None:
    """The same commit, with the same provenance, finds out what became of the first."""
    store = sa_wfstate.asyncio.CanonicalStore(async_engine, Order)
    provenance = Provenance.now()

    def once() -> Any:
        return store.try_commit(
            workflow_key="o-1",
            expected_version=1,
            state=OrderState(status="committed"),
            provenance=provenance,
        )

    with winner() as session:
        session.execute(text("SELECT 1 FROM orders FOR UPDATE"))
        task = asyncio.create_task(once())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with warnings.catch_warnings(action="ignore"):
        gc.collect()  # SQLAlchemy lets go of psycopg's connection without closing it.
    outcome = await once()
    assert isinstance(outcome, StateCommitted)
    again = await once()
    assert again.replayed
    assert versions(winner) == {"o-1": 2}
    async with AsyncSession(async_engine) as session:
        assert await session.scalar(select(func.count()).select_from(Order)) == 1


async def test_wrong_kind_of_session_names_the_counterpart(
    async_engine: AsyncEngine, winner: sessionmaker[Session]
) -> None:
    """A sync session where an async one is due is refused with a word, or the other."""
    asynchronous: Any = async_sessionmaker(async_engine)
    with pytest.raises(TypeError, match="an asynchronous AsyncSession; await"):
        run_transaction(asynchronous, decide)
    synchronous: Any = winner
    with pytest.raises(TypeError, match="a synchronous Session; give"):
        await sa_wfstate.asyncio.run_transaction(synchronous, asynchronous)
    assert versions(winner) == {"o-1": 1}
