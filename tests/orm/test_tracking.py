"""Contract: a changed state is written, an unchanged one is not, over every driver."""

from __future__ import annotations

import gc
import pickle
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import create_engine, event, inspect, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.orm.util import identity_key

from sa_wfstate import PayloadError, WorkflowStateMixin
from sa_wfstate.row.unread import Unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Engine

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


class Tagged(WorkflowStateMixin[set[str]], Base):
    __tablename__ = "tagged"


class Calm(BaseModel):
    model_config = ConfigDict(frozen=True)

    status: str


class Still(WorkflowStateMixin[Calm], Base):
    __tablename__ = "still"


class Name(BaseModel):
    name: UUID = Field(default_factory=uuid4)


class Named(WorkflowStateMixin[Name], Base):
    __tablename__ = "named"


@dataclass(eq=False)
class Mark:
    name: str = "none"


class Sharing(BaseModel):
    mark: Mark = Mark()


class Shared(WorkflowStateMixin[Sharing], Base):
    __tablename__ = "shared"


@pytest.fixture(autouse=True)
def _orders(create_tables: Callable[..., None], database: URL) -> None:
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
        assert order.state.status == "paid"
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
    for key, travel in (
        ("o-1", lambda x: x),
        ("o-2", lambda x: pickle.loads(pickle.dumps(x))),
    ):
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


@pytest.mark.parametrize("broken", [True, False])
def test_listener_is_told_what_was_there(engine: Engine, *, broken: bool) -> None:
    """As a state, also if nobody has read it; a broken row can still be repaired."""
    if broken:
        with engine.begin() as connection:
            connection.execute(text("UPDATE orders SET state = '{\"status\": 1}'"))
    told: list[Any] = []

    def note(_: object, value: OrderState, old: Any, __: object) -> None:
        told.extend((value, old))

    event.listen(Order.state, "set", note)
    try:
        with Session(engine) as session:
            session.get_one(Order, "o-1").state = OrderState(status="sent")
            session.commit()
            assert session.get_one(Order, "o-1").version == 2
    finally:
        event.remove(Order.state, "set", note)
    assert told[0] == OrderState(status="sent")
    assert isinstance(told[1], Unread if broken else OrderState)


@pytest.mark.parametrize("unread", [True, False])
def test_listener_may_change_what_was_there(engine: Engine, *, unread: bool) -> None:
    """One that merges the new state into the old one: that is a change."""

    def merge(_: object, value: OrderState, old: OrderState, __: object) -> OrderState:
        old.lines.extend(value.lines)
        return old

    event.listen(Order.state, "set", merge, retval=True)
    try:
        with Session(engine) as session:
            order = session.get_one(Order, "o-1")
            assert unread or order.state
            order.state = OrderState(lines=[Line(sku="pear")])
            session.commit()
    finally:
        event.remove(Order.state, "set", merge)
    version, state = stored(engine)
    assert (version, [line.sku for line in state.lines]) == (2, ["apple", "pear"])


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


def test_savepoint_rollback_leaves_what_was_only_read(engine: Engine) -> None:
    """What was looked at, before or inside the savepoint, needs no reload."""
    with Session(engine) as session:
        order, other = session.get_one(Order, "o-1"), session.get_one(Order, "o-2")
        assert (order.state.status, other.state.status) == ("new", "new")
        session.flush()
        savepoint = session.begin_nested()
        assert other.state.status == "new"
        order.state.status = "sent"
        session.flush()
        savepoint.rollback()
        assert "state" not in inspect(order).dict
        assert "state" in inspect(other).dict
        other.state.status = "paid"
        session.commit()
    assert [stored(engine, key)[1].status for key in ("o-1", "o-2")] == ["new", "paid"]


def test_merge_without_loading_refuses_a_changed_copy(engine: Engine) -> None:
    """merge(load=False) takes what it is given for the row, so it must be the row."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        assert order.state.status == "new"
    with Session(engine) as session:
        assert session.merge(order, load=False).state.status == "new"
    order.state.status = "paid"
    with (
        Session(engine) as session,
        pytest.raises(InvalidRequestError, match=r"Order.*'o-1'.*changed in place"),
    ):
        session.merge(order, load=False)


def test_reading_a_state_dumps_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a flush has to know what a state looked like when it was read."""
    monkeypatch.setattr(Order.__table__.c.state.type, "dump", None)  # type: ignore[attr-defined]
    with Session(engine) as session:
        assert session.get_one(Order, "o-1").state.status == "new"


def test_change_of_a_shared_default_is_seen(engine: Engine) -> None:
    """A default that is not copied changes together with the value made of it."""
    with Session(engine) as session:
        session.add(Shared(workflow_key="s-1", state=Sharing()))
        session.flush()
        session.execute(text("UPDATE shared SET state = '{}'"))
        session.commit()
        shared = session.get_one(Shared, "s-1")
        shared.state.mark.name += "!"
        session.commit()
        assert shared.version == 2


def test_loaded_state_is_not_built_until_it_is_read(engine: Engine) -> None:
    """A row whose state nobody asks for holds the text, also when pickled or merged."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        assert isinstance(inspect(order).dict["state"], Unread)
        assert order not in session.dirty
        copy = pickle.loads(pickle.dumps(order))
        with Session(engine) as another:
            merged = another.merge(copy)
            assert not another.is_modified(merged)
            assert merged.state == OrderState(lines=[Line(sku="apple")])
        assert inspect(order).attrs.state.value.status == "new"
        assert not isinstance(inspect(order).dict["state"], Unread)


def test_merge_of_an_unread_copy_takes_a_change_back(engine: Engine) -> None:
    """What is merged replaces an unflushed change, and is what the row holds."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        copy = pickle.loads(pickle.dumps(order))
        order.state.status = "paid"
        with no_writes(engine), session.no_autoflush:
            session.merge(copy)
            assert order.state.status == "new"
            session.commit()


def test_merged_state_is_refused_before_sql(engine: Engine) -> None:
    """A broken value that came by merge() is refused like any other."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        session.expunge(order)
    order.state.notes["x"] = float("nan")
    with Session(engine) as session:
        session.merge(order)
        with no_writes(engine), pytest.raises(PayloadError, match=r"notes\.\*"):
            session.commit()


def test_equal_set_in_another_order_is_no_change(engine: Engine) -> None:
    """The order in which a set is dumped means nothing."""
    with Session(engine) as session:
        session.add(Tagged(workflow_key="t-1", state={*map(str, range(20))}))
        session.commit()
        tagged = session.get_one(Tagged, "t-1")
        tagged.state = {*map(str, reversed(range(20)))}
        tagged.state.add("new")
        tagged.state.remove("new")
        with no_writes(engine):
            session.commit()


def test_listeners_of_a_flush_may_read_and_change(engine: Engine) -> None:
    """What before_update adds is written now, what after_flush changes is not lost."""

    @event.listens_for(Order, "before_update")
    def stamp(_mapper: object, _connection: object, order: Order) -> None:
        order.state.notes["stamped"] = True

    with Session(engine) as session:

        @event.listens_for(session, "after_flush")
        def follow(*_: object) -> None:
            follower = session.identity_map[identity_key(Order, "o-2")]
            follower.state.status = "followed"

        order, follower = session.get_one(Order, "o-1"), session.get_one(Order, "o-2")
        assert follower is not None
        order.state.status = "paid"
        try:
            session.commit()
        finally:
            event.remove(Order, "before_update", stamp)
    version, state = stored(engine)
    assert (version, state.status, state.notes) == (2, "paid", {"stamped": True})
    assert stored(engine, "o-2")[1].status == "followed"


def test_listener_after_the_update_may_read(engine: Engine) -> None:
    """Reading what was just written does not make it look changed."""

    @event.listens_for(Order, "after_update")
    def look(_mapper: object, _connection: object, order: Order) -> None:
        assert order.state.status == "paid"

    try:
        with Session(engine) as session:
            order = session.get_one(Order, "o-1")
            order.state.status = "paid"
            session.flush()
            with no_writes(engine):
                session.flush()
            session.commit()
    finally:
        event.remove(Order, "after_update", look)


def test_frozen_state_costs_nothing(engine: Engine) -> None:
    """A deeply frozen state is not watched; an equal one assigned is not written."""
    with Session(engine) as session:
        session.add(Still(workflow_key="s-1", state=Calm(status="new")))
        session.commit()
        still = session.get_one(Still, "s-1")
        assert still.state.status == "new"
        assert still not in session.dirty
        with no_writes(engine):
            still.state = Calm(status="new")
            session.commit()
        still.state = still.state.model_copy(update={"status": "paid"})
        session.commit()
        assert (still.version, still.state.status) == (2, "paid")


def test_upcast_on_read_is_not_written(engine: Engine) -> None:
    """A row that lacks a field, of a random default even, is not bumped by reading."""
    with Session(engine) as session:
        session.add(Named(workflow_key="n-1", state=Name()))
        session.flush()
        session.execute(text("UPDATE named SET state = '{}'"))
        session.commit()
        named = session.get_one(Named, "n-1")
        name = named.state.name
        with no_writes(engine):
            session.commit()
        assert named.state.name != name


def test_updates_are_hot(engine: Engine) -> None:
    """An update of an application's own table touches no index."""

    def counts() -> tuple[int, int]:
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
            query = (
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
                " WHERE relname = 'orders'"
            )
            updated, hot = connection.execute(text(query)).one()
        return updated, hot

    with engine.begin() as connection:
        # The snapshot of an ANALYZE would keep old rows, and a full page is left.
        connection.execute(text("ALTER TABLE orders SET (autovacuum_enabled = false)"))
    # Tests before this one have used the table, too.
    updated, hot = counts()
    with Session(engine) as session:
        for number in range(20):
            session.get_one(Order, "o-1").state.status = str(number)
            session.commit()
    assert counts() == (updated + 20, hot + 20)


def lines_run(function: Callable[[], object]) -> int:
    """Count the lines of the library that *function* runs."""
    count = 0

    def trace(frame: Any, _: str, __: Any) -> Any:
        nonlocal count
        if not frame.f_globals.get("__name__", "").startswith("sa_wfstate"):
            return None
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def test_work_grows_with_the_rows_and_not_faster(engine: Engine) -> None:
    """Each row of a flush is looked at by itself, whatever is done to it."""

    def change(session: Session) -> None:
        for order in session.scalars(select(Order)).all():
            order.state.status = "paid"
        session.flush()

    def delete(session: Session) -> None:
        for order in session.scalars(select(Order)).all():
            session.delete(order)
        session.flush()

    counted: dict[int, list[int]] = {}
    for rows in (20, 20, 80):  # The first time, statements are built.
        with Session(engine) as session:
            new = [
                Order(workflow_key=f"n-{n}", state=OrderState()) for n in range(rows)
            ]
            session.add_all(new)
            steps = [session.flush, partial(change, session), partial(delete, session)]
            counted[rows] = [lines_run(step) for step in steps]
    for few, many in zip(counted[20], counted[80], strict=True):
        assert many < 5 * few
