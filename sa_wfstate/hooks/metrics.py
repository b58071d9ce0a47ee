"""The base class of hooks for metrics.

The workflow key is no label: the number of keys has no limit, and each value of a label
is a time series of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Hooks

if TYPE_CHECKING:
    from ..values.reports import DueIntent


BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class MetricsHooks(Hooks):
    """Count actions and intents, each with one outcome."""

    def _action(self, entity: str, outcome: str, seconds: float) -> None:
        """Count an action that took *seconds*."""
        raise NotImplementedError

    def _intent(self, intent_type: str, outcome: str) -> None:
        """Count an intent."""
        raise NotImplementedError

    def committed(self, entity: str, action: Any, outcome: Any, seconds: float) -> None:
        self._action(entity, "committed", seconds)

    def duplicate(self, entity: str, action: Any, outcome: Any, seconds: float) -> None:
        self._action(entity, "duplicate", seconds)

    def gave_up(self, entity: str, action: Any, error: Any, seconds: float) -> None:
        self._action(entity, "gave_up", seconds)

    def delivered(self, intent: DueIntent, seconds: float) -> None:
        self._intent(intent.intent_type, "delivered")

    def not_delivered(
        self, intent: DueIntent, error: Exception, delay: float | None
    ) -> None:
        outcome = "dead" if delay is None else "failed"
        self._intent(intent.intent_type, outcome)
