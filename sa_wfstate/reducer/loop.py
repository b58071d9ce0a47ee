"""The loop: attempt after attempt, until the actions of a run are settled.

It decides what an attempt starts from (what is kept of the line, the row, or the locked
row), what a loss or an error means for the next one, and when to give up.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result

from ..errors import OutcomeUnknown, ReducerGaveUp, StateConflict
from ..hooks.base import notify
from ..retry import ErrorKind, classify
from ..store.compare_and_set import refused
from .attempt import ClaimedBefore
from .nesting import attempt_on
from .run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .._concurrency import Waiting
    from ..hooks.base import Hooks
    from ..retry import RetryPolicy
    from ..row.statements import Statements
    from .attempt import Attempts
    from .run import ActionLine, ActionTicket, Base


class ReducerLoop:
    """Commit actions of one key, or make one attempt for those of many.

    *resolve* limits the search for the outcome of an unanswered COMMIT;
    *lock_on_contention* allows to lock rows.
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
    ) -> None:
        self._statements = statements
        self._entity = statements.entity
        self._attempts = attempts
        self._wait = waiting
        self._hooks = hooks
        self._retry = retry
        self._resolve = resolve
        self._lock_on_contention = lock_on_contention

    def commit(self, line: ActionLine, tickets: list[ActionTicket]) -> None:
        """Commit the actions of *tickets* together; settle each of them."""
        run = Run(line.key, tickets)
        retrying = Retrying(
            retry=retry_if_result(_is_conflict) | retry_if_exception(_is_transient),
            wait=partial(self._pause, line),
            stop=self._retry.stop,
            sleep=self._wait.sleep,
            before_sleep=partial(self._note_retry, run),
            retry_error_callback=partial(self._give_up, run),
        )
        try:
            try:
                attempt = partial(retrying, self._attempt, line, run)
                attempt_on(self._entity, line.key, attempt)
            except Exception as error:  # noqa: BLE001 - it is the callers'
                run.fail(error)
        except BaseException as error:
            # The others of this batch are served by the next, if that is safe.
            if run.committing:
                run.fail(self._unknown(run, error))
            raise

    def commit_many(self, lines: Sequence[ActionLine], runs: list[Run]) -> None:
        """Make one attempt for *runs*, of *lines*; what loses is left unsettled."""
        for run in runs:
            run.attempts = 1
        try:
            make = partial(self._attempts.make_many, runs)
            conflicts = attempt_on(self._entity, runs[0].key, make)
        except Exception as error:  # noqa: BLE001 - each finds out by itself
            for line in lines:
                line.forget()
            self._find_out(runs, error)
        else:
            for line, run, conflict in zip(lines, runs, conflicts, strict=True):
                self._note_outcome(line, run, conflict)

    def _pause(self, line: ActionLine, call: RetryCallState) -> float:
        pause = self._retry.wait(call)
        # Under the lock of the row the next attempt wins, and a pause would hold up
        # those who wait. Where nobody does, it leaves the row to the others.
        hurry = self._locking(line) and line.waiting and pause < float("inf")
        return 0.0 if hurry else pause

    def _locking(self, line: ActionLine) -> bool:
        return self._lock_on_contention and line.locks > 0

    def _note_retry(self, run: Run, call: RetryCallState) -> None:
        delay = call.upcoming_sleep
        notify(self._hooks.retried, self._entity, run.key, run.attempts, delay)

    def _give_up(self, run: Run, call: RetryCallState) -> None:
        assert call.outcome is not None  # noqa: S101
        seconds = call.seconds_since_start or 0.0
        gave_up = ReducerGaveUp(
            self._entity, run.key, run.conflict, run.attempts, seconds
        )
        gave_up.__cause__ = call.outcome.exception() or run.conflict
        run.fail(gave_up)

    def _attempt(self, line: ActionLine, run: Run) -> StateConflict | None:
        """Make one attempt; another one at once if it started from what had been old.

        That it still stood was a guess. It being wrong is no sign of a race: no reason
        to pause, nor one of the attempts that the policy allows.
        """
        while True:
            run.attempts += 1
            began, known_since = monotonic(), line.known_since
            lock = self._locking(line)
            conflict = self._try(line, run, None if lock else line.kept, lock=lock)
            self._note_outcome(line, run, conflict)
            # Somebody has written between the last commit here and the end of this
            # attempt: before it rather than during it, if that was the longer time.
            if (
                conflict is None
                or not run.base.kept
                or began - known_since < monotonic() - began
            ):
                return conflict

    def _try(
        self, line: ActionLine, run: Run, kept: Base | None, *, lock: bool
    ) -> StateConflict | None:
        while run.tickets:
            try:
                return self._attempts.make(run, kept=kept, lock=lock)
            except ClaimedBefore:
                line.forget()
                kept = None  # To be read again, and the log with it.
            except StateConflict as refusal:
                return refusal
            except (DBAPIError, OSError) as error:
                line.forget()
                self._find_out([run], error)
                if run.settled:
                    return None
                if run.write is None:
                    raise
                conflict = refused(self._statements, run.write, error)
                if conflict is None:
                    raise
                return conflict
        return None

    def _note_outcome(
        self, line: ActionLine, run: Run, conflict: StateConflict | None
    ) -> None:
        if conflict is not None:
            run.conflict = conflict
            line.lost(run.attempts)
            notify(self._hooks.conflicted, self._entity, conflict, run.attempts)
        elif run.write is not None:
            line.won(run.written, run.base)

    def _find_out(self, runs: Sequence[Run], error: BaseException) -> None:
        """Settle those of *runs* that are committed, or of which it cannot be known."""
        if classify(error, committing=True) is not ErrorKind.UNKNOWN:
            return
        doubtful = [run for run in runs if run.committing and run.write is not None]

        def look() -> None:
            while doubtful:
                run = doubtful[0]
                if self._attempts.find_out(run) is None:
                    run.fail(self._unknown(run, error))
                if run.settled:
                    run.begin()  # What it has written may be old by now.
                del doubtful[0]

        retrying = Retrying(
            stop=self._resolve.stop,
            wait=self._resolve.wait,
            sleep=self._wait.sleep,
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            retrying(look)
        except (DBAPIError, OSError, PoolTimeoutError):
            for run in doubtful:
                run.fail(self._unknown(run, error))
                run.begin()

    def _unknown(self, run: Run, error: BaseException) -> OutcomeUnknown:
        effects = (run.write.provenance.effect_id,) if run.write else ()
        unknown = OutcomeUnknown(self._entity, run.key, effects)
        unknown.__cause__ = error
        return unknown


def _is_conflict(result: StateConflict | None) -> bool:
    return result is not None


def _is_transient(error: BaseException) -> bool:
    return classify(error) is ErrorKind.TRANSIENT
