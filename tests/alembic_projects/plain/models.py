"""Three lines, nothing asked for."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
