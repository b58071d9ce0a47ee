"""A reducer that calls the service again is refused at once; it would wait for itself.

Each test has a time limit, as what it is about is a wait without end.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    CanonicalStore,
    Intent,
    ReducerService,
    Reduction,
    WorkflowStateError,
)
from sa_wfstate.errors import NestedHandle
from sa_wfstate.hooks import Hooks

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

LIMIT = 5.0


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


@pytest.fixture
def in_time() -> Callable[..., Any]:
    """Return a function that calls another one, and does not wait for ever."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function(*arguments))
            except Exception as error:  # noqa: BLE001 - passed on
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future.result(LIMIT)

    return call


def action(number: int, key: str = "o-1") -> Action[int]:
    """Make an action."""
    return Action(workflow_key=key, action_id=uuid4(), payload=number)


def note(state: OrderState, action: Action[int]) -> OrderState:
    """Append the payload."""
    state.notes.append(action.payload)
    return state


@pytest.mark.parametrize("method", ["handle", "handle_many"])
@pytest.mark.parametrize("inner", ["handle", "handle_many"])
@pytest.mark.parametrize("key", ["o-1", "o-2"])
@pytest.mark.parametrize("same", [True, False])
def test_reducer_is_refused(
    engine: Engine,
    in_time: Callable[..., Any],
    method: str,
    inner: str,
    key: str,
    same: bool,
) -> None:
    """Its own key, another one, another service: an error, and a released queue."""
    services: list[ReducerService[OrderState]] = []

    def reducer(state: OrderState, each: Action[int]) -> OrderState:
        if each.payload == 1:
            again = action(2, key)
            batch = again if inner == "handle" else [again]
            getattr(services[0 if same else 1], inner)(batch)
        return note(state, each)

    services += [
        ReducerService(engine, Order, reducer, initial=OrderState) for _ in range(2)
    ]
    outer = getattr(services[0], method)
    if method == "handle":
        with pytest.raises(NestedHandle) as caught:
            in_time(outer, action(1))
        error = caught.value
    else:
        (error,) = in_time(outer, [action(1)])
    message = str(error)
    assert f"Order {key!r}" in message
    assert "Order 'o-1'" in message
    assert "Intent" in message
    assert isinstance(error, WorkflowStateError)
    for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(copied) == message
    for each in services:
        assert in_time(each.handle, action(3)).snapshot.state.notes[-1] == 3
    assert CanonicalStore(engine, Order).get_state("o-1").state.notes == [3, 3]


def test_two_reducers_that_want_each_other_s_key(engine: Engine) -> None:
    """Two queues whose callers would wait for one another do not."""
    both = threading.Barrier(2)

    def reducer(state: OrderState, each: Action[int]) -> OrderState:
        both.wait(LIMIT)
        orders.handle(action(0, "o-2" if each.workflow_key == "o-1" else "o-1"))
        return state

    orders = ReducerService(engine, Order, reducer, initial=OrderState)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(orders.handle, action(1, f"o-{n}")) for n in (1, 2)]
        assert all(isinstance(f.exception(LIMIT), NestedHandle) for f in futures)


def test_writer_and_initial_are_refused(
    engine: Engine, in_time: Callable[..., Any]
) -> None:
    """Whatever else runs within an attempt is in the same place."""

    def writer(*_: object) -> None:
        orders.handle(action(2))

    def initial() -> OrderState:
        orders.handle(action(2))
        return OrderState()

    for options in ({"writers": [writer]}, {"initial": initial}):
        orders = ReducerService(
            engine, Order, note, **{"initial": OrderState} | options
        )
        with pytest.raises(NestedHandle):
            in_time(orders.handle, action(1))


def test_hook_of_a_conflict_is_refused(
    engine: Engine, in_time: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A hook within the loop gets the error, which is logged; the action goes on."""

    class Meddling(Hooks):
        def conflicted(self, *_: object) -> None:
            mine.handle(action(9))

    mine = ReducerService(engine, Order, note, initial=OrderState, hooks=Meddling())
    other = ReducerService(engine, Order, note)
    mine.handle(action(1))
    other.handle(action(2))
    assert in_time(mine.handle, action(3)).snapshot.state.notes == [1, 2, 3]
    assert "NestedHandle" in caplog.text


def test_outside_an_attempt_it_is_allowed(
    engine: Engine, in_time: Callable[..., Any]
) -> None:
    """Intent callbacks and the hooks of a result run when the queue is released."""

    class Following(Hooks):
        def committed(self, _: object, each: Action[int], *__: object) -> None:
            if each.payload == 1:
                orders.handle(action(2))

    def reducer(state: OrderState, each: Action[int]) -> Reduction[OrderState]:
        intents = [Intent(intent_type="more", target="o-1")]
        return Reduction(note(state, each), intents if each.payload == 1 else [])

    orders = ReducerService(
        engine,
        Order,
        reducer,
        initial=OrderState,
        hooks=Following(),
        on_intents=lambda *_: orders.handle(action(3)),
    )
    in_time(orders.handle, action(1))
    assert CanonicalStore(engine, Order).get_state("o-1").state.notes == [1, 2, 3]


@pytest.mark.parametrize("spawn", [False, True])
@pytest.mark.parametrize("inner", ["handle", "handle_many"])
async def test_coroutine_is_refused(
    async_engine: AsyncEngine, inner: str, spawn: bool
) -> None:
    """In the reducer's own task, and in one that it waits for."""

    async def reducer(state: OrderState, each: Action[int]) -> OrderState:
        if each.payload == 1:
            again = action(2)
            call = getattr(orders, inner)(again if inner == "handle" else [again])
            await (asyncio.create_task(call) if spawn else call)
        return note(state, each)

    orders = sa_wfstate.asyncio.ReducerService(
        async_engine, Order, reducer, initial=OrderState
    )
    async with asyncio.timeout(LIMIT):
        with pytest.raises(NestedHandle):
            await orders.handle(action(1))
        (error,) = await orders.handle_many([action(1)])
        assert isinstance(error, NestedHandle)
        assert (await orders.handle(action(3))).version == 1


async def test_task_that_outlives_the_reducer_may(async_engine: AsyncEngine) -> None:
    """What a reducer started is refused only as long as its attempt lasts."""
    late: list[asyncio.Task[Any]] = []
    go = asyncio.Event()

    async def handle_later() -> Any:
        await go.wait()
        return await orders.handle(action(2))

    async def reducer(state: OrderState, each: Action[int]) -> OrderState:
        if each.payload == 1:
            late.append(asyncio.create_task(handle_later()))
        return note(state, each)

    orders = sa_wfstate.asyncio.ReducerService(
        async_engine, Order, reducer, initial=OrderState
    )
    async with asyncio.timeout(LIMIT):
        await orders.handle(action(1))
        go.set()
        assert (await late[0]).snapshot.state.notes == [1, 2]


async def test_intents_of_a_cancelled_caller(async_engine: AsyncEngine) -> None:
    """They are delivered without the queue too: their handler may use the same key."""
    handed: asyncio.Queue[int] = asyncio.Queue()
    reducing, go = asyncio.Event(), asyncio.Event()

    async def reducer(state: OrderState, each: Action[int]) -> Reduction[OrderState]:
        if each.payload == 1:
            reducing.set()
            await go.wait()
        intents = [Intent(intent_type="more", target="o-1")] * (each.payload == 1)
        return Reduction(note(state, each), intents)

    async def on_intents(*_: object) -> None:
        handed.put_nowait((await orders.handle(action(2))).version)

    orders = sa_wfstate.asyncio.ReducerService(
        async_engine, Order, reducer, initial=OrderState, on_intents=on_intents
    )
    async with asyncio.timeout(LIMIT):
        task = asyncio.create_task(orders.handle(action(1)))
        await reducing.wait()
        task.cancel()
        go.set()
        assert await handed.get() == 2


async def test_intents_of_a_caller_cancelled_too_late(
    async_engine: AsyncEngine,
) -> None:
    """Cancelled when its result is there already, it still has its intents handed."""
    handed: asyncio.Queue[int] = asyncio.Queue()

    def reducer(state: OrderState, each: Action[int]) -> Reduction[OrderState]:
        return Reduction(note(state, each), [Intent(intent_type="m", target="t")])

    def on_intents(outcome: Any, _: object) -> None:
        handed.put_nowait(outcome.version)

    orders = sa_wfstate.asyncio.ReducerService(
        async_engine, Order, reducer, initial=OrderState, on_intents=on_intents
    )
    keys: Any = orders._service._keys
    process = keys.finish

    def process_then_cancel(*arguments: Any) -> None:
        process(*arguments)
        task.cancel()

    keys.finish = process_then_cancel
    task = asyncio.create_task(orders.handle(action(1)))
    async with asyncio.timeout(LIMIT):
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await handed.get() == 1
