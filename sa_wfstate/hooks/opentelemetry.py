"""Hooks that count and time with OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .metrics import BUCKETS, SIZES, MetricsHooks

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from ..errors import StateConflict
    from ..values.reports import ProjectionBatch


class OpenTelemetryHooks(MetricsHooks):
    """Count and time with the API of OpenTelemetry, in a meter of *provider*.

    Raises ImportError without the extra ``opentelemetry``.
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        try:
            from opentelemetry.metrics import get_meter
        except ImportError as error:
            message = (
                "OpenTelemetryHooks needs opentelemetry: "
                "pip install 'sa-wfstate[opentelemetry]'"
            )
            raise ImportError(message, name="opentelemetry") from error

        meter = get_meter("sa_wfstate", meter_provider=provider)
        self._conflicts = meter.create_counter(
            "wfstate.conflicts", unit="{conflict}", description="Attempts that lost."
        )
        self._seconds = meter.create_histogram(
            "wfstate.action.duration",
            unit="s",
            description="From handing an action over to its outcome.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._lag = meter.create_histogram(
            "wfstate.projection.lag",
            unit="s",
            description="How far the oldest row of a worker's batch was behind.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._group_keys = meter.create_histogram(
            "wfstate.group.keys",
            unit="{key}",
            description="Keys that were committed together.",
            explicit_bucket_boundaries_advisory=SIZES,
        )
        self._group_wait = meter.create_histogram(
            "wfstate.group.wait",
            unit="s",
            description="How long the first action of a group waited for it.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._intents = meter.create_counter(
            "wfstate.intents", unit="{intent}", description="Intents by outcome."
        )

    def projected(self, batch: ProjectionBatch) -> None:
        self._lag.record(batch.lag_seconds, {"wfstate.projection": batch.projection})

    def _action(self, entity: str, outcome: str, seconds: float) -> None:
        attributes = {"wfstate.entity": entity, "wfstate.outcome": outcome}
        self._seconds.record(seconds, attributes)

    def _intent(self, intent_type: str, outcome: str) -> None:
        attributes = {"wfstate.intent_type": intent_type, "wfstate.outcome": outcome}
        self._intents.add(1, attributes)

    def conflicted(self, entity: str, conflict: StateConflict, attempt: int) -> None:
        reason = conflict.reason.value
        self._conflicts.add(1, {"wfstate.entity": entity, "wfstate.reason": reason})

    def grouped(self, entity: str, size: int, waiting: int, seconds: float) -> None:
        self._group_keys.record(size, {"wfstate.entity": entity})
        self._group_wait.record(seconds, {"wfstate.entity": entity})
