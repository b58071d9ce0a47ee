"""Mapped classes that several test modules share.

A module declares a class of its own where it needs other columns or options, or
registers what is called with each commit of a class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import CanonicalStore, Provenance, StateCommitted, WorkflowStateMixin
from sa_wfstate.dedup import ActionDedupMixin

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Base(DeclarativeBase):
    """The declarative base of these classes."""


class OrderState(BaseModel):
    """The state of an order."""

    status: str = "new"
    notes: list[int | str] = []


class Order(WorkflowStateMixin[OrderState], Base):
    """A workflow as an application would define it."""

    __tablename__ = "orders"

    number: Mapped[int | None] = mapped_column(unique=True)


class OrderActions(ActionDedupMixin, Base):
    """The actions of orders that were processed."""

    __tablename__ = "order_actions"


class Customer(Base):
    """No workflow, but versioned."""

    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    revision: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012 - SQLAlchemy's way


def write_as_another(engine: Engine) -> None:
    """Commit a note to the order ``o-1`` as another process would."""
    store = CanonicalStore(engine, Order)
    current = store.get_state("o-1")
    outcome = store.try_commit(
        workflow_key="o-1",
        expected_version=current.version,
        state=OrderState(notes=[*current.state.notes, 99]),
        provenance=Provenance.now(),
    )
    assert isinstance(outcome, StateCommitted)
