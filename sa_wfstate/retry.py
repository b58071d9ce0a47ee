"""RetryPolicy: whether to retry, and how long to wait; classify: which errors.

The pause is "full jitter": after the n-th attempt a random time between 0 and
``base_delay * 2 ** (n - 1)`` seconds, at most ``max_delay``. Retries that are spread
over the whole interval seldom conflict again. Source: Marc Brooker, "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError

from .errors import ConflictReason, OutcomeUnknown, StateConflict, WriteSuppressed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState


T = TypeVar("T")

_MANY = 64
"""Doublings after which every delay is at its maximum; 2.0 ** n overflows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often an attempt is repeated, and after which pauses.

    *max_attempts* counts the first one too; None sets no limit. *base_delay* and
    *max_delay* bound the pauses, in seconds. No attempt starts later than *deadline*
    seconds after the first. *max_attempts* or *deadline* must be given.

    >>> policy = RetryPolicy()
    >>> [policy.ceiling(attempt) for attempt in (1, 2, 3, 9)]
    [0.01, 0.02, 0.04, 0.25]
    >>> policy.next_delay(3, elapsed=0.02) is None
    True
    """

    max_attempts: int | None = 3
    base_delay: float = 0.010
    max_delay: float = 0.250
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.max_attempts is None and self.deadline is None:
            raise ValueError("max_attempts or deadline must be given")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError(f"max_attempts must be 1 or more, got {self.max_attempts}")
        if not 0 <= self.base_delay <= self.max_delay < float("inf"):
            raise ValueError(
                "0 <= base_delay <= max_delay must hold, got "
                f"{self.base_delay} and {self.max_delay}"
            )
        if self.deadline is not None and not self.deadline >= 0:
            raise ValueError(f"deadline must not be negative, got {self.deadline}")

    @classmethod
    def for_contention(cls, *, deadline: float = 30.0) -> Self:
        """Return a policy for contention, where each conflict means another commit.

        The pauses are short; there are as many attempts as fit into *deadline* seconds.
        """
        return cls(max_attempts=None, deadline=deadline)

    @classmethod
    def for_lock_wait(cls, *, deadline: float = 30.0) -> Self:
        """Return a policy for locks and failures that last for seconds.

        Frequent attempts gain nothing there; the pauses grow from 100 ms to 2 s.
        """
        return cls(max_attempts=None, base_delay=0.1, max_delay=2.0, deadline=deadline)

    def ceiling(self, attempt: int) -> float:
        """Return the longest pause, in seconds, after attempt number *attempt*."""
        return min(self.max_delay, self.base_delay * 2.0 ** min(attempt - 1, _MANY))

    def next_delay(
        self,
        attempt: int,
        elapsed: float,
        *,
        draw: Callable[[], float] = random.random,
    ) -> float | None:
        """Return the seconds to wait after attempt number *attempt*, None to give up.

        *elapsed* is the time in seconds since the first attempt began. *draw* returns
        a number in [0, 1).
        """
        if self.max_attempts is not None and attempt >= self.max_attempts:
            return None
        delay = self.ceiling(attempt) * draw()
        if self.deadline is not None and elapsed + delay > self.deadline:
            return None
        return delay

    def call(
        self,
        fn: Callable[[], T],
        *,
        retry_if: Callable[[BaseException], bool],
        sleep: Callable[[float], object] = time.sleep,
    ) -> T:
        """Return ``fn()``; repeat it after errors for which *retry_if* returns True.

        The last error is raised, as any other error is at once.
        """
        # Not with the package: many applications import it, and never retry.
        from tenacity import Retrying, retry_if_exception

        retrying = Retrying(
            stop=self.stop,
            wait=self.wait,
            sleep=sleep,  # type: ignore[arg-type]
            retry=retry_if_exception(retry_if),
            reraise=True,
        )
        return retrying(fn)

    def wait(self, call: RetryCallState) -> float:
        """Return the pause; the parameter ``wait`` of tenacity's ``Retrying``."""
        delay = self.next_delay(call.attempt_number, call.seconds_since_start or 0.0)
        # After the last attempt tenacity asks stop() next, which must agree.
        return float("inf") if delay is None else delay

    def stop(self, call: RetryCallState) -> bool:
        """Return whether to stop; the parameter ``stop`` of tenacity's ``Retrying``."""
        return call.upcoming_sleep == float("inf")


SERIALIZATION_FAILURE: Final = "40001"
UNIQUE_VIOLATION: Final = "23505"
READ_ONLY_TRANSACTION: Final = "25006"
LOCK_NOT_AVAILABLE: Final = "55P03"

_TRANSIENT: Final = {
    "40001": "serialization_failure",
    "40P01": "deadlock_detected",
    "55P03": "lock_not_available",
    "57014": "query_canceled, by statement_timeout too",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "25006": "read_only_sql_transaction: connected to what is a standby now",
    "53300": "too_many_connections",
    "OC000": "Aurora DSQL: another transaction changed the same row",
    "OC001": "Aurora DSQL: the schema has changed",
}
"""Of all engines: no code means one thing on one of them, and another elsewhere."""
_CONNECTION: Final = ("08", "57P0")
"""Prefixes of the codes of a connection that is lost or refused."""

_STATEMENT_COMPLETION_UNKNOWN: Final = "40003"
"""CockroachDB has lost the answer to a COMMIT between its nodes."""

_INTERNAL_ERROR: Final = "XX000"
"""Citus says that of a COMMIT that it has lost at SERIALIZABLE."""

_CANNOT_SERIALIZE: Final = "could not serialize access"
"""The text of a serialization failure, unless the server has another language."""


_REPLANS: Final = "RevalidateCachedQuery"
"""What refuses, in the server, a statement whose columns have other types by now."""


def require_policies(**given: Any) -> None:
    """Raise TypeError unless each of *given* is a RetryPolicy."""
    for name, policy in given.items():
        if not isinstance(policy, RetryPolicy):
            number = policy if type(policy) is int and policy > 0 else "…"
            raise TypeError(
                f"{name} must be a RetryPolicy, got {type(policy).__name__}; write "
                f"{name}=RetryPolicy(max_attempts={number})"
            )


class ErrorKind(StrEnum):
    """What an error means for a retry."""

    CONFLICT = "conflict"
    """Another writer committed first: read, decide and commit again."""

    TRANSIENT = "transient"
    """Nothing was committed: repeat the same in a new transaction."""

    UNKNOWN = "unknown"
    """It may be committed or not: find out before a retry."""

    FATAL = "fatal"
    """A retry will not help."""


_BY_CLASS: Final = (
    (OutcomeUnknown, ErrorKind.UNKNOWN),
    (WriteSuppressed, ErrorKind.FATAL),
    (StaleDataError, ErrorKind.CONFLICT),
    # There was no connection, so nothing was sent.
    (PoolTimeoutError, ErrorKind.TRANSIENT),
)
"""Errors of SQLAlchemy and this library have no code; the first match counts."""


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a DBAPI error, wrapped or not; None without one."""
    origin = getattr(error, "orig", error)
    state: str | None = getattr(origin, "sqlstate", None)
    # Citus gives an error of a worker in INSERT … SELECT its text, not its code.
    if state == _INTERNAL_ERROR and _CANNOT_SERIALIZE in str(origin):
        return SERIALIZATION_FAILURE
    return state


def classify(error: BaseException, *, committing: bool = False) -> ErrorKind:
    """Return what *error* means for a retry.

    *committing* is true if it was raised by COMMIT, or by a statement in autocommit: a
    connection that is lost there leaves the outcome unknown.

    >>> classify(TimeoutError())
    <ErrorKind.TRANSIENT: 'transient'>
    >>> classify(TimeoutError(), committing=True)
    <ErrorKind.UNKNOWN: 'unknown'>
    """
    if isinstance(error, StateConflict) and error.reason is ConflictReason.CONDITION:
        return ErrorKind.FATAL  # The same patch would meet the same row.
    for kinds, kind in _BY_CLASS:
        if isinstance(error, kinds):
            return kind
    code = sqlstate(error)
    if code in _TRANSIENT or _has_stale_plan(error):
        return ErrorKind.TRANSIENT
    lost = _is_lost_connection(error, code)
    uncertain = lost or isinstance(error, asyncio.CancelledError)
    uncertain = uncertain or (code == _INTERNAL_ERROR and _is_of_commit(error))
    if code == _STATEMENT_COMPLETION_UNKNOWN or (committing and uncertain):
        return ErrorKind.UNKNOWN
    return ErrorKind.TRANSIENT if lost else ErrorKind.FATAL


def leaves_unknown(error: BaseException) -> bool:
    """Return whether *error*, raised by COMMIT or in autocommit, hides its outcome."""
    return classify(error, committing=True) is ErrorKind.UNKNOWN


def is_undone_by_now(error: BaseException) -> bool:
    """Return whether *error* left an outcome unknown, which was found out since.

    If the transaction was not committed, it may be repeated.
    """
    return isinstance(error, DBAPIError) and leaves_unknown(error)


def _is_of_commit(error: BaseException) -> bool:
    # SQLAlchemy knows no statement of a COMMIT.
    return isinstance(error, DBAPIError) and error.statement is None


def _has_stale_plan(error: BaseException) -> bool:
    """Return whether a migration has outdated what the driver has prepared.

    A ROLLBACK of psycopg, and the error in asyncpg, make it prepare anew.
    """
    origin = getattr(error, "orig", error)
    refusing = getattr(getattr(origin, "diag", None), "source_function", None)
    named = type(origin).__name__ == "InvalidCachedStatementError"
    return named or refusing == _REPLANS


def _is_lost_connection(error: BaseException, code: str | None) -> bool:
    if code is not None and code.startswith(_CONNECTION):
        return True
    if isinstance(error, DBAPIError):
        # psycopg has no code for errors of libpq: refused, closed, cut.
        codeless = code is None and hasattr(error.orig, "sqlstate")
        return error.connection_invalidated or (
            codeless and isinstance(error, OperationalError)
        )
    # asyncpg does not wrap errors and timeouts of sockets; each is an OSError. It has
    # errors of its own for a connection that is cut while it is set up.
    cut = code is None and type(error).__module__.startswith("asyncpg.")
    return cut or isinstance(error, OSError)
