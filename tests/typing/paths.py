"""What a type checker knows of a path into a state."""

from __future__ import annotations

from typing import assert_type

from pydantic import BaseModel
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import WorkflowStateMixin, field_of


class Customer(BaseModel):
    name: str


class OrderState(BaseModel):
    total: int = 0
    customer: Customer | None = None


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


def path_has_the_type_of_the_field(session: Session) -> None:
    total = field_of(Order.state, lambda state: state.total)
    assert_type(total, ColumnElement[int])
    assert_type(session.scalars(select(total)).one(), int)


def path_goes_on_behind_a_field_that_may_be_none() -> None:
    customer = field_of(Order.state, lambda state: state.customer)
    assert_type(customer, ColumnElement[Customer | None])
    name = field_of(customer, lambda found: found.name)
    assert_type(name, ColumnElement[str])


def wrong_field_is_an_error() -> None:
    field_of(Order.state, lambda state: state.totl)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownLambdaType]
