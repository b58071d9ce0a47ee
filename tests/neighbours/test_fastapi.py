"""FastAPI: where the commit runs decides whether the client learns of a conflict."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import StateConflict, WorkflowStateMixin, http

fastapi = pytest.importorskip("fastapi")
testclient = pytest.importorskip("fastapi.testclient")


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


@pytest.mark.parametrize(
    ("scope", "flush", "status"),
    [("request", False, 200), ("request", True, 409), ("function", False, 409)],
)
def test_client_learns_of_a_conflict_before_the_response(
    engine: Engine, migrate: Any, *, scope: str, flush: bool, status: int
) -> None:
    """By flush() in the handler, or by a dependency that ends with the handler."""
    migrate(Base.metadata)
    with Session(engine) as session, session.begin():
        session.add(Order(workflow_key="o-1", state=OrderState()))
    app, lost = fastapi.FastAPI(), []

    def open_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session
            try:
                session.commit()
            except StateConflict as conflict:
                lost.append(conflict)
                raise

    depends = fastapi.Depends(open_session, scope=scope)

    @app.post("/")
    def write(session: Annotated[Any, depends]) -> OrderState:
        order = session.get_one(Order, "o-1")
        with Session(engine) as other, other.begin():
            other.get_one(Order, "o-1").state.status = "early"
        order.state.status = "late"
        if flush:
            session.flush()
        return order.state

    @app.exception_handler(StateConflict)
    def answer(_: Any, conflict: StateConflict) -> Any:
        code, body = http.problem(conflict)
        return fastapi.responses.JSONResponse(body, code)

    client = testclient.TestClient(app, raise_server_exceptions=False)
    assert client.post("/").status_code == status
    assert len(lost) == (not flush)
