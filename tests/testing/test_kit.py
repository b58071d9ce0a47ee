"""The test kit: reducers without a database, races, workers, one transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    CanonicalStore,
    Intent,
    PayloadError,
    Provenance,
    ReducerService,
    Reduction,
    RetryPolicy,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    run_transaction,
)
from sa_wfstate.canonical import (
    ActionDedupLog,
    CanonicalBase,
    ProjectionWatermark,
    WorkflowHistory,
    WorkflowIntent,
    WorkflowProjection,
)
from sa_wfstate.history import HistoryMixin, keep_history, list_versions
from sa_wfstate.outbox import IntentDispatcher, store_intents
from sa_wfstate.projection import Projection, ProjectionWorker
from sa_wfstate.testing import (
    caught_up,
    given,
    lose_race,
    one_transaction,
    pass_time,
    replay,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine


pytest_plugins = ["pytester"]


class Pay(BaseModel):
    amount: int


class OrderState(BaseModel):
    paid: int = 0
    labels: dict[str, int] = {}


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "kit_orders"


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "kit_order_history"


keep_history(Order, OrderHistory)
RECEIPT = Intent(intent_type="receipt", target="kim")


def pay(state: OrderState, action: Action[Any]) -> Reduction[OrderState]:
    """Add what is paid, and send a receipt."""
    state.paid += action.payload.amount
    return Reduction(state, [RECEIPT])


def test_reducer_is_tested_without_a_database() -> None:
    """Several actions, as payloads or as actions; state and intents are compared."""
    order = given(OrderState(), reducer=pay)
    order.when(Pay(amount=30)).then(OrderState(paid=30), [RECEIPT])
    action = Action(workflow_key="o-1", action_id=uuid4(), payload=Pay(amount=5))
    outcome = order.when(Pay(amount=30), action)
    assert outcome.state.paid == 35
    assert outcome.intents == [RECEIPT, RECEIPT]


def test_failure_names_what_differs() -> None:
    """Each part by its path, with both values; JSON tells true from one."""
    order = given(OrderState(labels={"a": 1}), reducer=pay).when(Pay(amount=30))
    with pytest.raises(AssertionError) as failed:
        order.then(OrderState(paid=31, labels={"b": 2}), [RECEIPT])
    text = str(failed.value)
    assert "/paid is 30, not 31" in text
    assert "/labels/b is missing, not 2" in text
    assert "/labels/a is 1, and should not be there" in text
    with pytest.raises(AssertionError, match="the intents differs: /0"):
        order.then(OrderState(paid=30, labels={"a": 1}))
    with pytest.raises(AssertionError, match="true, not 1"):
        given({"a": 0}, reducer=lambda *_: {"a": True}).when(1).then({"a": 1})


def test_reducer_that_a_service_would_refuse_fails() -> None:
    """None, a state that JSON changes, and a second call with another result."""
    with pytest.raises(AssertionError, match="returned None"):
        given({"a": 1}, reducer=lambda *_: None).when(1)  # type: ignore[arg-type, return-value]
    with pytest.raises(PayloadError, match="which JSON changes"):
        given({"a": {}}, reducer=lambda *_: {"a": {1: 2}}).when(1)
    calls: list[int] = []

    def count(_: dict[str, int], __: Any) -> dict[str, int]:
        calls.append(1)
        return {"calls": len(calls)}

    with pytest.raises(AssertionError, match=r"not pure.*/calls is 2, not 1"):
        given({"calls": 0}, reducer=count).when(1)


@pytest.fixture
def tables(create_tables: Callable[..., None], engine: Engine) -> Engine:
    """Create all tables, and an order."""
    create_tables(CanonicalBase.metadata, Base.metadata)
    add_order(engine)
    return engine


def add_order(engine: Engine) -> None:
    """Create the order o-1."""
    with Session(engine) as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))
        session.commit()


def action(number: int, amount: int, key: str = "o-1") -> Action[Pay]:
    """Make an action."""
    return Action(
        workflow_key=key, action_id=UUID(int=number), payload=Pay(amount=amount)
    )


def test_replay_names_the_first_version_that_differs(tables: Engine) -> None:
    """Today's reducer is run over recorded actions; other versions are taken as is."""
    service = ReducerService(
        tables, Order, pay, initial=OrderState, on_intents=lambda *_: None
    )
    actions = [action(number, 10 * number, "o-2") for number in (1, 2, 3)]
    for each in actions:
        service.handle(each)
    with Session(tables) as session:
        session.get_one(Order, "o-2").state.paid += 1
        session.commit()
        history = list_versions(session, Order, "o-2")
    assert replay(pay, history, actions) == 2
    assert replay(pay, history, actions, initial=OrderState) == 3
    assert replay(pay, history, actions[:1], initial=OrderState) == 1

    def with_fee(state: OrderState, action: Action[Any]) -> OrderState:
        fee = 1 if action.payload.amount >= 20 else 0
        return state.model_copy(
            update={"paid": state.paid + action.payload.amount + fee}
        )

    with pytest.raises(AssertionError, match="version 2 of 'o-2', replayed") as failed:
        replay(with_fee, history, actions, initial=OrderState)
    assert "/paid is 31, not 30" in str(failed.value)


@pytest.mark.contract
def test_race_is_lost_on_demand(
    engine: Engine, create_tables: Callable[..., None]
) -> None:
    """The rival commits, and the session's next flush loses; also in a retry loop."""
    create_tables(CanonicalBase.metadata, Base.metadata)
    add_order(engine)
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        won = lose_race(session, order, change=lambda s: s.labels.update(rival=1))
        assert won.version == 2
        order.state.paid = 5
        with pytest.raises(StateConflict) as lost:
            session.commit()
    assert lost.value.current is not None
    assert lost.value.current.state.labels == {"rival": 1}
    attempts: list[int] = []

    def add(session: Session) -> None:
        order = session.get_one(Order, "o-1")
        attempts.append(order.version)
        if len(attempts) == 1:
            lose_race(session, order, change=lambda s: s.model_copy(update={"paid": 7}))
        order.state.paid += 1

    run_transaction(sessionmaker(engine), add, retry=RetryPolicy(max_attempts=2))
    assert attempts == [2, 3]
    with Session(engine) as session:
        assert session.get_one(Order, "o-1").state.paid == 8


def test_rival_does_not_wait_for_the_session_itself(tables: Engine) -> None:
    """A row that the session has written is locked; the failure says what to do."""
    with Session(tables) as session:
        order = session.get_one(Order, "o-1")
        order.state.paid = 5
        session.flush()
        with pytest.raises(AssertionError, match="before the session flushes"):
            lose_race(session, order, change=lambda s: s.labels.clear())


def count_rows(engine: Engine) -> int:
    """Count the orders that other connections see."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Order)) or 0


def test_commits_of_one_transaction_leave_nothing(tables: Engine) -> None:
    """Sessions, stores, services and retries all work in it."""
    with one_transaction(tables) as sessions:
        with sessions() as session:
            session.add(Order(workflow_key="o-2", state=OrderState()))
            session.commit()
            session.add(Order(workflow_key="o-3", state=OrderState()))
            session.rollback()
        store = CanonicalStore(sessions, Order)
        outcome = store.try_commit(
            workflow_key="o-2",
            expected_version=1,
            state=OrderState(paid=3),
            provenance=Provenance.now(),
        )
        assert isinstance(outcome, StateCommitted)
        lost = store.try_commit(
            workflow_key="o-2",
            expected_version=1,
            state=OrderState(paid=4),
            provenance=Provenance.now(),
        )
        assert isinstance(lost, StateConflict)
        service = ReducerService(
            sessions,
            Order,
            pay,
            dedup=ActionDedupLog,
            writers=[store_intents(WorkflowIntent)],
        )
        assert service.handle(action(1, 4, "o-2")).snapshot.state.paid == 7
        assert service.handle(action(1, 4, "o-2")).replayed
        assert len(service.handle_many([action(2, 1, "o-2")])) == 1
        lose_once = [True]

        def add(session: Session) -> int:
            order = session.get_one(Order, "o-2")
            if lose_once:
                lose_once.pop()
                lose_race(session, order, change=lambda s: s.labels.clear())
            order.state.paid += 1
            return order.state.paid

        assert run_transaction(sessions, add) == 9
        assert store.get_state("o-2").state.paid == 9
        delivered: list[str] = []
        dispatcher = IntentDispatcher(
            sessions, WorkflowIntent, lambda due: delivered.append(due.target)
        )
        assert caught_up(dispatcher) == 2
        assert delivered == ["kim", "kim"]
    assert count_rows(tables) == 1


async def test_async_commits_of_one_transaction_leave_nothing(
    async_engine: AsyncEngine, create_tables: Callable[..., None]
) -> None:
    """Over each driver, with the awaitable counterparts."""
    create_tables(CanonicalBase.metadata, Base.metadata)
    async with one_transaction(async_engine) as sessions:
        service = sa_wfstate.asyncio.ReducerService(
            sessions, Order, pay, initial=OrderState, on_intents=lambda *_: None
        )
        assert (await service.handle(action(1, 4))).version == 1
        store = sa_wfstate.asyncio.CanonicalStore(sessions, Order)
        assert (await store.get_state("o-1")).state.paid == 4
        async with sessions() as session:
            order = await session.get_one(Order, "o-1")
            await session.run_sync(
                lose_race, order, change=lambda s: s.labels.update(rival=1)
            )
            order.state.paid = 5
            with pytest.raises(StateConflict):
                await session.commit()
    async with async_engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(Order)) == 0


def test_workers_run_by_hand_and_time_passes(tables: Engine) -> None:
    """An intent that failed is due again without waiting; a claim expires."""
    service = ReducerService(
        tables,
        Order,
        pay,
        dedup=ActionDedupLog,
        writers=[store_intents(WorkflowIntent)],
    )
    service.handle(action(1, 4))
    tried: list[int] = []

    def handler(due: Any) -> None:
        tried.append(due.attempt)
        if due.attempt == 1:
            raise ConnectionError

    dispatcher = IntentDispatcher(
        tables, WorkflowIntent, handler, retry=RetryPolicy(base_delay=60, max_delay=60)
    )
    assert caught_up(dispatcher) == 1
    with Session(tables) as session:
        assert pass_time(session, WorkflowIntent, timedelta(minutes=2)) == 1
        assert pass_time(session, ActionDedupLog, timedelta(days=400)) == 1
        session.commit()
        with pytest.raises(TypeError, match="due_at, expires_at"):
            pass_time(session, WorkflowHistory, timedelta(1))
    assert caught_up(dispatcher) == 1
    assert tried == [1, 2]
    projection = Projection(
        Order, WorkflowProjection, lambda _: {"tag": "a", "namespace": "b"}
    )
    worker = ProjectionWorker(tables, projection, ProjectionWatermark)
    assert caught_up(worker) == 1
    assert caught_up(worker) == 0


async def test_async_worker_is_awaited(
    async_engine: AsyncEngine, create_tables: Callable[..., None]
) -> None:
    """``await caught_up(worker)``."""
    create_tables(CanonicalBase.metadata, Base.metadata)
    service = sa_wfstate.asyncio.ReducerService(
        async_engine,
        Order,
        pay,
        initial=OrderState,
        writers=[store_intents(WorkflowIntent)],
    )
    for number in (1, 2):
        await service.handle(action(number, 4))
    dispatcher = sa_wfstate.asyncio.IntentDispatcher(
        async_engine, WorkflowIntent, lambda _: None
    )
    assert await caught_up(dispatcher) == 2


PLUGIN = """
import pytest
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase
from sa_wfstate import CanonicalStore, WorkflowStateMixin

class Base(DeclarativeBase): ...

class OrderState(BaseModel):
    paid: int = 0

class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

@pytest.fixture(scope="session")
def wfstate_metadata():
    return Base.metadata

@pytest.mark.parametrize("run", [1, 2])
def test_each_test_finds_an_empty_table(wfstate_session, wfstate_sessions, run):
    wfstate_session.add(Order(workflow_key="o-1", state=OrderState()))
    wfstate_session.commit()
    assert CanonicalStore(wfstate_sessions, Order).get_state("o-1").version == 1
"""


def test_fixtures_for_pytest(pytester: pytest.Pytester) -> None:
    """They are there once conftest.py asks for them."""
    pytester.makeconftest('pytest_plugins = ["sa_wfstate.testing.pytest"]')
    pytester.makepyfile(PLUGIN)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)
