"""A table with a number as its primary key, to which another one refers."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str | None]
    notes: Mapped[list[Note]] = relationship(back_populates="order")


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order] = relationship(back_populates="notes")
