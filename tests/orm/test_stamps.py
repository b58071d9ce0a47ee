"""The provenance that a flush makes is text until it is read, and no one can tell."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import event, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from sa_wfstate import Provenance
from sa_wfstate.orm.version_guard import seen_of
from sa_wfstate.row.types import PydanticJSON
from sa_wfstate.values import provenance as module

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def session(
    create_tables: Callable[..., None], sessions: sessionmaker[Session]
) -> Iterator[Session]:
    """Return a session over the tables of orders."""
    create_tables(Base.metadata)
    with sessions() as session:
        yield session


def create(session: Session, key: str = "o-1") -> Order:
    """Return an order that was flushed."""
    order = Order(workflow_key=key, state=OrderState(), number=1)
    session.add(order)
    session.flush()
    return order


def stored(session: Session, key: str = "o-1") -> Provenance:
    """Return the provenance of a row, read again."""
    query = select(Order.provenance).where(Order.workflow_key == key)
    return session.scalars(query).one()


@pytest.mark.parametrize("microsecond", [0, 7, 123456])
def test_text_is_that_of_pydantic(
    monkeypatch: pytest.MonkeyPatch, microsecond: int
) -> None:
    """It is what the column type dumps of the provenance that is read from it."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2026, 1, 2, 3, 4, 5, microsecond, tzinfo=tz)

    monkeypatch.setattr(module, "datetime", Clock)
    json, ids = PydanticJSON(Provenance), set[str]()
    for effect_id, text in islice(module.texts_of_now(), 200):
        made = json.load(text)
        assert json.codec.encode(made) == text
        assert made.effect_id == effect_id == str(UUID(effect_id))
        assert made.timestamp == Clock.now(UTC)
        assert made.action_id is None
        ids.add(effect_id)
    assert len(ids) == 200


def test_instance_has_what_the_row_has(session: Session) -> None:
    """After an INSERT and an UPDATE; each write has an effect of its own."""
    order = create(session)
    first = order.provenance
    assert isinstance(first, Provenance)
    assert first == stored(session)
    order.state.status = "paid"
    session.flush()
    seen = seen_of(inspect(order))
    assert order.provenance == stored(session) != first
    assert seen == (2, order.provenance.effect_id)


def test_pickled_instance_has_it(session: Session) -> None:
    """Its text goes along, unread."""
    order = create(session)
    other = pickle.loads(pickle.dumps(order))
    assert other.provenance == stored(session)


def test_insert_that_is_tried_again_keeps_its_effect(session: Session) -> None:
    """An instance that could not be written has what it was about to write."""
    create(session)
    session.commit()
    order = Order(workflow_key="o-2", state=OrderState(), number=1)
    session.add(order)
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    made = order.provenance
    order.number = 2
    session.add(order)
    session.commit()
    assert stored(session, "o-2") == made


@pytest.mark.parametrize("name", ["before_insert", "before_update"])
def test_listener_reads_what_is_written(session: Session, name: str) -> None:
    """It gets a Provenance, and the row gets the same one."""
    found: list[Provenance] = []

    def listener(_mapper: object, _connection: object, order: Order) -> None:
        found.append(order.provenance)

    event.listen(Order, name, listener)
    try:
        order = create(session)
        written = [stored(session)]
        order.state.status = "paid"
        session.flush()
        written.append(stored(session))
    finally:
        event.remove(Order, name, listener)
    assert found == [written[name == "before_update"]]


@pytest.mark.parametrize("assigns", [False, True])
def test_listener_of_an_update_that_writes_nothing(
    session: Session, *, assigns: bool
) -> None:
    """A provenance that is only read is not written; one that is assigned is."""
    order = create(session)
    before = order.provenance

    def listener(_mapper: object, _connection: object, order: Order) -> None:
        made = order.provenance
        if assigns:
            order.provenance = made.model_copy(update={"user": "kim"})

    event.listen(Order, "before_update", listener)
    try:
        order.number = order.number  # It is saved, and nothing has changed.
        session.flush()
    finally:
        event.remove(Order, "before_update", listener)
    assert order.version == 1 + assigns
    assert (order.provenance == before) is not assigns
    assert order.provenance == stored(session)
