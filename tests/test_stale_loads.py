"""Contract: a stale object that is noticed outside a flush is a conflict too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, MetaData, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import (
    Session,
    make_transient,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.orm.exc import StaleDataError

from sa_wfstate import ConflictReason, StateConflict
from sa_wfstate.sqlstates import sqlstate

from .orders import Base, Customer, Order, OrderState

pytestmark = pytest.mark.contract


@pytest.fixture
def winner(
    sessions: sessionmaker[Session], create_tables: Callable[[MetaData], None]
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
        "before = Session.merge, Session.get\n"
        "from sa_wfstate import WorkflowStateMixin\n"
        "assert (Session.merge, Session.get) == before\n"
        "class Base(DeclarativeBase): pass\n"
        "class A(WorkflowStateMixin[dict], Base): __tablename__ = 'a'\n"
        "class B(WorkflowStateMixin[dict], Base): __tablename__ = 'b'\n"
        "assert Session.merge.__wrapped__ is before[0]\n"
        "assert Session.get.__wrapped__ is before[1]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
