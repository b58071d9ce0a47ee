"""Tasks of one event loop start their attempts together, each as its own caller."""

from __future__ import annotations

import asyncio
import gc
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import ref

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

import sa_wfstate.asyncio
from sa_wfstate import Action, StateCommitted
from sa_wfstate._concurrency import Awaiting
from sa_wfstate.errors import NestedHandle
from sa_wfstate.reducer.rounds import SPLIT, Rounds
from sa_wfstate.store.groups import FLIGHTS

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

caller: ContextVar[int] = ContextVar("caller")


@pytest.fixture
async def engine(
    database: URL, create_tables: Callable[..., None]
) -> AsyncIterator[AsyncEngine]:
    """Make an engine of asyncpg."""
    create_tables(Base.metadata)
    engine = create_async_engine(database.set(drivername="postgresql+asyncpg"))
    yield engine
    await engine.dispose()


def note(state: OrderState, action: Action[int]) -> OrderState:
    """Append the payload."""
    state.notes.append(action.payload)
    return state


def service(engine: AsyncEngine, reducer: Any, **options: Any) -> Any:
    """Make a service of *reducer*."""
    return sa_wfstate.asyncio.ReducerService(
        engine, Order, reducer, initial=OrderState, **options
    )


async def handle_all(orders: Any, numbers: range) -> list[Any]:
    """Handle an action for each number, of a key of its own, in tasks."""

    async def handle(number: int) -> Any:
        caller.set(number)
        key = f"o-{number}"
        return await orders.handle(
            Action(workflow_key=key, action_id=uuid4(), payload=number)
        )

    return await asyncio.gather(*map(handle, numbers), return_exceptions=True)


async def test_handled_action_is_freed_at_once(
    engine: AsyncEngine, request: pytest.FixtureRequest
) -> None:
    """Nothing of a handled action is left to the garbage collector."""
    orders = service(engine, note)
    request.addfinalizer(gc.enable)
    gc.disable()
    handled: Any = Action(workflow_key="o-1", action_id=uuid4(), payload=1)
    await orders.handle(handled)
    await asyncio.sleep(0)  # The task of its round ends.
    freed = ref(handled)
    del handled
    assert freed() is None


async def test_few_statements_for_many_tasks(engine: AsyncEngine) -> None:
    """A round reads its rows by one statement, and writes them by one."""
    orders = service(engine, note)
    statements: list[str] = []
    event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda *arguments: statements.append(arguments[2]),
    )
    results = await handle_all(orders, range(SPLIT - 1))
    assert {each.version for each in results} == {1}
    assert len(statements) <= 3  # With the limit of lock waits.


async def test_reducer_sees_the_context_of_its_caller(engine: AsyncEngine) -> None:
    """So a trace, or a logger, is that of the task that waits."""
    seen: list[tuple[int, int]] = []

    def reducer(state: OrderState, action: Action[int]) -> OrderState:
        seen.append((caller.get(), action.payload))
        return note(state, action)

    await handle_all(service(engine, reducer), range(9))
    assert sorted(seen) == [(n, n) for n in range(9)]


async def test_reducer_that_turns_out_to_be_awaited(engine: AsyncEngine) -> None:
    """A plain function returns a coroutine: they run at the same time all the same."""
    running: list[int] = []
    together = asyncio.Event()

    async def slow(state: OrderState, action: Action[int]) -> OrderState:
        running.append(action.payload)
        if len(running) == 5:
            together.set()
        await together.wait()
        return note(state, action)

    def reducer(state: OrderState, action: Action[int]) -> Any:
        return slow(state, action)

    orders = service(engine, reducer)
    async with asyncio.timeout(20):
        results = await handle_all(orders, range(5))
    assert [type(each) for each in results] == [StateCommitted] * 5
    assert orders._service._loop._attempts.waits


async def test_refusals_of_one_round(engine: AsyncEngine) -> None:
    """An error, and a nested action, are those of their own callers."""

    def reducer(state: OrderState, action: Action[int]) -> OrderState:
        if action.payload == 1:
            raise LookupError
        if action.payload == 2:
            again = Action(workflow_key="o-9", action_id=uuid4(), payload=9)
            orders._service.handle(again)
        return note(state, action)

    orders = service(engine, reducer)
    for version in (1, 2):  # From the row, and from the state that was kept.
        results = await handle_all(orders, range(4))
        assert isinstance(results[1], LookupError)
        assert isinstance(results[2], NestedHandle)
        assert "'o-2'" in str(results[2])
        assert [results[n].version for n in (0, 3)] == [version] * 2


async def test_stuck_rounds_hold_up_the_others_for_a_moment() -> None:
    """As many rounds as may be in progress are stuck; another one starts."""
    go, done = asyncio.Event(), asyncio.Queue[int]()

    class Queues:
        def take(self, *_: Any) -> bool:
            return True

        def finish(self, number: int, _: Any, process: Any) -> None:
            process()
            done.put_nowait(number)

    class Request:
        batch: tuple[Any, ...] = ()

    def start(given: Any) -> Any:
        if any(number < FLIGHTS for number, _ in given):
            await_only(go.wait())
        return [(lambda: None, True) for _ in given]

    rounds: Any = Rounds(
        Awaiting(),
        Queues(),  # type: ignore[arg-type]
        start,
        lambda _: True,
        most=100,
    )
    async with asyncio.timeout(10):
        for number in range(FLIGHTS + 1):
            rounds.add(number, Request())
            await asyncio.sleep(0.01)
        assert len(rounds._flights) == FLIGHTS
        assert await done.get() == FLIGHTS
        go.set()
        assert {await done.get() for _ in range(FLIGHTS)} == set(range(FLIGHTS))
    assert not rounds._flights
