"""Groups: what arrives while others are processed is processed together (group commit).

Nothing waits for company: what arrives at an idle service is processed at once, alone.
While a group is in progress, requests wait, in the order of their arrival, until they
are as many as the last group had, or come together; then a second one starts. While
:data:`FLIGHTS` are in progress, none does. The next group is what has queued up, up to
a number and a weight. The caller of one of them processes it.

A request without a result is processed again, alone, by its own caller: so the error of
one member is not that of the others. A request that waits while no group ends for
:data:`PATIENCE` seconds starts another one: so a member that takes long holds up the
others for that time, and no longer.

In threads the main thread is always alone: a signal handler may raise there.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

from .._concurrency import raised_by_signal_handler, reset_after_fork
from .requests import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._concurrency import Waiting


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

FLIGHTS = 2
"""How many groups are in progress at once: one is sent while another is written."""

PATIENCE = 0.1
"""After how many seconds a group in progress no longer holds up the others."""

LOCK_WAIT = 0.1
"""For how many seconds a group waits for a lock that another transaction holds."""

HEAVIEST = 1_000_000
"""The weight of a group at most, unless it has one member."""


class _NotWaiting:
    """The turn of a caller that looks for itself before it waits."""

    def finish(self) -> None:
        """Do nothing."""


_NOT_WAITING = _NotWaiting()


class Member(Request[ItemT, ResultT]):
    """A request that may be processed with others; it arrived at the time *since*.

    If it is the first of those that wait, it looks again after *patience* seconds.
    """

    __slots__ = ("patience", "since")

    def __init__(self, item: ItemT) -> None:
        super().__init__(item, None, _NOT_WAITING)  # type: ignore[arg-type]
        self.since = monotonic()
        self.patience: float | None = None


class Groups(Generic[ItemT, ResultT]):
    """Process items alone while there is time for that, and together otherwise.

    *process* is called with requests; it settles each of them, or leaves it to be
    processed again, alone. *weigh* returns the weight of an item. A group has at most
    *most* members. *departing* is called with the size of each group of several, the
    number of requests that go on waiting, and the seconds that its first one waited.
    """

    def __init__(
        self,
        waiting: Waiting,
        process: Callable[[list[Member[ItemT, ResultT]]], None],
        *,
        most: int,
        weigh: Callable[[ItemT], int] = lambda _: 0,
        departing: Callable[[int, int, float], None] = lambda *_: None,
    ) -> None:
        self._waiting = waiting
        self._process = process
        self._most = most
        self._weigh = weigh
        self._departing = departing
        self.reset()
        reset_after_fork(self)

    def reset(self) -> None:
        """Start with nothing: after a fork the threads of the parent are gone."""
        self._lock = Lock()
        self._pending: deque[Member[ItemT, ResultT]] = deque()
        self._flights: dict[object, float] = {}
        self._enough = 0  # So many may start while a group is in progress.
        self._gathering: Member[ItemT, ResultT] | None = None  # It is about to start.

    def submit(self, item: ItemT, *, alone: bool = False) -> ResultT:
        """Process *item*, in a group or *alone*, and return its result."""
        member: Member[ItemT, ResultT] = Member(item)
        if not alone and self._most > 1 and self._waiting.shares():
            self._join([member])
        return self.complete(member)

    def submit_all(self, items: Sequence[ItemT]) -> list[Member[ItemT, ResultT]]:
        """Process *items* of one caller, which are its members; return them.

        Those that are not settled are to be completed.
        """
        members = [Member[ItemT, ResultT](item) for item in items]
        if members:
            self._join(members)
        return members

    def complete(self, member: Member[ItemT, ResultT]) -> ResultT:
        """Process *member* alone, unless that is done, and return its result."""
        if not member.settled:
            self._process([member])
        return member.result()

    def _join(self, members: Sequence[Member[ItemT, ResultT]]) -> None:
        leader = members[0]
        try:
            with self._lock:
                self._pending.extend(members)
                if len(members) > 1:
                    self._enough = min(self._enough, len(members))
                crowded = len(members) == 1 and self._enough > 1
                gathers = crowded and self._may_start(leader)
                if gathers:
                    self._gathering = leader
            if gathers:
                self._gather()
            for member in members:
                self._wait_for(member)
        except BaseException:
            with self._lock:
                self._forget(members)
                if self._gathering is leader:
                    self._gathering = None
            self._wake_next()
            raise

    def _wait_for(self, member: Member[ItemT, ResultT]) -> None:
        while not member.finished:
            group = self._take_off(member)
            if group:
                self._fly(group)
            elif not member.finished:
                member.turn.wait(member.patience)

    def _gather(self) -> None:
        # Those that were woken with the leader arrive in the same moment.
        size = 0
        while size < len(self._pending) < self._most:
            size = len(self._pending)
            self._waiting.step_aside()

    def _may_start(self, member: Member[ItemT, ResultT]) -> bool:
        if self._gathering not in {None, member}:
            return False
        late = monotonic() - PATIENCE
        flying = sum(started > late for started in self._flights.values())
        # Small groups cost the most: each is a statement, and a commit.
        waits = flying > 0 and len(self._pending) < self._enough
        return flying < FLIGHTS and not waits

    def _take_off(self, member: Member[ItemT, ResultT]) -> list[Member[ItemT, ResultT]]:
        """Return the next group, if it may start; else renew the turn of *member*."""
        with self._lock:
            if self._gathering is member:
                self._gathering = None
            if member.started or not self._may_start(member):
                if not member.finished:
                    member.turn = self._waiting.turn()
                    first = not member.started and self._pending[0] is member
                    member.patience = PATIENCE if first else None
                return []
            group = self._next_group()
            self._flights[group[0]] = monotonic()
            self._enough = len(group)
        return group

    # Loops with conditions are in functions, not in the frames that hold the lock: see
    # sa_wfstate.reducer.contention.

    def _forget(self, members: Sequence[Member[ItemT, ResultT]]) -> None:
        for member in members:
            if member in self._pending:
                self._pending.remove(member)

    def _next_group(self) -> list[Member[ItemT, ResultT]]:
        group: list[Member[ItemT, ResultT]] = []
        weight = 0
        while self._pending and len(group) < self._most:
            weight += self._weigh(self._pending[0].item)
            if group and weight > HEAVIEST:
                break
            group.append(self._pending.popleft())
            group[-1].started = True
        return group

    def _fly(self, group: list[Member[ItemT, ResultT]]) -> None:
        try:
            self._wake_next()  # It may start as well, or is the one that is impatient.
            if len(group) > 1:
                waited = monotonic() - group[0].since
                self._departing(len(group), len(self._pending), waited)
            self._process(group)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            if len(group) == 1:
                group[0].fail(error)
        finally:
            with self._lock:
                self._flights.pop(group[0], None)
                for each in group:
                    each.finished = True
            self._wake_next()
            for each in group:
                each.turn.finish()

    def _wake_next(self) -> None:
        with self._lock:
            following = self._pending[0] if self._pending else None
        if following is not None:
            following.turn.finish()
