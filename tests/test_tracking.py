"""Contract: a changed state is written, an unchanged one is not, over every driver."""

from __future__ import annotations

import gc
import pickle
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import PayloadError, WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Engine, MetaData

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class Line(BaseModel):
    sku: str
    quantity: int = 1


class OrderState(BaseModel):
    status: str = "new"
    lines: list[Line] = []
    notes: dict[str, Any] = {}


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


@pytest.fixture(autouse=True)
def _orders(create_tables: Callable[[MetaData], None], database: URL) -> None:
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        for key in ("o-1", "o-2"):
            state = OrderState(lines=[Line(sku="apple")])
            session.add(Order(workflow_key=key, state=state))
        session.commit()
    plain.dispose()


def stored(engine: Engine, key: str = "o-1") -> tuple[int, OrderState]:
    """Return version and state as another session sees them."""
    with Session(engine) as session:
        order = session.get_one(Order, key)
        return order.version, order.state


@contextmanager
def no_writes(engine: Engine) -> Iterator[None]:
    """Fail if anything but a SELECT is sent."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        sent.append(args[2])

    yield
    event.remove(engine, "before_cursor_execute", note)
    assert [sql for sql in sent if not sql.startswith("SELECT")] == []


def test_change_at_depth_is_written_by_commit(engine: Engine) -> None:
    """A nested model changed in place is written, and counts as one commit."""
    with Session(engine) as session:
        session.get_one(Order, "o-1").state.lines[0].quantity = 5
        session.commit()
    version, state = stored(engine)
    assert (version, state.lines[0].quantity) == (2, 5)


def test_change_of_an_object_nobody_holds_is_written(engine: Engine) -> None:
    """The session holds what was handed out, though its identity map is weak."""
    with Session(engine) as session:
        session.get_one(Order, "o-1").state.status = "paid"
        gc.collect()
        session.commit()
    assert stored(engine)[1].status == "paid"


def test_change_in_a_loop_is_written(engine: Engine) -> None:
    """Objects that a loop lets go of are written all the same."""
    with Session(engine) as session:
        for order in session.scalars(select(Order)):
            order.state.notes["seen"] = True
        session.commit()
    assert [stored(engine, key)[1].notes for key in ("o-1", "o-2")] == [
        {"seen": True}
    ] * 2


def test_change_is_written_by_autoflush(engine: Engine) -> None:
    """A query sees what was changed in place before it."""
    with Session(engine) as session:
        session.get_one(Order, "o-1").state.status = "paid"
        paid = select(Order.workflow_key).where(
            Order.state["status"].astext == "paid",  # type: ignore[attr-defined]
        )
        assert session.scalars(paid).all() == ["o-1"]


def test_change_through_a_kept_reference_is_written_by_each_flush(
    engine: Engine,
) -> None:
    """A reference to the state stays live across flushes that wrote, or did not."""
    with Session(engine) as session:
        state = session.get_one(Order, "o-1").state
        session.flush()
        state.status = "paid"
        session.flush()
        state.status = "sent"
        session.flush()
        session.flush()
        state.notes["by"] = "truck"
        session.commit()
    version, state = stored(engine)
    assert (version, state.status, state.notes) == (4, "sent", {"by": "truck"})


def test_change_after_insert_is_written(engine: Engine) -> None:
    """The state of an object that this session inserted is watched as well."""
    with Session(engine) as session:
        state = OrderState()
        session.add(Order(workflow_key="o-3", state=state))
        session.flush()
        gc.collect()
        state.status = "paid"
        session.commit()
    assert stored(engine, "o-3")[1].status == "paid"


def test_change_after_commit_without_expiry_is_written(engine: Engine) -> None:
    """With expire_on_commit=False an object goes on being watched."""
    with Session(engine, expire_on_commit=False) as session:
        order = session.get_one(Order, "o-1")
        state = order.state
        session.commit()
        assert not session.in_transaction()
        state.status = "paid"
        session.commit()
        assert order.version == 2
        state.status = "sent"
        session.commit()
    version, state = stored(engine)
    assert (version, state.status) == (3, "sent")


def test_reading_after_commit_begins_no_transaction(engine: Engine) -> None:
    """Code that says session.begin() after reading a loaded state goes on working."""
    with Session(engine, expire_on_commit=False) as session:
        with session.begin():
            order = session.get_one(Order, "o-1")
        assert order.state.status == "new"
        with session.begin():
            order.state.status = "paid"
    assert stored(engine)[0] == 2


def test_assigned_state_is_written(engine: Engine) -> None:
    """A new model in place of the old one is written."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state = order.state.model_copy(update={"status": "paid"})
        session.commit()
        order.state = OrderState(status="sent")
        session.commit()
    version, state = stored(engine)
    assert (version, state) == (3, OrderState(status="sent"))


def test_assigned_copy_of_a_state_changed_in_place_is_written(engine: Engine) -> None:
    """The old value was changed before the new one, equal to it, was assigned."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state.status = "paid"
        order.state = order.state.model_copy(deep=True)
        session.commit()
    assert stored(engine)[1].status == "paid"


def test_true_is_not_one(engine: Engine) -> None:
    """Values that Python takes for equal are written when their JSON differs."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state.notes["paid"] = True
        session.commit()
        order.state.notes["paid"] = 1
        session.commit()
        assert order.version == 3
        assert order.state.notes["paid"] is not True


def test_nothing_changed_nothing_sent(engine: Engine) -> None:
    """Reading, setting the same, changing back: no write, no new version."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        with no_writes(engine):
            order.state.lines.append(Line(sku="pear"))
            order.state.lines.pop()
            order.state.status = "new"
            order.state = order.state.model_copy(deep=True)
            session.flush()
            order.state = OrderState(lines=[Line(sku="apple")])
            session.commit()
    assert stored(engine)[0] == 1


def test_mapper_events_of_readers_stay_silent(engine: Engine) -> None:
    """A listener that changes what is updated does not get rows that were only read."""
    seen: list[str] = []

    @event.listens_for(Order, "before_update")
    def note(_mapper: object, _connection: object, order: Order) -> None:
        seen.append(order.workflow_key)

    try:
        with Session(engine) as session:
            assert session.get_one(Order, "o-1").state.status == "new"
            session.get_one(Order, "o-2").state.status = "paid"
            session.flush()
            session.commit()
    finally:
        event.remove(Order, "before_update", note)
    assert seen == ["o-2"]


def test_savepoint_rollback_takes_changes_back(engine: Engine) -> None:
    """What changed inside a savepoint is gone with it, what changed before stays."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state.status = "paid"
        savepoint = session.begin_nested()
        order.state.status = "sent"
        session.flush()
        savepoint.rollback()
        assert order.state.status == "paid"
        savepoint = session.begin_nested()
        order.state.notes["never"] = "flushed"
        savepoint.rollback()
        assert order.state.notes == {}
        with session.begin_nested():
            order.state.notes["kept"] = 1
        order.state.notes["more"] = 2
        session.commit()
    version, state = stored(engine)
    assert (state.status, state.notes) == ("paid", {"kept": 1, "more": 2})
    assert version == 4


def test_rollback_takes_changes_back(engine: Engine) -> None:
    """After a rollback the state is read anew."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state.status = "paid"
        session.flush()
        order.state.notes["x"] = 1
        session.rollback()
        assert order.state == OrderState(lines=[Line(sku="apple")])
        session.commit()
    assert stored(engine)[0] == 1


def test_refresh_and_expire_drop_changes(engine: Engine) -> None:
    """Refreshed or expired, an object forgets unflushed changes, as any column does."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state.status = "paid"
        session.refresh(order)
        assert order.state.status == "new"
        order.state.status = "paid"
        session.expire(order)
        session.commit()
    assert stored(engine) == (1, OrderState(lines=[Line(sku="apple")]))


def test_change_while_detached_is_written_when_attached(engine: Engine) -> None:
    """Changed between two sessions, also across pickle, it is written by the second."""
    for key, travel in (("o-1", lambda x: x), ("o-2", lambda x: pickle.loads(pickle.dumps(x)))):
        with Session(engine) as session:
            order = session.get_one(Order, key)
            session.expunge(order)
        assert order.state.status == "new"
        order = travel(order)
        order.state.status = "paid"
        with Session(engine) as session:
            session.add(order)
            session.commit()
        assert stored(engine, key)[1].status == "paid"


def test_merge_of_a_changed_copy_is_written(engine: Engine) -> None:
    """merge() of a detached object that was changed in place writes the change."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        session.expunge(order)
    order.state.status = "paid"
    with Session(engine) as session:
        session.merge(order)
        session.commit()
    assert stored(engine)[1].status == "paid"


def test_untouched_rows_are_let_go(engine: Engine) -> None:
    """A session keeps alive only what was handed out."""
    with Session(engine) as session:
        orders = session.scalars(select(Order)).all()
        assert len(orders) == 2
        assert orders[0].state.status == "new"
        del orders
        gc.collect()
        assert len(session.identity_map) == 1


def test_broken_state_is_refused_before_sql(engine: Engine) -> None:
    """A value that its model does not allow names key and leaves the session usable."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        session.get_one(Order, "o-2").state.status = "paid"
        order.state.lines = "none"  # type: ignore[assignment]
        with no_writes(engine), pytest.raises(PayloadError, match=r"Order 'o-1' state"):
            session.commit()
        order.state.lines = []
        session.commit()
    assert stored(engine, "o-1")[1].lines == []
    assert stored(engine, "o-2")[1].status == "paid"


def test_missing_state_is_refused(engine: Engine) -> None:
    """None is no state."""
    with Session(engine) as session:
        session.add(Order(workflow_key="o-9"))
        with pytest.raises(PayloadError, match="Order 'o-9' state"):
            session.flush()
