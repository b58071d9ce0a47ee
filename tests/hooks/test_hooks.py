"""The adapters of the hooks, against the libraries that they are for."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.orm import Session

from sa_wfstate import Action, ReducerService, RetryPolicy
from sa_wfstate.canonical import ActionDedupLog, CanonicalBase, WorkflowState
from sa_wfstate.errors import ReducerGaveUp
from sa_wfstate.hooks import (
    Hooks,
    LoggingHooks,
    OpenTelemetryHooks,
    PrometheusHooks,
)
from sa_wfstate.outbox import DueIntent
from sa_wfstate.projection import ProjectionBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

KEY = "a-key-that-no-label-holds"


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(CanonicalBase.metadata)


def exercise(engine: Engine, hooks: Hooks) -> None:
    """Let everything happen once: commit, duplicate, conflict, and giving up."""

    def interfered(state: dict[str, Any], action: Action[int]) -> dict[str, Any]:
        if action.payload:
            with Session(engine) as session, session.begin():
                row = session.get_one(WorkflowState, KEY)
                row.state["other"] = row.version
        return state

    service = ReducerService(
        engine,
        WorkflowState,
        interfered,
        initial=lambda: {"n": 0},
        dedup=ActionDedupLog,
        retry=RetryPolicy(max_attempts=1),
        hooks=hooks,
    )
    one = Action(workflow_key=KEY, action_id=UUID(int=1), payload=0)
    service.handle(one)
    service.handle(one)
    with pytest.raises(ReducerGaveUp):
        service.handle(Action(workflow_key=KEY, action_id=UUID(int=2), payload=1))


def exercise_workers(hooks: Hooks) -> None:
    """Let a worker and a dispatcher tell of what they do."""
    hooks.projected(ProjectionBatch("orders", 3, 1, lag_seconds=0.5, lag_versions=2))
    told = DueIntent(
        UUID(int=3), KEY, 1, 0, "mail", "kim", "secret", 1, datetime.now(UTC)
    )
    hooks.delivered(told, 0.1)
    hooks.not_delivered(told, ValueError("secret"), 1.0)
    hooks.not_delivered(told, ValueError("secret"), None)


def test_prometheus_of_workers() -> None:
    """The lag in seconds by projection, and the intents by type and outcome."""
    registry = CollectorRegistry()
    exercise_workers(PrometheusHooks(registry))
    value = registry.get_sample_value
    lag = "wfstate_projection_lag_seconds_sum"
    assert value(lag, {"projection": "orders"}) == 0.5
    for outcome in ("delivered", "failed", "dead"):
        labels = {"intent_type": "mail", "outcome": outcome}
        assert value("wfstate_intents_total", labels) == 1
    assert KEY not in generate_latest(registry).decode()


def test_opentelemetry_of_workers() -> None:
    """The same as instruments of a meter."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    exercise_workers(OpenTelemetryHooks(provider))
    data: Any = reader.get_metrics_data()
    (metrics,) = data.resource_metrics[0].scope_metrics
    found = {metric.name: metric.data.data_points for metric in metrics.metrics}
    assert found["wfstate.projection.lag"][0].sum == 0.5
    outcomes = [p.attributes["wfstate.outcome"] for p in found["wfstate.intents"]]
    assert sorted(outcomes) == ["dead", "delivered", "failed"]
    assert KEY not in data.to_json()
    provider.shutdown()


def test_logging_of_workers(caplog: pytest.LogCaptureFixture) -> None:
    """A dead letter weighs more than a failure; no payload and no message is shown."""
    exercise_workers(LoggingHooks())
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert f"{KEY!r} version 1" in caplog.text
    assert "again in 1.000 s: ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_prometheus(engine: Engine) -> None:
    """Counters and a histogram in seconds, labelled by entity and outcome only."""
    registry = CollectorRegistry()
    exercise(engine, PrometheusHooks(registry))
    for outcome in ("committed", "duplicate", "gave_up"):
        labels = {"entity": "WorkflowState", "outcome": outcome}
        assert registry.get_sample_value("wfstate_actions_total", labels) == 1
        seconds = registry.get_sample_value("wfstate_action_seconds_sum", labels)
        assert seconds is not None
        assert 0 < seconds < 30
    lost = {"entity": "WorkflowState", "reason": "moved"}
    assert registry.get_sample_value("wfstate_conflicts_total", lost) == 1
    assert KEY not in generate_latest(registry).decode()


def test_opentelemetry(engine: Engine) -> None:
    """The same as instruments of a meter."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    exercise(engine, OpenTelemetryHooks(provider))
    data: Any = reader.get_metrics_data()
    (metrics,) = data.resource_metrics[0].scope_metrics
    assert metrics.scope.name == "sa_wfstate"
    found = {metric.name: metric.data.data_points for metric in metrics.metrics}
    (conflicts,) = found["wfstate.conflicts"]
    assert conflicts.value == 1
    assert dict(conflicts.attributes) == {
        "wfstate.entity": "WorkflowState",
        "wfstate.reason": "moved",
    }
    points = found["wfstate.action.duration"]
    assert {point.attributes["wfstate.outcome"]: point.count for point in points} == {
        "committed": 1,
        "duplicate": 1,
        "gave_up": 1,
    }
    assert KEY not in data.to_json()
    provider.shutdown()


def test_logging(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Levels by weight; keys and versions, never a payload or a state."""
    with caplog.at_level(logging.DEBUG, "sa_wfstate"):
        exercise(engine, LoggingHooks())
    assert [
        record.levelname for record in caplog.records if record.name == "sa_wfstate"
    ] == ["DEBUG", "INFO", "INFO", "WARNING"]
    assert "committed as version 1, attempt 1" in caplog.text
    assert "was processed before, as version 1" in caplog.text
    assert "expected version 1, found 2" in caplog.text
    assert "not committed after 1 attempt" in caplog.text
