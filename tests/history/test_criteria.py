"""A session that filters what it loads reads the history of the rows that it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel
from sqlalchemy import event
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    ORMExecuteState,
    Session,
    with_loader_criteria,
)

from sa_wfstate import Provenance, WorkflowStateMixin
from sa_wfstate.errors import VersionNotInHistory
from sa_wfstate.history import (
    HistoryMixin,
    get_version,
    keep_history,
    list_versions,
    restore_version,
    trim_history,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, MetaData


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    tenant: Mapped[str]


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"


keep_history(Order, OrderHistory)


@pytest.fixture
def filtered(
    engine: Engine, create_tables: Callable[[MetaData], None]
) -> Callable[[], Session]:
    """Write two versions of an order of each tenant; return what opens our sessions."""
    create_tables(Base.metadata)
    with Session(engine) as session:
        for tenant in ("ours", "theirs"):
            order = Order(workflow_key=tenant, tenant=tenant, state=OrderState())
            session.add(order)
            session.flush()
            order.state.status = "paid"
        session.commit()

    def start() -> Session:
        session = Session(engine)
        ours = with_loader_criteria(Order, Order.tenant == "ours")

        @event.listens_for(session, "do_orm_execute")
        def filter_tenant(execute: ORMExecuteState) -> None:
            execute.statement = execute.statement.options(ours)

        return session

    return start


def test_history_of_a_hidden_row_is_not_read(filtered: Callable[[], Session]) -> None:
    """What is hidden has no versions, and none of them can be restored."""
    with filtered() as session:
        assert [row.version for row in list_versions(session, Order, "ours")] == [2, 1]
        assert list_versions(session, Order, "theirs") == []
        with pytest.raises(VersionNotInHistory):
            get_version(session, Order, "theirs", 1)
        with pytest.raises(VersionNotInHistory):
            restore_version(
                session,
                Order,
                "theirs",
                1,
                expected_version=2,
                provenance=Provenance.now(),
            )


def test_history_of_a_deleted_row_needs_a_session_that_sees_all(
    engine: Engine, filtered: Callable[[], Session]
) -> None:
    """No criteria can judge a row that is gone, so it is taken as hidden."""
    with Session(engine) as session:
        session.delete(session.get_one(Order, "ours"))
        session.commit()
        assert len(list_versions(session, Order, "ours")) == 2
    with filtered() as session:
        assert list_versions(session, Order, "ours") == []


def test_sweep_sees_all_rows(engine: Engine, filtered: Callable[[], Session]) -> None:
    """trim_history() works through the table, whatever its sessions hide."""
    with Session(engine) as session:
        written = list_versions(session, Order, "theirs")[0].updated_at
    assert trim_history(filtered, Order, before=written.replace(year=9000)) == 2
