"""What arrives in part counts as seen only if the state arrives with it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    defer,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
    sessionmaker,
    undefer,
)

from sa_wfstate import (
    ConflictReason,
    Provenance,
    StateConflict,
    WorkflowStateMixin,
)
from sa_wfstate.errors import VersionNotSeen


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[dict[str, str]], Base):
    __tablename__ = "orders"

    note: Mapped[str | None] = mapped_column()
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customers.id"))


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    orders: Mapped[list[Order]] = relationship()


@pytest.fixture
def rival(
    sessions: sessionmaker[Session], create_tables: Callable[..., None]
) -> sessionmaker[Session]:
    """Place an order, and make the sessions of a rival."""
    create_tables(Base.metadata)
    with sessions.begin() as session:
        session.add(Customer(id=1, orders=[placed()]))
    return sessions


def placed() -> Order:
    """Return a new order."""
    return Order(workflow_key="o-1", state={"status": "new"}, customer_id=1)


def move(rival: sessionmaker[Session]) -> None:
    """Commit the next version."""
    with rival.begin() as session:
        order = session.get_one(Order, "o-1")
        order.state["status"] = f"paid {order.version}"


def create_again(rival: sessionmaker[Session]) -> None:
    """Delete the order, and bring another one of its key to the same version."""
    with rival.begin() as session:
        order = session.get_one(Order, "o-1")
        version = order.version
        session.delete(order)
    with rival.begin() as session:
        session.add(placed())
    for _ in range(version - 1):
        move(rival)


RIVALS = {
    ConflictReason.MOVED: move,
    ConflictReason.RECREATED: create_again,
}

Load = Callable[[Session, Order], object]
LOADS: dict[str, tuple[Load, bool]] = {}
"""What loads a held order in part, and whether its state arrives."""


def refreshed(*names: str, lock: bool = False) -> Load:
    """Refresh some attributes."""
    return lambda session, order: session.refresh(order, names, with_for_update=lock)


def expired(*names: str) -> Load:
    """Expire some attributes, and read them."""

    def load(session: Session, order: Order) -> None:
        session.expire(order, names)
        for name in names:
            getattr(order, name)

    return load


def populated(*options: Any, lock: bool = False, then: str | None = None) -> Load:
    """Load it over what is held, and read another attribute *then*."""

    def load(session: Session, order: Order) -> None:
        query = select(Order).options(*options)
        if lock:
            query = query.with_for_update()
        existing = {"populate_existing": True}
        assert session.scalars(query, execution_options=existing).one() is order
        if then is not None:
            getattr(order, then)

    return load


def expired_then_selected(session: Session, order: Order) -> None:
    """Let a query fill what is expired of a held order, but for what it defers."""
    session.expire(order)
    session.scalars(select(Order).options(defer(Order.state))).one()


def got(session: Session, _: Order) -> None:
    """Get it over what is held."""
    options = [defer(Order.state)]
    session.get(Order, "o-1", options=options, populate_existing=True)


def along(option: Any) -> Load:
    """Load it along with its customer."""

    def load(session: Session, _: Order) -> None:
        query = select(Customer).options(option)
        existing = {"populate_existing": True}
        session.scalars(query, execution_options=existing).unique().one()

    return load


def yielded(*options: Any) -> Load:
    """Load it in a stream."""

    def load(session: Session, _: Order) -> None:
        query = select(Order).options(*options)
        several = {"populate_existing": True, "yield_per": 1}
        session.scalars(query, execution_options=several).all()

    return load


def from_text(*columns: str) -> Load:
    """Load it by a textual SELECT."""

    def load(session: Session, _: Order) -> None:
        query = text(f"SELECT {', '.join(columns)} FROM orders")
        existing = {"populate_existing": True}
        session.scalars(
            select(Order).from_statement(query), execution_options=existing
        ).all()

    return load


NAMES = ("state", "version", "provenance", "note")
for names in chain.from_iterable(combinations(NAMES, n) for n in range(1, 5)):
    arrives = "state" in names
    LOADS[f"refresh {names}"] = refreshed(*names), arrives
    if "note" not in names:
        LOADS[f"expire {names}"] = expired(*names), arrives
LOADS |= {
    "refresh for update": (refreshed("state", "version", lock=True), True),
    "refresh version for update": (refreshed("version", lock=True), False),
    "refresh all": (lambda session, order: session.refresh(order), True),
    "expire version, state": (expired("version", "state"), True),
    "populate": (populated(), True),
    "defer state": (populated(defer(Order.state)), False),
    "defer state for update": (populated(defer(Order.state), lock=True), False),
    "defer state, then read it": (populated(defer(Order.state), then="state"), False),
    "defer state, then read note": (populated(defer(Order.state), then="note"), False),
    "raiseload state": (populated(defer(Order.state, raiseload=True)), False),
    "undefer": (
        populated(
            defer("*"),
            undefer(Order.state),
            undefer(Order.version),
            undefer(Order.provenance),
        ),
        True,
    ),
    "undefer state": (populated(defer("*"), undefer(Order.state)), False),
    "load_only": (populated(load_only(Order.version, Order.provenance)), False),
    "load_only for update": (
        populated(load_only(Order.version, Order.provenance), lock=True),
        False,
    ),
    "load_only note": (populated(load_only(Order.note)), False),
    "load_only state and version": (
        populated(load_only(Order.state, Order.version, Order.provenance)),
        True,
    ),
    "expire, then select": (expired_then_selected, False),
    "get": (got, False),
    "joined": (along(joinedload(Customer.orders)), True),
    "joined, deferred": (along(joinedload(Customer.orders).defer(Order.state)), False),
    "selectin": (along(selectinload(Customer.orders)), True),
    "selectin, deferred": (
        along(selectinload(Customer.orders).load_only(Order.version)),
        False,
    ),
    "yield_per": (yielded(), True),
    "yield_per, deferred": (yielded(defer(Order.state)), False),
    "text": (from_text("workflow_key", "version", "provenance"), False),
}


def decide(session: Session, order: Order) -> None:
    """Write a decision that was made before."""
    order.state = {"status": "decided"}
    session.commit()


@pytest.mark.parametrize("reason", RIVALS)
@pytest.mark.parametrize("name", LOADS)
def test_only_what_came_with_the_state_was_seen(
    engine: Engine, rival: sessionmaker[Session], name: str, reason: ConflictReason
) -> None:
    """A held order is written on what was loaded in part only if that is its state.

    And what was loaded, the rival that comes after it wins.
    """
    load, arrives = LOADS[name]
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        assert order.state == {"status": "new"}
        RIVALS[reason](rival)
        load(session, order)
        if arrives:
            decide(session, order)
        else:
            assert_lost(session, order, reason)
        load(session, order)
        session.commit()  # A lock would make the rival wait.
        RIVALS[reason](rival)
        assert_lost(session, order, reason)


def assert_lost(session: Session, order: Order, reason: ConflictReason) -> None:
    """Check that a decision is refused, until the order has been read again."""
    with pytest.raises(StateConflict) as caught:
        decide(session, order)
    assert caught.value.reason is reason
    session.rollback()
    assert order.state
    decide(session, order)


@pytest.mark.parametrize("reason", RIVALS)
def test_refresh_of_what_was_never_seen(
    engine: Engine, rival: sessionmaker[Session], reason: ConflictReason
) -> None:
    """A refresh of state and version brings the effect too."""
    with Session(engine) as session:
        order = session.scalars(select(Order).options(load_only(Order.state))).one()
        session.refresh(order, ["state", "version"])
        RIVALS[reason](rival)
        assert_lost(session, order, reason)


def test_version_after_a_state_without_one(
    engine: Engine, rival: sessionmaker[Session]
) -> None:
    """A version that comes after the state was never seen with it."""
    loads = [
        populated(load_only(Order.version, Order.provenance)),
        refreshed("version"),
        expired("version"),
        expired_then_selected,
    ]
    for load in loads:
        with Session(engine) as session:
            order = session.scalars(select(Order).options(load_only(Order.state))).one()
            move(rival)
            load(session, order)
            with pytest.raises(VersionNotSeen):
                decide(session, order)


@pytest.mark.parametrize("reason", RIVALS)
def test_version_before_its_state(
    engine: Engine, rival: sessionmaker[Session], reason: ConflictReason
) -> None:
    """A state that is loaded later is based on the version that is there already."""
    for moves_before in (False, True):
        with Session(engine) as session:
            order = session.scalars(select(Order).options(defer(Order.state))).one()
            if moves_before:
                RIVALS[reason](rival)
            assert order.state
            session.commit()
            if not moves_before:
                RIVALS[reason](rival)
            assert_lost(session, order, reason)


def test_version_without_its_provenance(
    engine: Engine, rival: sessionmaker[Session]
) -> None:
    """The version alone is compared then; the effect of a known version is kept."""
    partly = populated(defer(Order.provenance))
    with Session(engine) as session:
        order = session.scalars(select(Order).options(defer(Order.provenance))).one()
        session.commit()
        move(rival)
        assert_lost(session, order, ConflictReason.MOVED)
        partly(session, order)
        session.commit()
        create_again(rival)
        assert_lost(session, order, ConflictReason.RECREATED)
        session.commit()
        move(rival)
        partly(session, order)
        decide(session, order)


def test_refresh_keeps_a_provenance_that_was_set(
    engine: Engine, rival: sessionmaker[Session]
) -> None:
    """The provenance that comes along does not replace one that waits for its flush."""
    move(rival)
    with Session(engine, autoflush=False) as session:
        order = session.get_one(Order, "o-1")
        for load in (refreshed("state", "version"), expired("state")):
            order.provenance = mine = Provenance.now("mine")
            load(session, order)
            assert order.provenance == mine


def test_merge_without_load_brings_its_base(
    engine: Engine, rival: sessionmaker[Session]
) -> None:
    """What merge(load=False) copies is based on the version that it came with."""
    with rival() as session:
        old = session.get_one(Order, "o-1")
    for reason, win in RIVALS.items():
        with Session(engine) as session:
            session.get_one(Order, "o-1")
            win(rival)
            session.expire_all()
            held = session.get_one(Order, "o-1")
            assert held.state
            session.expire(held)
            assert session.merge(old, load=False) is held
            assert held.state == {"status": "new"}
            with pytest.raises(StateConflict) as caught:
                decide(session, held)
            assert caught.value.expected_version == 1
            assert reason is not ConflictReason.MOVED or caught.value.reason is reason
        create_again(rival)
