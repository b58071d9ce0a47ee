"""An error at any line, a cancellation at any await, a fork: queues go on.

A signal handler may raise wherever it interrupts the main thread. The tests raise at
every line of the modules through which an action passes, one after the other.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import random
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pytest

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    Intent,
    ReducerService,
    Reduction,
)
from sa_wfstate import _concurrency as waiting
from sa_wfstate._concurrency import Blocking
from sa_wfstate.reducer import action_batch, contention, key_queue, nesting
from sa_wfstate.reducer import attempt as attempts
from sa_wfstate.reducer import loop as reducer_loop
from sa_wfstate.reducer import service as reducer
from sa_wfstate.reducer.contention import KeyQueues
from sa_wfstate.store import groups, requests

from ..orders import Base, Order, OrderActions, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, ModuleType

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

LIMIT = 10.0
QUEUE = (contention, key_queue, requests, waiting)
SERVICE = (*QUEUE, nesting, reducer, reducer_loop, action_batch, attempts)


class Soft(BaseException):
    """What a signal handler raises: a soft time limit."""


@cache
def ends_of_with(module: ModuleType) -> dict[int, range]:
    """Return the lines of each with statement in *module*, by its first."""
    found = ast.walk(ast.parse(inspect.getsource(module)))
    return {
        node.lineno: range(node.lineno + 1, (node.end_lineno or 0) + 1)
        for node in found
        if isinstance(node, ast.With)
    }


class Interrupt:
    """Raises Soft at line number *number* that is run in one of *modules*.

    When a with block is left, its first line is traced once more. No signal is handled
    there: the interpreter does not look for one between the block and its __exit__().
    """

    def __init__(self, number: int, modules: tuple[ModuleType, ...]) -> None:
        self.left = number
        self.ends = {module.__file__: ends_of_with(module) for module in modules}
        self.last: dict[FrameType, int] = {}
        self.where = ""

    def __enter__(self) -> Self:
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, happened: str, _: object) -> Any:
        ends = self.ends.get(frame.f_code.co_filename)
        if ends is None or self.left < 0:
            return None
        if happened == "line":
            line, last = frame.f_lineno, self.last.get(frame, 0)
            self.last[frame] = line
            if last not in ends.get(line, ()):
                self.left -= 1
                if self.left < 0:
                    self.where = f"{frame.f_code.co_filename}:{line}"
                    raise Soft
        return self.trace


def each_line(modules: tuple[ModuleType, ...], call: Callable[[], object]) -> Any:
    """Interrupt *call* at its first line, at its second, until it is not any more.

    Yields where it was.
    """
    number = 0
    while True:
        with Interrupt(number, modules) as interrupt, suppress(Soft):
            call()
        if not interrupt.where:
            assert number > 20
            return
        yield interrupt.where
        number += 1


@pytest.fixture
def other() -> Callable[..., Any]:
    """Return a function that calls another one in a thread, and not for ever."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.append(function(*arguments)), daemon=True
        )
        thread.start()
        thread.join(LIMIT)
        assert not thread.is_alive(), "it waits for ever"
        return results[0]

    return call


def action(number: int, key: str = "o-1") -> Action[int]:
    """Make an action."""
    return Action(workflow_key=key, action_id=uuid4(), payload=number)


def note(state: OrderState, action: Action[int]) -> Reduction[OrderState]:
    """Note the payload, and ask for something."""
    state = state.model_copy(update={"notes": [action.payload]})
    return Reduction(state, [Intent(intent_type="tell", target="kim")])


def service(engine: Engine, **options: Any) -> ReducerService[OrderState]:
    """Make a service whose intents are taken."""
    return ReducerService(
        engine, Order, note, initial=OrderState, on_intents=lambda *_: None, **options
    )


def is_at_rest(orders: Any) -> bool:
    """Return whether the queues of *orders* are empty and unlocked."""
    return not orders._keys._busy and not orders._keys._lock.locked()


@pytest.mark.parametrize(
    ("many", "dedup"), [(False, None), (False, OrderActions), (True, OrderActions)]
)
def test_error_at_any_line_of_a_service(
    engine: Engine,
    create_tables: Callable[..., None],
    other: Callable[..., Any],
    many: bool,
    dedup: Any,
) -> None:
    """The next action of the key is handled, in the same thread and in another one."""
    create_tables(Base.metadata)
    orders = service(engine, dedup=dedup)

    def handle() -> None:
        if many:
            orders.handle_many([action(1), action(2, "o-2")])
        else:
            orders.handle(action(1))

    for where in each_line(SERVICE, handle):
        assert is_at_rest(orders), where
        version = orders.handle(action(2)).version
        assert other(orders.handle, action(3)).version == version + 1, where
        assert engine.pool.checkedout() == 0, where  # type: ignore[attr-defined]


def test_no_conditional_loop_in_the_frame_of_a_lock() -> None:
    """An error raised when it jumps back would leave the lock held, in Python 3.13.

    Raising at each line shows that only there, and this on every Python.
    """
    loops = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
    for module in (*QUEUE, groups):
        for block in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(block, ast.With):
                found = [each for each in ast.walk(block) if isinstance(each, loops)]
                conditions = [
                    inner
                    for loop in found
                    for inner in ast.walk(loop)
                    if isinstance(inner, (ast.If, ast.While))
                    or (isinstance(inner, ast.comprehension) and inner.ifs)
                ]
                assert not conditions, (module.__name__, block.lineno)


class Bench:
    """Queues with nothing behind: what was worked on, and how often."""

    def __init__(self, fold: int = 8) -> None:
        self.worked: list[int] = []
        self.abandoned: list[int] = []
        self.keys: KeyQueues[int, int, Any] = KeyQueues(
            Blocking(),
            self.work,
            lambda request: self.abandoned.append(request.item),
            most=lambda _: fold,
            cache_size=8,
        )

    def work(self, _: object, requests: list[Any]) -> None:
        for request in requests:
            request.settle(request.item)
            self.worked.append(request.item)

    def submit(self, number: int) -> int:
        request = self.keys.request(number, number)
        self.keys.submit("o-1", request)
        return request.result()

    def wait_for(self, queue: int, unless: Future[Any] | None = None) -> None:
        """Wait for so many requests, one less once *unless* is done."""
        while len(self.keys._busy["o-1"].requests) < queue:
            if unless is not None and unless.done():
                queue, unless = queue - 1, None
            time.sleep(0.0002)


@pytest.mark.parametrize("fold", [1, 8])
def test_error_at_any_line_of_one_who_processes_others(fold: int) -> None:
    """The requests behind it are processed, once, without its error."""
    number, where = 0, " "
    with ThreadPoolExecutor(4) as threads:
        while where:
            bench, interrupt = Bench(fold), Interrupt(number, QUEUE)

            def interrupted(
                bench: Bench = bench, interrupt: Interrupt = interrupt
            ) -> None:
                with interrupt:
                    bench.submit(1)

            def crowd(
                _: object,
                bench: Bench = bench,
                interrupted: Callable[[], None] = interrupted,
            ) -> list[Any]:
                first = threads.submit(interrupted)
                bench.wait_for(2, first)
                others = [threads.submit(bench.submit, each) for each in (2, 3, 4)]
                bench.wait_for(5, first)
                return [first, *others]

            first, *others = bench.keys.hold(["o-1"], crowd)
            results = [each.result(LIMIT) for each in others]
            assert first.exception(LIMIT) is None or interrupt.where
            where = interrupt.where
            assert results == [2, 3, 4], where
            assert sorted(set(bench.worked) - {1}) == [2, 3, 4], where
            assert len(bench.worked) == len(set(bench.worked)), where
            assert not bench.keys._busy, where
            assert not bench.keys._lock.locked(), where
            assert threads.submit(bench.submit, 5).result(LIMIT) == 5, where
            number += 1
    assert number > 20


def test_error_of_one_who_waits() -> None:
    """Its request is withdrawn; if it is processed nonetheless, it is abandoned."""
    number, where = 0, " "
    with ThreadPoolExecutor(2) as threads:
        while where:
            bench, interrupt = Bench(), Interrupt(number, QUEUE)

            def interrupted(
                bench: Bench = bench, interrupt: Interrupt = interrupt
            ) -> None:
                with interrupt:
                    bench.keys.submit("o-1", bench.keys.request(2, 2))

            def crowd(
                _: object,
                bench: Bench = bench,
                interrupted: Callable[[], None] = interrupted,
            ) -> list[Any]:
                first = threads.submit(bench.submit, 1)
                bench.wait_for(2)
                second = threads.submit(interrupted)
                bench.wait_for(3, second)
                return [first, second]

            first, second = bench.keys.hold(["o-1"], crowd)
            assert first.result(LIMIT) == 1
            assert second.exception(LIMIT) is None or interrupt.where
            where = interrupt.where
            assert not bench.keys._busy, where
            assert threads.submit(bench.submit, 5).result(LIMIT) == 5, where
            if 2 in bench.worked and where:
                assert bench.abandoned == [2], where
            number += 1
    assert number > 10


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
# What is raised in a destructor or a callback of the interpreter is dropped there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_at_any_time() -> None:
    """The same with real signals, between the lines too."""
    bench = Bench()
    stop = threading.Event()

    def soft(*_: object) -> None:
        raise Soft

    def compete() -> None:
        while not stop.is_set():
            bench.submit(2)

    draw, interrupted = random.Random(7), 0
    before = signal.signal(signal.SIGALRM, soft)
    thread = threading.Thread(target=compete, daemon=True)
    thread.start()
    try:
        for _ in range(3_000):
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 2e-4))
                bench.submit(1)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Soft:
                interrupted += 1
            bench.worked.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stop.set()
        thread.join(LIMIT)
    assert not thread.is_alive()
    assert interrupted > 100
    assert bench.submit(3) == 3
    assert not bench.keys._busy


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_of_a_fork_does_not_wait_for_its_parent(
    engine: Engine, create_tables: Callable[..., None]
) -> None:
    """Its queues are empty, though a thread of the parent was at work on the key."""
    create_tables(Base.metadata)
    go, reducing = threading.Event(), threading.Event()

    def slowly(state: OrderState, each: Action[int]) -> OrderState:
        if each.payload == 1:
            reducing.set()
            go.wait(LIMIT)
        state.notes.append(each.payload)
        return state

    orders = ReducerService(engine, Order, slowly, initial=OrderState)
    parent = threading.Thread(target=orders.handle, args=[action(1)])
    parent.start()
    assert reducing.wait(LIMIT)
    with warnings.catch_warnings(), orders._keys._lock:
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            engine.dispose(close=False)
            os._exit(orders.handle(action(2)).version)
        finally:
            os._exit(99)
    ended, deadline = (0, 0), time.monotonic() + LIMIT
    while ended[0] == 0 and time.monotonic() < deadline:
        ended = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    go.set()
    parent.join(LIMIT)
    assert ended[0] == child, "it waits for ever"
    assert os.waitstatus_to_exitcode(ended[1]) == 1
    assert orders.handle(action(3)).snapshot.state.notes == [2, 1, 3]


@pytest.mark.parametrize("fold", [1, 8])
@pytest.mark.parametrize("many", [False, True])
async def test_cancellation_at_any_await(
    async_engine: AsyncEngine,
    create_tables: Callable[..., None],
    fold: int,
    many: bool,
) -> None:
    """Of a caller that processes, waits or holds queues: the others get results."""
    create_tables(Base.metadata)

    async def slowly(state: OrderState, each: Action[int]) -> OrderState:
        await asyncio.sleep(0)
        return state.model_copy(update={"notes": [each.payload]})

    orders = sa_wfstate.asyncio.ReducerService(
        async_engine, Order, slowly, initial=OrderState, fold=fold
    )
    await orders.handle(action(0))
    for steps in range(40):
        for place in (0, 2):
            tasks: list[asyncio.Task[Any]] = []
            for number in range(3):
                if many and number == place:
                    batch = [action(number), action(number, "o-2")]
                    tasks.append(asyncio.create_task(orders.handle_many(batch)))
                else:
                    tasks.append(asyncio.create_task(orders.handle(action(number))))
            for _ in range(steps):
                await asyncio.sleep(0)
            tasks[place].cancel()
            async with asyncio.timeout(LIMIT):
                results = await asyncio.gather(*tasks, return_exceptions=True)
                del results[place]
                assert all(each.version for each in results), (steps, place)
                await orders.handle(action(9))
    await asyncio.gather(*orders._service._wait._tasks)
    assert is_at_rest(orders._service)
