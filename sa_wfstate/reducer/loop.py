"""ReducerLoop: repeat attempts until the actions of a batch are settled.

It decides where an attempt starts (the cached state, the row, or the locked row), how a
conflict or an error affects the next one, and when to give up.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .._concurrency import raised_by_signal_handler
from ..errors import ReducerGaveUp, StateConflict
from ..hooks.base import notify
from ..retry import ErrorKind, classify, is_undone_by_now, leaves_unknown
from ..store.compare_and_set import refused
from .action_batch import ActionBatch
from .claimed_commits import ClaimedBefore
from .nesting import attempt_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .._concurrency import Waiting
    from ..hooks.base import Hooks
    from ..retry import RetryPolicy
    from ..row.statements import Statements
    from .action_batch import ActionQueue, ActionRequest, Baseline
    from .attempt import Attempts


CHAIN = 16
"""How many actions that wait for a key are committed under one lock, at most."""


class ReducerLoop:
    """Commit actions of one key, or make one attempt for those of many keys.

    *resolve* limits the search for the outcome of an unanswered COMMIT;
    *lock_on_contention* allows to lock rows. *fold* is how many actions may be one
    commit.
    """

    def __init__(
        self,
        statements: Statements[Any],
        attempts: Attempts[Any],
        waiting: Waiting,
        hooks: Hooks,
        retry: RetryPolicy,
        *,
        resolve: RetryPolicy,
        lock_on_contention: bool,
        fold: int,
    ) -> None:
        self._statements = statements
        self._entity = statements.entity
        self._attempts = attempts
        self._wait = waiting
        self._hooks = hooks
        self._retry = retry
        self._resolve = resolve
        self._lock_on_contention = lock_on_contention
        self._fold = fold

    def most(self, queue: ActionQueue) -> int:
        """Return how many actions of *queue* are committed at once, at most."""
        if self._fold == 1 and self._locking(queue) and self._attempts.chains:
            return CHAIN
        return self._fold

    def commit(self, queue: ActionQueue, requests: list[ActionRequest]) -> None:
        """Commit the actions of *requests* together; settle each of them."""
        folded = [requests] if self._fold > 1 else [[each] for each in requests]
        batches = [ActionBatch(queue.key, each) for each in folded]
        if len(batches) > 1:
            try:
                self._commit_chain(queue, batches)
            except BaseException as error:
                self._fail_uncertain(batches, error)
                raise
        for batch in batches:
            if not batch.settled:
                self._commit_batch(queue, batch)

    def starts_together(self, queue: ActionQueue) -> bool:
        """Return whether the next attempt for *queue* may be part of a round."""
        return not self._locking(queue) and not self._attempts.waits

    def start_together(
        self, given: Sequence[tuple[ActionQueue, list[ActionRequest]]]
    ) -> list[tuple[Callable[[], None], bool]]:
        """Begin to commit the actions of different keys, in one task.

        Returns for each key how to go on, and whether that does not wait.
        """
        batches = [ActionBatch(queue.key, requests) for queue, requests in given]
        cached = [queue.cached for queue, _ in given]
        try:
            begin = partial(self._attempts.begin_together, batches, cached)
            at_once = attempt_on(self._entity, batches[0].key, begin)
        except BaseException as error:
            self._fail_uncertain(batches, error)
            raise
        queues = [queue for queue, _ in given]
        goes_on = map(partial(partial, self._commit_batch), queues, batches)
        return list(zip(goes_on, at_once, strict=True))

    def _commit_batch(self, queue: ActionQueue, batch: ActionBatch) -> None:
        try:
            try:
                attempts = partial(self._repeat, queue, batch)
                attempt_on(self._entity, queue.key, attempts)
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                batch.fail(error)
        except BaseException as error:
            # If that is safe, the others of this batch are processed again.
            self._fail_uncertain([batch], error)
            raise

    def _commit_chain(self, queue: ActionQueue, batches: list[ActionBatch]) -> None:
        """Commit *batches* under one row lock, or leave them to commit alone."""
        for batch in batches:
            batch.attempts = 1
        try:
            make = partial(self._attempts.make_locked, batches)
            outcomes = attempt_on(self._entity, queue.key, make)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            queue.forget()
            self._settle_uncertain(batches, error)
            return
        written = []
        for batch, outcome in zip(batches, outcomes, strict=False):
            if isinstance(outcome, StateConflict):
                self._note_outcome(queue, batch, outcome)
                continue
            batch.settle(outcome)
            written += [batch] * (batch.write is not None)
        if written:
            queue.note_commit(written[-1].next_baseline, written[0].baseline)

    def _fail_uncertain(
        self, batches: Sequence[ActionBatch], error: BaseException
    ) -> None:
        for batch in batches:
            if batch.committing:
                batch.fail(batch.unknown(self._entity, error))

    def commit_many(
        self, queues: Sequence[ActionQueue], batches: list[ActionBatch]
    ) -> None:
        """Make one attempt for the *batches* of *queues*; leave conflicts unsettled."""
        for batch in batches:
            batch.attempts = 1
        try:
            make = partial(self._attempts.make_many, batches)
            conflicts = attempt_on(self._entity, batches[0].key, make)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            for queue in queues:
                queue.forget()
            self._settle_uncertain(batches, error)
        else:
            for queue, batch, conflict in zip(queues, batches, conflicts, strict=True):
                self._note_outcome(queue, batch, conflict)

    def _repeat(self, queue: ActionQueue, batch: ActionBatch) -> None:
        """Make attempts until *batch* is settled; wait in between."""
        began = monotonic()
        for number in count(1):
            cause: Exception | None = None
            try:
                if self._attempt(queue, batch) is None:
                    return
            except Exception as error:
                # Of one that left the outcome unknown, _try() has found it out.
                if not _is_transient(error) and not is_undone_by_now(error):
                    raise
                cause = error
            seconds = monotonic() - began
            delay = self._retry.next_delay(number, seconds)
            if delay is None:
                self._give_up(batch, cause, seconds)
                return
            if self._locking(queue) and queue.waiting:
                # Under the row lock the next attempt wins, and a pause would delay the
                # queue. With an empty queue the pause lets other processes commit.
                delay = 0.0
            notify(self._hooks.retried, self._entity, batch.key, batch.attempts, delay)
            self._wait.sleep(delay)

    def _locking(self, queue: ActionQueue) -> bool:
        return self._lock_on_contention and queue.locks > 0

    def _give_up(
        self, batch: ActionBatch, cause: Exception | None, seconds: float
    ) -> None:
        gave_up = ReducerGaveUp(
            self._entity, batch.key, batch.conflict, batch.attempts, seconds
        )
        gave_up.__cause__ = cause or batch.conflict
        batch.fail(gave_up)

    def _attempt(self, queue: ActionQueue, batch: ActionBatch) -> StateConflict | None:
        """Make one attempt, and another at once if the cached state was stale before.

        A stale cache is no sign of contention: it is no reason to pause, and does not
        count as an attempt of the policy.
        """
        while True:
            batch.attempts += 1
            began, committed_at = batch.began or monotonic(), queue.committed_at
            batch.began = 0.0
            lock = self._locking(queue)
            conflict = self._try(
                queue, batch, None if lock else queue.cached, lock=lock
            )
            self._note_outcome(queue, batch, conflict)
            # The other commit fell between the last one here and the end of this
            # attempt: probably before the attempt, if that part was longer.
            if (
                conflict is None
                or not batch.baseline.cached
                or began - committed_at < monotonic() - began
            ):
                return conflict

    def _try(
        self,
        queue: ActionQueue,
        batch: ActionBatch,
        cached: Baseline | None,
        *,
        lock: bool,
    ) -> StateConflict | None:
        while batch.requests:
            try:
                return self._attempts.make(batch, cached=cached, lock=lock)
            except ClaimedBefore:
                queue.forget()
                cached = None  # Read the row and the log again.
            except StateConflict as refusal:
                return refusal
            except (DBAPIError, OSError) as error:
                if raised_by_signal_handler(error):
                    raise
                queue.forget()
                self._settle_uncertain([batch], error)
                if batch.settled:
                    return None
                if batch.write is None:
                    raise
                lost = {batch.key: batch.write.version - 1}
                conflict = refused(self._statements, lost, error)
                if conflict is None:
                    raise
                return conflict
        return None

    def _note_outcome(
        self, queue: ActionQueue, batch: ActionBatch, conflict: StateConflict | None
    ) -> None:
        if conflict is not None:
            batch.conflict = conflict
            queue.note_conflict(batch.attempts)
            notify(self._hooks.conflicted, self._entity, conflict, batch.attempts)
        elif batch.write is not None:
            queue.note_commit(batch.next_baseline, batch.baseline)

    def _settle_uncertain(
        self, batches: Sequence[ActionBatch], error: BaseException
    ) -> None:
        """Settle those of *batches* that are committed, or whose outcome is unknown."""
        if not leaves_unknown(error):
            return
        uncertain = [
            batch for batch in batches if batch.committing and batch.write is not None
        ]

        def look() -> None:
            while uncertain:
                batch = uncertain[0]
                if self._attempts.was_committed(batch) is None:
                    batch.fail(batch.unknown(self._entity, error))
                if batch.settled:
                    batch.begin()  # The state it wrote may be stale by now.
                del uncertain[0]

        try:
            self._resolve.call(look, retry_if=_is_transient, sleep=self._wait.sleep)
        except (DBAPIError, OSError, PoolTimeoutError) as last:
            if raised_by_signal_handler(last):
                raise
            for batch in uncertain:
                batch.fail(batch.unknown(self._entity, error))
                batch.begin()


def _is_transient(error: BaseException) -> bool:
    transient = classify(error) is ErrorKind.TRANSIENT
    return transient and not raised_by_signal_handler(error)
