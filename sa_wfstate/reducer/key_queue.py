"""One line: those who wait for one key, and what is known of it.

What was committed last is only likely to stand, other processes write too. It is
offered to the next for :data:`FRESH` seconds, as long as nobody else was seen to write:
once it has turned out old, each attempt reads the row first, until one finds it as it
was left here.

Who has lost pauses and tries again. At the second loss in a row the row is locked
before it is read. A pause would hold up those behind it: if there are any, it is left
out and the row locked at once, by the one that lost and by :data:`STICKY` times as many
commits as wait behind it. So a key that crowds of several processes want is locked
nearly always, and one that two write now and then hardly ever.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .._concurrency import Turn


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
KeptT = TypeVar("KeptT")

FRESH = 1.0
"""For how long, in seconds, what was seen of a key is taken for likely."""

STICKY = 8
"""For how many commits a row is locked, after a loss, for each caller that waits.

With one each, every eighth to sixteenth attempt was a loss again; more gains nothing.
"""

MOST_LOCKED = 64
"""For how many commits at most: the crowd may have gone, and each may be of many."""


class Ticket(Generic[ItemT, ResultT]):
    """The place of one caller in a line, and later its result.

    Two of one *identity* are not served together. With *takes_line* the caller does not
    want to be served: it wants the line itself, when its turn has come.
    """

    __slots__ = (
        "_error",
        "_result",
        "abandoned",
        "batch",
        "finished",
        "identity",
        "item",
        "settled",
        "taken",
        "takes_line",
        "turn",
    )

    def __init__(
        self,
        item: ItemT,
        identity: Hashable,
        turn: Turn,
        *,
        takes_line: bool = False,
    ) -> None:
        self.item = item
        self.identity = identity
        self.turn = turn
        self.takes_line = takes_line
        self.settled = False
        self.taken = False  # It is being served, or has taken its line.
        self.batch: list[Ticket[ItemT, ResultT]] = []  # What its caller serves.
        self.abandoned = False  # The caller has gone before it was finished.
        self.finished = False
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

    @property
    def succeeded(self) -> bool:
        """Whether there is a result."""
        return self.settled and self._error is None

    def result(self) -> ResultT:
        """Return what was settled, or raise what it failed with."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


class Line(Generic[ItemT, ResultT, KeptT]):
    """Those who wait for one key, and what is known of it.

    The first in the *queue* has its turn; a ticket stays there until it is finished.
    """

    __slots__ = ("_kept", "_undisturbed", "key", "known_since", "locks", "queue")

    def __init__(self, key: str) -> None:
        self.key = key
        self.queue: deque[Ticket[ItemT, ResultT]] = deque()
        self.locks = 0  # How many commits are to lock their row.
        self.known_since = 0.0  # When the last commit was known to be done.
        self._kept: KeptT | None = None
        self._undisturbed = True

    @property
    def waiting(self) -> int:
        """How many wait behind those that are being served."""
        return sum(not ticket.taken for ticket in self.queue.copy())

    @property
    def kept(self) -> KeptT | None:
        """What was committed last, if it is likely that it still stands."""
        fresh = self._undisturbed and monotonic() < self.known_since + FRESH
        return self._kept if fresh else None

    def won(self, kept: KeptT, base: KeptT) -> None:
        """Note that *kept* was committed, on top of *base*."""
        self._undisturbed = self._kept is None or self._kept == base
        self._kept, self.known_since = kept, monotonic()
        self.locks = max(0, self.locks - 1)

    def lost(self, attempt: int) -> None:
        """Note that attempt number *attempt* lost."""
        self._undisturbed = False
        if attempt > 1 or self.waiting:
            self.locks = min(1 + STICKY * self.waiting, MOST_LOCKED)

    def forget(self) -> None:
        """Keep nothing: it may not be true any more."""
        self._kept = None

    def next(self, most: int) -> list[Ticket[ItemT, ResultT]]:
        """Return the next to be served: up to *most*, no two of one identity."""
        following: list[Ticket[ItemT, ResultT]] = []
        seen = set()
        for ticket in islice(self.queue, most):
            if ticket.takes_line or ticket.identity in seen:
                break
            seen.add(ticket.identity)
            following.append(ticket)
        return following
