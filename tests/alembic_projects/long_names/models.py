"""Names at PostgreSQL's limit, and names that must be quoted."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Long(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "order_" + 57 * "x"


class Quoted(WorkflowStateMixin[OrderState], Base):
    __tablename__ = 'Order "of" 100%'


class Reserved(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "user"
    __workflow_indexes__ = ("updated",)
