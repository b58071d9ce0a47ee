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

from .._concurrency import raised_by_signal_handler
from ..errors import StateConflict
from ..hooks.base import notify
from ..retry import is_undone_by_now
from ..store.compare_and_set import refused
from .action_batch import ActionBatch
from .claimed_commits import ClaimedBefore
from .nesting import attempt_on
from .reductions import Awaits
from .uncertain import UncertainCommits, is_transient

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
"""How many actions that wait for a key are committed together, unfolded, at most."""


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
        self._uncertain = UncertainCommits(self._entity, attempts, waiting, resolve)
        self._lock_on_contention = lock_on_contention
        self._fold = fold

    def most(self, queue: ActionQueue) -> int:
        """Return how many actions of *queue* are committed at once, at most."""
        if self._fold == 1 and len(queue.requests) > 1:
            crowds = self._locking(queue) and self._attempts.crowds
            return CHAIN if crowds or self._chains else 1
        return self._fold

    @property
    def _chains(self) -> bool:
        return self._fold == 1 and self._attempts.chains

    def commit(self, queue: ActionQueue, requests: list[ActionRequest]) -> None:
        """Commit the actions of *requests* together; settle each of them."""
        batch = self._batch_of(queue, requests)
        alone = len(batch.requests) < len(requests)
        if alone and self._locking(queue) and self._attempts.crowds:
            self._commit_crowd(queue, [ActionBatch(queue.key, [r]) for r in requests])
        self._commit_each(queue, requests, batch)

    def _batch_of(
        self, queue: ActionQueue, requests: list[ActionRequest]
    ) -> ActionBatch:
        """Return the batch of *requests*, or of the first if each is to be alone."""
        chained = self._fold == 1 and len(requests) > 1
        if chained and not self._chains:
            return ActionBatch(queue.key, requests[:1])
        return ActionBatch(queue.key, requests, chained=chained)

    def _commit_each(
        self, queue: ActionQueue, requests: list[ActionRequest], batch: ActionBatch
    ) -> None:
        """Commit *batch*, and then those of *requests* that are not settled yet."""
        if not batch.settled:
            self._commit_batch(queue, batch)
        for request in requests:
            # Not chained, the reducer may be awaited, in the context of the first one.
            for chained in (True, False):
                if not request.settled:
                    batch = ActionBatch(queue.key, [request], chained=chained)
                    batch.caller = requests[0]
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
        batches = [self._batch_of(queue, requests) for queue, requests in given]
        cached = [queue.cached for queue, _ in given]
        try:
            begin = partial(self._attempts.begin_together, batches, cached)
            at_once = attempt_on(self._entity, batches[0].key, begin)
        except BaseException as error:
            self._uncertain.fail(batches, error)
            raise
        for (queue, _), batch in zip(given, batches, strict=True):
            if batch.settled:
                self._note_outcome(queue, batch, None)
        goes_on = [
            partial(self._commit_each, *each, batch)
            for each, batch in zip(given, batches, strict=True)
        ]
        return list(zip(goes_on, at_once, strict=True))

    def _commit_batch(self, queue: ActionQueue, batch: ActionBatch) -> None:
        """Settle *batch*; or, if it is a chain with an error, leave it to be split."""
        try:
            try:
                attempts = partial(self._repeat, queue, batch)
                attempt_on(self._entity, queue.key, attempts)
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                splits = len(batch.requests) > 1 or isinstance(error, Awaits)
                if not (batch.chained and splits):
                    batch.fail(error)
        except BaseException as error:
            # If that is safe, the others of this batch are processed again.
            self._uncertain.fail([batch], error)
            raise

    def _commit_crowd(self, queue: ActionQueue, batches: list[ActionBatch]) -> None:
        """Commit *batches* under one row lock, or leave them to commit alone."""
        for batch in batches:
            batch.attempts = 1
        try:
            try:
                make = partial(self._attempts.make_locked, batches)
                outcomes = attempt_on(self._entity, queue.key, make)
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                queue.forget()
                self._uncertain.settle(batches, error)
                return
        except BaseException as error:
            self._uncertain.fail(batches, error)
            raise
        written = []
        for batch, outcome in zip(batches, outcomes, strict=False):
            if isinstance(outcome, StateConflict):
                self._note_outcome(queue, batch, outcome)
                continue
            batch.settle(outcome)
            written += [batch] * (batch.write is not None)
        if written:
            queue.note_commit(written[-1].next_baseline, written[0].baseline)

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
            self._uncertain.settle(batches, error)
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
                if not is_transient(error) and not is_undone_by_now(error):
                    raise
                cause = error
            seconds = monotonic() - began
            delay = self._retry.next_delay(number, seconds)
            if delay is None:
                batch.give_up(self._entity, cause, seconds)
                return
            behind = queue.waiting or len(batch.requests) - 1
            if behind and (self._locking(queue) or self._chains):
                # Under the row lock the next attempt wins, and a pause would delay the
                # queue. With an empty queue the pause lets other processes commit.
                delay = 0.0
            notify(self._hooks.retried, self._entity, batch.key, batch.attempts, delay)
            self._wait.sleep(delay)

    def _locking(self, queue: ActionQueue) -> bool:
        return self._lock_on_contention and queue.locks > 0

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
                self._uncertain.settle([batch], error)
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
            queue.note_conflict(batch.attempts, chains=self._chains)
            notify(self._hooks.conflicted, self._entity, conflict, batch.attempts)
        elif batch.write is not None:
            queue.note_commit(batch.next_baseline, batch.baseline)
