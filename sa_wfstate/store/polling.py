"""The loop of a worker: it polls the database until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .._concurrency import raised_by_signal_handler
from ..retry import ErrorKind, RetryPolicy, classify

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._concurrency import Stop, Waiting

_PAUSES: Final = RetryPolicy.for_lock_wait()


def poll_until(
    stop: Stop,
    work: Callable[[], bool],
    wait: Waiting,
    *,
    pause: float,
    failed: Callable[[Exception], None],
) -> None:
    """Call *work* until *stop* is set, and *pause* after a call that finds nothing.

    While the database cannot be reached, retry for ever: *failed* is told each error.
    """
    attempt = 0
    while not stop.is_set():
        try:
            seconds = 0.0 if work() else pause
            attempt = 0
        except Exception as error:
            transient = classify(error) is ErrorKind.TRANSIENT
            if not transient or raised_by_signal_handler(error):
                raise
            attempt += 1
            failed(error)
            seconds = _PAUSES.ceiling(attempt)
        wait.sleep(seconds)
