"""Hooks that count and time with prometheus-client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .metrics import BUCKETS, SIZES, MetricsHooks

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ..errors import StateConflict
    from ..values.reports import ProjectionBatch


class PrometheusHooks(MetricsHooks):
    """Count and time with prometheus-client, in *registry*; labelled by entity.

    Raises ImportError without the extra ``prometheus``.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Histogram
        except ImportError as error:
            message = (
                "PrometheusHooks needs prometheus_client: "
                "pip install 'sa-wfstate[prometheus]'"
            )
            raise ImportError(message, name="prometheus_client") from error

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
        self._group_keys = Histogram(
            "wfstate_group_keys",
            "Keys that were committed together.",
            ["entity"],
            buckets=SIZES,
            registry=registry,
        )
        self._group_wait = Histogram(
            "wfstate_group_wait_seconds",
            "How long the first action of a group waited for it.",
            ["entity"],
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

    def grouped(self, entity: str, size: int, waiting: int, seconds: float) -> None:
        self._group_keys.labels(entity).observe(size)
        self._group_wait.labels(entity).observe(seconds)
