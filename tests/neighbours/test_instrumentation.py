"""OpenTelemetry's and Sentry's instrumentation of SQLAlchemy, together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import Provenance, StateConflict, WorkflowStateMixin, try_commit

instrumentation = pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")
sentry = pytest.importorskip("sentry_sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


def test_both_see_the_statements_and_not_the_conflict_as_an_error(
    engine: Engine, migrate: Any
) -> None:
    """A lost race is an UPDATE without a row, which is no error of the database."""
    migrate(Base.metadata)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = instrumentation.SQLAlchemyInstrumentor()
    # It says that it knows SQLAlchemy up to 2.0 only.
    tracer.instrument(engine=engine, tracer_provider=provider, skip_dep_check=True)
    sent: list[Any] = []
    sentry.init(
        dsn="https://key@sentry.invalid/1",
        integrations=[SqlalchemyIntegration()],
        default_integrations=False,
        traces_sample_rate=1.0,
        before_send_transaction=lambda event, _: sent.append(event),
    )
    try:
        with sentry.start_transaction(name="work"), Session(engine) as session:
            session.add(Order(workflow_key="o-1", state=OrderState()))
            session.commit()
            with Session(engine) as other:
                late = other.get_one(Order, "o-1")
                outcome = try_commit(
                    session,
                    Order,
                    "o-1",
                    expected_version=1,
                    state=OrderState(status="paid"),
                    provenance=Provenance.now(),
                )
                session.commit()
                assert outcome.version == 2
                late.state.status = "late"
                with pytest.raises(StateConflict):
                    other.commit()
    finally:
        tracer.uninstrument()
        sentry.init()
    updates = [span for span in exporter.get_finished_spans() if "UPDATE" in span.name]
    assert updates
    assert all(span.status.is_ok or span.status.is_unset for span in updates)
    assert any("UPDATE" in span["description"] for span in sent[0]["spans"])
