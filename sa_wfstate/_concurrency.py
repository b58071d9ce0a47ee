"""How a caller waits: a thread blocks, a task awaits. All other code is shared.

The services of ``sa_wfstate.asyncio`` run the code of the synchronous ones in
greenlets, as SQLAlchemy does, and wait through Awaiting.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from threading import Lock
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy.util import await_only, greenlet_spawn

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context


ResultT = TypeVar("ResultT")

_ASIDE: Final = 5e-5  # Seconds.


class Turn(Protocol):
    """Lets one caller wait until its request is processed, or its turn has come."""

    def grant(self, process: Callable[[], None]) -> None:
        """Let the caller, or a task for it, call *process*; only once if repeated."""

    def finish(self) -> None:
        """End the wait."""

    def wait(self, seconds: float | None = None) -> None:
        """Wait for grant() or finish(); after grant(), call *process*.

        With *seconds*, wait no longer than that.
        """

    def forfeits(self) -> bool:
        """Return whether *process* ends with a caller that stops waiting."""

    def run(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Call *function* in the context of the caller that waits."""


class Stop(Protocol):
    """Tells a worker to stop: an Event of threading or of asyncio, for example."""

    def is_set(self) -> bool:
        """Return whether to stop."""


class Waiting(Protocol):
    """How callers of one kind wait."""

    def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call *function*; Awaiting awaits its result if it is awaitable."""

    def detach(self, function: Callable[[], None]) -> None:
        """Call *function* although the caller is being interrupted."""

    def turn(self) -> Turn:
        """Make a Turn for the caller."""

    def shares(self) -> bool:
        """Return whether the caller may process what others have asked for."""

    def step_aside(self) -> None:
        """Let those run that are ready to, if that costs little."""


class Blocking:
    """A thread blocks."""

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def detach(self, function: Callable[[], None]) -> None:
        function()

    def turn(self) -> Turn:
        return _BlockingTurn()

    def shares(self) -> bool:
        # In the main thread a signal handler may raise at any line.
        return threading.current_thread() is not threading.main_thread()

    def step_aside(self) -> None:
        # After a sleep of 0 it would have the interpreter again before they are awake.
        time.sleep(_ASIDE)


class _BlockingTurn:
    """Waits for a lock: an Event that a signal interrupts may stay locked for ever."""

    __slots__ = ("_gate", "_process")

    def __init__(self) -> None:
        self._gate = Lock()
        self._gate.acquire()
        self._process: Callable[[], None] | None = None

    def grant(self, process: Callable[[], None]) -> None:
        self._process = process
        self.finish()

    def finish(self) -> None:
        with suppress(RuntimeError):  # The gate is open already.
            self._gate.release()

    def wait(self, seconds: float | None = None) -> None:
        self._gate.acquire(timeout=-1 if seconds is None else seconds)
        if self._process is not None:
            self._process()
            self._process = None  # It has the request, which has this turn.

    def forfeits(self) -> bool:
        return self._process is not None

    def run(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return function(*arguments)


class Awaiting:
    """A task awaits."""

    def __init__(self) -> None:
        # The event loop itself holds tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def sleep(self, seconds: float) -> None:
        await_only(asyncio.sleep(seconds))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        return await_only(result) if isawaitable(result) else result

    def detach(self, function: Callable[[], None]) -> None:
        self.turn().grant(function)

    def turn(self) -> Turn:
        return _AwaitingTurn(self._tasks)

    def shares(self) -> bool:
        return True

    def step_aside(self) -> None:
        await_only(asyncio.sleep(0))

    def spawn(self, function: Callable[[], None]) -> asyncio.Task[None]:
        """Call *function* in a task, in a copy of this context."""
        return _spawn(function, copy_context(), self._tasks)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call *function* after *seconds*."""
        asyncio.get_running_loop().call_later(seconds, function)


def _spawn(
    function: Callable[[], None], context: Context, tasks: set[asyncio.Task[None]]
) -> asyncio.Task[None]:
    loop = asyncio.get_running_loop()
    task = loop.create_task(greenlet_spawn(function), context=context)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


class _AwaitingTurn:
    """Runs *process* in a task of its own: cancelling the caller spares the others."""

    __slots__ = ("_context", "_future", "_granted", "_loop", "_tasks")

    def __init__(self, tasks: set[asyncio.Task[None]]) -> None:
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()
        self._context = copy_context()
        self._granted = False

    def grant(self, process: Callable[[], None]) -> None:
        if self._granted:
            return
        self._granted = True
        _spawn(process, self._context, self._tasks)

    def finish(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self, seconds: float | None = None) -> None:
        if seconds is None:
            await_only(self._future)
            return
        alarm = self._loop.call_later(seconds, self.finish)
        try:
            await_only(self._future)
        finally:
            alarm.cancel()

    async def ended(self) -> None:
        """Wait like wait(), of a task that is in no greenlet."""
        await self._future

    def forfeits(self) -> bool:
        return False

    def run(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return self._context.run(function, *arguments)


class _Resettable(Protocol):
    def reset(self) -> None: ...


_resettable: WeakSet[Any] = WeakSet()


def reset_after_fork(given: _Resettable) -> None:
    """Call ``reset()`` of *given* in each process that is forked from this one."""
    _resettable.add(given)


def _reset_all() -> None:
    for each in list(_resettable):
        each.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)


_SIGNALS: Final = tuple(map(int, signal.valid_signals()))


def raised_by_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler of this thread raised *error*, or its context.

    Such an error, a soft time limit for example, interrupts the thread: it is no answer
    of the code in which it happens to be raised.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = map(signal.getsignal, _SIGNALS)
    codes = {_code_of(each) for each in handlers if callable(each)} - {None}
    raised: BaseException | None = error
    while raised is not None:
        if any(frame.f_code in codes for frame, _ in walk_tb(raised.__traceback__)):
            return True
        raised = raised.__context__
    return False


def _code_of(handler: Any) -> object:
    while isinstance(handler, partial):
        handler = handler.func
    call = handler if hasattr(handler, "__code__") else type(handler).__call__
    return getattr(call, "__code__", None)


def _comes_from(given: object, *packages: str) -> bool:
    return any(base.__module__.startswith(packages) for base in type(given).__mro__)


def refuse_async(given: Any) -> None:
    """Raise TypeError if *given*, passed to a sync function, needs awaiting."""
    if _comes_from(given, "sqlalchemy.ext.asyncio"):
        raise TypeError(
            f"got an asynchronous {type(given).__name__}; await the function of this "
            "name in sa_wfstate.asyncio, or call this one by run_sync()"
        )


def refuse_sync(given: Any) -> None:
    """Raise TypeError if *given*, passed to an async function, is synchronous."""
    asynchronous = _comes_from(given, "sqlalchemy.ext.asyncio")
    if not asynchronous and _comes_from(given, "sqlalchemy.orm", "sqlalchemy.engine"):
        raise TypeError(
            f"got a synchronous {type(given).__name__}; give it an asynchronous one, "
            "or call the function of this name in sa_wfstate"
        )


def require_at_least(least: int, **arguments: float) -> None:
    """Raise ValueError unless each of *arguments* is a number from *least* on.

    An empty batch would be repeated for ever.
    """
    for name, value in arguments.items():
        if not least <= value < float("inf"):
            raise ValueError(f"{name} must be {least} or more, got {value}")
