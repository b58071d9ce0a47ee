"""Several threads that take actions from one queue and commit them.

Each action goes the same way: read the state, reduce, ``try_commit``. A
:class:`StateConflict` sends it round again after a pause, with full jitter: the n-th
pause is anywhere between nothing and 10 ms · 2ⁿ⁻¹, at most 250 ms (Marc Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

Threads are enough, and processes would prove no more: whoever loses, loses in
PostgreSQL, and while a thread waits for it, psycopg has released the interpreter.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_result,
    stop_after_attempt,
    wait_random_exponential,
)

from sa_wfstate import Provenance, StateConflict, WorkflowNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sa_wfstate import StateCommitted, WorkflowSnapshot, WorkflowStateMixin

SHORTEST_PAUSE = 0.010
LONGEST_PAUSE = 0.250
ENOUGH_TRIES = 500


class AnyAction(Protocol):
    """What the workers know of an action."""

    @property
    def workflow_key(self) -> str: ...

    @property
    def position(self) -> int: ...


StateT = TypeVar("StateT")
ActionT = TypeVar("ActionT", bound=AnyAction)


@dataclass(frozen=True)
class Workload(Generic[StateT, ActionT]):
    """What is to be done: the mapped class, its reducer, and the actions in order.

    *initial* is the state that a workflow has before its first action. *counted* says
    how many actions a stored state holds, given as the JSON that is in the column.
    """

    entity: type[WorkflowStateMixin[StateT]]
    initial: StateT
    reducer: Callable[[StateT, ActionT], StateT]
    actions: list[ActionT]
    counted: Callable[[Any], int]


class Store(Protocol[StateT]):
    """The two methods of a CanonicalStore that the workers call."""

    def get_state(self, workflow_key: str) -> WorkflowSnapshot[StateT]: ...

    def try_commit(
        self,
        *,
        workflow_key: str,
        expected_version: int,
        state: StateT,
        provenance: Provenance,
    ) -> StateCommitted[StateT] | StateConflict: ...


@dataclass
class Tally(Generic[ActionT]):
    """What one worker did; only its own thread writes here, so nothing is locked."""

    acknowledged: list[ActionT] = field(default_factory=list)
    conflicts: int = 0
    retries: int = 0
    most_tries: int = 0
    last_conflict: StateConflict | None = None


class Crew(Generic[StateT, ActionT]):
    """The workers, from start() until they are done or told to stop.

    stop() takes nothing more from the queue; what is under way is still committed, so
    each action is either acknowledged or untouched. An error in one worker stops them
    all and comes out of join().
    """

    def __init__(
        self,
        store: Store[StateT],
        workload: Workload[StateT, ActionT],
        workers: int,
    ) -> None:
        self.store = store
        self.workload = workload
        self.tallies: list[Tally[ActionT]] = [Tally() for _ in range(workers)]
        self.seconds = 0.0
        self._queue = _filled(workload.actions)
        self._stopped = threading.Event()
        self._error: Exception | None = None
        # Not Thread.join(): before Python 3.13, one that Ctrl-C interrupts takes the
        # thread for ended, and the check would begin while it commits.
        self._finished = [threading.Event() for _ in range(workers)]

    def start(self) -> None:
        self._started_at = time.monotonic()
        for number, (tally, finished) in enumerate(
            zip(self.tallies, self._finished, strict=True), start=1
        ):
            threading.Thread(
                target=self._work,
                name=f"worker-{number}",
                args=(tally, finished),
                daemon=True,
            ).start()

    def stop(self) -> None:
        self._stopped.set()

    def wait(self, seconds: float) -> bool:
        """Wait at most *seconds*; return whether a worker is still at work."""
        until = time.monotonic() + seconds
        finished = all(
            each.wait(max(0.0, until - time.monotonic())) for each in self._finished
        )
        self.seconds = time.monotonic() - self._started_at
        return not finished

    def join(self) -> None:
        """Wait until the last worker is done, and raise what stopped one of them."""
        for finished in self._finished:
            finished.wait()
        self.seconds = time.monotonic() - self._started_at
        if self._error is not None:
            raise self._error

    @property
    def commits(self) -> int:
        return sum(len(tally.acknowledged) for tally in self.tallies)

    @property
    def conflicts(self) -> int:
        return sum(tally.conflicts for tally in self.tallies)

    @property
    def retries(self) -> int:
        return sum(tally.retries for tally in self.tallies)

    @property
    def most_tries(self) -> int:
        return max(tally.most_tries for tally in self.tallies)

    @property
    def acknowledged(self) -> Iterator[ActionT]:
        """All actions that are committed, in no particular order."""
        return chain.from_iterable(tally.acknowledged for tally in self.tallies)

    def _work(self, tally: Tally[ActionT], finished: threading.Event) -> None:
        retrying = Retrying(
            retry=retry_if_result(_is_conflict),
            wait=wait_random_exponential(multiplier=SHORTEST_PAUSE, max=LONGEST_PAUSE),
            stop=stop_after_attempt(ENOUGH_TRIES),
            retry_error_callback=_raise_conflict,
        )
        try:
            while not self._stopped.is_set():
                action = self._queue.get_nowait()
                retrying(self._try, action, tally)
                tally.acknowledged.append(action)
                tries = retrying.statistics["attempt_number"]
                tally.retries += tries - 1
                tally.most_tries = max(tally.most_tries, tries)
        except queue.Empty:
            pass
        except Exception as error:  # noqa: BLE001 - it comes out of join()
            self._error = error
            self.stop()
        finally:
            finished.set()

    def _try(
        self, action: ActionT, tally: Tally[ActionT]
    ) -> StateCommitted[StateT] | StateConflict:
        """Read, reduce, commit: one round, won or lost."""
        try:
            snapshot = self.store.get_state(action.workflow_key)
        except WorkflowNotFound:
            version, state = 0, self.workload.initial
        else:
            version, state = snapshot.version, snapshot.state
        outcome = self.store.try_commit(
            workflow_key=action.workflow_key,
            expected_version=version,
            state=self.workload.reducer(state, action),
            provenance=Provenance.now(
                f"{threading.current_thread().name}/action-{action.position}"
            ),
        )
        if isinstance(outcome, StateConflict):
            tally.conflicts += 1
            tally.last_conflict = outcome
        return outcome


def _filled(actions: Iterable[ActionT]) -> queue.SimpleQueue[ActionT]:
    filled: queue.SimpleQueue[ActionT] = queue.SimpleQueue()
    for action in actions:
        filled.put(action)
    return filled


def _is_conflict(outcome: object) -> bool:
    return isinstance(outcome, StateConflict)


def _raise_conflict(attempts: RetryCallState) -> None:
    if attempts.outcome is not None:
        raise attempts.outcome.result()
