"""What a type checker knows of the edits of a patch."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import Provenance, StateCommitted, WorkflowStateMixin, field_of
from sa_wfstate.patching import append, increment, remove, set_to, try_patch


class OrderState(BaseModel):
    status: str = "new"
    visits: int = 0
    weight: float | None = None
    total: Decimal = Decimal(0)
    tags: list[str] = []
    marks: tuple[int, ...] | None = None


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


STATUS = field_of(Order.state, lambda state: state.status)
VISITS = field_of(Order.state, lambda state: state.visits)
WEIGHT = field_of(Order.state, lambda state: state.weight)
TOTAL = field_of(Order.state, lambda state: state.total)
TAGS = field_of(Order.state, lambda state: state.tags)
MARKS = field_of(Order.state, lambda state: state.marks)


def edits_fit_their_fields(session: Session) -> str | None:
    outcome = try_patch(
        session,
        Order,
        "o-1",
        [
            set_to(STATUS, "paid"),
            set_to(WEIGHT, None),
            increment(VISITS, 1),
            increment(WEIGHT, 0.5),
            increment(TOTAL, Decimal(1)),
            append(TAGS, "x"),
            append(MARKS, 1),
            remove(TAGS),
        ],
        when=STATUS == "new",
        provenance=Provenance.now(),
    )
    if isinstance(outcome, StateCommitted):
        return outcome.snapshot.state.status
    return None


def wrong_values_are_errors() -> None:
    set_to(VISITS, "many")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    increment(VISITS, "one")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    append(TAGS, 1)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
