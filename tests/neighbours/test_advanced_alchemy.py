"""advanced-alchemy: its bases, and services that wrap what SQLAlchemy raises."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column

from sa_wfstate import PydanticJSON, StateConflict, WorkflowStateMixin
from sa_wfstate.errors import UnversionedWrite

pytest.importorskip("advanced_alchemy")

from advanced_alchemy import base, repository, service
from advanced_alchemy.exceptions import RepositoryError


class OrderState(BaseModel):
    status: str = "new"


class Order(WorkflowStateMixin[OrderState], base.UUIDv7AuditBase):
    """Key and state have defaults: a service creates rows from the data of a client."""

    __tablename__ = "orders"

    workflow_key: Mapped[str] = mapped_column(default=lambda: str(uuid4()))
    state: Mapped[OrderState] = mapped_column(
        PydanticJSON(OrderState), default=OrderState
    )
    title: Mapped[str] = mapped_column(default="")


class Orders(service.SQLAlchemySyncRepositoryService[Order]):
    class Repository(repository.SQLAlchemySyncRepository[Order]):
        model_type = Order

    repository_type = Repository


class AsyncOrders(service.SQLAlchemyAsyncRepositoryService[Order]):
    class Repository(repository.SQLAlchemyAsyncRepository[Order]):
        model_type = Order

    repository_type = Repository


class BareOrders(Orders):
    class Bare(Orders.Repository):
        wrap_exceptions = False

    repository_type = Bare


def test_conflict_is_the_cause(engine: Engine, migrate: Any) -> None:
    """Of the RepositoryError; with wrap_exceptions=False it comes as it is."""
    migrate(Order.metadata)
    with Session(engine) as one, Session(engine) as two:
        order = Orders(session=one).create({"title": "a"}, auto_commit=True)
        assert (order.version, order.state.status) == (1, "new")
        key, late = order.id, two.get_one(Order, order.id)
        Orders(session=one).update({"title": "b"}, item_id=key, auto_commit=True)
        late.state.status = "paid"
        with pytest.raises(RepositoryError) as raised:
            Orders(session=two).update({}, item_id=key, auto_commit=True)
        assert isinstance(raised.value.__cause__, StateConflict)
        assert raised.value.__cause__.actual_version == 2
        two.rollback()
        late = two.get_one(Order, key)
        Orders(session=one).update({"title": "c"}, item_id=key, auto_commit=True)
        late.state.status = "paid"
        with pytest.raises(StateConflict):
            BareOrders(session=two, wrap_exceptions=False).update(
                {}, item_id=key, auto_commit=True
            )


def test_batches_are_refused(engine: Engine, migrate: Any) -> None:
    """update_many and delete_many, which write by key without a version."""
    migrate(Order.metadata)
    with Session(engine) as session:
        orders = Orders(session=session)
        made = orders.create_many([{"title": "a"}, {"title": "b"}], auto_commit=True)
        keys = [order.id for order in made]
        with pytest.raises(UnversionedWrite):
            orders.update_many([{"id": keys[0], "title": "c"}])
        session.rollback()
        with pytest.raises(UnversionedWrite):
            orders.delete_many(keys)
        session.rollback()
        orders.delete(keys[0], auto_commit=True)
        assert orders.count() == 1


async def test_async_service(async_engine: AsyncEngine, create_tables: Any) -> None:
    """The conflict is the cause there too."""
    create_tables(Order.metadata)
    async with AsyncSession(async_engine) as one, AsyncSession(async_engine) as two:
        order = await AsyncOrders(session=one).create({}, auto_commit=True)
        await one.refresh(order)
        late = await two.get_one(Order, order.id)
        order.state.status = "paid"
        await one.commit()
        late.state.status = "late"
        with pytest.raises(RepositoryError) as raised:
            await AsyncOrders(session=two).update({}, item_id=late.id, auto_commit=True)
        assert isinstance(raised.value.__cause__, StateConflict)
