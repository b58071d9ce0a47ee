"""Hooks that log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .base import Hooks

if TYPE_CHECKING:
    from ..errors import StateConflict


class LoggingHooks(Hooks):
    """Log to *logger*: commits at DEBUG, conflicts at INFO, giving up at WARNING."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("sa_wfstate")

    def committed(self, entity: str, action: Any, outcome: Any, seconds: float) -> None:
        self._logger.debug(
            "%s %r: action %s committed as version %d, attempt %d, %.3f s",
            entity,
            action.workflow_key,
            action.action_id,
            outcome.version,
            outcome.attempts,
            seconds,
        )

    def duplicate(self, entity: str, action: Any, outcome: Any, seconds: float) -> None:
        self._logger.info(
            "%s %r: action %s was processed before, as version %s",
            entity,
            action.workflow_key,
            action.action_id,
            outcome.version,
        )

    def conflicted(self, entity: str, conflict: StateConflict, attempt: int) -> None:
        self._logger.info("attempt %d: %s", attempt, conflict)

    def gave_up(self, entity: str, action: Any, error: Any, seconds: float) -> None:
        self._logger.warning("action %s: %s", action.action_id, error)

    def not_delivered(self, intent: Any, error: Exception, delay: float | None) -> None:
        self._logger.log(
            logging.ERROR if delay is None else logging.WARNING,
            "%r version %d: intent %s was not delivered, attempt %d, %s: %s",
            intent.workflow_key,
            intent.version,
            intent.intent_id,
            intent.attempt,
            "given up" if delay is None else f"again in {delay:.3f} s",
            type(error).__name__,
        )
