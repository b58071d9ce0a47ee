"""What a type checker knows of a mapped workflow class."""

from __future__ import annotations

from datetime import datetime
from typing import Any, assert_type

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import Provenance, WorkflowStateMixin


class OrderState(BaseModel):
    status: str = "new"


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

    customer: Mapped[str | None] = mapped_column(default=None)


class Note(WorkflowStateMixin[dict[str, Any]], Base):
    __tablename__ = "notes"


def columns_have_types(order: Order, note: Note) -> None:
    assert_type(order.workflow_key, str)
    assert_type(order.version, int)
    assert_type(order.state, OrderState)
    assert_type(order.updated_at, datetime)
    assert_type(order.schema_version, int)
    assert_type(order.provenance, Provenance)
    assert_type(order.customer, str | None)
    assert_type(note.state, dict[str, Any])


def state_is_typed_in_queries(session: Session) -> None:
    assert_type(session.scalars(select(Order.state)).one(), OrderState)
    assert_type(session.get_one(Order, "order-42").state.status, str)


def state_takes_its_model_only(order: Order) -> None:
    order.state = OrderState(status="paid")
    order.state = {"status": "paid"}  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


def fields_of_the_state_are_typed(order: Order) -> None:
    order.state.status = "paid"
    order.state.status = 1  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    print(order.state.statuz)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
