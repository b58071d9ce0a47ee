"""Contract: what the conflict of a flush knows of both writers' changes."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, ForeignKey, func
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import ConflictReason, StateConflict, WorkflowStateMixin
from sa_wfstate.row.types import PydanticJSON

from ..verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import MetaData

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"
    lines: list[str] = []
    tags: set[str] = set()
    prices: dict[str, int] = {}


class Frozen(BaseModel, frozen=True):
    status: str = "new"
    paid: int = 0


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    kind: Mapped[str] = mapped_column(default="order")
    customer: Mapped[str | None]
    seats: Mapped[int | None] = mapped_column("places")
    meta: Mapped[dict[str, int] | None] = mapped_column(PydanticJSON(dict[str, int]))
    blob: Mapped[str | None] = mapped_column(deferred=True)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "order"}  # noqa: RUF012


class Express(Order):
    """Has a column in a table of its own."""

    __tablename__ = "express"
    workflow_key: Mapped[str] = mapped_column(
        ForeignKey("orders.workflow_key"), primary_key=True
    )
    courier: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "express"}  # noqa: RUF012


class Ticket(WorkflowStateMixin[Frozen], Base):
    __tablename__ = "tickets"


class Evolved(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "evolved"
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: data | {"status": data["status"].upper()}}  # noqa: RUF012


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Base.metadata)


def lose(
    engine: Engine,
    entity: Any,
    own: Callable[[Any], object],
    other: Callable[[Any], object],
    **values: Any,
) -> StateConflict:
    """Let *own* lose against *other*, each with an object of its own."""
    state_type = entity.__mapper__.columns["state"].type.type_
    with Session(engine) as session:
        session.add(entity(workflow_key="k", **({"state": state_type()} | values)))
        session.commit()
    with Session(engine) as one, Session(engine) as two:
        mine, theirs = one.get_one(entity, "k"), two.get_one(entity, "k")
        own(mine)
        other(theirs)
        two.commit()
        with pytest.raises(StateConflict) as caught:
            one.commit()
        one.rollback()
        return caught.value


def test_paths_of_both(engine: Engine) -> None:
    """States in place and assigned columns, both compared with what was read."""

    def own(order: Order) -> None:
        order.state.lines.append("apples")
        order.state.prices["a/b"] = 1
        order.customer, order.seats = "Kim", 3
        order.meta = {"a": 1}

    def other(order: Order) -> None:
        order.state.status = "paid"
        order.state.lines.append("pears")
        order.state.tags = {"c", "b", "a"}
        order.seats, order.meta = 4, {"b": 1}

    changes = lose(engine, Order, own, other, meta={}).changes
    assert changes is not None
    assert changes.mine == ("/lines/0", "/prices/a~1b", "customer", "meta", "seats")
    assert changes.theirs == ("/lines/0", "/status", "/tags", "meta", "seats")
    assert changes.overlapping == ("/lines/0", "meta", "seats")


def assign_state(order: Any) -> None:
    """Pay."""
    order.state = order.state.model_copy(update={"status": "paid"})


def forget_and_assign(order: Any) -> None:
    """Assign, without a look at the state."""
    order.state = OrderState(status="paid")


@pytest.mark.parametrize("own", [assign_state, forget_and_assign])
def test_assigned_state(engine: Engine, own: Callable[[Any], object]) -> None:
    """It is compared as what was read, whether the application has looked at that."""
    changes = lose(engine, Order, own, lambda o: setattr(o, "customer", "Lee")).changes
    assert changes is not None
    assert (changes.mine, changes.theirs) == (("/status",), ("customer",))


def test_frozen_state(engine: Engine) -> None:
    """It has no baseline; the value that was read is one."""

    def pay(ticket: Ticket) -> None:
        ticket.state = ticket.state.model_copy(update={"paid": 1})

    changes = lose(engine, Ticket, pay, assign_state).changes
    assert changes is not None
    assert (changes.mine, changes.theirs) == (("/paid",), ("/status",))


def test_state_that_only_the_winner_has_changed(engine: Engine) -> None:
    """And that the loser has not even read."""
    changes = lose(
        engine, Order, lambda o: setattr(o, "customer", "Kim"), assign_state
    ).changes
    assert changes is not None
    assert (changes.mine, changes.theirs) == (("customer",), ("/status",))
    assert changes.overlapping == ()


def test_column_of_a_joined_table(engine: Engine) -> None:
    """It is a column of the object like the others."""
    changes = lose(
        engine,
        Express,
        assign_state,
        lambda e: (setattr(e, "courier", "Ann"), assign_state(e)),
    ).changes
    assert changes is not None
    assert (changes.mine, changes.theirs) == (("/status",), ("/status", "courier"))


def test_column_that_is_set_to_sql(engine: Engine) -> None:
    """Neither value is known, so both are said to have changed it."""
    own = lambda order: setattr(order, "seats", func.length("abc"))  # noqa: E731
    changes = lose(engine, Order, own, assign_state).changes
    assert changes is not None
    assert changes.mine == changes.overlapping == ("seats",)


def test_deletion_overlaps_with_everything(engine: Engine) -> None:
    """The losing writer has wanted the row to be gone."""

    def other(order: Order) -> None:
        assign_state(order)
        order.customer = "Lee"

    with Session(engine) as session:
        session.add(Order(workflow_key="k", state=OrderState()))
        session.commit()
    with Session(engine) as one, Session(engine) as two:
        one.delete(one.get_one(Order, "k"))
        other(two.get_one(Order, "k"))
        two.commit()
        with pytest.raises(StateConflict) as caught:
            one.commit()
    changes = caught.value.changes
    assert changes is not None
    assert changes.mine == ("", "customer")
    assert changes.overlapping == ("/status", "customer")


def test_older_schema_version(engine: Engine) -> None:
    """Both are compared in the current shape, so the upcast itself is no change."""
    with Session(engine) as session:
        session.add(Evolved(workflow_key="k", state=OrderState(status="new")))
        session.commit()
        table = Evolved.__table__
        session.execute(table.update().values(schema_version=1))
        session.commit()
    with Session(engine) as one, Session(engine) as two:
        mine, theirs = one.get_one(Evolved, "k"), two.get_one(Evolved, "k")
        mine.state.lines.append("a")
        theirs.state.tags = {"x"}
        two.commit()
        with pytest.raises(StateConflict) as caught:
            one.commit()
    assert caught.value.changes is not None
    assert caught.value.changes.mine == ("/lines/0",)
    assert caught.value.changes.theirs == ("/tags",)


def test_base_that_is_not_known(engine: Engine) -> None:
    """A creation has none, and a row that is gone cannot be compared."""
    with Session(engine) as one, Session(engine) as two:
        one.add(Order(workflow_key="k", state=OrderState()))
        two.add(Order(workflow_key="k", state=OrderState()))
        two.commit()
        with pytest.raises(StateConflict) as caught:
            one.commit()
    assert caught.value.reason is ConflictReason.EXISTS
    assert caught.value.changes is None
    with Session(engine) as one, Session(engine) as two:
        assign_state(one.get_one(Order, "k"))
        two.delete(two.get_one(Order, "k"))
        two.commit()
        with pytest.raises(StateConflict) as caught:
            one.commit()
    assert caught.value.reason is ConflictReason.MISSING
    assert caught.value.changes is None


def test_expired_state_that_is_assigned(engine: Engine) -> None:
    """What it replaces was never loaded."""

    def own(order: Order) -> None:
        session = Session.object_session(order)
        assert session is not None
        session.expire(order, ["state"])
        order.state = OrderState(status="paid")

    assert lose(engine, Order, own, assign_state).changes is None


def test_each_row_has_its_own_changes(engine: Engine) -> None:
    """Of one conflict for several rows, each entry is asked."""
    with Session(engine) as session:
        for key in ("a", "b"):
            session.add(Order(workflow_key=key, state=OrderState()))
        session.commit()
    with Session(engine) as one, Session(engine) as two:
        with one.no_autoflush, two.no_autoflush:
            for key in ("a", "b"):
                one.get_one(Order, key).state.status = key
                two.get_one(Order, key).customer = key
        two.commit()
        with pytest.raises(StateConflict) as caught:
            one.commit()
    for conflict in caught.value.conflicts:
        assert conflict.changes is not None
        assert conflict.changes.mine == ("/status",)
        assert conflict.changes.theirs == ("customer",)


def test_pickled_conflict_keeps_the_changes_that_were_read(engine: Engine) -> None:
    """Others are not computed for it. A copy and a message show no path."""
    conflict = lose(
        engine, Order, assign_state, lambda o: o.state.prices.update(secret=1)
    )
    assert pickle.loads(pickle.dumps(conflict)).changes is None
    changes = conflict.changes
    assert changes is not None
    assert changes.theirs == ("/prices/secret",)
    assert conflict.changes is changes
    assert pickle.loads(pickle.dumps(conflict)).changes == changes
    assert copy.copy(conflict).changes == changes
    for shown in (str(conflict), repr(conflict), repr(changes), repr(conflict.args)):
        assert "secret" not in shown


def test_nothing_is_encoded_unless_asked(engine: Engine, monkeypatch: Any) -> None:
    """Neither for the conflict nor by a further statement."""
    compared: list[object] = []
    monkeypatch.setattr(
        "sa_wfstate.orm.attempts.pointers_of", lambda *texts: compared.append(texts)
    )
    with Session(engine) as session:
        session.add(Order(workflow_key="k", state=OrderState()))
        session.commit()
    with Session(engine) as one, Session(engine) as two:
        one.get_one(Order, "k").state.status = "a"
        two.get_one(Order, "k").state.status = "b"
        two.commit()
        verbs = verbs_of(engine)
        with pytest.raises(StateConflict):
            one.commit()
    assert verbs == ["UPDATE", "SELECT"]
    assert compared == []


def own_changes(order: Order) -> None:
    """Change the state in place, and a column."""
    order.state.lines.append("apples")
    order.customer = "Kim"


def their_changes(order: Order) -> None:
    """Change something else."""
    order.state.tags = {"b"}
    order.seats = 4


@pytest.mark.parametrize("pickled", [False, True])
def test_merge_of_a_detached_object(engine: Engine, pickled: bool) -> None:
    """What was changed while it was detached, and by the winner, is compared."""
    with Session(engine) as session:
        session.add(Order(workflow_key="k", state=OrderState()))
        session.commit()
    with Session(engine) as session:
        stale = session.get_one(Order, "k")
    own_changes(stale)
    with Session(engine) as session:
        their_changes(session.get_one(Order, "k"))
        session.commit()
    if pickled:
        stale = pickle.loads(pickle.dumps(stale))
    with Session(engine) as session:
        with pytest.raises(StateConflict) as caught:
            session.merge(stale)
        session.rollback()
    changes = caught.value.changes
    assert changes is not None
    assert changes.mine == ("/lines/0", "customer")
    assert changes.theirs == ("/tags", "seats")


@pytest.mark.parametrize("way", ["merge", "lock"])
def test_object_that_the_session_holds(engine: Engine, way: str) -> None:
    """A stale one is met by a merge, or by a locked load; it may have no changes."""
    with Session(engine) as session:
        session.add(Order(workflow_key="k", state=OrderState()))
        session.commit()
    for change in (own_changes, lambda _: None):
        with Session(engine, autoflush=False) as one, Session(engine) as two:
            held = one.get_one(Order, "k")
            change(held)
            fresh = two.get_one(Order, "k")
            their_changes(fresh)
            fresh.state.tags = {"b", str(fresh.version)}
            two.commit()
            two.refresh(fresh)
            two.expunge(fresh)
            meet = {
                "merge": lambda: one.merge(fresh),  # noqa: B023 - called below
                "lock": lambda: one.get(Order, "k", with_for_update=True),
            }[way]
            with pytest.raises(StateConflict) as caught:
                meet()
            one.rollback()
        changes = caught.value.changes
        assert changes is not None
        assert changes.mine == (
            ("/lines/0", "customer") if change is own_changes else ()
        )
        assert "/tags" in changes.theirs


def test_creation_by_a_merge_has_no_base(engine: Engine) -> None:
    """Nor has a row that is gone: its changes are None."""
    with Session(engine) as session:
        session.add(Order(workflow_key="k", state=OrderState()))
        session.commit()
        stale = session.get_one(Order, "k")
        session.expunge(stale)
        with pytest.raises(StateConflict) as exists:
            session.merge(Order(workflow_key="k", state=OrderState(status="b")))
        session.delete(session.get_one(Order, "k"))
        session.commit()
        with pytest.raises(StateConflict) as gone:
            session.merge(stale)
    assert (exists.value.changes, gone.value.changes) == (None, None)
