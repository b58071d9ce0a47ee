"""A table whose UUID becomes the key of its workflows."""

from __future__ import annotations

from uuid import UUID, uuid4

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

    workflow_key: Mapped[UUID] = mapped_column("id", primary_key=True, default=uuid4)
    status: Mapped[str | None]
