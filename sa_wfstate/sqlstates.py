"""What an error means for whoever wants to try again, by its SQLSTATE.

:func:`classify` is the one place that decides. It looks at codes, never at the class or
the text of an error: those differ between drivers and languages, codes do not. Errors
without a code are those of a lost connection.

Source of the codes: PostgreSQL documentation, appendix A, "PostgreSQL Error Codes".
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Final

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError

from .errors import OutcomeUnknown
from .races import WriteSuppressed

SERIALIZATION_FAILURE: Final = "40001"
UNIQUE_VIOLATION: Final = "23505"
READ_ONLY_TRANSACTION: Final = "25006"

_TRANSIENT: Final = {
    "40001": "serialization_failure",
    "40P01": "deadlock_detected",
    "55P03": "lock_not_available",
    "57014": "query_canceled, by statement_timeout too",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "25006": "read_only_sql_transaction: connected to what is a standby now",
    "53300": "too_many_connections",
}
_CONNECTION: Final = ("08", "57P0")
"""How the codes of a connection that is lost or refused begin."""

_STATEMENT_COMPLETION_UNKNOWN: Final = "40003"


class ErrorKind(StrEnum):
    """What an error means for whoever wants to try again."""

    CONFLICT = "conflict"
    """Somebody else committed first: read again, decide again, commit that."""

    TRANSIENT = "transient"
    """Nothing was committed: run the same again, in a new transaction."""

    UNKNOWN = "unknown"
    """It may be committed or not: find out before doing anything again."""

    FATAL = "fatal"
    """Trying again will not help."""


_BY_CLASS: Final = (
    (OutcomeUnknown, ErrorKind.UNKNOWN),
    (WriteSuppressed, ErrorKind.FATAL),
    (StaleDataError, ErrorKind.CONFLICT),
    # No connection was had, so nothing was sent.
    (PoolTimeoutError, ErrorKind.TRANSIENT),
)
"""What SQLAlchemy and this library raise themselves has no code; first match wins."""


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a DBAPI error, wrapped or not; None without one."""
    state: str | None = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state


def classify(error: BaseException, *, committing: bool = False) -> ErrorKind:
    """Say what *error* means for whoever wants to try again.

    *committing* says that it was raised by COMMIT, or by a statement that commits by
    itself: a connection lost there leaves the outcome unknown.

    >>> classify(TimeoutError())
    <ErrorKind.TRANSIENT: 'transient'>
    >>> classify(TimeoutError(), committing=True)
    <ErrorKind.UNKNOWN: 'unknown'>
    """
    for kinds, kind in _BY_CLASS:
        if isinstance(error, kinds):
            return kind
    code = sqlstate(error)
    if code in _TRANSIENT:
        return ErrorKind.TRANSIENT
    if code == _STATEMENT_COMPLETION_UNKNOWN:
        return ErrorKind.UNKNOWN
    lost = _is_lost_connection(error, code)
    if committing and (lost or isinstance(error, asyncio.CancelledError)):
        return ErrorKind.UNKNOWN
    return ErrorKind.TRANSIENT if lost else ErrorKind.FATAL


def _is_lost_connection(error: BaseException, code: str | None) -> bool:
    if code is not None and code.startswith(_CONNECTION):
        return True
    if isinstance(error, DBAPIError):
        # psycopg has no code for what libpq reports itself: refused, closed, cut.
        codeless = code is None and hasattr(error.orig, "sqlstate")
        return error.connection_invalidated or (
            codeless and isinstance(error, OperationalError)
        )
    # asyncpg's socket errors and timeouts come out as they are; each is an OSError.
    # So does what it raises of its own when a connection is cut while it is set up.
    cut = code is None and type(error).__module__.startswith("asyncpg.")
    return cut or isinstance(error, OSError)
