"""A schema, and a naming convention that gives every constraint a name."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import WorkflowStateMixin


class Base(DeclarativeBase):
    metadata = MetaData(
        schema="shop",
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "pk": "pk_%(table_name)s",
        },
    )


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __workflow_indexes__ = ("updated",)

    customer: Mapped[str] = mapped_column(index=True, unique=True)
