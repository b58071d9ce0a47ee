"""IntentDispatcher: deliver the intents of an outbox at least once and in order.

A dispatcher leases the *first* intent of each workflow, calls the handler, and deletes
the intent. Only then is the next one of that workflow due, so the intents of a workflow
are delivered in the order of versions and positions.

Delivery is at least once: if a dispatcher dies between the handler and the deletion,
another one delivers the intent again after the lease. ``intent_id`` is the same each
time; let the receiver use it as its idempotency key. An intent whose handler fails is
retried after a pause, and becomes a *dead letter* when the retry policy is exhausted,
which unblocks the intents behind it.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from inspect import isasyncgen, isawaitable, isgenerator
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Engine, inspect
from sqlalchemy.exc import DBAPIError

from .._concurrency import Blocking, Stop, Waiting, require_at_least
from ..hooks.application_errors import describe, outline, stops
from ..hooks.base import Hooks, notify
from ..retry import ErrorKind, RetryPolicy, classify
from ..store.connections import Connections
from ..store.polling import poll_until
from .lease import Claim, Leased, Leases, claim_of
from .table import IntentMixin, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import sessionmaker

    from ..values.reports import DueIntent


_log = logging.getLogger(__name__)

RETRY = RetryPolicy(max_attempts=10, base_delay=1.0, max_delay=300.0)
"""Retries for minutes, for a receiver that is down."""

_LONGEST_ERROR = 500
_SETTLE_EVERY = 1.0


class IntentDispatcher:
    """Deliver the intents of the outbox *intents* to *handler* until told to stop.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine. *handler*
    is called with a :class:`DueIntent`, outside of any transaction; an exception makes
    it be retried. Any number of dispatchers may run.

    *retry* sets the number of attempts and the pauses; its deadline counts from the
    commit. *batch_size* is the maximum number of workflows leased at once, for *lease*
    seconds: intents not tried by then are released, so a batch should take no longer.
    *poll* is the pause, in seconds, after a poll without work.

    >>> IntentDispatcher(engine, OrderIntents, handle).run(stop)  # doctest: +SKIP
    """

    _waiting: ClassVar[type[Waiting]] = Blocking

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        intents: type[IntentMixin],
        handler: Callable[[DueIntent], Any],
        *,
        retry: RetryPolicy = RETRY,
        batch_size: int = 100,
        lease: float = 60.0,
        poll: float = 0.1,
        hooks: Hooks | None = None,
    ) -> None:
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, lease=lease, poll=poll)
        self._connections = Connections(bind, inspect(intents))
        self._wait = self._waiting()
        self._handler = handler
        self._retry = retry
        self._lease = lease
        self._poll = poll
        self._hooks = hooks or Hooks()
        self._leases = Leases(table_of(intents), batch_size)

    def run(self, stop: Stop) -> None:
        """Work until *stop* is set; finish the handler that runs then.

        While the database cannot be reached, the dispatcher retries for ever.
        """

        def work() -> bool:
            return self.dispatch(stop) > 0

        def failed(error: Exception) -> None:
            _log.warning("dispatching intents failed: %s", outline(error))

        poll_until(stop, work, self._wait, pause=self._poll, failed=failed)

    def dispatch(self, stop: Stop | None = None) -> int:
        """Lease and deliver one batch; return how many intents were tried."""
        until = monotonic() + self._lease
        with self._connections.transaction("READ COMMITTED") as connection:
            due = self._leases.claim(connection, timedelta(seconds=self._lease))
        tried = 0
        delivered: list[Claim] = []
        settled_at = monotonic()
        try:
            for leased in due:
                if monotonic() >= until or (stop is not None and stop.is_set()):
                    break
                tried += 1
                if self._deliver(leased):
                    delivered.append(claim_of(leased.intent))
                if monotonic() - settled_at > _SETTLE_EVERY:
                    self._settle(delivered)
                    settled_at = monotonic()
        finally:
            self._settle(delivered, [claim_of(one.intent) for one in due[tried:]])
        return tried

    def _deliver(self, leased: Leased) -> bool:
        started, intent = monotonic(), leased.intent
        try:
            intent = self._leases.read(leased)
            _require_done(self._wait.call(self._handler, intent))
        except BaseException as error:
            if stops(error):
                raise
            delay = self._retry.next_delay(intent.attempt, leased.age)
            self._set_back(intent, error, delay)
            notify(self._hooks.not_delivered, intent, error, delay)
            return False
        notify(self._hooks.delivered, intent, monotonic() - started)
        return True

    def _settle(self, delivered: list[Claim], untried: Sequence[Claim] = ()) -> None:
        if delivered or untried:
            with self._connections.transaction("READ COMMITTED") as connection:
                self._leases.delete(connection, delivered)
                self._leases.release(connection, untried)
            delivered.clear()

    def _set_back(
        self, intent: DueIntent, error: BaseException, delay: float | None
    ) -> None:
        text = describe(error, _LONGEST_ERROR)
        try:
            self._store_failure(intent, text, delay)
        except DBAPIError as refused:
            if classify(refused) is not ErrorKind.FATAL:
                raise
            # The encoding of the database, or a column of the application's.
            self._store_failure(intent, None, delay)

    def _store_failure(
        self, intent: DueIntent, text: str | None, delay: float | None
    ) -> None:
        with self._connections.transaction("READ COMMITTED") as connection:
            self._leases.set_back(connection, claim_of(intent), text, delay)


def _require_done(result: Any) -> None:
    """Raise TypeError if a handler returned an awaitable or a generator."""
    if isawaitable(result) or isgenerator(result) or isasyncgen(result):
        name = type(result).__name__
        if hasattr(result, "close"):
            result.close()
        raise TypeError(
            f"the handler returned a {name}, of which nothing has run; await or "
            "iterate it in the handler, or use sa_wfstate.asyncio.IntentDispatcher"
        )
