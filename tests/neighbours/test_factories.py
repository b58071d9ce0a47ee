"""factory_boy and polyfactory: instances of a workflow class from factories."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import StateConflict, WorkflowStateMixin


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


def second_writer_loses(engine: Engine, key: str) -> None:
    """Let two writers race on the row of *key*."""
    with Session(engine) as one, Session(engine) as two:
        late = two.get_one(Order, key)
        one.get_one(Order, key).state.status = "paid"
        one.commit()
        late.state.status = "late"
        with pytest.raises(StateConflict):
            two.commit()


def test_factory_boy_makes_rows(engine: Engine, migrate: Any) -> None:
    """The version and the provenance are left to the mixin."""
    factory = pytest.importorskip("factory")
    migrate(Base.metadata)

    class OrderFactory(factory.alchemy.SQLAlchemyModelFactory):
        class Meta:
            model = Order
            sqlalchemy_session_persistence = "commit"

        workflow_key = factory.Sequence("o-{}".format)
        state = factory.LazyFunction(OrderState)

    with Session(engine) as session:
        OrderFactory._meta.sqlalchemy_session = session
        orders = OrderFactory.create_batch(2)
        assert [order.version for order in orders] == [1, 1]
        key = orders[0].workflow_key
    second_writer_loses(engine, key)


def test_polyfactory_makes_rows(engine: Engine, migrate: Any) -> None:
    """It is told not to set the version, which SQLAlchemy counts."""
    pytest.importorskip("polyfactory")
    from polyfactory import Ignore
    from polyfactory.factories.pydantic_factory import ModelFactory
    from polyfactory.factories.sqlalchemy_factory import SQLAlchemyFactory

    migrate(Base.metadata)

    class StateFactory(ModelFactory[OrderState]):
        pass

    class OrderFactory(SQLAlchemyFactory[Order]):
        state = StateFactory
        version, schema_version = Ignore(), Ignore()
        updated_at, provenance = Ignore(), Ignore()

    with Session(engine) as session:
        OrderFactory.__session__ = session
        order = OrderFactory.create_sync(workflow_key="o-1")
        assert (order.version, order.schema_version) == (1, 1)
        assert order.state.status
    second_writer_loses(engine, "o-1")
