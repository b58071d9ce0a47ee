"""Hot keys: the callers of one process that want the same key take turns.

Each key in work has a :class:`~sa_wfstate.reducer.key_queue.Line`. Its first caller
serves: it does its own work and, if folding is on, that of those who wait behind it,
then lets the next caller serve. So the tasks of a process never race each other, each
waits at most for those before it, and the one who serves starts from what the last one
committed. Who has work for many keys at once holds their lines meanwhile.

A signal handler may raise at any line of this module. Therefore the queue alone says
whether a line is busy, every step out of a line may be repeated, and a caller that is
interrupted repeats them all.

A line at rest holds nothing of value for long. A bounded number of them is kept, the
one used longest ago goes first.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

from .key_queue import Line, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from .._concurrency import Waiting


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
KeptT = TypeVar("KeptT")
DoneT = TypeVar("DoneT")


class HotKeys(Generic[ItemT, ResultT, KeptT]):
    """The lines of all keys.

    *work* does the work of some tickets of one line and settles each of them. *orphan*
    is given those whose caller has gone meanwhile, when the line is left. *fold* is the
    most tickets that are worked on at once, *cache_size* the number of lines at rest
    that are kept.
    """

    def __init__(
        self,
        waiting: Waiting,
        work: Callable[
            [Line[ItemT, ResultT, KeptT], list[Ticket[ItemT, ResultT]]], None
        ],
        orphan: Callable[[Ticket[ItemT, ResultT]], None],
        *,
        fold: int,
        cache_size: int,
    ) -> None:
        self._waiting = waiting
        self._work = work
        self._orphan = orphan
        self._fold = fold
        self._cache_size = cache_size
        self._busy: dict[str, Line[ItemT, ResultT, KeptT]]
        self._idle: OrderedDict[str, Line[ItemT, ResultT, KeptT]]
        self.empty()
        _all.add(self)

    def ticket(self, item: ItemT, identity: Hashable) -> Ticket[ItemT, ResultT]:
        """Make a ticket for the caller."""
        return Ticket(item, identity, self._waiting.turn())

    def submit(self, key: str, ticket: Ticket[ItemT, ResultT]) -> None:
        """Stand in the line of *key* until *ticket* is settled, or has taken the line.

        A caller that is interrupted leaves the line. If its work had begun by then, it
        is finished where another thread or task does it.
        """
        try:
            with self._lock:
                line = self._busy.get(key)
                if line is None:
                    line = self._open(key, ticket)
                else:
                    line.queue.append(ticket)
                first = line.queue[0] is ticket
            if first:
                self._wake(line, ticket)
            ticket.turn.wait()
        except BaseException as error:
            self._leave(key, ticket, error)
            raise

    def hold(
        self,
        keys: Sequence[str],
        work: Callable[[list[Line[ItemT, ResultT, KeptT]]], DoneT],
    ) -> DoneT:
        """Call *work* with the lines of those of *keys* on which nobody works.

        If there are none, wait for the turn in the first one. As nobody waits for a
        line while holding another, no two callers can wait for each other.
        """
        nothing: Any = None
        turn = self._waiting.turn()
        ticket = Ticket[ItemT, ResultT](nothing, None, turn, takes_line=True)
        try:
            try:
                self._take_free(keys, ticket)
                if not ticket.taken:
                    self.submit(keys[0], ticket)
                    ticket.result()  # Raises if the line was given up.
                    self._take_free(keys, ticket)
                return work(self._taken(keys, ticket))
            except BaseException:
                for line in self._taken(keys, ticket):
                    line.forget()
                raise
            finally:
                self._give_back(keys, ticket)
        except BaseException:
            self._give_back(keys, ticket)
            raise

    def empty(self) -> None:
        """Begin anew: in a process that was forked, nobody is going to serve."""
        self._lock = Lock()
        self._busy = {}
        self._idle = OrderedDict()

    def _take_free(self, keys: Iterable[str], ticket: Ticket[ItemT, ResultT]) -> None:
        with self._lock:
            for key in keys:
                if key not in self._busy:
                    self._open(key, ticket)
                    ticket.taken = True

    def _taken(
        self, keys: Iterable[str], ticket: Ticket[ItemT, ResultT]
    ) -> list[Line[ItemT, ResultT, KeptT]]:
        with self._lock:
            lines = [self._busy[key] for key in keys if key in self._busy]
            return [line for line in lines if ticket in line.queue]

    def _give_back(self, keys: Iterable[str], ticket: Ticket[ItemT, ResultT]) -> None:
        # Of all that are busy: one that it has left may not have been passed on yet.
        with self._lock:
            lines = [self._busy[key] for key in keys if key in self._busy]
        for line in lines:
            self._release(line, [ticket])

    def _open(
        self, key: str, ticket: Ticket[ItemT, ResultT]
    ) -> Line[ItemT, ResultT, KeptT]:
        line = self._idle.pop(key, None) or Line(key)
        line.queue.append(ticket)  # First: no line is busy without a queue.
        self._busy[key] = line
        return line

    def _wake(
        self, line: Line[ItemT, ResultT, KeptT], ticket: Ticket[ItemT, ResultT]
    ) -> None:
        if ticket.takes_line:
            ticket.taken = True
            ticket.turn.finish()
        else:
            ticket.turn.grant(partial(self._serve, line, ticket))

    def _serve(
        self, line: Line[ItemT, ResultT, KeptT], ticket: Ticket[ItemT, ResultT]
    ) -> None:
        try:
            with self._lock:
                if not line.queue or line.queue[0] is not ticket:
                    return  # It has left the line meanwhile.
                ticket.batch = line.next(self._fold)
                for each in ticket.batch:
                    each.taken = True
            self._work(line, ticket.batch)
            orphans = self._release(line, ticket.batch)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                # The event loop is being closed: nobody is going to serve.
                ticket.batch = list(line.queue)
                for each in ticket.batch:
                    each.fail(error)
            self._give_up(line, ticket, error)
            raise
        for orphan in orphans:
            self._orphan(orphan)

    def _leave(
        self, key: str, ticket: Ticket[ItemT, ResultT], error: BaseException
    ) -> None:
        with self._lock:
            line = self._busy.get(key)
            alone = not ticket.taken or ticket.takes_line or ticket.turn.forfeits()
            ticket.abandoned = not alone and not ticket.finished
        if alone and line is not None:
            self._give_up(line, ticket, error)
        if ticket.finished and ticket.succeeded:
            self._waiting.detach(partial(self._orphan, ticket))

    def _give_up(
        self,
        line: Line[ItemT, ResultT, KeptT],
        ticket: Ticket[ItemT, ResultT],
        error: BaseException,
    ) -> None:
        """Take *ticket* and what was done with it from the line; the rest is served."""
        line.forget()
        ticket.fail(error)
        with self._lock:
            if ticket in line.queue:
                over = [each for each in ticket.batch if each.settled or each.abandoned]
                for each in ticket.batch:
                    each.taken = each in over
                ticket.batch = over
        self._release(line, ticket.batch or [ticket])

    def _release(
        self,
        line: Line[ItemT, ResultT, KeptT],
        tickets: Sequence[Ticket[ItemT, ResultT]],
    ) -> list[Ticket[ItemT, ResultT]]:
        """Take *tickets* from the line; return those whose caller has gone.

        Then the next in the line has its turn, or the line is put to rest. All this may
        be done twice.
        """
        following = None
        with self._lock:
            for ticket in tickets:
                if ticket in line.queue:
                    line.queue.remove(ticket)
                ticket.finished = True
            orphans = [ticket for ticket in tickets if ticket.abandoned]
            if line.queue:
                following = line.queue[0]
            elif self._busy.get(line.key) is line:
                del self._busy[line.key]
                self._idle[line.key] = line
                while len(self._idle) > self._cache_size:
                    self._idle.popitem(last=False)
        if following is not None:
            self._wake(line, following)
        for ticket in tickets:
            ticket.turn.finish()
        return orphans


def _empty_all() -> None:
    for keys in list(_all):
        keys.empty()


_all: WeakSet[HotKeys[Any, Any, Any]] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_empty_all)
