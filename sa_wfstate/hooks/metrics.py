"""Hooks: what a service or a worker tells whoever wants to count, time or log.

Subclass :class:`Hooks` and override what is of interest, or take one of the adapters.
Durations are in seconds. An error that a hook raises is logged and goes no further: by
then the state may be committed.

No adapter makes the workflow key a label of a metric: keys are without bound, and each
value of a label is a time series of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Hooks

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

    from ..errors import StateConflict
    from ..values.reports import DueIntent, ProjectionBatch


BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


def _failure(delay: float | None) -> str:
    return "failed" if delay is not None else "dead"


class _Metrics(Hooks):
    """What becomes of actions and intents, as one outcome each."""

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
        self._intent(intent.intent_type, _failure(delay))


class PrometheusHooks(_Metrics):
    """Count and time with prometheus-client, in *registry*; labelled by entity.

    Raises ImportError without the extra ``prometheus``.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import REGISTRY, Counter, Histogram

        registry = registry or REGISTRY
        self._actions = Counter(
            "wfstate_actions",
            "Actions by outcome.",
            ["entity", "outcome"],
            registry=registry,
        )
        self._conflicts = Counter(
            "wfstate_conflicts",
            "Attempts that lost.",
            ["entity", "reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            "wfstate_action_seconds",
            "From handing an action over to its outcome.",
            ["entity", "outcome"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._lag = Histogram(
            "wfstate_projection_lag_seconds",
            "How far the oldest row of a worker's batch was behind.",
            ["projection"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._intents = Counter(
            "wfstate_intents",
            "Intents by outcome.",
            ["intent_type", "outcome"],
            registry=registry,
        )

    def projected(self, batch: ProjectionBatch) -> None:
        self._lag.labels(batch.projection).observe(batch.lag_seconds)

    def _action(self, entity: str, outcome: str, seconds: float) -> None:
        self._actions.labels(entity, outcome).inc()
        self._seconds.labels(entity, outcome).observe(seconds)

    def _intent(self, intent_type: str, outcome: str) -> None:
        self._intents.labels(intent_type, outcome).inc()

    def conflicted(self, entity: str, conflict: StateConflict, attempt: int) -> None:
        self._conflicts.labels(entity, conflict.reason.value).inc()


class OpenTelemetryHooks(_Metrics):
    """Count and time with the API of OpenTelemetry, in a meter of *provider*.

    Raises ImportError without the extra ``opentelemetry``.
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        from opentelemetry.metrics import get_meter

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
