"""ReducerService: read, reduce, commit, and retry after a conflict.

::

    def reducer(state: OrderState, action: Action[Payment]) -> OrderState:
        return state.model_copy(update={"paid": state.paid + action.payload.amount})


    service = ReducerService(engine, Order, reducer, initial=OrderState)
    committed = service.handle(action)

The reducer is a pure function of a state and an action; it returns the next state, or a
Reduction of a state and intents. One attempt

1. takes the state that this process has just committed, or reads it;
2. calls the reducer, without a connection;
3. does the compare-and-set; its transaction also has the claims of the dedup log and
   the writers. Without those it is a single statement.

An action passes through these modules:

* :mod:`sa_wfstate.reducer.contention` lets the callers of one process that want the
  same key take turns; a :mod:`queue <sa_wfstate.reducer.key_queue>` caches the state
  that was committed last, and decides whether to lock the row against other processes;
* :mod:`sa_wfstate.reducer.loop` repeats attempts until one is committed, or gives up;
* :mod:`sa_wfstate.reducer.attempt` makes one attempt, and
  :mod:`sa_wfstate.reducer.reductions` calls the reducer;
* :mod:`sa_wfstate.reducer.rounds` lets tasks of asyncio start attempts together;
* :mod:`sa_wfstate.store.groups` lets what arrives meanwhile be read, and committed,
  together (:mod:`~sa_wfstate.reducer.readings`, :mod:`~sa_wfstate.reducer.commits`).
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .._concurrency import (
    Awaiting,
    Blocking,
    Waiting,
    raised_by_signal_handler,
    require_at_least,
)
from ..errors import QueueFull, ReducerGaveUp
from ..hooks.base import Hooks, notify
from ..orm.entity import statements_of
from ..payload.actions import PayloadT
from ..retry import RetryPolicy, require_policies
from ..row.claims import TTL, DedupLog
from ..store.connections import Connections
from .arguments import check_action, check_service
from .attempt import Attempts
from .contention import KeyQueues
from .dependencies import Dependencies, dependencies_of
from .loop import ReducerLoop
from .many import ManyActions
from .nesting import refuse_nested
from .reductions import Reductions
from .rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from sqlalchemy import Engine
    from sqlalchemy.orm import sessionmaker

    from ..dedup import ActionDedupMixin
    from ..payload.actions import Action, Intent, Reducer
    from ..store.api import Entity
    from ..values.snapshot import StateCommitted
    from .action_batch import ActionRequest, ActionResult, Baseline
    from .commits import Writer


StateT = TypeVar("StateT")


class ReducerService(Generic[StateT, PayloadT]):
    """Handle actions of the workflows of one class with a pure *reducer*.

    What a reducer reads beside its state, it names by
    :func:`~sa_wfstate.versions.depends_on`.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine.

    *retry* limits the attempts. *resolve* limits the search for the outcome of a commit
    whose answer is lost. *initial*, called without arguments, makes the state of a
    workflow that does not exist yet; without it such an action raises WorkflowNotFound.
    *dedup* is the mapped class of a dedup log, *dedup_ttl* how long its rows are kept.

    *on_intents* is called with the outcome and the intents of each action that has any,
    once its commit is final, in the caller of handle(). If the process dies before,
    they are lost; intents that must not be lost are written by one of *writers* (a
    transactional outbox), which are called with the connection, the snapshot and the
    intents, inside the transaction of the commit. Without either a reducer that returns
    intents is refused.

    *fold* is the largest number of actions that wait for one key in this process and
    may be committed together, as one version whose provenance lists them all under
    "folded"; 1 folds nothing. *lock_on_contention* allows to lock the row of a key that
    other processes write too. *lock_limit* is the number of seconds for which the
    reducer, or a writer, may hold the lock of a row: after that the database ends the
    transaction, and the attempt is lost. *cache_size* is the number of keys whose last
    state is cached, for a second. *hooks* are called as actions are handled.

    Where *bind* is an Engine of PostgreSQL, actions of different keys that arrive while
    others are committed are committed together: *group* keys at most; 1 turns that off.
    With *dedup* alone, those that wait for one key are committed by one statement then,
    each as a version of its own.
    With *queue_limit* an action is refused while as many others wait.

    >>> service = ReducerService(engine, Order, reducer)  # doctest: +SKIP
    >>> service.handle(action).version  # doctest: +SKIP
    8
    """

    _waiting: ClassVar[type[Waiting]] = Blocking
    _rounds: Rounds[Action[Any], ActionResult, Baseline] | None = None

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        entity: Entity[StateT],
        reducer: Reducer[StateT, PayloadT],
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
        group: int = 100,
        queue_limit: int | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        require_at_least(1, fold=fold, group=group, queue_limit=queue_limit or 1)
        if not 0 < lock_limit < float("inf"):
            raise ValueError(f"lock_limit must be positive, got {lock_limit}")
        check_service(reducer, dedup)
        require_policies(retry=retry, resolve=resolve)
        writers = tuple(writers)
        self._hooks = hooks or Hooks()
        self._wait = self._waiting()
        self._depends = dependencies_of(reducer) is not None
        function = getattr(reducer, "function", reducer)
        if isinstance(self._wait, Blocking) and iscoroutinefunction(function):
            raise TypeError(
                "the reducer is a coroutine function; use the ReducerService of "
                "sa_wfstate.asyncio"
            )
        self._statements = statements_of(entity)
        self._entity = self._statements.entity
        connections = Connections(bind, self._statements.mapper)
        dependencies = Dependencies(self._statements, connections)
        attempts = Attempts(
            self._statements,
            connections,
            Reductions(
                self._statements,
                self._wait,
                reducer,
                initial,
                dependencies=dependencies,
                takes_intents=on_intents is not None or bool(writers),
            ),
            self._wait,
            dependencies=dependencies,
            log=None
            if dedup is None
            else DedupLog(dedup, dedup_ttl, self._statements.key_type),
            writers=writers,
            lock_limit=lock_limit,
            group=group,
            departing=self._grouped,
        )
        self._on_intents = on_intents
        self._queue_limit = queue_limit
        self._loop = ReducerLoop(
            self._statements,
            attempts,
            self._wait,
            self._hooks,
            retry,
            resolve=resolve,
            # Locked before it is read, its row is out of the order of what it reads.
            lock_on_contention=lock_on_contention and not self._depends,
            fold=fold,
        )
        self._keys: KeyQueues[Action[Any], ActionResult, Baseline] = KeyQueues(
            self._wait,
            self._loop.commit,
            self._deliver_abandoned,
            most=self._loop.most,
            cache_size=cache_size,
        )
        if isinstance(self._wait, Awaiting) and attempts.most > 1:
            self._rounds = Rounds(
                self._wait,
                self._keys,
                self._loop.start_together,
                self._loop.starts_together,
                most=attempts.most,
            )
            self._keys.start_in(self._rounds)
        self._many = ManyActions(self._entity, self._keys, self._loop, self._with_key)

    def handle(self, action: Action[PayloadT]) -> StateCommitted[StateT]:
        """Commit the state that the reducer returns for *action*.

        With a dedup log an action that was processed before gets its first outcome
        again, with ``replayed=True``.

        Raises ReducerGaveUp when the retry policy is exhausted, NestedHandle if called
        by a reducer or a writer, WorkflowNotFound, ActionIdReused, QueueFull,
        PayloadError if the new state cannot be stored or its intents have no receiver,
        and any error of the reducer; nothing is written then. When the answer to the
        commit is lost, its outcome is looked up, also after the last attempt: if it was
        committed, it is returned with ``replayed=True`` and its intents are delivered.
        OutcomeUnknown is raised if the database stays out of reach, or if the row has a
        later version and there is no dedup log.
        """
        action, request, started = self._begin(action)
        try:
            self._keys.submit(action.workflow_key, request)
            result = request.result()
        except ReducerGaveUp as error:
            self._tell(action, error, started)
            raise
        return self._conclude(action, result, started)

    def handle_many(
        self, actions: Iterable[Action[PayloadT]]
    ) -> list[StateCommitted[StateT] | Exception]:
        """Handle *actions* in few transactions; return one result each, in their order.

        Actions of one key are folded, in the order given, and many keys are committed
        by one statement, which holds the queues of these keys. After a conflict the
        actions of its key go through :meth:`handle`, one by one. An error of one action
        is returned in its place; the others are committed. Those of a reducer that
        depends_on() other workflows all go through handle().
        """
        started = monotonic()
        given = list(actions)
        for action in given:
            check_action(action)
        settled = [] if self._depends else self._many.commit(given)
        results = {n: self._result(each, started) for n, each in settled}
        for number, action in enumerate(given):
            if number not in results:
                try:
                    results[number] = self.handle(action)
                except Exception as error:
                    if raised_by_signal_handler(error):
                        raise
                    results[number] = error
        return [results[number] for number in range(len(given))]

    def _begin(self, action: Action[Any]) -> tuple[Action[Any], ActionRequest, float]:
        check_action(action)
        action = self._with_key(action)
        refuse_nested(self._entity, action.workflow_key)
        if self._queue_limit is not None and self._keys.waiting >= self._queue_limit:
            raise QueueFull(self._entity, action.workflow_key, self._queue_limit)
        started = monotonic()
        notify(self._hooks.started, self._entity, action)
        return action, self._keys.request(action, action.action_id), started

    def _tell(self, action: Action[Any], error: ReducerGaveUp, started: float) -> None:
        seconds = monotonic() - started
        notify(self._hooks.gave_up, self._entity, action, error, seconds)

    def _grouped(self, size: int, waiting: int, seconds: float) -> None:
        waiting += self._rounds.waiting if self._rounds else 0
        notify(self._hooks.grouped, self._entity, size, waiting, seconds)

    def _with_key(self, action: Action[Any]) -> Action[Any]:
        """Return *action* with a key of the class; it may be given as its text."""
        statements = self._statements
        key = statements.key_type.parse(self._entity, action.workflow_key)
        if key is action.workflow_key:
            return action
        return action.model_copy(update={"workflow_key": key})

    def _result(
        self, request: ActionRequest, started: float
    ) -> StateCommitted[StateT] | Exception:
        notify(self._hooks.started, self._entity, request.item)
        try:
            return self._conclude(request.item, request.result(), started)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            return error

    def _conclude(
        self, action: Action[Any], result: ActionResult, started: float
    ) -> StateCommitted[StateT]:
        outcome = result.outcome
        hook = self._hooks.duplicate if outcome.replayed else self._hooks.committed
        notify(hook, self._entity, action, outcome, monotonic() - started)
        self._deliver(result)
        return outcome

    def _deliver(self, result: ActionResult) -> None:
        if self._on_intents is not None and result.intents:
            self._wait.call(self._on_intents, result.outcome, result.intents)

    def _deliver_abandoned(self, request: ActionRequest) -> None:
        if request.succeeded:
            notify(self._deliver, request.result())  # No caller gets an error.
