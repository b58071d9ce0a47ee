"""IntentDispatcher: hand the intents of an outbox over, at least once and in order.

A dispatcher takes the *first* intent of each workflow, leases it, calls the handler,
and deletes it. The next one of that workflow follows when it is gone, so the intents of
a workflow are handed over in the order of versions and positions.

Each is handed over at least once: a dispatcher that dies between the handler and the
deletion leaves the intent to the next one, after the lease. ``intent_id`` is the same
each time; let the receiver use it as its idempotency key. An intent whose handler fails
is tried again after a pause, and set aside as a *dead letter* when the retry policy is
exhausted; those behind it go on then.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    bindparam,
    delete,
    func,
    inspect,
    select,
    tuple_,
    update,
)

from .connections import Connections
from .hooks import Hooks, notify
from .outbox import IntentMixin, table_of
from .retry import RetryPolicy
from .sqlstates import ErrorKind, classify
from .waiting import Blocking, Stop, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from sqlalchemy.orm import sessionmaker

_log = logging.getLogger(__name__)

RETRY = RetryPolicy(max_attempts=10, base_delay=1.0, max_delay=300.0)
"""For a receiver that is down for minutes."""

_PAUSES = RetryPolicy.held()
_LONGEST_ERROR = 500
_SETTLE_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class DueIntent:
    """An intent as it is given to a handler; *attempt* counts from 1."""

    intent_id: UUID
    workflow_key: str
    version: int
    position: int
    intent_type: str
    target: str
    payload: Any
    attempt: int
    created_at: datetime


class _Claim(NamedTuple):
    """What identifies an intent, and with *attempts* the lease of it."""

    workflow_key: str
    version: int
    position: int
    intent_id: UUID
    attempts: int


class IntentDispatcher:
    """Hand the intents of the outbox *intents* to *handler*, until told to stop.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine. *handler*
    is called with a :class:`DueIntent`, outside of any transaction; an exception means
    that it is to be tried again. Any number of dispatchers may run.

    *retry* says how often, and after what pauses; its deadline counts from the commit.
    *batch_size* is the most workflows that are leased at once, for *lease* seconds: an
    intent whose turn comes later than that is given back, so a batch should take no
    longer. *poll* is the pause, in seconds, when there was nothing to do.

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
        self._connections = Connections(bind, inspect(intents))
        self._wait = self._waiting()
        self._handler = handler
        self._retry = retry
        self._lease = lease
        self._poll = poll
        self._hooks = hooks or Hooks()
        self._outbox = _Outbox(table_of(intents), batch_size)

    def run(self, stop: Stop) -> None:
        """Work until *stop* is set; the handler that is at work then is waited for.

        While the database is out of reach, it is tried again and again.
        """
        attempt = 0
        while not stop.is_set():
            try:
                pause = 0.0 if self.dispatch(stop) else self._poll
                attempt = 0
            except Exception as error:
                if classify(error) is not ErrorKind.TRANSIENT:
                    raise
                attempt += 1
                _log.warning("dispatching intents failed: %r", error)
                pause = _PAUSES.ceiling(attempt)
            self._wait.sleep(pause)

    def dispatch(self, stop: Stop | None = None) -> int:
        """Lease one batch, hand it over, and return how many intents were tried."""
        until = monotonic() + self._lease
        with self._connections.transaction("READ COMMITTED") as connection:
            due = self._outbox.claim(connection, timedelta(seconds=self._lease))
        tried = 0
        delivered: list[_Claim] = []
        settled_at = monotonic()
        try:
            for intent, age in due:
                if monotonic() >= until or (stop is not None and stop.is_set()):
                    break
                tried += 1
                if self._hand_over(intent, age):
                    delivered.append(_claim_of(intent))
                if monotonic() - settled_at > _SETTLE_EVERY:
                    self._settle(delivered)
                    settled_at = monotonic()
        finally:
            self._settle(delivered, [_claim_of(intent) for intent, _ in due[tried:]])
        return tried

    def _hand_over(self, intent: DueIntent, age: float) -> bool:
        started = monotonic()
        try:
            self._wait.call(self._handler, intent)
        except Exception as error:  # noqa: BLE001 - whatever the handler raises
            delay = self._retry.next_delay(intent.attempt, age)
            self._set_back(intent, error, delay)
            notify(self._hooks.not_delivered, intent, error, delay)
            return False
        notify(self._hooks.delivered, intent, monotonic() - started)
        return True

    def _settle(self, delivered: list[_Claim], untried: Sequence[_Claim] = ()) -> None:
        if delivered or untried:
            with self._connections.transaction("READ COMMITTED") as connection:
                self._outbox.delete(connection, delivered)
                self._outbox.release(connection, untried)
            delivered.clear()

    def _set_back(
        self, intent: DueIntent, error: Exception, delay: float | None
    ) -> None:
        text = f"{type(error).__name__}: {error}".replace("\0", "")[:_LONGEST_ERROR]
        with self._connections.transaction("READ COMMITTED") as connection:
            self._outbox.set_back(connection, _claim_of(intent), text, delay)


def _claim_of(intent: DueIntent) -> _Claim:
    return _Claim(
        intent.workflow_key,
        intent.version,
        intent.position,
        intent.intent_id,
        intent.attempt,
    )


class _Outbox:
    """The statements of an outbox, each built once."""

    def __init__(self, table: Table, batch_size: int) -> None:
        earlier = table.alias("earlier")
        first = ~(
            select(earlier.c.position)
            .where(
                earlier.c.workflow_key == table.c.workflow_key,
                earlier.c.dead_at.is_(None),
                tuple_(earlier.c.version, earlier.c.position)
                < tuple_(table.c.version, table.c.position),
            )
            .exists()
        )
        # A row that another dispatcher has just leased is locked, or not due any more.
        due = (
            select(*table.primary_key)
            .where(table.c.dead_at.is_(None), table.c.due_at <= func.now(), first)
            .order_by(table.c.due_at)
            .limit(batch_size)
            .with_for_update(skip_locked=True, of=table)
            .cte("due")
        )
        self._claim = (
            update(table)
            .where(*(column == due.c[column.name] for column in table.primary_key))
            .values(
                attempts=table.c.attempts + 1,
                due_at=func.clock_timestamp() + bindparam("wfs_lease"),
            )
            .returning(
                *(table.c[name] for name in _GIVEN),
                func.extract("epoch", func.now() - table.c.created_at),
            )
        )
        leased = tuple_(*table.primary_key, table.c.attempts)
        mine = leased.in_(bindparam("wfs_claims", expanding=True))
        self._delete = delete(table).where(mine)
        self._release = (
            update(table)
            .where(mine)
            .values(attempts=table.c.attempts - 1, due_at=func.clock_timestamp())
        )
        self._set_back = (
            update(table)
            .where(mine)
            .values(
                last_error=bindparam("wfs_error"),
                due_at=func.clock_timestamp() + bindparam("wfs_pause"),
            )
        )
        self._give_up = (
            update(table)
            .where(mine)
            .values(last_error=bindparam("wfs_error"), dead_at=func.clock_timestamp())
        )

    def claim(
        self, connection: Connection, lease: timedelta
    ) -> list[tuple[DueIntent, float]]:
        """Lease what is due; return it with the seconds since its commit."""
        rows = connection.execute(self._claim, {"wfs_lease": lease})
        return [(DueIntent(*row[:-1]), float(row[-1])) for row in rows]

    def delete(self, connection: Connection, claims: Sequence[_Claim]) -> None:
        """Delete what was delivered, unless its lease has gone to somebody else."""
        if claims:
            connection.execute(self._delete, {"wfs_claims": claims})

    def release(self, connection: Connection, claims: Sequence[_Claim]) -> None:
        """Give back what was leased and not tried."""
        if claims:
            connection.execute(self._release, {"wfs_claims": claims})

    def set_back(
        self, connection: Connection, claim: _Claim, error: str, delay: float | None
    ) -> None:
        """Make an intent due again in *delay* seconds; None gives it up."""
        parameters: dict[str, Any] = {"wfs_claims": [claim], "wfs_error": error}
        if delay is None:
            connection.execute(self._give_up, parameters)
        else:
            parameters["wfs_pause"] = timedelta(seconds=delay)
            connection.execute(self._set_back, parameters)


_GIVEN = (
    "intent_id",
    "workflow_key",
    "version",
    "position",
    "intent_type",
    "target",
    "payload",
    "attempts",
    "created_at",
)
