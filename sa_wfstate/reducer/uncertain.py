"""Uncertain commits: find out what became of batches whose COMMIT was not answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .._concurrency import raised_by_signal_handler
from ..retry import ErrorKind, classify, leaves_unknown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .._concurrency import Waiting
    from ..retry import RetryPolicy
    from .action_batch import ActionBatch
    from .attempt import Attempts


class UncertainCommits:
    """Settle batches of *entity* whose outcome is unknown; *resolve* limits that."""

    def __init__(
        self,
        entity: str,
        attempts: Attempts[Any],
        waiting: Waiting,
        resolve: RetryPolicy,
    ) -> None:
        self._entity = entity
        self._attempts = attempts
        self._wait = waiting
        self._resolve = resolve

    def settle(self, batches: Sequence[ActionBatch], error: BaseException) -> None:
        """Settle those of *batches* that are committed, or whose outcome is unknown."""
        if not leaves_unknown(error):
            return
        uncertain = [
            batch for batch in batches if batch.committing and batch.write is not None
        ]

        def look() -> None:
            while uncertain:
                batch = uncertain[0]
                if self._attempts.was_committed(batch) is None:
                    batch.fail(batch.unknown(self._entity, error))
                if batch.settled:
                    batch.begin()  # The state it wrote may be stale by now.
                del uncertain[0]

        try:
            self._resolve.call(look, retry_if=is_transient, sleep=self._wait.sleep)
        except (DBAPIError, OSError, PoolTimeoutError) as last:
            if raised_by_signal_handler(last):
                raise
            for batch in uncertain:
                batch.fail(batch.unknown(self._entity, error))
                batch.begin()

    def fail(self, batches: Sequence[ActionBatch], error: BaseException) -> None:
        """Fail those of *batches* whose COMMIT may have been sent."""
        for batch in batches:
            if batch.committing:
                batch.fail(batch.unknown(self._entity, error))


def is_transient(error: BaseException) -> bool:
    """Return whether *error* passes, and is not that of a signal handler."""
    transient = classify(error) is ErrorKind.TRANSIENT
    return transient and not raised_by_signal_handler(error)
