"""Hooks: called when a service or a worker has something to tell."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .guests import stops, trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import ReducerGaveUp, StateConflict
    from ..payload.actions import Action
    from ..values.reports import DueIntent, ProjectionBatch
    from ..values.snapshot import StateCommitted


_log = logging.getLogger(__name__)


class Hooks:
    """Called by a ReducerService; every method does nothing. *entity* is a class name.

    >>> class Conflicts(Hooks):
    ...     count = 0
    ...
    ...     def conflicted(self, entity, conflict, attempt):
    ...         self.count += 1
    """

    def started(self, entity: str, action: Action[Any]) -> None:
        """Hear that an action was handed to the service."""

    def committed(
        self,
        entity: str,
        action: Action[Any],
        outcome: StateCommitted[Any],
        seconds: float,
    ) -> None:
        """Hear that an action was committed, *seconds* after it was handed over."""

    def duplicate(
        self,
        entity: str,
        action: Action[Any],
        outcome: StateCommitted[Any],
        seconds: float,
    ) -> None:
        """Hear that an action was found committed; *outcome* is that of the first time.

        It came again, or the answer to its commit was lost.
        """

    def conflicted(self, entity: str, conflict: StateConflict, attempt: int) -> None:
        """Hear that attempt number *attempt* lost."""

    def retried(
        self, entity: str, workflow_key: str, attempt: int, delay: float
    ) -> None:
        """Hear that attempt number *attempt* failed; the next is in *delay* seconds."""

    def gave_up(
        self, entity: str, action: Action[Any], error: ReducerGaveUp, seconds: float
    ) -> None:
        """Hear that the last attempt failed; the action was not committed."""

    def projected(self, batch: ProjectionBatch) -> None:
        """Hear what one transaction of a ProjectionWorker has done."""

    def delivered(self, intent: DueIntent, seconds: float) -> None:
        """Hear that an IntentDispatcher handed *intent* over, which took *seconds*."""

    def not_delivered(
        self, intent: DueIntent, error: Exception, delay: float | None
    ) -> None:
        """Hear that the handler failed; it is called again in *delay* seconds.

        With *delay* None the intent is a dead letter now.
        """


def notify(hook: Callable[..., None], *arguments: Any) -> None:
    """Call *hook*; log what it raises."""
    try:
        hook(*arguments)
    except BaseException as error:
        if stops(error):
            raise
        # The commit stands, whatever a hook does.
        _log.error("a hook failed: %s", trace(error))
