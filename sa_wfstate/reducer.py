"""ReducerService: read, reduce, commit, and again after a conflict.

::

    def reducer(state: OrderState, action: Action[Payment]) -> OrderState:
        return state.model_copy(update={"paid": state.paid + action.payload.amount})


    service = ReducerService(engine, Order, reducer, initial=OrderState)
    committed = service.handle(action)

The reducer is pure: it is given a state and an action and returns the next state, or a
Reduction of a state and intents. Everything else is done here. One attempt is

1. the state: what this process committed a moment ago, or else what is read now;
2. the reducer, with no connection held;
3. the compare-and-set, and in its transaction the claims of the dedup log and whatever
   else is to be written with it. Without those it is a single statement.

:mod:`sa_wfstate.attempts` makes it. Who waits for the same key in the same process, how
actions are folded, and when the row is locked against other processes is told in
:mod:`sa_wfstate.hotkeys`.
"""

from __future__ import annotations

from functools import partial
from inspect import iscoroutinefunction
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result

from .attempts import (
    ActionLine,
    ActionTicket,
    Attempts,
    Base,
    ClaimedBefore,
    Doubt,
    Handled,
    Run,
    Writer,
)
from .bulk import CHUNK
from .commits import refused
from .connections import Connections
from .dedup import TTL, ActionDedupMixin, DedupLog
from .errors import OutcomeUnknown, ReducerGaveUp, StateConflict
from .hooks import Hooks, notify
from .hotkeys import HotKeys
from .mixin import check_key
from .retry import RetryPolicy
from .sqlstates import ErrorKind, classify
from .statements import statements_of
from .waiting import Blocking, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from sqlalchemy import Engine
    from sqlalchemy.orm import sessionmaker

    from .actions import Action, Intent, Reducer
    from .snapshots import StateCommitted
    from .store import Entity

StateT = TypeVar("StateT")


class ReducerService(Generic[StateT]):
    """Handle actions of the workflows of one class with a pure *reducer*.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine.

    *retry* says how often an attempt is repeated. *initial*, called without arguments,
    makes the state of a workflow that does not exist yet; without it such an action
    raises WorkflowNotFound. *dedup* is the mapped class of a dedup log, *dedup_ttl* how
    long it remembers.

    *on_intents* is called with the outcome and the intents of each action that has any,
    once its commit is final, in the caller of handle(). If the process dies before,
    they are gone; what must not be lost is written by one of *writers*, which are
    called with the connection, the snapshot and the intents, inside the transaction of
    the commit.

    *fold* is the largest number of actions that wait for one key in this process and
    may be committed together, as one version whose provenance lists them all under
    "folded"; 1 folds nothing. *escalate* allows to lock the row of a key that other
    processes write too. *keep* is the number of keys whose last state is kept for a
    moment.
    *hooks* are told what happens.

    >>> service = ReducerService(engine, Order, reducer)  # doctest: +SKIP
    >>> service.handle(action).version  # doctest: +SKIP
    8
    """

    _waiting: ClassVar[type[Waiting]] = Blocking

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        entity: Entity[StateT],
        reducer: Reducer[StateT],
        *,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
        initial: Callable[[], StateT] | None = None,
        dedup: type[ActionDedupMixin] | None = None,
        dedup_ttl: timedelta = TTL,
        on_intents: Callable[[StateCommitted[StateT], Sequence[Intent]], Any]
        | None = None,
        writers: Iterable[Writer] = (),
        fold: int = 1,
        escalate: bool = True,
        keep: int = 1024,
        hooks: Hooks | None = None,
    ) -> None:
        if fold < 1:
            raise ValueError(f"fold must be 1 or more, got {fold}")
        self._wait = self._waiting()
        if isinstance(self._wait, Blocking) and iscoroutinefunction(reducer):
            raise TypeError(
                "the reducer is a coroutine function; take the ReducerService of "
                "sa_wfstate.asyncio"
            )
        self._statements = statements_of(entity)
        self._entity = self._statements.entity
        self._log = None if dedup is None else DedupLog(dedup, dedup_ttl)
        self._attempts = Attempts(
            self._statements,
            Connections(bind, self._statements.mapper),
            self._wait,
            reducer,
            initial=initial,
            log=self._log,
            writers=tuple(writers),
        )
        self._retry = retry
        self._on_intents = on_intents
        self._escalate = escalate
        self._hooks = hooks or Hooks()
        self._keys: HotKeys[Action[Any], Handled, Base] = HotKeys(
            self._wait, self._work, fold=fold, keep=keep
        )

    def handle(self, action: Action[Any]) -> StateCommitted[StateT]:
        """Commit what the reducer makes of *action*, and return when that is final.

        With a dedup log an action that was processed before gives the outcome of that
        time again, with ``replayed=True``.

        Raises ReducerGaveUp when the retry policy is exhausted, WorkflowNotFound,
        ActionIdReused, PayloadError if the new state cannot be stored, and whatever the
        reducer raises; nothing is written then. When the answer to the commit is lost,
        what became of it is found out: it comes back with ``replayed=True`` if it was
        done. OutcomeUnknown is raised if that cannot be known any more, which a dedup
        log rules out.
        """
        check_key(self._entity, action.workflow_key)
        started = monotonic()
        notify(self._hooks.started, self._entity, action)
        ticket = self._keys.ticket(action, action.action_id)
        try:
            self._keys.submit(action.workflow_key, ticket)
            handled = ticket.result()
        except ReducerGaveUp as error:
            seconds = monotonic() - started
            notify(self._hooks.gave_up, self._entity, action, error, seconds)
            raise
        return self._conclude(action, handled, started)

    def handle_many(
        self, actions: Iterable[Action[Any]]
    ) -> list[StateCommitted[StateT] | Exception]:
        """Handle *actions* in few transactions; return one result each, in their order.

        Actions of one key are folded, in the order given, and many keys are committed
        by one statement. What loses there goes through :meth:`handle`, one by one. An
        error of one action is returned in its place and does not keep the others from
        being committed.
        """
        given = list(actions)
        started = monotonic()
        results: dict[int, StateCommitted[StateT] | Exception] = {}
        batch: dict[str, dict[Any, int]] = {}
        for number, action in enumerate(given):
            batch.setdefault(action.workflow_key, {}).setdefault(
                action.action_id, number
            )
        keys = list(batch)
        for start in range(0, len(keys), CHUNK):
            runs = [
                Run(
                    key,
                    [
                        self._keys.ticket(given[number], number)
                        for number in batch[key].values()
                    ],
                )
                for key in keys[start : start + CHUNK]
            ]
            tickets = [ticket for run in runs for ticket in run.tickets]
            self._attempt_many(runs)
            for ticket in tickets:
                if ticket.settled:
                    number = batch[ticket.item.workflow_key][ticket.item.action_id]
                    results[number] = self._result(ticket, started)
        for number, action in enumerate(given):
            if number not in results:
                try:
                    results[number] = self.handle(action)
                except Exception as error:  # noqa: BLE001 - it is returned
                    results[number] = error
        return [results[number] for number in range(len(given))]

    def _result(
        self, ticket: ActionTicket, started: float
    ) -> StateCommitted[StateT] | Exception:
        notify(self._hooks.started, self._entity, ticket.item)
        try:
            return self._conclude(ticket.item, ticket.result(), started)
        except Exception as error:  # noqa: BLE001 - it is returned
            return error

    def _attempt_many(self, runs: list[Run]) -> None:
        for run in runs:
            run.attempts = 1
        try:
            self._attempts.make_many(runs)
        except (ClaimedBefore, StateConflict):
            return  # One by one each of them finds out what it is.
        except (DBAPIError, OSError) as error:
            for run in runs:
                if self._in_doubt(run, error):
                    for ticket in run.tickets:
                        ticket.fail(self._unknown(run, error))

    def _conclude(
        self, action: Action[Any], handled: Handled, started: float
    ) -> StateCommitted[StateT]:
        outcome = handled.outcome
        hook = self._hooks.duplicate if outcome.replayed else self._hooks.committed
        notify(hook, self._entity, action, outcome, monotonic() - started)
        self._hand_over(handled)
        return outcome

    def _hand_over(self, handled: Handled) -> None:
        if self._on_intents is not None and handled.intents:
            self._wait.call(self._on_intents, handled.outcome, handled.intents)

    def _work(self, line: ActionLine, tickets: list[ActionTicket]) -> None:
        """Commit the actions of *tickets* together; settle each of them."""
        run = Run(line.key, tickets)
        retrying = Retrying(
            retry=retry_if_result(_is_conflict) | retry_if_exception(_is_transient),
            wait=partial(self._pause, line),
            stop=self._retry.stop,
            sleep=self._wait.sleep,
            before_sleep=partial(self._note_retry, line),
            retry_error_callback=partial(self._give_up, run),
        )
        try:
            retrying(self._attempt, line, run)
        except Exception as error:  # noqa: BLE001 - it is the callers'
            for ticket in tickets:
                ticket.fail(error)
        except BaseException as error:
            # Whoever serves was interrupted, and with it those whom it served.
            for ticket in tickets:
                ticket.fail(self._unknown(run, error))
            raise
        for ticket in tickets:
            if ticket.abandoned and ticket.settled:
                self._hand_over(ticket.result())

    def _pause(self, line: ActionLine, call: RetryCallState) -> float:
        pause = self._retry.wait(call)
        # Under the lock of the row the next attempt wins: nothing to wait for.
        return 0.0 if self._locking(line) and pause < float("inf") else pause

    def _locking(self, line: ActionLine) -> bool:
        return self._escalate and line.locks > 0

    def _note_retry(self, line: ActionLine, call: RetryCallState) -> None:
        attempt, delay = call.attempt_number, call.upcoming_sleep
        notify(self._hooks.retried, self._entity, line.key, attempt, delay)

    def _give_up(self, run: Run, call: RetryCallState) -> None:
        assert call.outcome is not None  # noqa: S101
        error = call.outcome.exception()
        if run.doubt is not None:
            for ticket in run.tickets:
                ticket.fail(self._unknown(run, error))
            return
        gave_up = ReducerGaveUp(
            self._entity,
            run.key,
            None if error else call.outcome.result(),
            call.attempt_number,
            call.seconds_since_start or 0.0,
        )
        gave_up.__cause__ = error or gave_up.conflict
        for ticket in run.tickets:
            ticket.fail(gave_up)

    def _attempt(self, line: ActionLine, run: Run) -> StateConflict | None:
        run.attempts += 1
        conflict = None
        while run.tickets:
            lock = self._locking(line)
            try:
                conflict = self._attempts.make(
                    run, kept=None if lock else line.kept, lock=lock
                )
            except ClaimedBefore:
                line.forget()  # To be read again, and the log with it.
                continue
            except StateConflict as refusal:
                conflict = refusal
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
            break
        if conflict is not None:
            line.lost(run.attempts)
            notify(self._hooks.conflicted, self._entity, conflict, run.attempts)
        elif run.write is not None:
            effect_id = run.write.provenance.effect_id
            line.won(
                Base(run.write.version, run.write.state_text, effect_id, kept=True)
            )
        return conflict

    def _in_doubt(self, run: Run, error: BaseException) -> bool:
        """Say whether *run* may be committed and nobody can tell.

        With a dedup log the next attempt can: it looks for its own claims.
        """
        return (
            self._log is None
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
