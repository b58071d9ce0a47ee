"""Litestar with advanced-alchemy: its autocommit runs when the response is sent."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import StateConflict, WorkflowStateMixin, get_state, http

litestar = pytest.importorskip("litestar")
pytest.importorskip("advanced_alchemy")

from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin, SQLAlchemySyncConfig
from litestar.testing import TestClient


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


@pytest.mark.parametrize("flush", [False, True])
def test_conflict_reaches_the_client_by_flush(
    engine: Engine, migrate: Any, *, flush: bool
) -> None:
    """Without it, the client has read the success of a write that is lost."""
    migrate(Base.metadata)
    with Session(engine) as session, session.begin():
        session.add(Order(workflow_key="o-1", state=OrderState()))

    @litestar.post("/", sync_to_thread=False)
    def write(db_session: Session) -> OrderState:
        order = db_session.get_one(Order, "o-1")
        with Session(engine) as other, other.begin():
            other.get_one(Order, "o-1").state.status = "early"
        order.state.status = "late"
        if flush:
            db_session.flush()
        return order.state

    def answer(_: Any, conflict: StateConflict) -> Any:
        code, body = http.problem(conflict)
        return litestar.Response(body, status_code=code)

    config = SQLAlchemySyncConfig(
        engine_instance=engine, before_send_handler="autocommit"
    )
    app = litestar.Litestar(
        [write],
        plugins=[SQLAlchemyPlugin(config=config)],
        exception_handlers={StateConflict: answer},
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        try:
            code = client.post("/").status_code
        except StateConflict:
            code = 0  # The client of the tests raises what the server logs.
    assert (code == 409) is flush
    with Session(engine) as session:
        assert get_state(session, Order, "o-1").state.status == "early"
