"""KeyQueues: the callers of one process that want the same key take turns.

Each key in use has a :class:`~sa_wfstate.reducer.key_queue.KeyQueue`. The caller of its
first request processes that one and, if folding is on, the requests behind it; then the
next caller has its turn. So the tasks of a process do not conflict with each other, a
request waits only for those before it, and processing starts from the state that was
committed last. A caller with work for many keys holds their queues meanwhile.

A signal handler may raise at any line of this module. Therefore a queue is busy if and
only if it has requests, each step that removes a request may be repeated, and a caller
that is interrupted repeats them all. And a loop with a condition is never in the frame
of a ``with self._lock``, but in a function: an error raised when such a loop jumps back
passes the end of the block by, in Python 3.13 (python/cpython#130279).

Idle queues are an LRU cache.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._concurrency import reset_after_fork
from ..store.requests import Request
from .key_queue import KeyQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from .._concurrency import Waiting
    from .rounds import Rounds


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
CachedT = TypeVar("CachedT")
DoneT = TypeVar("DoneT")


class KeyQueues(Generic[ItemT, ResultT, CachedT]):
    """The queues of all keys.

    *process* is called with a queue and some of its requests, and settles each of them.
    *abandoned* is called with each processed request whose caller has left. *most*
    returns how many requests of a queue are processed at once, at most. *cache_size* is
    the number of idle queues that are kept.
    """

    def __init__(
        self,
        waiting: Waiting,
        process: Callable[
            [KeyQueue[ItemT, ResultT, CachedT], list[Request[ItemT, ResultT]]], None
        ],
        abandoned: Callable[[Request[ItemT, ResultT]], None],
        *,
        most: Callable[[KeyQueue[ItemT, ResultT, CachedT]], int],
        cache_size: int,
    ) -> None:
        self._waiting = waiting
        self._process = process
        self._abandoned = abandoned
        self._most = most
        self._cache_size = cache_size
        self._rounds: Rounds[ItemT, ResultT, CachedT] | None = None
        self._busy: dict[str, KeyQueue[ItemT, ResultT, CachedT]]
        self._idle: OrderedDict[str, KeyQueue[ItemT, ResultT, CachedT]]
        self.reset()
        reset_after_fork(self)

    def start_in(self, rounds: Rounds[ItemT, ResultT, CachedT]) -> None:
        """Let *rounds* start what they take."""
        self._rounds = rounds

    def request(self, item: ItemT, identity: Hashable) -> Request[ItemT, ResultT]:
        """Make a request for the caller."""
        return Request(item, identity, self._waiting.turn())

    @property
    def waiting(self) -> int:
        """How many requests are in the queues, those in progress included."""
        with self._lock:
            return sum(len(queue.requests) for queue in self._busy.values())

    def submit(self, key: str, request: Request[ItemT, ResultT]) -> None:
        """Queue *request* for *key*, and wait until it is settled or holds the queue.

        A caller that is interrupted withdraws its request. If another thread or task is
        processing it by then, that is finished.
        """
        try:
            self._enter(key, request)
            request.turn.wait()
        except BaseException as error:
            self._withdraw(key, request, error)
            raise

    async def submit_task(self, key: str, request: Request[ItemT, ResultT]) -> None:
        """Do what submit() does, for a task that is in no greenlet."""
        turn: Any = request.turn
        try:
            self._enter(key, request)
            await turn.ended()
        except BaseException as error:
            self._withdraw(key, request, error)
            raise

    def hold(
        self,
        keys: Sequence[str],
        work: Callable[[list[KeyQueue[ItemT, ResultT, CachedT]]], DoneT],
    ) -> DoneT:
        """Call *work* with the idle queues of *keys*, and hold them meanwhile.

        If none is idle, wait for the first one. As no caller waits for a queue while it
        holds another, they cannot deadlock.
        """
        nothing: Any = None
        turn = self._waiting.turn()
        request = Request[ItemT, ResultT](nothing, None, turn, wants_queue=True)
        try:
            try:
                self._acquire_free(keys, request)
                if not request.started:
                    self.submit(keys[0], request)
                    request.result()  # Raises if the request was withdrawn.
                    self._acquire_free(keys, request)
                return work(self._acquired(keys, request))
            except BaseException:
                for queue in self._acquired(keys, request):
                    queue.forget()
                raise
            finally:
                self._release_acquired(keys, request)
        except BaseException:
            self._release_acquired(keys, request)
            raise

    def reset(self) -> None:
        """Start with empty queues: after a fork the threads of the parent are gone."""
        self._lock = Lock()
        self._busy = {}
        self._idle = OrderedDict()

    def _enter(self, key: str, request: Request[ItemT, ResultT]) -> None:
        with self._lock:
            queue = self._busy.get(key)
            if queue is None:
                queue = self._open(key, request)
            else:
                queue.requests.append(request)
            first = queue.requests[0] is request
        if first:
            self._wake(queue, request)

    def _acquire_free(
        self, keys: Iterable[str], request: Request[ItemT, ResultT]
    ) -> None:
        with self._lock:
            self._open_free(keys, request)

    def _acquired(
        self, keys: Iterable[str], request: Request[ItemT, ResultT]
    ) -> list[KeyQueue[ItemT, ResultT, CachedT]]:
        with self._lock:
            return self._held_by(request, keys)

    def _release_acquired(
        self, keys: Iterable[str], request: Request[ItemT, ResultT]
    ) -> None:
        # All busy ones: an interrupted release may not have woken the next request.
        with self._lock:
            queues = self._busy_of(keys)
        for queue in queues:
            self._release(queue, [request])

    def _open_free(self, keys: Iterable[str], request: Request[ItemT, ResultT]) -> None:
        for key in keys:
            if key not in self._busy:
                self._open(key, request)
                request.started = True

    def _busy_of(self, keys: Iterable[str]) -> list[KeyQueue[ItemT, ResultT, CachedT]]:
        return [self._busy[key] for key in keys if key in self._busy]

    def _held_by(
        self, request: Request[ItemT, ResultT], keys: Iterable[str]
    ) -> list[KeyQueue[ItemT, ResultT, CachedT]]:
        return [each for each in self._busy_of(keys) if request in each.requests]

    def _forget_oldest(self) -> None:
        while len(self._idle) > self._cache_size:
            self._idle.popitem(last=False)

    def _open(
        self, key: str, request: Request[ItemT, ResultT]
    ) -> KeyQueue[ItemT, ResultT, CachedT]:
        queue = self._idle.pop(key, None) or KeyQueue(key)
        queue.requests.append(request)  # First: a busy queue has requests.
        self._busy[key] = queue
        return queue

    def _wake(
        self, queue: KeyQueue[ItemT, ResultT, CachedT], request: Request[ItemT, ResultT]
    ) -> None:
        if request.wants_queue:
            request.started = True
            request.turn.finish()
        elif self._rounds is not None and self._rounds.takes(queue):
            self._rounds.add(queue, request)
        else:
            request.turn.grant(partial(self.finish, queue, request))

    def take(
        self, queue: KeyQueue[ItemT, ResultT, CachedT], request: Request[ItemT, ResultT]
    ) -> bool:
        """Make the batch of *request*; return whether it is the one to be processed."""
        with self._lock:
            if request.started or request not in islice(queue.requests, 1):
                return False  # It was withdrawn meanwhile.
            request.batch = queue.next_batch(self._most(queue))
            for each in request.batch:
                each.started = True
        return True

    def finish(
        self,
        queue: KeyQueue[ItemT, ResultT, CachedT],
        request: Request[ItemT, ResultT],
        process: Callable[[], None] | None = None,
    ) -> None:
        """Call *process* for the batch of *request*, then let the next have its turn.

        Without *process*, take it first.
        """
        try:
            if process is not None:
                process()
            elif self.take(queue, request):
                self._process(queue, request.batch)
            else:
                return
            abandoned = self._release(queue, request.batch)
            request.batch = []  # It has the request: a cycle, for the GC to find.
        except BaseException as error:
            self.interrupt(queue, request, error)
            raise
        for each in abandoned:
            self._abandoned(each)

    def interrupt(
        self,
        queue: KeyQueue[ItemT, ResultT, CachedT],
        request: Request[ItemT, ResultT],
        error: BaseException,
    ) -> None:
        """End the batch of *request* by *error*."""
        if isinstance(error, asyncio.CancelledError):
            # The event loop is being closed: no task will process the others.
            request.batch = list(queue.requests)
            for each in request.batch:
                each.fail(error)
        self._abort(queue, request, error)

    def _withdraw(
        self, key: str, request: Request[ItemT, ResultT], error: BaseException
    ) -> None:
        with self._lock:
            queue = self._busy.get(key)
            alone = (
                not request.started or request.wants_queue or request.turn.forfeits()
            )
            request.abandoned = not alone and not request.finished
        if alone and queue is not None:
            self._abort(queue, request, error)
        if request.finished and request.succeeded:
            self._waiting.detach(partial(self._abandoned, request))

    def _abort(
        self,
        queue: KeyQueue[ItemT, ResultT, CachedT],
        request: Request[ItemT, ResultT],
        error: BaseException,
    ) -> None:
        """Remove *request* and what is settled of its batch; the rest is processed."""
        queue.forget()
        request.fail(error)
        with self._lock:
            if request in queue.requests:
                request.batch = _over(request.batch)
        self._release(queue, request.batch or [request])

    def _release(
        self,
        queue: KeyQueue[ItemT, ResultT, CachedT],
        requests: Sequence[Request[ItemT, ResultT]],
    ) -> list[Request[ItemT, ResultT]]:
        """Remove *requests* from the queue; return those whose caller has left.

        Then the next request has its turn, or the queue becomes idle. May be repeated.
        """
        following = None
        with self._lock:
            abandoned = queue.finish(requests)
            if queue.requests:
                following = queue.requests[0]
            elif self._busy.get(queue.key) is queue:
                del self._busy[queue.key]
                self._idle[queue.key] = queue
                self._forget_oldest()
        if following is not None:
            self._wake(queue, following)
        for request in requests:
            request.turn.finish()
        return abandoned


def _over(batch: Iterable[Request[ItemT, ResultT]]) -> list[Request[ItemT, ResultT]]:
    """Return what need not be processed again of *batch*, and have the rest wait."""
    for each in batch:
        each.started = each.settled or each.abandoned
    return [each for each in batch if each.started]
