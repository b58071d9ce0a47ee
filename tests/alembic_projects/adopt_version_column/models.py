"""A table that has a version, and a time, under names of its own."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import BigInteger, DateTime, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, synonym

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    workflow_key: Mapped[str] = mapped_column("order_no", unique=True)
    version: Mapped[int] = mapped_column("lock_version", BigInteger, server_default="1")
    lock_version = synonym("version")
    updated_at: Mapped[datetime] = mapped_column(
        "changed_at", DateTime(timezone=True), server_default=func.now()
    )
    status: Mapped[str | None]
