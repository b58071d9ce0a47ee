"""Rounds: what arrives at an event loop while others are processed starts together.

A task with a greenlet for each action takes longer than the work of an action in a
large group. So actions of different keys make their first attempt in one task: they are
read by one statement, reduced one after the other, each in the context of its caller,
and join the same :mod:`group <sa_wfstate.store.groups>` of commits. What an action
does after that, a retry for example, is done in a task of its own.

Nothing waits for company: an idle service starts a round at once. While
:data:`~sa_wfstate.store.groups.FLIGHTS` rounds are in progress, actions wait, for
:data:`~sa_wfstate.store.groups.PATIENCE` seconds at most.

There are no rounds in threads, and none for a reducer that awaits something: those run
at the same time.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from .._concurrency import reset_after_fork
from ..store.groups import FLIGHTS, PATIENCE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from .._concurrency import Awaiting
    from ..store.requests import Request
    from .key_queue import KeyQueue

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
CachedT = TypeVar("CachedT")

SPLIT = 64
"""From how many on, what waits is two rounds: one is reduced while one is written."""


class Queues(Protocol[ItemT, ResultT, CachedT]):
    """The queues of all keys; see KeyQueues."""

    def take(
        self, queue: KeyQueue[ItemT, ResultT, CachedT], request: Request[ItemT, ResultT]
    ) -> bool: ...

    def finish(
        self,
        queue: KeyQueue[ItemT, ResultT, CachedT],
        request: Request[ItemT, ResultT],
        process: Callable[[], None] | None = None,
    ) -> None: ...

    def interrupt(
        self,
        queue: KeyQueue[ItemT, ResultT, CachedT],
        request: Request[ItemT, ResultT],
        error: BaseException,
    ) -> None: ...


class Rounds(Generic[ItemT, ResultT, CachedT]):
    """Start what the first requests of *queues* want, at most *most* in a round.

    *start* is called with queues and their batches; it returns for each how to go on,
    and whether that does not wait. *takes* returns whether it may be called for a
    queue.
    """

    def __init__(
        self,
        waiting: Awaiting,
        queues: Queues[ItemT, ResultT, CachedT],
        start: Callable[
            [
                Sequence[
                    tuple[
                        KeyQueue[ItemT, ResultT, CachedT],
                        list[Request[ItemT, ResultT]],
                    ]
                ]
            ],
            list[tuple[Callable[[], None], bool]],
        ],
        takes: Callable[[KeyQueue[ItemT, ResultT, CachedT]], bool],
        *,
        most: int,
    ) -> None:
        self._waiting = waiting
        self._queues = queues
        self._start = start
        self._most = most
        self.takes = takes
        self.reset()
        reset_after_fork(self)

    def reset(self) -> None:
        """Start with nothing: after a fork the tasks of the parent are gone."""
        self._ready: deque[
            tuple[KeyQueue[ItemT, ResultT, CachedT], Request[ItemT, ResultT]]
        ] = deque()
        self._flights: dict[object, float] = {}
        self._next: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many keys wait for the next round."""
        return len(self._ready)

    def add(
        self, queue: KeyQueue[ItemT, ResultT, CachedT], request: Request[ItemT, ResultT]
    ) -> None:
        """Start *request*, the first one of *queue*, in the next round."""
        self._ready.append((queue, request))
        self._depart()

    def _depart(self) -> None:
        """Let a round begin as soon as one may: as a task, so after what is ready."""
        if not self._ready or self._departs():
            return
        if self._room():
            self._next = self._waiting.spawn(self._fly)
        elif len(self._ready) == 1:
            self._waiting.later(PATIENCE, self._depart)

    def _departs(self) -> bool:
        task = self._next
        # A task of a loop that was closed does not run any more.
        return task is not None and not task.done() and not task.get_loop().is_closed()

    def _room(self) -> int:
        late = monotonic() - PATIENCE
        return FLIGHTS - sum(started > late for started in self._flights.values())

    def _fly(self) -> None:
        self._next = None
        size = len(self._ready)
        if size >= SPLIT and self._room() > 1:
            size = -(-size // 2)
        size = min(size, self._most)
        flight = object()
        self._flights[flight] = monotonic()
        try:
            given = [self._ready.popleft() for _ in range(size)]
            self._depart()
            taken = [each for each in given if self._queues.take(*each)]
            if taken:
                self._process(taken)
        finally:
            self._flights.pop(flight, None)
            self._depart()

    def _process(
        self,
        taken: Sequence[
            tuple[KeyQueue[ItemT, ResultT, CachedT], Request[ItemT, ResultT]]
        ],
    ) -> None:
        try:
            started = self._start([(queue, each.batch) for queue, each in taken])
        except BaseException as error:
            for queue, request in taken:
                self._queues.interrupt(queue, request, error)
            raise
        for (queue, request), (go_on, at_once) in zip(taken, started, strict=True):
            finish = partial(self._queues.finish, queue, request, go_on)
            if at_once and not any(each.abandoned for each in request.batch):
                finish()
            else:
                request.turn.grant(finish)
