"""Table classes of SQLModel are workflows, and models as before.

SQLModel cannot read relationships from annotations that are strings.
"""

import pickle
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import Column, Engine, Uuid
from sqlalchemy.orm import registry
from sqlmodel import Field, Relationship, Session, SQLModel, select

from sa_wfstate import (
    Provenance,
    PydanticJSON,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    get_state,
    try_commit,
)
from sa_wfstate.errors import MappingError, PayloadError, VersionNotAssignable
from sa_wfstate.sqlmodel import WorkflowStateFields


class Model(SQLModel, registry=registry()):
    pass


class OrderState(BaseModel):
    status: str = "new"
    items: list[str] = []


class Shop(Model, table=True):
    id: int | None = Field(default=None, primary_key=True)
    orders: list["Order"] = Relationship(back_populates="shop")


class OrderBase(Model):
    title: str = ""


class Order(WorkflowStateFields[OrderState], OrderBase, table=True):
    id: int | None = Field(default=None, primary_key=True)
    shop_id: int | None = Field(default=None, foreign_key="shop.id")
    shop: Shop | None = Relationship(back_populates="orders")


class Parcel(OrderBase, WorkflowStateFields[OrderState], table=True):
    workflow_key: UUID = Field(
        default_factory=uuid4, sa_column=Column("id", Uuid, primary_key=True)
    )
    state: OrderState = Field(
        default_factory=OrderState, sa_type=PydanticJSON(OrderState)
    )


class Note(WorkflowStateFields[OrderState], Model, table=True):
    """Its key is the primary key."""

    __state_options__ = {"mutable": False}


def add_order(engine: Engine) -> None:
    """Create the order o-1, in a shop."""
    with Session(engine) as session:
        session.add(Order(workflow_key="o-1", state=OrderState(), shop=Shop()))
        session.commit()


@pytest.fixture
def session(engine: Engine, create_tables: Any) -> Any:
    """Open a session of SQLModel on the tables, with one order in them."""
    create_tables(Model.metadata)
    add_order(engine)
    with Session(engine) as session:
        yield session


@pytest.mark.contract
def test_second_writer_gets_conflict(
    engine: Engine, create_tables: Any, sessions: Any
) -> None:
    """A change in the state, and one of a field of the application."""
    create_tables(Model.metadata)
    add_order(engine)
    with Session(engine) as session, sessions() as other:
        order = session.exec(select(Order)).one()
        assert (order.version, order.shop.orders) == (1, [order])
        order.state.items.append("apples")
        session.commit()
        session.refresh(order)
        assert (order.version, order.state.items) == (2, ["apples"])
        late = other.get_one(Order, order.id)
        order.state.status = "paid"
        session.commit()
        late.title = "late"
        with pytest.raises(StateConflict, match="expected version 2, found 3"):
            other.commit()


@pytest.mark.contract
def test_state_is_committed_without_an_instance(
    engine: Engine, create_tables: Any
) -> None:
    """By key and version, as of any workflow class."""
    create_tables(Model.metadata)
    add_order(engine)
    with Session(engine) as session:
        state = OrderState(status="paid")
        outcomes = [
            try_commit(
                session,
                Order,
                "o-1",
                expected_version=1,
                state=state,
                provenance=Provenance.now(),
            )
            for _ in range(2)
        ]
        assert [type(each) for each in outcomes] == [StateCommitted, StateConflict]
        assert session.exec(select(Order)).one().state == state


def test_row_is_dumped_with_its_state(session: Any) -> None:
    """Although no attribute of it was read yet."""
    order = session.exec(select(Order)).one()
    dumped = order.model_dump(mode="json")
    assert dumped["state"] == {"status": "new", "items": []}
    assert dumped["version"] == 1
    assert set(dumped["provenance"]) == {"effect_id", "timestamp", "action_id"}
    assert Order.model_json_schema()["properties"]["state"]["$ref"].endswith("State")
    with pytest.raises(VersionNotAssignable):
        Order.model_validate(order)
    copy = pickle.loads(pickle.dumps(order))
    assert (copy.state, copy.version) == (order.state, 1)


def test_fields_are_declared_again(session: Any) -> None:
    """With a default, and another column and type of the key."""
    parcel = Parcel.model_validate({"title": "big"})
    session.add(parcel)
    session.commit()
    session.refresh(parcel)
    assert get_state(session, Parcel, parcel.workflow_key).state == OrderState()
    assert list(Parcel.__table__.primary_key) == [Parcel.__table__.c.id]


def test_options_of_the_state_are_taken(session: Any) -> None:
    """From the class, as with the mixin."""
    assert Note.__table__.c.state.type.mutable is False
    assert list(Note.__table__.primary_key) == [Note.__table__.c.workflow_key]
    session.add(Note(workflow_key="n-1", state=OrderState()))
    session.commit()
    note = session.exec(select(Note)).one()
    note.state.status = "not seen"
    session.commit()
    assert note.version == 1
    note.state = OrderState(status="seen")
    session.commit()
    assert note.version == 2


def test_version_and_states_are_checked(session: Any) -> None:
    """SQLModel assigns past the attributes, and does not validate a table class."""
    order = session.exec(select(Order)).one()
    with pytest.raises(VersionNotAssignable):
        order.version = 7
    order.state = {"status": 1}
    with pytest.raises(PayloadError, match="Order 'o-1' state"):
        session.commit()


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_mixin_of_plain_classes_is_refused(*, first: bool) -> None:
    """The error names what to derive from, and nothing stays mapped."""
    mixin: Any = WorkflowStateMixin[OrderState]
    bases: Any = (mixin, OrderBase) if first else (OrderBase, mixin)
    with pytest.raises(MappingError) as raised:

        class Refused(*bases, table=True):  # type: ignore[misc]
            pass

    assert "sa_wfstate.sqlmodel.WorkflowStateFields[YourState]" in str(raised.value)
    assert "refused" not in Model.metadata.tables


def test_state_needs_a_type() -> None:
    """As with the mixin."""
    with pytest.raises(MappingError, match="its state has no type"):

        class Refused(WorkflowStateFields, Model, table=True):
            pass

    assert "refused" not in Model.metadata.tables
