"""Contract: flushes that merge rows which have moved on, when they are asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, model_validator
from sqlalchemy import Engine, ForeignKey, event, func
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

from sa_wfstate import (
    ConflictReason,
    PydanticJSON,
    RetryPolicy,
    StateConflict,
    WorkflowStateMixin,
    run_transaction,
)
from sa_wfstate.errors import MappingError, StateReplaced
from sa_wfstate.history import HistoryMixin, keep_history, list_versions
from sa_wfstate.merging import Rebase, add, mine, union
from sa_wfstate.versions import expect_version

from ..verbs import verbs_of
from ..versions import SQLALCHEMY

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import MetaData

pytestmark = pytest.mark.contract

ONCE = RetryPolicy(max_attempts=1)


class Base(DeclarativeBase):
    pass


class Address(BaseModel):
    city: str = ""
    street: str = ""


class OrderState(BaseModel):
    status: str = "new"
    tags: set[str] = set()
    visits: int = 0
    address: Address = Address()
    paid: int = 0
    limit: int = 100

    @model_validator(mode="after")
    def check_limit(self) -> OrderState:
        if self.paid > self.limit:
            raise ValueError("too much")
        return self


class Clerk(Base):
    __tablename__ = "clerks"
    id: Mapped[int] = mapped_column(primary_key=True)


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __unversioned__ = ("seen",)
    __rebase__ = Rebase(
        {"tags": union, "visits": add, "seats": add, "meta": union, "limit": mine}
    )

    customer: Mapped[str | None]
    note: Mapped[str | None] = mapped_column(deferred=True)
    seen: Mapped[int | None]
    seats: Mapped[int | None] = mapped_column("places")
    meta: Mapped[list[int] | None] = mapped_column(PydanticJSON(list[int]))
    touched: Mapped[int] = mapped_column(default=0, onupdate=func.floor(7))
    clerk_id: Mapped[int | None] = mapped_column(ForeignKey("clerks.id"))
    clerk: Mapped[Clerk | None] = relationship()


class Plain(WorkflowStateMixin[OrderState], Base):
    """Has not opted in."""

    __tablename__ = "plain"


class Frozen(BaseModel, frozen=True):
    status: str = "new"
    paid: int = 0


class Ticket(WorkflowStateMixin[Frozen], Base):
    __tablename__ = "tickets"
    __rebase__ = Rebase()


class Free(WorkflowStateMixin[dict[str, Any]], Base):
    __tablename__ = "free"
    __rebase__ = Rebase()


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"


keep_history(Order, OrderHistory)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Base.metadata)


def create(
    engine: Engine, entity: Any = Order, state: Any = None, **values: Any
) -> None:
    """Create a workflow."""
    with Session(engine) as session:
        state = OrderState() if state is None else state
        session.add(entity(workflow_key="k", state=state, **values))
        session.commit()


def rebasing(engine: Engine) -> Engine:
    """Return *engine* with the option."""
    return engine.execution_options(sa_wfstate_rebase=True)


def race(
    engine: Engine,
    own: Callable[[Any], object],
    other: Callable[[Any], object],
    entity: Any = Order,
) -> Any:
    """Let *other* win before a rebasing session commits *own*; return the object."""
    with Session(rebasing(engine), expire_on_commit=False) as one:
        order = one.get_one(entity, "k")
        own(order)
        with Session(engine) as two:
            other(two.get_one(entity, "k"))
            two.commit()
        one.commit()
        return order


def read(engine: Engine, entity: Any = Order) -> Any:
    """Read the workflow anew."""
    with Session(engine) as session:
        order = session.get_one(entity, "k")
        _ = order.state
        return order


def change(path: str, value: Any) -> Callable[[Any], None]:
    """Return what sets a field of the state in place."""

    def apply(order: Any) -> None:
        part, *names = order.state, *path.split(".")
        for name in names[:-1]:
            part = getattr(part, name)
        setattr(part, names[-1], value)

    return apply


def test_disjoint_changes_both_win(engine: Engine) -> None:
    """The rows are locked, merged and written; history and provenance show it."""
    create(engine, customer="Ann")
    verbs: list[str] = []

    def own(order: Order) -> None:
        order.state.address.city = "Rome"
        order.state.visits += 1
        order.seats = 2
        verbs.extend(verbs_of(engine))

    def other(order: Order) -> None:
        order.state.address.street = "Via"
        order.state.visits += 10
        order.customer = "Lee"

    order = race(engine, own, other)
    found = read(engine)
    for each in (order, found):
        assert each.version == 3
        assert each.state.address == Address(city="Rome", street="Via")
        assert (each.state.visits, each.customer, each.seats) == (11, "Lee", 2)
        assert each.provenance.rebased_from == 1
    with Session(engine) as session:
        newest, winner, _ = list_versions(session, Order, "k")
    assert winner.state.visits == 10
    assert newest.state.visits == 11
    assert newest.provenance.model_extra == {"rebased_from": 1}


def test_rows_are_locked_in_the_order_of_keys(engine: Engine) -> None:
    """By one statement for a class, and only in a session that is asked to."""
    with Session(engine) as session:
        session.add_all(
            [Order(workflow_key=key, state=OrderState()) for key in "cab"]
            + [Plain(workflow_key=key, state=OrderState()) for key in "ab"]
        )
        session.commit()
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        sent.append(args[2])

    for bind, locks in ((engine, 0), (rebasing(engine), 1)):
        with Session(bind) as session, session.no_autoflush:
            for entity in (Plain, Order):
                for key in "ba":
                    session.get_one(entity, key).state.visits += 1
            sent.clear()
            session.commit()
        found = [each for each in sent if "FOR NO KEY UPDATE" in each]
        assert len(found) == locks
        assert all("ORDER BY orders.workflow_key FOR" in each for each in found)


def test_overlapping_changes_are_the_conflict_as_before(engine: Engine) -> None:
    """With the row that won; it is as that has left it."""
    create(engine)

    def own(order: Order) -> None:
        order.state.status = "sent"
        order.state.visits += 1

    with pytest.raises(StateConflict) as caught:
        race(engine, own, change("status", "paid"))
    assert caught.value.changes is not None
    assert caught.value.changes.overlapping == ("/status",)
    assert caught.value.expected_version == 1
    assert read(engine).state == OrderState(status="paid")


def test_class_that_has_not_opted_in_is_not_rebased(engine: Engine) -> None:
    """Nor is any without the option."""
    create(engine, Plain)
    with pytest.raises(StateConflict):
        race(engine, change("visits", 1), change("status", "paid"), Plain)
    create(engine)
    with Session(engine) as one, Session(rebasing(engine)) as two:
        one.get_one(Order, "k").state.visits = 1
        two.get_one(Order, "k").state.status = "paid"
        two.commit()
        with pytest.raises(StateConflict):
            one.commit()


def test_result_that_the_model_refuses(engine: Engine) -> None:
    """An invariant across fields that the merge breaks: the row stays as it was."""
    create(engine)
    with pytest.raises(StateConflict) as caught:
        race(engine, change("paid", 80), change("limit", 50))
    assert caught.value.changes is not None
    assert caught.value.changes.overlapping == ()
    assert read(engine).state == OrderState(limit=50)


def set_(name: str, value: Any) -> Callable[[Any], None]:
    """Return what assigns a column."""
    return lambda order: setattr(order, name, value)


@pytest.mark.parametrize(
    ("own", "other", "result"),
    [
        (set_("customer", "Kim"), set_("seats", 3), ("Kim", 3)),
        (set_("seats", 5), set_("seats", 3), (None, 8)),
        (set_("seats", 5), set_("customer", "Lee"), ("Lee", 5)),
        (set_("customer", "Kim"), set_("customer", "Lee"), None),
        (set_("customer", "Kim"), set_("customer", "Kim"), None),
        (set_("seats", func.length("abc")), set_("seats", 3), None),
        (set_("seats", func.length("abc")), set_("customer", "Lee"), ("Lee", 3)),
    ],
    ids=["disjoint", "rule", "one", "both", "same value", "both, by SQL", "SQL"],
)
def test_mapped_columns(
    engine: Engine, own: Any, other: Any, result: tuple[Any, Any] | None
) -> None:
    """What one side has set is kept; what both have changed needs a rule."""
    create(engine, seats=0)
    if result is None:
        with pytest.raises(StateConflict) as caught:
            race(engine, own, other)
        assert caught.value.changes is not None
        assert caught.value.changes.overlapping
        return
    race(engine, own, other)
    found = read(engine)
    expected = (result[0], result[1] if result[1] is not None else 0)
    assert (found.customer, found.seats) == expected
    assert found.touched == 7


def test_column_of_json(engine: Engine) -> None:
    """It is merged by its rule too, also one that was changed in place."""
    create(engine, meta=[1, 2])

    def own(order: Order) -> None:
        order.meta.append(3)  # type: ignore[union-attr]

    order = race(engine, own, set_("meta", [2, 4]))
    assert order.meta == read(engine).meta == [2, 4, 3]
    order = race(engine, change("visits", 1), set_("meta", None))
    assert order.meta is None
    assert read(engine).state.visits == 1


def test_column_that_does_not_count(engine: Engine) -> None:
    """The last writer wins, and it is no reason to rebase; nor for a conflict."""
    create(engine)
    race(engine, set_("seen", 1), change("visits", 5))
    assert (read(engine).version, read(engine).seen) == (2, 1)

    def own(order: Order) -> None:
        order.state.visits += 1
        order.seen = 3

    def other(order: Order) -> None:
        order.state.visits += 1
        order.seen = 4

    race(engine, own, other)
    assert (read(engine).state.visits, read(engine).seen) == (7, 3)


def test_column_that_is_loaded_later(engine: Engine) -> None:
    """One that was not loaded cannot be changed by this side, and is kept."""
    create(engine, note="a")
    race(engine, change("visits", 1), set_("note", "b"))
    with Session(engine) as session:
        assert session.get_one(Order, "k").note == "b"


def test_relationship_that_is_assigned(engine: Engine) -> None:
    """Its foreign key is set late in the flush, so a change of both is a conflict."""
    create(engine)
    with Session(engine) as session:
        session.add_all([Clerk(id=1), Clerk(id=2)])
        session.commit()

    def own(order: Order) -> None:
        session = Session.object_session(order)
        assert session is not None
        order.clerk = session.get_one(Clerk, 1)

    with pytest.raises(StateConflict):
        race(engine, own, set_("clerk_id", 2))
    race(engine, own, change("visits", 1))
    assert read(engine).clerk_id == 1


def test_object_that_the_other_side_refers_to(engine: Engine) -> None:
    """It is loaded again, in place of the one that was referred to before."""
    with Session(engine) as session:
        session.add_all([Clerk(id=1), Clerk(id=2)])
        session.commit()
    create(engine, clerk_id=1)

    def own(order: Order) -> None:
        assert order.clerk is not None
        order.state.status = "paid"

    with Session(rebasing(engine), expire_on_commit=False) as one:
        order = one.get_one(Order, "k")
        own(order)
        with Session(engine) as two:
            two.get_one(Order, "k").clerk_id = 2
            two.commit()
        one.flush()
        assert order.clerk is not None
        assert order.clerk.id == order.clerk_id == 2


def assign(**update: Any) -> Callable[[Any], None]:
    """Return what assigns a changed copy of the state."""
    return lambda order: setattr(order, "state", order.state.model_copy(update=update))


@pytest.mark.parametrize(
    ("entity", "state", "own"),
    [
        (Order, OrderState(), assign(paid=1)),
        (Ticket, Frozen(), assign(paid=1)),
        (Free, {"status": "new"}, lambda each: each.state.update(paid=1)),
        (
            Free,
            {"status": "new"},
            lambda each: setattr(each, "state", each.state | {"paid": 1}),
        ),
    ],
    ids=["model", "frozen model", "dict in place", "dict"],
)
def test_states_of_each_kind(engine: Engine, entity: Any, state: Any, own: Any) -> None:
    """Assigned or changed in place, mutable or frozen."""
    create(engine, entity, state)

    def other(order: Any) -> None:
        if entity is Free:
            order.state["status"] = "paid"
        else:
            assign(status="paid")(order)

    order = race(engine, own, other, entity)
    for each in (order, read(engine, entity)):
        data = each.state if entity is Free else each.state.model_dump()
        assert (data["status"], data["paid"]) == ("paid", 1)


def test_reference_to_the_state_goes_on(engine: Engine) -> None:
    """It holds what was merged, and a later change of it is written."""
    create(engine)
    with Session(rebasing(engine)) as one:
        order = one.get_one(Order, "k")
        state = order.state
        state.visits = 1
        with Session(engine) as two:
            change("status", "paid")(two.get_one(Order, "k"))
            two.commit()
        one.flush()
        assert order.state is state
        assert (state.status, state.visits) == ("paid", 1)
        state.visits += 1
        one.commit()
    assert (read(engine).version, read(engine).state.visits) == (4, 2)


@pytest.mark.parametrize("method", ["flush", "commit"])
def test_change_of_a_replaced_part_is_refused(engine: Engine, method: str) -> None:
    """It is not part of the state any more, and would be lost."""
    create(engine)
    with Session(rebasing(engine), expire_on_commit=False) as one:
        write = getattr(one, method)
        order = one.get_one(Order, "k")
        address = order.state.address
        order.state.visits = 1
        with Session(engine) as two:
            change("address.city", "Rome")(two.get_one(Order, "k"))
            two.commit()
        write()
        order.state.visits += 1
        write()  # Untouched, it is no problem.
        address.street = "Via"
        with pytest.raises(StateReplaced, match="'k': a part of state was changed"):
            write()
        one.rollback()
        assert order.state.visits == (2 if method == "commit" else 0)


@pytest.mark.parametrize("action", ["delete", "recreate"])
def test_row_that_is_gone_or_recreated_is_not_rebased(
    engine: Engine, action: str
) -> None:
    """It is another workflow."""
    create(engine)

    def other(order: Order) -> None:
        session = Session.object_session(order)
        assert session is not None
        session.delete(order)
        session.flush()
        if action == "recreate":
            session.add(Order(workflow_key="k", state=OrderState()))

    with pytest.raises(StateConflict) as caught:
        race(engine, change("visits", 1), other)
    assert caught.value.reason in {ConflictReason.MISSING, ConflictReason.RECREATED}


def test_row_of_newer_code_is_not_rebased(engine: Engine) -> None:
    """Its fields are not known here."""
    create(engine)

    def other(order: Order) -> None:
        session = Session.object_session(order)
        assert session is not None
        values = {"version": 2, "schema_version": 2}
        session.execute(Order.__table__.update().values(values))

    with pytest.raises(StateConflict) as caught:
        race(engine, change("visits", 1), other)
    assert (caught.value.actual_version, caught.value.current) == (2, None)


@pytest.mark.parametrize("version", [1, 2])
def test_version_that_is_named_is_not_rebased(engine: Engine, version: int) -> None:
    """A client has decided on it: another one is a conflict."""
    create(engine)
    race(engine, change("visits", 1), lambda _: None)

    def own(order: Order) -> None:
        expect_version(order, version)
        order.state.visits += 1

    with pytest.raises(StateConflict) as caught:
        race(engine, own, change("status", "paid"))
    assert (caught.value.expected_version, caught.value.actual_version) == (version, 3)
    # What the instance was read with is version 2.
    assert (caught.value.changes is None) == (version == 1)


def test_change_that_a_rule_drops_is_not_written(engine: Engine) -> None:
    """The instance has the row as it is, and no version is counted."""
    create(engine, seats=1)
    order = race(engine, change("tags", {"a"}), change("tags", {"a"}))
    assert (order.version, read(engine).version) == (2, 2)
    assert order.state.tags == {"a"}


def test_deletion_is_not_rebased(engine: Engine) -> None:
    """Who deletes a row has decided on another one."""
    create(engine)

    def own(order: Order) -> None:
        session = Session.object_session(order)
        assert session is not None
        session.delete(order)

    with pytest.raises(StateConflict):
        race(engine, own, change("visits", 1))


def test_provenance_that_is_given_is_kept(engine: Engine) -> None:
    """It only gets the version of the base."""
    create(engine)

    def own(order: Order) -> None:
        order.state.visits = 1
        order.provenance = order.default_provenance().model_copy(update={"user": "kim"})

    race(engine, own, change("status", "paid"))
    assert read(engine).provenance.model_extra == {"user": "kim", "rebased_from": 1}


def test_rollback_brings_back_the_row(engine: Engine) -> None:
    """Of a savepoint, and of the transaction."""
    create(engine)
    with Session(rebasing(engine)) as one:
        order = one.get_one(Order, "k")
        _ = order.state
        with Session(engine) as two:
            change("status", "paid")(two.get_one(Order, "k"))
            two.commit()
        savepoint = one.begin_nested()
        order.state.visits = 1
        one.flush()
        savepoint.rollback()
        assert order.state == OrderState(status="paid")
        order.state.visits = 2
        one.flush()
        one.rollback()
        assert order.state == OrderState(status="paid")
        assert order.version == 2


def test_refused_lock_is_a_conflict(engine: Engine) -> None:
    """At REPEATABLE READ a row that has moved on cannot be locked."""
    create(engine)
    strict = rebasing(engine).execution_options(isolation_level="REPEATABLE READ")
    with Session(strict) as one:
        order = one.get_one(Order, "k")
        order.state.visits = 1
        with Session(engine) as two:
            change("status", "paid")(two.get_one(Order, "k"))
            two.commit()
        with pytest.raises(StateConflict) as caught:
            one.commit()
        assert caught.value.reason is ConflictReason.SERIALIZATION
        one.rollback()
        order.state.visits = 1
        one.commit()
    assert read(engine).version == 3


@pytest.mark.parametrize("asked", ["session", "connection"])
def test_session_or_connection_has_the_option(engine: Engine, asked: str) -> None:
    """As an option of the session, with SQLAlchemy 2.1, or of its connection."""
    if asked == "session" and SQLALCHEMY < (2, 1):
        pytest.skip("sessions have no execution options")
    create(engine)
    options: Any = {"execution_options": {"sa_wfstate_rebase": True}}
    with Session(engine, **(options if asked == "session" else {})) as one:
        if asked == "connection":
            one.connection(**options)
        one.get_one(Order, "k").state.visits = 1
        with Session(engine) as two:
            change("status", "paid")(two.get_one(Order, "k"))
            two.commit()
        one.commit()
    assert read(engine).version == 3


def test_run_transaction_rebases_when_asked(engine: Engine) -> None:
    """Its function runs once."""
    create(engine)
    calls = []

    def work(session: Session) -> None:
        calls.append(session)
        session.get_one(Order, "k").state.visits += 1
        with Session(engine) as other:
            other.get_one(Order, "k").state.visits += 10
            other.commit()

    sessions = sessionmaker(engine)
    run_transaction(sessions, work, rebase=True, retry=ONCE)
    assert len(calls) == 1
    assert read(engine).state.visits == 11
    with pytest.raises(StateConflict):
        run_transaction(sessions, work, retry=ONCE)


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"tags": union}, "must be a Rebase"),
        (Rebase({"tag": union}), "names 'tag'"),
        (Rebase({"/tag/x": union}), "names 'tag'"),
    ],
)
def test_wrong_rules_are_refused_with_the_class(rules: Any, problem: str) -> None:
    """A path that leads nowhere would never be asked for."""
    with pytest.raises(MappingError, match=problem):

        class Wrong(WorkflowStateMixin[OrderState], Base):
            __tablename__ = "wrong"
            __rebase__ = rules
