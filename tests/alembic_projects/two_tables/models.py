"""Two workflow tables with the same indexes, and a table of the application's own."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class State(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[State], Base):
    __tablename__ = "orders"
    __workflow_indexes__ = ("version", "updated")


class Claim(WorkflowStateMixin[list[State]], Base):
    __tablename__ = "claims"
    __workflow_indexes__ = ("version", "updated")


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_key: Mapped[str] = mapped_column(ForeignKey("orders.workflow_key"))
