"""The state of an order, and the tables."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import WorkflowSnapshot, WorkflowStateMixin
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.outbox import IntentMixin
from sa_wfstate.projection import Projection, ProjectionMixin, WatermarkMixin


class Base(DeclarativeBase):
    """The declarative base of the service."""


class OrderState(BaseModel):
    """The state of an order, in one JSONB column."""

    status: str = "new"
    total: int = 0
    paid: int = 0
    note: str = ""


class Order(WorkflowStateMixin[OrderState], Base):
    """An order: one row, one version counter."""

    __tablename__ = "orders"


class OrderHistory(HistoryMixin, Base):
    """Every version of each order."""

    __tablename__ = "order_history"


class OrderAction(ActionDedupMixin, Base):
    """The idempotency keys of actions that were processed."""

    __tablename__ = "order_actions"


class OrderIntent(IntentMixin, Base):
    """The transactional outbox."""

    __tablename__ = "order_intents"


class OrderRow(ProjectionMixin, Base):
    """A row for each order, to list and to count."""

    __tablename__ = "order_rows"

    open: Mapped[int] = mapped_column(index=True)
    """What is still to be paid."""


class Watermark(WatermarkMixin, Base):
    """How far the projection has followed."""

    __tablename__ = "watermarks"


def row_of(order: WorkflowSnapshot[OrderState]) -> dict[str, object]:
    """Make the row of an order."""
    state = order.state
    return {
        "tag": state.status,
        "namespace": "shop",
        "open": state.total - state.paid,
    }


keep_history(Order, OrderHistory)
order_rows = Projection(Order, OrderRow, row_of)
