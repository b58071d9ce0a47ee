"""Errors of application code: which of them stop a worker, and how they are logged.

Workers run for ever and call handlers, projections and hooks. An error of such code
may have no text, or one that no database takes.
"""

from __future__ import annotations

import asyncio
import sys
from traceback import format_tb
from typing import Final

from sqlalchemy.exc import DBAPIError

from .._concurrency import raised_by_signal_handler
from ..errors import WorkflowStateError
from ..retry import sqlstate

_STOPS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
_QUOTES_VALUES: Final = ("22", "23")
"""Classes of SQLSTATE whose messages quote values: wrong data, broken constraints."""


def stops(error: BaseException) -> bool:
    """Return whether *error* must end the worker.

    Such an error interrupts a process, cancels a task, kills a greenlet, or comes from
    a signal handler. Deriving from Exception is no criterion: a timeout of gevent does
    not, and Celery's soft time limit does.
    """
    if raised_by_signal_handler(error):
        return True
    if isinstance(error, BaseExceptionGroup):
        return any(map(stops, error.exceptions))
    greenlet = sys.modules.get("greenlet")
    killed = () if greenlet is None else (greenlet.GreenletExit,)
    return isinstance(error, (*_STOPS, *killed))


def describe(error: BaseException, longest: int) -> str:
    """Return class and text of *error* as at most *longest* storable characters."""
    try:
        text = f"{type(error).__name__}: {str(error)[: 2 * longest]}".replace("\0", "")
        return text.encode("utf-8", "backslashreplace").decode()[:longest]
    except Exception:  # noqa: BLE001 - its class is the application's too
        return "an exception whose text cannot be shown"


def outline(error: BaseException) -> str:
    """Describe *error* in one line for a log, without values of a row.

    Errors of this library contain none. The first line of a database's message
    contains one only if the value is wrong or breaks a constraint.
    """
    try:
        if isinstance(error, WorkflowStateError):
            return f"{type(error).__name__}: {error}"
        # A driver may raise its own error while it connects.
        code = sqlstate(error)
        raised = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(error, DBAPIError) or code is not None:
            name = type(raised).__name__
            if code is not None and code.startswith(_QUOTES_VALUES):
                return f"{name}, SQLSTATE {code}"
            return f"{name}: {next(iter(str(raised).splitlines()), '')}"
        return str(type(error).__name__)
    except Exception:  # noqa: BLE001 - its class is the application's too
        return "an exception whose class has no name"


def trace(error: BaseException) -> str:
    """Return the outline of *error* and its traceback, for a log."""
    return f"{outline(error)}\n{''.join(format_tb(error.__traceback__))}"
