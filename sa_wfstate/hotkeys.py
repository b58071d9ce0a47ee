"""Hot keys: the callers of one process that want the same key take turns.

Each key that somebody works on has a :class:`Line`. Its first caller serves: it does
its own work and, if folding is on, that of those who wait behind it, then lets the next
caller serve. So the tasks of a process never race each other, each waits at most for
those before it, and the one who serves starts from what the last one committed.

What was committed last is only likely to stand, other processes write too: it is
offered to the next for :data:`FRESH` seconds, and forgotten when it has lost. Who has
lost pauses and tries again. But a pause would hold up those behind it: if there are
any, or at the second loss in a row, the row is locked before it is read, by the one
that lost and by those who wait behind it now. So a key that crowds of several processes
want is locked nearly always, and one that two write now and then hardly ever.

A line at rest for longer holds nothing of value. A bounded number of them is kept, the
one used longest ago goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from functools import partial
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from .waiting import Turn, Waiting

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
KeptT = TypeVar("KeptT")

FRESH = 1.0
"""For how long, in seconds, what was seen of a key is taken for likely."""


class Ticket(Generic[ItemT, ResultT]):
    """The place of one caller in a line, and later its result."""

    __slots__ = (
        "_error",
        "_result",
        "abandoned",
        "identity",
        "item",
        "settled",
        "turn",
    )

    def __init__(self, item: ItemT, identity: Hashable, turn: Turn) -> None:
        self.item = item
        self.identity = identity
        self.turn = turn
        self.settled = False
        self.abandoned = False
        self._result: ResultT | None = None
        self._error: BaseException | None = None

    def settle(self, result: ResultT) -> None:
        """Give the caller its result; the first one stands."""
        if not self.settled:
            self._result, self.settled = result, True

    def fail(self, error: BaseException) -> None:
        """Raise *error* in the caller."""
        if not self.settled:
            self._error, self.settled = error, True

    def result(self) -> ResultT:
        """Return what was settled, or raise what it failed with."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


class Line(Generic[ItemT, ResultT, KeptT]):
    """Those who wait for one key, and what is known of it."""

    __slots__ = ("_kept", "_kept_until", "key", "locks", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.waiting: deque[Ticket[ItemT, ResultT]] = deque()
        self.locks = 0  # How many commits are to lock their row.
        self._kept: KeptT | None = None
        self._kept_until = 0.0

    @property
    def kept(self) -> KeptT | None:
        """What was committed last, if it is likely that it still stands."""
        return self._kept if monotonic() < self._kept_until else None

    def won(self, kept: KeptT) -> None:
        """Note a commit, and keep what it wrote for the next who serves."""
        self._kept, self._kept_until = kept, monotonic() + FRESH
        self.locks = max(0, self.locks - 1)

    def lost(self, attempt: int) -> None:
        """Note that attempt number *attempt* lost."""
        self.forget()
        if attempt > 1 or self.waiting:
            self.locks = 1 + len(self.waiting)

    def forget(self) -> None:
        """Keep nothing: it may not be true any more."""
        self._kept = None

    def take(self, most: int) -> list[Ticket[ItemT, ResultT]]:
        """Take the next from the line: up to *most*, no two of one identity."""
        taken: list[Ticket[ItemT, ResultT]] = []
        seen = set()
        while self.waiting and len(taken) < most:
            if self.waiting[0].identity in seen:
                break
            seen.add(self.waiting[0].identity)
            taken.append(self.waiting.popleft())
        return taken


class HotKeys(Generic[ItemT, ResultT, KeptT]):
    """The lines of all keys.

    *work* does the work of some tickets of one line and settles each of them. *fold* is
    the most tickets that it is given at once, *keep* the number of lines at rest that
    are kept.
    """

    def __init__(
        self,
        waiting: Waiting,
        work: Callable[
            [Line[ItemT, ResultT, KeptT], list[Ticket[ItemT, ResultT]]], None
        ],
        *,
        fold: int,
        keep: int,
    ) -> None:
        self._waiting = waiting
        self._work = work
        self._fold = fold
        self._keep = keep
        self._lock = Lock()
        self._busy: dict[str, Line[ItemT, ResultT, KeptT]] = {}
        self._idle: OrderedDict[str, Line[ItemT, ResultT, KeptT]] = OrderedDict()

    def ticket(self, item: ItemT, identity: Hashable) -> Ticket[ItemT, ResultT]:
        """Make a ticket for the caller."""
        return Ticket(item, identity, self._waiting.turn())

    def submit(self, key: str, ticket: Ticket[ItemT, ResultT]) -> None:
        """Stand in the line of *key* until *ticket* is settled.

        A caller that is interrupted leaves the line. If its work had begun by then, it
        is finished, and the ticket is marked as abandoned.
        """
        with self._lock:
            line = self._busy.get(key)
            first = line is None
            if line is None:
                line = self._idle.pop(key) if key in self._idle else Line(key)
                self._busy[key] = line
            line.waiting.append(ticket)
        try:
            if first:
                ticket.turn.grant(partial(self._serve, line))
            ticket.turn.wait()
        except BaseException:
            self._leave(line, ticket)
            raise

    def _leave(
        self, line: Line[ItemT, ResultT, KeptT], ticket: Ticket[ItemT, ResultT]
    ) -> None:
        with self._lock:
            if ticket in line.waiting:
                line.waiting.remove(ticket)
            else:
                ticket.abandoned = True
        if ticket.turn.forfeits():
            self._pass_on(line)

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
            self._pass_on(line)
            for ticket in tickets:
                ticket.turn.finish()

    def _pass_on(self, line: Line[ItemT, ResultT, KeptT]) -> None:
        """Let the next caller serve, or put the line to rest."""
        with self._lock:
            following = line.waiting[0] if line.waiting else None
            if following is None:
                del self._busy[line.key]
                self._idle[line.key] = line
                while len(self._idle) > self._keep:
                    self._idle.popitem(last=False)
        if following is not None:
            following.turn.grant(partial(self._serve, line))
