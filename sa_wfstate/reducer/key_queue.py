"""KeyQueue: the requests of one key, its cached state, and when to lock its row.

The state that was committed last may be stale, as other processes write too. It is
cached for :data:`FRESH` seconds, until another writer is noticed: after a stale state
each attempt reads the row first, until one finds it as it was left here.

After a conflict the attempt is repeated, after a pause; from the second conflict on the
row is locked before it is read. With requests waiting, a pause would block them (head-
of-line blocking): then the row is locked at once, for the repeated attempt and for
:data:`STICKY` commits per waiting request. So a key that many callers of several
processes want is locked nearly always, and one with an occasional conflict hardly ever.
Where all that waits is one write, a chain, the repeated attempt needs no lock at first:
it is cheaper than a transaction that holds one.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..store.requests import Request

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
CachedT = TypeVar("CachedT")

FRESH = 1.0
"""For how long, in seconds, the last committed state is cached."""

STICKY = 8
"""For how many commits a row is locked after a conflict, per waiting request.

With one, every eighth to sixteenth attempt was a conflict again; more gains nothing.
"""

MOST_LOCKED = 64
"""For how many commits at most: contention may end, and a commit may fold many."""


class KeyQueue(Generic[ItemT, ResultT, CachedT]):
    """The requests of one key, and its last committed state.

    The first of *requests* has its turn; a request stays until it is finished.
    """

    __slots__ = ("_cached", "_undisturbed", "committed_at", "key", "locks", "requests")

    def __init__(self, key: str) -> None:
        self.key = key
        self.requests: deque[Request[ItemT, ResultT]] = deque()
        self.locks = 0  # How many commits are to lock the row.
        self.committed_at = 0.0  # When the last commit had returned.
        self._cached: CachedT | None = None
        self._undisturbed = True

    @property
    def waiting(self) -> int:
        """How many requests wait behind those in progress."""
        return sum(not request.started for request in self.requests.copy())

    @property
    def cached(self) -> CachedT | None:
        """The state that was committed last, unless it is likely to be stale."""
        fresh = self._undisturbed and monotonic() < self.committed_at + FRESH
        return self._cached if fresh else None

    def note_commit(self, committed: CachedT, baseline: CachedT) -> None:
        """Cache what was committed, on top of *baseline*."""
        self._undisturbed = self._cached is None or self._cached == baseline
        self._cached, self.committed_at = committed, monotonic()
        self.locks = max(0, self.locks - 1)

    def note_conflict(self, attempt: int, *, chains: bool = False) -> None:
        """Note that attempt number *attempt* had a conflict.

        Where what waits *chains*, the row is locked for the repeated attempt alone.
        """
        self._undisturbed = False
        waiting = 0 if chains else self.waiting
        if attempt > 1 or waiting:
            self.locks = min(1 + STICKY * waiting, MOST_LOCKED)

    def forget(self) -> None:
        """Drop the cached state: it may be stale."""
        self._cached = None

    def next_batch(self, most: int) -> list[Request[ItemT, ResultT]]:
        """Return the next requests: up to *most*, no two of one identity."""
        following: list[Request[ItemT, ResultT]] = []
        seen = set()
        for request in islice(self.requests, most):
            if request.wants_queue or request.identity in seen:
                break
            seen.add(request.identity)
            following.append(request)
        return following

    def finish(
        self, requests: Iterable[Request[ItemT, ResultT]]
    ) -> list[Request[ItemT, ResultT]]:
        """Remove *requests*; return those whose caller has left. May be repeated."""
        for request in requests:
            if request in self.requests:
                self.requests.remove(request)
            request.finished = True
        return [request for request in requests if request.abandoned]
