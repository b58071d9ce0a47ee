"""Constraints, indexes, columns and mapper arguments of the application's own."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import CheckConstraint, Index, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import PydanticJSON, WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class Address(BaseModel):
    city: str


class Order(WorkflowStateMixin[dict[str, int]], Base):
    __tablename__ = "orders"
    __table_args__ = (
        UniqueConstraint("number"),
        CheckConstraint("number > 0", name="number_is_positive"),
        Index("ix_city", "city"),
        {"comment": "what was ordered"},
    )
    __mapper_args__ = {"confirm_deleted_rows": False}  # noqa: RUF012
    __workflow_indexes__ = ("version", "updated", "recent", "state", "provenance")

    number: Mapped[int]
    city: Mapped[str | None]
    address: Mapped[Address | None] = mapped_column(PydanticJSON(Address))
