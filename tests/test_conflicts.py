"""Contract: whoever commits second gets a StateConflict, over every driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.orm.exc import StaleDataError

from sa_wfstate import ConflictReason, StateConflict, WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, MetaData

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    """The declarative base of these tests."""


class Line(BaseModel):
    """A line of an order."""

    sku: str
    quantity: int = 1


class OrderState(BaseModel):
    """The state of an order."""

    status: str = "new"
    lines: list[Line] = []


class Order(WorkflowStateMixin[OrderState], Base):
    """A workflow as an application would define it."""

    __tablename__ = "orders"


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Base.metadata)


@pytest.fixture
def order(engine: Engine, _tables: None) -> str:
    """An order at version 1."""
    return "order-42"


def place(engine: Engine, *keys: str) -> None:
    """Commit orders at version 1."""
    with Session(engine) as session:
        session.add_all(Order(workflow_key=key, state=OrderState()) for key in keys)
        session.commit()


def test_second_writer_gets_conflict(engine: Engine) -> None:
    """Of two sessions that change one version, the second commit raises the conflict."""
    place(engine, "order-42")
    with Session(engine) as first, Session(engine) as second:
        first.get_one(Order, "order-42").state.status = "paid"
        second.get_one(Order, "order-42").state.status = "cancelled"
        first.commit()
        with pytest.raises(StateConflict) as caught:
            second.commit()
        conflict = caught.value
        assert conflict.workflow_key == "order-42"
        assert conflict.expected_version == 1
        assert conflict.actual_version == 2
        assert conflict.reason is ConflictReason.MOVED
        assert conflict.current is not None
        assert conflict.current.state == OrderState(status="paid")
        assert conflict.conflicts == (conflict,)
        assert type(conflict.__cause__) is StaleDataError
        second.rollback()
        second.get_one(Order, "order-42").state.status = "cancelled"
        second.commit()
    with Session(engine) as session:
        stored = session.get_one(Order, "order-42")
        assert stored.version == 3
        assert stored.state.status == "cancelled"
