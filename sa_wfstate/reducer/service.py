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

An action's way from handle() to its commit, room by room:

* :mod:`sa_wfstate.reducer.contention` lets the callers of one process that want the
  same key take turns; a :mod:`queue <sa_wfstate.reducer.key_queue>` knows what was
  committed last, and whether to lock the row against other processes;
* :mod:`sa_wfstate.reducer.loop` repeats attempts until one wins, or gives up;
* :mod:`sa_wfstate.reducer.attempt` makes one attempt, in the database;
* :mod:`sa_wfstate.reducer.reductions` calls the reducer, from row to row;
* :mod:`sa_wfstate.reducer.run` holds what is passed between them.
"""

from __future__ import annotations

from functools import partial
from inspect import iscoroutinefunction
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .._concurrency import Blocking, Waiting
from ..dedup import TTL, ActionDedupMixin, DedupLog
from ..errors import ReducerGaveUp
from ..hooks.base import Hooks, notify
from ..orm.entity import statements_of
from ..retry import RetryPolicy
from ..row.chunks import CHUNK
from ..row.keys import check_key
from ..store.connections import Connections
from .attempt import Attempts
from .contention import HotKeys
from .loop import ReducerLoop
from .nesting import refuse_nested
from .reductions import Reductions
from .run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import timedelta

    from sqlalchemy import Engine
    from sqlalchemy.orm import sessionmaker

    from ..payload.actions import Action, Intent, Reducer
    from ..store.api import Entity
    from ..values.snapshot import StateCommitted
    from .attempt import Writer
    from .run import ActionLine, ActionTicket, Base, Handled


StateT = TypeVar("StateT")


class ReducerService(Generic[StateT]):
    """Handle actions of the workflows of one class with a pure *reducer*.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine.

    *retry* says how often an attempt is repeated. When the answer to a commit is lost,
    *resolve* says for how long and how often to ask again. *initial*, called without
    arguments, makes the state of a workflow that does not exist yet; without it such an
    action raises WorkflowNotFound. *dedup* is the mapped class of a dedup log,
    *dedup_ttl* how long it remembers.

    *on_intents* is called with the outcome and the intents of each action that has any,
    once its commit is final, in the caller of handle(). If the process dies before,
    they are gone; what must not be lost is written by one of *writers*, which are
    called with the connection, the snapshot and the intents, inside the transaction of
    the commit. Without either a reducer that returns intents is refused.

    *fold* is the largest number of actions that wait for one key in this process and
    may be committed together, as one version whose provenance lists them all under
    "folded"; 1 folds nothing. *lock_on_contention* allows to lock the row of a key that
    other processes write too. *lock_limit* is the number of seconds for which the
    reducer, or a writer, may hold the lock of a row: after that the database ends the
    transaction, and the attempt is lost. *cache_size* is the number of keys whose last
    state is cached, for a second. *hooks* are called as actions are handled.

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
        resolve: RetryPolicy = RetryPolicy.for_lock_wait(),  # noqa: B008 - it is frozen
        initial: Callable[[], StateT] | None = None,
        dedup: type[ActionDedupMixin] | None = None,
        dedup_ttl: timedelta = TTL,
        on_intents: Callable[[StateCommitted[StateT], Sequence[Intent]], Any]
        | None = None,
        writers: Iterable[Writer] = (),
        fold: int = 1,
        lock_on_contention: bool = True,
        lock_limit: float = 10.0,
        cache_size: int = 1024,
        hooks: Hooks | None = None,
    ) -> None:
        if fold < 1:
            raise ValueError(f"fold must be 1 or more, got {fold}")
        if not 0 < lock_limit < float("inf"):
            raise ValueError(f"lock_limit must be positive, got {lock_limit}")
        writers = tuple(writers)
        self._wait = self._waiting()
        if isinstance(self._wait, Blocking) and iscoroutinefunction(reducer):
            raise TypeError(
                "the reducer is a coroutine function; take the ReducerService of "
                "sa_wfstate.asyncio"
            )
        self._statements = statements_of(entity)
        self._entity = self._statements.entity
        attempts = Attempts(
            self._statements,
            Connections(bind, self._statements.mapper),
            Reductions(
                self._statements,
                self._wait,
                reducer,
                initial,
                takes_intents=on_intents is not None or bool(writers),
            ),
            log=None if dedup is None else DedupLog(dedup, dedup_ttl),
            writers=writers,
            lock_limit=lock_limit,
        )
        self._on_intents = on_intents
        self._hooks = hooks or Hooks()
        self._loop = ReducerLoop(
            self._statements,
            attempts,
            self._wait,
            self._hooks,
            retry,
            resolve=resolve,
            lock_on_contention=lock_on_contention,
        )
        self._keys: HotKeys[Action[Any], Handled, Base] = HotKeys(
            self._wait,
            self._loop.commit,
            self._hand_over_orphan,
            fold=fold,
            cache_size=cache_size,
        )

    def handle(self, action: Action[Any]) -> StateCommitted[StateT]:
        """Commit what the reducer makes of *action*, and return when that is final.

        With a dedup log an action that was processed before gives the outcome of that
        time again, with ``replayed=True``.

        Raises ReducerGaveUp when the retry policy is exhausted, NestedHandle if it is
        called by a reducer or a writer, WorkflowNotFound, ActionIdReused, PayloadError
        if the new state cannot be stored or its intents have no taker, and whatever the
        reducer raises; nothing is written then. When the answer to the commit is lost,
        what became of it is found out, also after the last attempt: if it was done, it
        comes back with ``replayed=True`` and its intents are handed over.
        OutcomeUnknown is raised if the database stays out of reach, or if the row has
        moved on since and there is no dedup log to tell.
        """
        check_key(self._entity, action.workflow_key)
        refuse_nested(self._entity, action.workflow_key)
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
        by one statement. Meanwhile it stands in the lines of these keys. What loses
        there goes through :meth:`handle`, one by one. An error of one action is
        returned in its place and does not keep the others from being committed.
        """
        given = list(actions)
        started = monotonic()
        results: dict[int, StateCommitted[StateT] | Exception] = {}
        batch: dict[str, dict[Any, int]] = {}
        for number, action in enumerate(given):
            batch.setdefault(action.workflow_key, {}).setdefault(
                action.action_id, number
            )
        if given:
            refuse_nested(self._entity, given[0].workflow_key)
        pending = list(batch)
        while pending:
            work = partial(self._commit_lines, given, batch)
            tickets = self._keys.hold(pending[:CHUNK], work)
            held = {ticket.item.workflow_key for ticket in tickets.values()}
            pending = [key for key in pending if key not in held]
            for number, ticket in tickets.items():
                if ticket.settled:
                    results[number] = self._result(ticket, started)
        for number, action in enumerate(given):
            if number not in results:
                try:
                    results[number] = self.handle(action)
                except Exception as error:  # noqa: BLE001 - it is returned
                    results[number] = error
        return [results[number] for number in range(len(given))]

    def _commit_lines(
        self,
        given: Sequence[Action[Any]],
        batch: Mapping[str, Mapping[Any, int]],
        lines: Sequence[ActionLine],
    ) -> dict[int, ActionTicket]:
        """Commit what *batch* has for *lines*; return its tickets, by their number."""
        tickets = {
            number: self._keys.ticket(given[number], number)
            for line in lines
            for number in batch[line.key].values()
        }
        runs = [
            Run(line.key, [tickets[n] for n in batch[line.key].values()])
            for line in lines
        ]
        self._loop.commit_many(lines, runs)
        return tickets

    def _result(
        self, ticket: ActionTicket, started: float
    ) -> StateCommitted[StateT] | Exception:
        notify(self._hooks.started, self._entity, ticket.item)
        try:
            return self._conclude(ticket.item, ticket.result(), started)
        except Exception as error:  # noqa: BLE001 - it is returned
            return error

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

    def _hand_over_orphan(self, ticket: ActionTicket) -> None:
        if ticket.succeeded:
            notify(self._hand_over, ticket.result())  # Nobody is there to be told.
