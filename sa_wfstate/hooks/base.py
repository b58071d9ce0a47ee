"""The base class of hooks, and how they are called."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .application_errors import stops, trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import ReducerGaveUp, StateConflict
    from ..payload.actions import Action
    from ..values.reports import DueIntent, ProjectionBatch
    from ..values.snapshot import StateCommitted


_log = logging.getLogger(__name__)


class Hooks:
    """Called by services and workers; methods do nothing. *entity* is a class name.

    >>> class Conflicts(Hooks):
    ...     count = 0
    ...
    ...     def conflicted(self, entity, conflict, attempt):
    ...         self.count += 1
    """

    def started(self, entity: str, action: Action[Any]) -> None:
        """Called when an action is handed to the service."""

    def committed(
        self,
        entity: str,
        action: Action[Any],
        outcome: StateCommitted[Any],
        seconds: float,
    ) -> None:
        """Called when an action was committed, *seconds* after it was handed in."""

    def duplicate(
        self,
        entity: str,
        action: Action[Any],
        outcome: StateCommitted[Any],
        seconds: float,
    ) -> None:
        """Called when an action was found committed; *outcome* is that commit's.

        The action was handed in again, or the answer to its commit was lost.
        """

    def conflicted(self, entity: str, conflict: StateConflict, attempt: int) -> None:
        """Called when attempt number *attempt* lost to another writer."""

    def retried(
        self, entity: str, workflow_key: str, attempt: int, delay: float
    ) -> None:
        """Called when attempt *attempt* failed; the next is in *delay* seconds."""

    def gave_up(
        self, entity: str, action: Action[Any], error: ReducerGaveUp, seconds: float
    ) -> None:
        """Called when the last attempt failed; the action was not committed."""

    def grouped(self, entity: str, size: int, waiting: int, seconds: float) -> None:
        """Called when actions of *size* keys are to be committed together.

        *waiting* more wait for the next group; the first of this one waited *seconds*.
        """

    def projected(self, batch: ProjectionBatch) -> None:
        """Called after each transaction of a ProjectionWorker."""

    def delivered(self, intent: DueIntent, seconds: float) -> None:
        """Called when an IntentDispatcher delivered *intent*, which took *seconds*."""

    def not_delivered(
        self, intent: DueIntent, error: Exception, delay: float | None
    ) -> None:
        """Called when the handler failed; it is called again in *delay* seconds.

        If *delay* is None, the intent is now a dead letter.
        """


def notify(hook: Callable[..., None], *arguments: Any) -> None:
    """Call *hook*; log what it raises, unless that interrupts the caller."""
    try:
        hook(*arguments)
    except BaseException as error:
        if stops(error):
            raise
        # The commit is done, even if a hook fails.
        _log.error("a hook failed: %s", trace(error))
