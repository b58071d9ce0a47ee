"""Hot keys: the callers of one process that want the same key take turns.

Each key that somebody works on has a :class:`~sa_wfstate.lines.Line`. Its first caller
serves: it does its own work and, if folding is on, that of those who wait behind it,
then lets the next caller serve. So the tasks of a process never race each other, each
waits at most for those before it, and the one who serves starts from what the last one
committed. Who has work for many keys at once holds their lines meanwhile.

A line at rest holds nothing of value for long. A bounded number of them is kept, the
one used longest ago goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .lines import Line, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from .waiting import Waiting

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
KeptT = TypeVar("KeptT")


class HotKeys(Generic[ItemT, ResultT, KeptT]):
    """The lines of all keys.

    *work* does the work of some tickets of one line and settles each of them. *orphan*
    is given those whose caller has gone meanwhile, when the line is left. *fold* is the
    most tickets that are worked on at once, *keep* the number of lines at rest that are
    kept.
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
        keep: int,
    ) -> None:
        self._waiting = waiting
        self._work = work
        self._orphan = orphan
        self._fold = fold
        self._keep = keep
        self._lock = Lock()
        self._busy: dict[str, Line[ItemT, ResultT, KeptT]] = {}
        self._idle: OrderedDict[str, Line[ItemT, ResultT, KeptT]] = OrderedDict()

    def ticket(self, item: ItemT, identity: Hashable) -> Ticket[ItemT, ResultT]:
        """Make a ticket for the caller."""
        return Ticket(item, identity, self._waiting.turn())

    def submit(
        self, key: str, ticket: Ticket[ItemT, ResultT]
    ) -> Line[ItemT, ResultT, KeptT]:
        """Stand in the line of *key* until *ticket* is settled, or has taken the line.

        A caller that is interrupted leaves the line. If its work had begun by then, it
        is finished.
        """
        with self._lock:
            line = self._busy.get(key)
            first = line is None
            if line is None:
                line = self._open(key)
            line.waiting.append(ticket)
        try:
            if first:
                self._pass_on([line])
            ticket.turn.wait()
        except BaseException:
            self._leave(line, ticket)
            raise
        return line

    @contextmanager
    def hold(self, keys: Sequence[str]) -> Iterator[list[Line[ItemT, ResultT, KeptT]]]:
        """Lend the lines of those of *keys* on which nobody works.

        If there are none, wait for the turn in the first one. As nobody waits for a
        line while holding another, no two callers can wait for each other.
        """
        lines = self._take_free(keys)
        try:
            if not lines:
                lines.append(self._take(keys[0]))
                lines += self._take_free(keys)
            yield lines
        except BaseException:
            for line in lines:
                line.forget()
            raise
        finally:
            self._pass_on(lines)

    def _take_free(self, keys: Iterable[str]) -> list[Line[ItemT, ResultT, KeptT]]:
        with self._lock:
            return [self._open(key) for key in keys if key not in self._busy]

    def _take(self, key: str) -> Line[ItemT, ResultT, KeptT]:
        nothing: Any = None
        turn = self._waiting.turn()
        ticket = Ticket[ItemT, ResultT](nothing, None, turn, takes_line=True)
        line = self.submit(key, ticket)
        ticket.result()  # Raises if the line was given up.
        return line

    def _open(self, key: str) -> Line[ItemT, ResultT, KeptT]:
        line = self._idle.pop(key, None) or Line(key)
        self._busy[key] = line
        return line

    def _leave(
        self, line: Line[ItemT, ResultT, KeptT], ticket: Ticket[ItemT, ResultT]
    ) -> None:
        with self._lock:
            if ticket in line.waiting:
                line.waiting.remove(ticket)
            else:
                ticket.abandoned = True
        if ticket.turn.forfeits() or (ticket.takes_line and ticket.finished):
            self._pass_on([line])
        elif ticket.finished:
            self._waiting.detach(partial(self._orphan, ticket))

    def _serve(self, line: Line[ItemT, ResultT, KeptT]) -> None:
        with self._lock:
            tickets = line.take(self._fold)
        try:
            if tickets:
                self._work(line, tickets)
        except BaseException as error:
            line.forget()
            if isinstance(error, asyncio.CancelledError):
                # The event loop is being closed: nobody is going to serve.
                with self._lock:
                    tickets += line.waiting
                    line.waiting.clear()
            for ticket in tickets:
                ticket.fail(error)
            raise
        finally:
            self._pass_on([line])
            orphans = self._finish(tickets)
        for ticket in orphans:
            self._orphan(ticket)

    def _finish(
        self, tickets: list[Ticket[ItemT, ResultT]]
    ) -> list[Ticket[ItemT, ResultT]]:
        """End the wait of the callers; return the tickets of those who have gone."""
        with self._lock:
            orphans = [ticket for ticket in tickets if ticket.abandoned]
            for ticket in tickets:
                ticket.finished = True
        for ticket in tickets:
            ticket.turn.finish()
        return orphans

    def _pass_on(self, lines: list[Line[ItemT, ResultT, KeptT]]) -> None:
        """Let the next caller in each line have its turn, or put the line to rest."""
        following = []
        with self._lock:
            for line in lines:
                if line.waiting:
                    ticket = line.waiting[0]
                    following.append((line, ticket))
                    if ticket.takes_line:
                        ticket.finished = True
                        line.waiting.popleft()
                else:
                    del self._busy[line.key]
                    self._idle[line.key] = line
            while len(self._idle) > self._keep:
                self._idle.popitem(last=False)
        for line, ticket in following:
            if ticket.takes_line:
                ticket.turn.finish()
            else:
                ticket.turn.grant(partial(self._serve, line))
