"""sqladmin: lists workflows, and edits a column of the application in its form."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import StateConflict, WorkflowStateMixin

sqladmin = pytest.importorskip("sqladmin")
testclient = pytest.importorskip("fastapi.testclient")

from fastapi import FastAPI


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(default="")


class OrderAdmin(sqladmin.ModelView, model=Order):
    column_list = (Order.id, Order.version, Order.state, Order.title)
    form_columns = (Order.title,)


def test_form_writes_a_version_and_a_late_one_conflicts(
    engine: Engine, migrate: Any
) -> None:
    """The form names the columns to edit; the version and the state are shown."""
    migrate(Base.metadata)
    with Session(engine) as session:
        order = Order(workflow_key="o-1", state=OrderState())
        session.add(order)
        session.commit()
        key = order.id
    app = FastAPI()
    sqladmin.Admin(app, engine).add_view(OrderAdmin)
    client = testclient.TestClient(app)
    assert "status='new'" in client.get("/admin/order/list").text.replace("&#39;", "'")
    with Session(engine) as late:
        order = late.get_one(Order, key)
        saved = client.post(
            f"/admin/order/edit/{key}", data={"title": "b"}, follow_redirects=False
        )
        assert saved.status_code in {200, 302}
        order.state.status = "late"
        with pytest.raises(StateConflict, match="expected version 1, found 2"):
            late.commit()
