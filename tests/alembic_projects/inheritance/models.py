"""Single-table, joined-table and concrete inheritance, and an abstract base."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "order",
    }
    kind: Mapped[str]


class RushOrder(Order):
    __mapper_args__ = {"polymorphic_identity": "rush"}  # noqa: RUF012
    courier: Mapped[str | None]


class Subscription(Order):
    __tablename__ = "subscriptions"
    __mapper_args__ = {"polymorphic_identity": "subscription"}  # noqa: RUF012
    workflow_key: Mapped[str] = mapped_column(
        ForeignKey("orders.workflow_key"), primary_key=True
    )
    period: Mapped[int]


class Audited(WorkflowStateMixin[OrderState], Base):
    __abstract__ = True
    auditor: Mapped[str | None]


class Claim(Audited):
    __tablename__ = "claims"
