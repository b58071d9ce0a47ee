"""SQLAlchemy-Continuum, sqlalchemy-history: their version rows follow flushes only."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    configure_mappers,
    mapped_column,
)

from sa_wfstate import Provenance, StateConflict, WorkflowStateMixin, try_commit
from sa_wfstate.history import HistoryMixin, keep_history, list_versions


class OrderState(BaseModel):
    status: str = "new"


@pytest.fixture(params=["sqlalchemy_continuum", "sqlalchemy_history"])
def classes(request: pytest.FixtureRequest) -> Any:
    """Return a versioned workflow class, its versions, its history, and the base."""
    continuum = pytest.importorskip(request.param)
    manager = continuum.VersioningManager()
    continuum.make_versioned(user_cls=None, manager=manager)

    class Base(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = "orders"
        __versioned__ = {}  # noqa: RUF012

        id: Mapped[int] = mapped_column(primary_key=True)

    class OrderHistory(HistoryMixin, Base):
        __tablename__ = "order_history"

    configure_mappers()
    yield Order, continuum.version_class(Order), OrderHistory, Base
    continuum.remove_versioning(manager=manager)


def test_version_rows_follow_flushes_only(engine: Engine, classes: Any) -> None:
    """What try_commit writes is in the history of the library, and not in theirs."""
    order_class, versions, history, base = classes
    base.metadata.create_all(engine)  # Alembic does not see their sequence.
    keep_history(order_class, history)
    with Session(engine) as one, Session(engine) as two:
        order = order_class(workflow_key="o-1", state=OrderState())
        one.add(order)
        one.commit()
        late = two.get_one(order_class, order.id)
        order.state.status = "paid"
        one.commit()
        late.state.status = "late"
        with pytest.raises(StateConflict, match="expected version 1, found 2"):
            two.commit()
        two.rollback()
        try_commit(
            two,
            order_class,
            "o-1",
            expected_version=2,
            state=OrderState(status="sent"),
            provenance=Provenance.now(),
        )
        two.commit()
        theirs = two.scalars(select(versions.state).order_by(versions.version))
        assert [state.status for state in theirs] == ["new", "paid"]
        ours = list_versions(two, order_class, "o-1")
        assert sorted(entry.version for entry in ours) == [1, 2, 3]
