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
* :mod:`sa_wfstate.reducer.attempt` makes one attempt, in the database;
* :mod:`sa_wfstate.reducer.reductions` calls the reducer;
* :mod:`sa_wfstate.reducer.action_batch` has the records that are passed between them.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from inspect import iscoroutinefunction
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .._concurrency import Blocking, Waiting, raised_by_signal_handler
from ..dedup import TTL, ActionDedupMixin, DedupLog
from ..errors import PayloadError, ReducerGaveUp
from ..hooks.base import Hooks, notify
from ..orm.entity import statements_of
from ..retry import RetryPolicy, require_policies
from ..row.chunks import CHUNK
from ..store.connections import Connections
from .action_batch import ActionBatch
from .arguments import check_action, check_service
from .attempt import Attempts
from .contention import KeyQueues
from .loop import ReducerLoop
from .nesting import refuse_nested
from .reductions import Reductions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import timedelta

    from sqlalchemy import Engine
    from sqlalchemy.orm import sessionmaker

    from ..payload.actions import Action, Intent, Reducer
    from ..store.api import Entity
    from ..values.snapshot import StateCommitted
    from .action_batch import ActionQueue, ActionRequest, ActionResult, Baseline
    from .attempt import Writer


StateT = TypeVar("StateT")


class ReducerService(Generic[StateT]):
    """Handle actions of the workflows of one class with a pure *reducer*.

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
        check_service(reducer, dedup)
        require_policies(retry=retry, resolve=resolve)
        writers = tuple(writers)
        self._wait = self._waiting()
        if isinstance(self._wait, Blocking) and iscoroutinefunction(reducer):
            raise TypeError(
                "the reducer is a coroutine function; use the ReducerService of "
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
            log=None
            if dedup is None
            else DedupLog(dedup, dedup_ttl, self._statements.key_type),
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
        self._keys: KeyQueues[Action[Any], ActionResult, Baseline] = KeyQueues(
            self._wait,
            self._loop.commit,
            self._deliver_abandoned,
            fold=fold,
            cache_size=cache_size,
        )

    def handle(self, action: Action[Any]) -> StateCommitted[StateT]:
        """Commit the state that the reducer returns for *action*.

        With a dedup log an action that was processed before gets its first outcome
        again, with ``replayed=True``.

        Raises ReducerGaveUp when the retry policy is exhausted, NestedHandle if called
        by a reducer or a writer, WorkflowNotFound, ActionIdReused, PayloadError if the
        new state cannot be stored or its intents have no receiver, and any error of the
        reducer; nothing is written then. When the answer to the commit is lost, its
        outcome is looked up, also after the last attempt: if it was committed, it is
        returned with ``replayed=True`` and its intents are delivered. OutcomeUnknown is
        raised if the database stays out of reach, or if the row has a later version and
        there is no dedup log.
        """
        check_action(action)
        action = self._with_key(action)
        refuse_nested(self._entity, action.workflow_key)
        started = monotonic()
        notify(self._hooks.started, self._entity, action)
        request = self._keys.request(action, action.action_id)
        try:
            self._keys.submit(action.workflow_key, request)
            result = request.result()
        except ReducerGaveUp as error:
            seconds = monotonic() - started
            notify(self._hooks.gave_up, self._entity, action, error, seconds)
            raise
        return self._conclude(action, result, started)

    def handle_many(
        self, actions: Iterable[Action[Any]]
    ) -> list[StateCommitted[StateT] | Exception]:
        """Handle *actions* in few transactions; return one result each, in their order.

        Actions of one key are folded, in the order given, and many keys are committed
        by one statement, which holds the queues of these keys. After a conflict the
        actions of its key go through :meth:`handle`, one by one. An error of one action
        is returned in its place; the others are committed.
        """
        given = list(actions)
        started = monotonic()
        results: dict[int, StateCommitted[StateT] | Exception] = {}
        for action in given:
            check_action(action)
        by_key = self._by_key(given)
        if given:
            refuse_nested(self._entity, given[0].workflow_key)
        pending = list(by_key)
        while pending:
            work = partial(self._commit_queues, given, by_key)
            requests = self._keys.hold(pending[:CHUNK], work)
            held = {request.item.workflow_key for request in requests.values()}
            pending = [key for key in pending if key not in held]
            for number, request in requests.items():
                if request.settled:
                    results[number] = self._result(request, started)
        for number, action in enumerate(given):
            if number not in results:
                try:
                    results[number] = self.handle(action)
                except Exception as error:
                    if raised_by_signal_handler(error):
                        raise
                    results[number] = error
        return [results[number] for number in range(len(given))]

    def _by_key(self, given: list[Action[Any]]) -> dict[Any, dict[Any, int]]:
        """Return the numbers of the actions *given*, by key and action id.

        They get keys of the class; one that cannot is left to :meth:`handle`.
        """
        by_key: dict[Any, dict[Any, int]] = {}
        for number, action in enumerate(given):
            with suppress(PayloadError):
                given[number] = keyed = self._with_key(action)
                of_key = by_key.setdefault(keyed.workflow_key, {})
                of_key.setdefault(action.action_id, number)
        return by_key

    def _with_key(self, action: Action[Any]) -> Action[Any]:
        """Return *action* with a key of the class; it may be given as its text."""
        statements = self._statements
        key = statements.key_type.parse(self._entity, action.workflow_key)
        if key is action.workflow_key:
            return action
        return action.model_copy(update={"workflow_key": key})

    def _commit_queues(
        self,
        given: Sequence[Action[Any]],
        by_key: Mapping[Any, Mapping[Any, int]],
        queues: Sequence[ActionQueue],
    ) -> dict[int, ActionRequest]:
        """Commit the actions of *queues*; return requests by number in *given*."""
        requests = {
            number: self._keys.request(given[number], number)
            for queue in queues
            for number in by_key[queue.key].values()
        }
        batches = [
            ActionBatch(queue.key, [requests[n] for n in by_key[queue.key].values()])
            for queue in queues
        ]
        self._loop.commit_many(queues, batches)
        return requests

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
