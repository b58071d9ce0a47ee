"""Hooks: what a service or a worker tells whoever wants to count, time or log.

Subclass :class:`Hooks` and override what is of interest, or take one of the adapters.
Durations are in seconds. An error that a hook raises is logged and goes no further: by
then the state may be committed.

No adapter makes the workflow key a label of a metric: keys are without bound, and each
value of a label is a time series of its own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .guests import stops, trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

    from .actions import Action
    from .dispatcher import DueIntent
    from .errors import ReducerGaveUp
    from .projection import ProjectionBatch
    from .races import StateConflict
    from .snapshots import StateCommitted

_log = logging.getLogger(__name__)

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


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


def _failure(delay: float | None) -> str:
    return "failed" if delay is not None else "dead"


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
