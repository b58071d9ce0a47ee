"""The loop: attempt after attempt, until the actions of a run are settled.

It decides what an attempt starts from (what is kept of the line, the row, or the locked
row), what a loss or an error means for the next one, and when to give up.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result

from .attempts import ClaimedBefore
from .commits import refused
from .errors import OutcomeUnknown, ReducerGaveUp
from .hooks import notify
from .nesting import attempt_on
from .races import StateConflict
from .runs import Doubt, Run
from .sqlstates import ErrorKind, classify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .attempts import Attempts
    from .hooks import Hooks
    from .retry import RetryPolicy
    from .runs import ActionLine, ActionTicket, Base
    from .statements import Statements
    from .waiting import Waiting


class ReducerLoop:
    """Commit actions of one key, or make one attempt for those of many.

    *remembers* says that there is a dedup log; *escalate* allows to lock rows.
    """

    def __init__(
        self,
        statements: Statements[Any],
        attempts: Attempts[Any],
        waiting: Waiting,
        hooks: Hooks,
        retry: RetryPolicy,
        *,
        remembers: bool,
        escalate: bool,
    ) -> None:
        self._statements = statements
        self._entity = statements.entity
        self._attempts = attempts
        self._wait = waiting
        self._hooks = hooks
        self._retry = retry
        self._remembers = remembers
        self._escalate = escalate

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
            with attempt_on(self._entity, line.key):
                retrying(self._attempt, line, run)
        except Exception as error:  # noqa: BLE001 - it is the callers'
            for ticket in tickets:
                ticket.fail(error)
        except BaseException as error:
            # Whoever serves was interrupted, and with it those whom it served.
            for ticket in tickets:
                ticket.fail(self._unknown(run, error))
            raise

    def commit_many(self, lines: Sequence[ActionLine], runs: list[Run]) -> None:
        """Make one attempt for *runs*, of *lines*; what loses is left unsettled."""
        for run in runs:
            run.attempts = 1
        try:
            with attempt_on(self._entity, runs[0].key):
                conflicts = self._attempts.make_many(runs)
        except Exception as error:  # noqa: BLE001 - each finds out by itself
            for line, run in zip(lines, runs, strict=True):
                line.forget()
                if self._in_doubt(run, error):
                    run.fail(self._unknown(run, error))
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
        return self._escalate and line.locks > 0

    def _note_retry(self, run: Run, call: RetryCallState) -> None:
        delay = call.upcoming_sleep
        notify(self._hooks.retried, self._entity, run.key, run.attempts, delay)

    def _give_up(self, run: Run, call: RetryCallState) -> None:
        assert call.outcome is not None  # noqa: S101
        error = call.outcome.exception()
        if run.doubt is not None:
            run.fail(self._unknown(run, error))
            return
        gave_up = ReducerGaveUp(
            self._entity,
            run.key,
            None if error else call.outcome.result(),
            run.attempts,
            call.seconds_since_start or 0.0,
        )
        gave_up.__cause__ = error or gave_up.conflict
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
                if self._in_doubt(run, error):
                    assert run.write is not None  # noqa: S101
                    run.doubt = Doubt(run.write, run.steps)
                if not isinstance(error, DBAPIError) or run.write is None:
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
            line.lost(run.attempts)
            notify(self._hooks.conflicted, self._entity, conflict, run.attempts)
        elif run.write is not None:
            line.won(run.written, run.base)

    def _in_doubt(self, run: Run, error: BaseException) -> bool:
        """Say whether *run* may be committed and nobody can tell.

        With a dedup log the next attempt can: it looks for its own claims.
        """
        return (
            not self._remembers
            and run.write is not None
            and classify(error, committing=True) is ErrorKind.UNKNOWN
        )

    def _unknown(self, run: Run, error: BaseException | None) -> OutcomeUnknown:
        write = run.doubt.write if run.doubt else run.write
        effects = (write.provenance.effect_id,) if write else ()
        unknown = OutcomeUnknown(self._entity, run.key, effects)
        unknown.__cause__ = error
        return unknown


def _is_conflict(result: StateConflict | None) -> bool:
    return result is not None


def _is_transient(error: BaseException) -> bool:
    return classify(error) is ErrorKind.TRANSIENT
