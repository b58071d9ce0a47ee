"""The async workers of projections and the outbox, and gated reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import (
    Action,
    Intent,
    Provenance,
    Reduction,
    RetryPolicy,
    StateCommitted,
    WorkflowStateMixin,
)
from sa_wfstate.asyncio import (
    CanonicalStore,
    IntentDispatcher,
    ProjectionStore,
    ProjectionWorker,
    ReducerService,
)
from sa_wfstate.history import HistoryMixin, keep_history, list_versions
from sa_wfstate.outbox import DueIntent, IntentMixin, store_intents
from sa_wfstate.projection import Projection, ProjectionMixin, WatermarkMixin

from ..orders import OrderState

if TYPE_CHECKING:
    from collections.abc import Callable


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"


class OrderProjection(ProjectionMixin, Base):
    __tablename__ = "order_projection"


class Watermark(WatermarkMixin, Base):
    __tablename__ = "watermarks"


class OrderIntent(IntentMixin, Base):
    __tablename__ = "order_intents"


keep_history(Order, OrderHistory)
orders = Projection(
    Order,
    OrderProjection,
    lambda order: {"tag": order.state.status, "namespace": "shop"},
)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


@pytest.mark.parametrize("wrap", [lambda engine: engine, async_sessionmaker])
async def test_worker_serves_gated_reads(async_engine: AsyncEngine, wrap: Any) -> None:
    """A worker in the same event loop reaches the version while a reader awaits it."""
    stop = asyncio.Event()
    worker = ProjectionWorker(wrap(async_engine), orders, Watermark, poll=0.01)
    reads = ProjectionStore(wrap(async_engine), orders)
    running = asyncio.create_task(worker.run(stop))
    store = CanonicalStore(wrap(async_engine), Order)
    for version in (1, 2, 3):
        outcome = await store.try_commit(
            workflow_key="o-1",
            expected_version=version - 1,
            state=OrderState(status="paid"),
            provenance=Provenance.now(),
        )
        assert isinstance(outcome, StateCommitted)
        read = await reads.get("o-1", version, max_wait=10.0, fallback="raise")
        assert read.source == "projection"
        assert read.version == version
    stop.set()
    await running
    assert await reads.get_version("o-1") == 3
    assert (await worker.follow(), await worker.sweep()) == (0, 0)
    async with async_sessionmaker(async_engine)() as session:
        kept = await session.run_sync(list_versions, Order, "o-1")
        assert [version.version for version in kept] == [3, 2, 1]


async def test_handler_may_be_async(async_engine: AsyncEngine) -> None:
    """A dispatcher awaits its handler, and tries again what it raises."""

    def reducer(_: OrderState, __: Any) -> Reduction[OrderState]:
        intent = Intent(intent_type="mail", target="kim")
        return Reduction(OrderState(status="paid"), intents=[intent])

    service = ReducerService(
        async_engine,
        Order,
        reducer,
        initial=OrderState,
        writers=[store_intents(OrderIntent)],
    )
    action: Action[None] = Action(workflow_key="o-1", action_id=uuid4(), payload=None)
    await service.handle(action)
    given: list[int] = []
    stop = asyncio.Event()

    async def handler(intent: DueIntent) -> None:
        await asyncio.sleep(0)
        given.append(intent.attempt)
        if intent.attempt == 1:
            raise ConnectionError
        stop.set()

    at_once = RetryPolicy(max_attempts=3, base_delay=0.0, max_delay=0.0)
    dispatcher = IntentDispatcher(
        async_engine, OrderIntent, handler, retry=at_once, poll=0.01
    )
    await dispatcher.run(stop)
    assert given == [1, 2]
    assert await dispatcher.dispatch() == 0
