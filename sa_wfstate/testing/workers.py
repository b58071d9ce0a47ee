"""Run workers by hand, and make due what waits."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from inspect import isawaitable
from typing import Any, Protocol, overload

from sqlalchemy import DateTime, Table, inspect, update
from sqlalchemy.orm import Session

_WAITED_FOR = ("due_at", "expires_at", "lease_until", "leased_until")
_ROUNDS = 1000


class Follower(Protocol):
    """A ProjectionWorker."""

    def follow(self) -> int:
        """Follow once."""


class Dispatcher(Protocol):
    """An IntentDispatcher."""

    def dispatch(self) -> int:
        """Deliver one batch."""


class AsyncFollower(Protocol):
    """A ProjectionWorker of sa_wfstate.asyncio."""

    async def follow(self) -> int:
        """Follow once."""


class AsyncDispatcher(Protocol):
    """An IntentDispatcher of sa_wfstate.asyncio."""

    async def dispatch(self) -> int:
        """Deliver one batch."""


@overload
def caught_up(worker: Follower | Dispatcher) -> int: ...
@overload
def caught_up(worker: AsyncFollower | AsyncDispatcher) -> Awaitable[int]: ...
def caught_up(worker: Any) -> Any:
    """Run a projection worker or a dispatcher until it has nothing to do.

    Returns how many rows were applied, or intents tried. Intents that a handler has
    refused are not due before the pause of their policy; see :func:`pass_time`. With a
    worker of ``sa_wfstate.asyncio``: ``await caught_up(worker)``.

    Raises AssertionError if the worker does not come to an end.
    """
    step = worker.follow if hasattr(worker, "follow") else worker.dispatch
    total = 0
    for _ in range(_ROUNDS):
        done = step()
        if isawaitable(done):
            return _caught_up(step, done)
        if not done:
            return total
        total += done
    raise _endless(worker)


async def _caught_up(step: Any, first: Awaitable[int]) -> int:
    total = done = await first
    for _ in range(_ROUNDS):
        if not done:
            return total
        done = await step()
        total += done
    raise _endless(step)


def _endless(worker: object) -> AssertionError:
    return AssertionError(f"{worker!r} always finds more to do, after {_ROUNDS} rounds")


def pass_time(session: Session, entity: type[Any], by: timedelta) -> int:
    """Make the rows of *entity* due, or expired, earlier by *by*, in place of waiting.

    *entity* is the mapped class of an outbox, of a dedup log, or of another table with
    columns that a worker waits for (``due_at``, ``expires_at``). Returns the number of
    rows. With an AsyncSession: ``await session.run_sync(pass_time, OrderIntents, by)``.
    """
    table = inspect(entity).local_table
    assert isinstance(table, Table)  # noqa: S101
    moved = {
        column: column - by
        for column in table.c
        if column.key in _WAITED_FOR and isinstance(column.type, DateTime)
    }
    if not moved:
        raise TypeError(
            f"{entity.__name__} has no column that is waited for: "
            f"{', '.join(_WAITED_FOR)}"
        )
    connection = session.connection(bind_arguments={"mapper": inspect(entity)})
    return connection.execute(update(table).values(moved)).rowcount
