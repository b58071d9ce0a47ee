"""Contract: a stale object that is noticed outside a flush is a conflict too."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, select, text
from sqlalchemy.exc import DBAPIError, LegacyAPIWarning
from sqlalchemy.orm import (
    Mapped,
    Session,
    joinedload,
    load_only,
    make_transient,
    mapped_column,
    merge_frozen_result,
    relationship,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.orm.exc import StaleDataError

from sa_wfstate import ConflictReason, StateConflict
from sa_wfstate.errors import VersionNotSeen
from sa_wfstate.retry import sqlstate

from ..orders import Base, Customer, Order, OrderState
from ..verbs import verbs_of

pytestmark = pytest.mark.contract


class Basket(Base):
    __tablename__ = "baskets"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_key: Mapped[str | None] = mapped_column(ForeignKey("orders.workflow_key"))
    order: Mapped[Order | None] = relationship()


@pytest.fixture
def winner(
    sessions: sessionmaker[Session], create_tables: Callable[..., None]
) -> sessionmaker[Session]:
    """Place an order, and make the sessions of the one who wins."""
    create_tables(Base.metadata)
    with sessions.begin() as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))
        session.add(Customer(id=1, name="Ann"))
    return sessions


def pay(winner: sessionmaker[Session]) -> None:
    """Commit the next version."""
    with winner.begin() as session:
        order = session.get_one(Order, "o-1")
        order.state = OrderState(status=f"paid {order.version}")


def detached(winner: sessionmaker[Session]) -> Order:
    """Load an order, and close its session."""
    with winner() as session:
        return session.get_one(Order, "o-1")


def assert_moved(conflict: StateConflict) -> None:
    """Check that a payment has won, and that the conflict tells so."""
    assert type(conflict.__cause__) is StaleDataError
    assert (conflict.expected_version, conflict.actual_version) == (1, 2)
    assert conflict.reason is ConflictReason.MOVED
    assert conflict.current is not None
    assert conflict.current.state.status == "paid 1"


@pytest.mark.parametrize("kind", ["plain", "scoped"])
def test_merge_of_a_stale_object(
    engine: Engine, winner: sessionmaker[Session], isolation_level: str, kind: str
) -> None:
    """A detached object that was changed on an old version is not merged."""
    stale = detached(winner)
    pay(winner)
    stale.state.status = "cancelled"
    sessions = sessionmaker(engine.execution_options(isolation_level=isolation_level))
    session = scoped_session(sessions) if kind == "scoped" else sessions()
    with pytest.raises(StateConflict) as caught:
        session.merge(stale)
    assert_moved(caught.value)
    session.close()


def test_merge_into_a_stale_session(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """It may be the session's own object that is stale."""
    with Session(engine) as session:
        held = session.get_one(Order, "o-1")
        pay(winner)
        with pytest.raises(StateConflict) as caught:
            session.merge(detached(winner))
        assert_moved(caught.value)
        assert held.version == 1


def test_merge_into_an_expired_object(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """SQLAlchemy compares no version with an expired object; it is loaded first."""
    stale = detached(winner)
    with Session(engine) as session:
        held = session.get_one(Order, "o-1")
        held.state = OrderState(status="paid 1")
        session.commit()
        with pytest.raises(StateConflict) as caught:
            session.merge(stale)
        assert_moved(caught.value)


@pytest.mark.usefixtures("winner")
def test_merge_of_a_new_object_creates(engine: Engine) -> None:
    """A new object is not merged over a row that exists already."""
    with Session(engine) as session:
        session.merge(Order(workflow_key="o-2", state=OrderState()))
        session.commit()
        with pytest.raises(StateConflict) as caught:
            session.merge(Order(workflow_key="o-1", state=OrderState(status="mine")))
        assert caught.value.reason is ConflictReason.EXISTS
        session.commit()
        assert session.get_one(Order, "o-1").version == 1


def test_merge_of_a_fresh_object_is_merged(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """An object at the version of its row is merged, and checked when written."""
    fresh = detached(winner)
    fresh.state.status = "cancelled"
    with Session(engine) as session:
        merged = session.merge(fresh)
        assert merged.state.status == "cancelled"
        session.commit()
        assert merged.version == 2
        gone = detached(winner)
        with winner.begin() as other:
            other.delete(other.get_one(Order, "o-1"))
        make_transient(gone)
        session.merge(gone)
        session.rollback()


def create_again(winner: sessionmaker[Session]) -> None:
    """Delete the order, and place another one of its key, at version 1 again."""
    with winner.begin() as session:
        session.delete(session.get_one(Order, "o-1"))
    with winner.begin() as session:
        session.add(Order(workflow_key="o-1", state=OrderState(status="again")))


def delete(winner: sessionmaker[Session]) -> None:
    """Delete the order, for good."""
    with winner.begin() as session:
        session.delete(session.get_one(Order, "o-1"))


RIVALS = {
    ConflictReason.MOVED: pay,
    ConflictReason.RECREATED: create_again,
    ConflictReason.MISSING: delete,
}


def held_fresh(session: Session) -> object:
    """Hold the row as it is."""
    return session.get(Order, "o-1")


def held_expired(session: Session) -> object:
    """Hold the row, expired."""
    held = session.get(Order, "o-1")
    session.expire_all()
    return held


def held_without_version(session: Session) -> object:
    """Hold only the state of the row."""
    query = select(Order).options(load_only(Order.state))
    return session.scalars(query).one_or_none()


def assert_refused(
    session: Session, winner: sessionmaker[Session], reason: ConflictReason, stale: Any
) -> None:
    """Check that merging is a conflict, and that nothing of it is written."""
    with winner() as other:
        before = other.scalars(select(Order)).all()
    with pytest.raises(StateConflict) as caught:
        session.merge(stale)
    assert (caught.value.reason, caught.value.expected_version) == (reason, 1)
    session.commit()
    with winner() as other:
        after = other.scalars(select(Order)).all()
    assert [order.provenance for order in after] == [o.provenance for o in before]


@pytest.mark.parametrize("reason", RIVALS)
@pytest.mark.parametrize("hold", [None, held_fresh, held_expired, held_without_version])
def test_merge_of_what_is_gone_or_was_created_again(
    engine: Engine,
    winner: sessionmaker[Session],
    reason: ConflictReason,
    hold: Callable[[Session], object] | None,
) -> None:
    """A detached object is based on its row, whatever the session holds of that."""
    stale = detached(winner)
    stale.state.status = "cancelled"
    RIVALS[reason](winner)
    with Session(engine) as session:
        held = hold and hold(session)
        assert_refused(session, winner, reason, stale)
        del held


@pytest.mark.parametrize("reason", RIVALS)
def test_merge_into_an_object_whose_row_is_another(
    engine: Engine, winner: sessionmaker[Session], reason: ConflictReason
) -> None:
    """An expired object of the session does not hide what became of its row."""
    stale = detached(winner)
    with Session(engine) as session:
        held = session.get_one(Order, "o-1")
        session.commit()
        RIVALS[reason](winner)
        assert_refused(session, winner, reason, stale)
        assert held is not stale


def without_its_version(stale: Order) -> Order:
    """Return an object whose version is expired, and whose state was decided on it."""
    with Session() as session:
        session.add(stale)
        session.expire(stale)
        stale.state = OrderState(status="cancelled")
        session.expunge(stale)
    return stale


@pytest.mark.parametrize("reason", RIVALS)
def test_merge_of_a_pickled_or_half_expired_object(
    engine: Engine, winner: sessionmaker[Session], reason: ConflictReason
) -> None:
    """What it is based on goes along with a detached object."""
    stale = detached(winner)
    stale.state.status = "cancelled"
    pickled = pickle.dumps(stale)
    expired = without_its_version(detached(winner))
    RIVALS[reason](winner)
    with Session(engine) as session:
        assert_refused(session, winner, reason, pickle.loads(pickled))
        assert_refused(session, winner, reason, expired)


@pytest.mark.parametrize("reason", RIVALS)
def test_merge_that_cascades_to_a_stale_object(
    engine: Engine, winner: sessionmaker[Session], reason: ConflictReason
) -> None:
    """An object that is reached by a merge is looked at too."""
    with winner.begin() as session:
        session.add(Basket(id=1, order=session.get_one(Order, "o-1")))
    with winner() as session:
        query = select(Basket).options(joinedload(Basket.order))
        stale = session.scalars(query).one()
    assert stale.order is not None
    stale.order.state.status = "cancelled"
    with winner.begin() as session:
        session.get_one(Basket, 1).order = None
    RIVALS[reason](winner)
    with Session(engine) as session:
        assert_refused(session, winner, reason, stale)


@pytest.mark.parametrize("reason", RIVALS)
def test_stale_object_that_is_added(
    engine: Engine, winner: sessionmaker[Session], reason: ConflictReason
) -> None:
    """A detached object is checked in the flush if it is added, or merged unread."""
    first, second = detached(winner), detached(winner)
    RIVALS[reason](winner)
    for attach in (Session.add, lambda session, o: session.merge(o, load=False)):
        with Session(engine) as session:
            order = attach(session, first) or first
            order.state = OrderState(status="cancelled")
            with pytest.raises(StateConflict) as caught:
                session.commit()
            assert caught.value.reason is reason
        first = second


@pytest.mark.usefixtures("winner")
def test_merge_of_an_object_that_was_deleted(engine: Engine) -> None:
    """It is not created again, unless it was made transient."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        assert order.state
        session.delete(order)
        session.flush()
        with pytest.raises(StateConflict) as caught:
            session.merge(order)
        assert caught.value.reason is ConflictReason.MISSING
        session.commit()
        with pytest.raises(StateConflict) as caught:
            session.merge(order)
        assert caught.value.reason is ConflictReason.MISSING
        make_transient(order)
        merged = session.merge(order)
        session.commit()
        assert (merged.version, merged.state.status) == (1, "new")


def test_merge_of_an_expired_object_copies_nothing(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """It stands for its row as it is, so it is no conflict that this has moved."""
    with winner() as session:
        order = session.get_one(Order, "o-1")
        session.commit()
    pay(winner)
    with Session(engine) as session:
        merged = session.merge(order)
        assert merged.state.status == "paid 1"
        merged.state.status = "sent"
        session.commit()
        assert merged.version == 3


def test_merge_of_an_object_without_a_version(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """What it brings cannot be checked, so it is not written."""
    with winner() as session:
        query = select(Order).options(load_only(Order.state))
        order = session.scalars(query).one()
        assert order.state
    with Session(engine) as session:
        merged = session.merge(order)  # It brings nothing new.
        session.commit()
        assert merged.version == 1
        merged.number = 1
        session.commit()
    with Session(engine) as session:
        merged = session.merge(order)
        assert merged.state.status == "new"
        merged.number = 2
        with pytest.raises(VersionNotSeen):
            session.commit()
        session.rollback()
        session.refresh(merged, ["state", "version"])
        merged.number = 2
        session.commit()


@pytest.mark.parametrize("load", [True, False])
def test_merge_of_a_cached_result(
    engine: Engine, winner: sessionmaker[Session], *, load: bool
) -> None:
    """A result that an application has cached is merged as each of its objects."""
    query = select(Order).where(Order.workflow_key == "o-1")
    with winner() as session:
        cached = session.execute(query).freeze()
    pay(winner)
    with Session(engine) as session:
        session.get_one(Order, "o-1").state.status = "seen"
        session.commit()

        def cancel() -> None:
            merged = merge_frozen_result(session, query, cached, load=load)()
            merged.scalar_one().state.status = "cancelled"
            session.commit()

        with pytest.raises(StateConflict):
            cancel()


def test_merge_sends_one_select(engine: Engine, winner: sessionmaker[Session]) -> None:
    """The look at the row is the one that a merge takes anyway."""
    fresh = detached(winner)
    verbs = verbs_of(engine)
    with Session(engine) as session:
        session.merge(fresh)
        assert verbs == ["SELECT"]


def test_locked_load_of_a_stale_object(
    engine: Engine, winner: sessionmaker[Session], isolation_level: str
) -> None:
    """A held object that has fallen behind is not handed out under a lock."""
    engine = engine.execution_options(isolation_level=isolation_level)
    with Session(engine) as session:
        held = session.get_one(Order, "o-1")
        pay(winner)
        with pytest.raises(StateConflict) as caught:
            session.get(Order, "o-1", with_for_update=True)
        if isolation_level == "READ COMMITTED":
            assert_moved(caught.value)
            with pytest.raises(StateConflict), pytest.warns(LegacyAPIWarning):
                session.query(Order).with_for_update().get("o-1")
            session.refresh(held)
            assert session.get(Order, {"workflow_key": "o-1"}, with_for_update=True)
        else:
            assert caught.value.reason is ConflictReason.SERIALIZATION
            assert caught.value.actual_version is None
            session.rollback()
        assert session.get_one(Order, "o-1", with_for_update=True).version == 2


def test_staleness_of_others_passes_through(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """For another entity the error is the one that SQLAlchemy has raised."""
    with winner() as session:
        stale = session.get_one(Customer, 1)
    with Session(engine) as session:
        held = session.get_one(Customer, 1)
        with winner.begin() as other:
            other.get_one(Customer, 1).name = "Bea"
        with pytest.raises(StaleDataError) as caught:
            session.get(Customer, 1, with_for_update=True)
        assert type(caught.value) is StaleDataError
        assert held.revision == 1
    with Session(engine) as session, session.begin():
        with pytest.raises(StaleDataError) as caught:
            session.merge(stale)
        assert type(caught.value) is StaleDataError
        session.merge(Customer(id=2, name="Cid"))


def test_autoflush_of_others_passes_through(
    engine: Engine, winner: sessionmaker[Session], isolation_level: str
) -> None:
    """What another entity loses in the autoflush of a get or merge is its own."""
    stale = detached(winner)
    pay(winner)
    engine = engine.execution_options(isolation_level=isolation_level)
    for load in (
        lambda: session.get(Order, "o-1", with_for_update=True),
        lambda: session.merge(stale),
    ):
        with Session(engine) as session:
            session.get_one(Order, "o-1")
            session.get_one(Customer, 1).name = "Cid"
            with winner.begin() as other:
                customer = other.get_one(Customer, 1)
                customer.name = f"Bea {customer.revision}"
                other.get_one(Order, "o-1").note = f"{customer.revision}"
            with pytest.raises((StaleDataError, DBAPIError)) as caught:
                load()
            assert not isinstance(caught.value, StateConflict)
            assert "customers" in str(caught.value)


@pytest.mark.usefixtures("winner")
def test_read_that_is_refused_is_no_conflict(engine: Engine) -> None:
    """A plain read of a held object writes nothing, so nothing of it is lost."""
    engine = engine.execution_options(isolation_level="SERIALIZABLE")
    with Session(engine) as session, Session(engine) as other:
        order = session.get_one(Order, "o-1")
        session.scalars(select(Customer)).all()
        other.scalars(select(Order)).all()
        other.get_one(Customer, 1).name = "Bea"
        session.execute(text("UPDATE orders SET number = 7"))
        other.commit()
        session.expire(order)
        with pytest.raises(DBAPIError) as caught:
            session.get(Order, "o-1")
        assert sqlstate(caught.value) == "40001"


def test_sessions_of_other_programs_are_left_alone() -> None:
    """Importing the package changes no Session; mapping a workflow does, once."""
    code = (
        "from sqlalchemy.orm import DeclarativeBase, Session\n"
        "before = dict(vars(Session))\n"
        "from sa_wfstate import WorkflowStateMixin\n"
        "assert dict(vars(Session)) == before\n"
        "class Base(DeclarativeBase): pass\n"
        "class A(WorkflowStateMixin[dict], Base): __tablename__ = 'a'\n"
        "class B(WorkflowStateMixin[dict], Base): __tablename__ = 'b'\n"
        "assert Session._merge.__wrapped__ is before['_merge']\n"
        "assert Session.get is before['get']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
