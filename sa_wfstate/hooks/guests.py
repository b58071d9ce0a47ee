"""What application code raises must not stop a worker, whatever it is.

Handlers, projections and hooks are called by workers that go on for ever. What such
code raises may not even have a text, or one that no database takes.
"""

from __future__ import annotations

import asyncio
import sys
from traceback import format_tb
from typing import Final

from sqlalchemy.exc import DBAPIError

from ..errors import WorkflowStateError
from ..retry import sqlstate

_STOPS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
_QUOTES_VALUES: Final = ("22", "23")
"""Classes of SQLSTATE whose messages quote values: wrong data, broken constraints."""


def stops(error: BaseException) -> bool:
    """Return whether *error* is meant for the worker itself, which has to end then.

    That is what interrupts a process, cancels a task or kills a greenlet. Of other
    exceptions it does not matter whether they derive from Exception: a timeout of
    gevent does not, for example.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(stops, error.exceptions))
    greenlet = sys.modules.get("greenlet")
    killed = () if greenlet is None else (greenlet.GreenletExit,)
    return isinstance(error, (*_STOPS, *killed))


def describe(error: BaseException, longest: int) -> str:
    """Return class and text of *error* as text that can be stored."""
    try:
        text = f"{type(error).__name__}: {str(error)[: 2 * longest]}".replace("\0", "")
        return text.encode("utf-8", "backslashreplace").decode()[:longest]
    except Exception:  # noqa: BLE001 - its class is the application's too
        return "an exception whose text cannot be shown"


def outline(error: BaseException) -> str:
    """Return in a line what *error* is, without values of a row, for a log.

    Those of this library have none. A database's message has none either, except for
    its DETAIL and for all of it where a value is what is wrong.
    """
    try:
        if isinstance(error, WorkflowStateError):
            return f"{type(error).__name__}: {error}"
        if isinstance(error, DBAPIError):
            code, name = sqlstate(error), type(error.orig).__name__
            if code is not None and code.startswith(_QUOTES_VALUES):
                return f"{name}, SQLSTATE {code}"
            return f"{name}: {next(iter(str(error.orig).splitlines()), '')}"
        return str(type(error).__name__)
    except Exception:  # noqa: BLE001 - its class is the application's too
        return "an exception whose class has no name"


def trace(error: BaseException) -> str:
    """Return the outline of *error* and where it was raised, for a log."""
    return f"{outline(error)}\n{''.join(format_tb(error.__traceback__))}"
