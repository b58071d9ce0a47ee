"""A class that cannot be a workflow is refused, and leaves nothing behind."""

from __future__ import annotations

import gc
from types import new_class
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from sqlalchemy import BigInteger, Column, MetaData, Table, Text, inspect
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    configure_mappers,
    mapped_column,
    registry,
    relationship,
)

from sa_wfstate import PydanticJSON, WorkflowStateMixin
from sa_wfstate.errors import MappingError


class Good(BaseModel):
    status: str = "new"


class Secret(BaseModel):
    token: SecretStr = SecretStr("x")


REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "lossy state": (WorkflowStateMixin[Secret], {}),
    "no state type": (WorkflowStateMixin, {}),
    "another version_id_col": (
        WorkflowStateMixin[Good],
        {"__mapper_args__": {"version_id_col": Column("v", BigInteger)}},
    ),
    "version_id_generator": (
        WorkflowStateMixin[Good],
        {"__mapper_args__": {"version_id_generator": False}},
    ),
    "second key": (
        WorkflowStateMixin[Good],
        {
            "workflow_key": mapped_column(Text, primary_key=True),
            "other": mapped_column(BigInteger, primary_key=True),
            "third": mapped_column(BigInteger, primary_key=True),
        },
    ),
    "wrong index": (WorkflowStateMixin[Good], {"__workflow_indexes__": ("versions",)}),
    "wrong schema version": (WorkflowStateMixin[Good], {"__schema_version__": 0}),
    "missing upcaster": (WorkflowStateMixin[Good], {"__schema_version__": 2}),
}


def define(base: Any, mixin: Any, attributes: dict[str, Any]) -> Any:
    """Define the class Order."""

    def body(namespace: dict[str, Any]) -> None:
        namespace |= {"__tablename__": "orders", "__module__": __name__, **attributes}

    return new_class("Order", (mixin, base), exec_body=body)


@pytest.mark.parametrize("why", REFUSED)
def test_refused_class_can_be_defined_again(why: str) -> None:
    """Neither other mappers nor the same name in the same base know of it."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(MappingError, match="Order") as refused:
        define(Base, *REFUSED[why])
    configure_mappers()
    assert not Base.metadata.tables

    class Line(Base):
        __tablename__ = "lines"
        key: Mapped[str] = mapped_column(primary_key=True)
        order: Mapped[Any] = relationship(
            "Order",
            primaryjoin="foreign(Line.key) == Order.workflow_key",
        )

    order = define(Base, WorkflowStateMixin[Good], {})
    configure_mappers()
    assert inspect(Line).relationships["order"].mapper.class_ is order
    assert set(Base.metadata.tables) == {"orders", "lines"}
    assert refused


def test_refused_subclass_leaves_its_base_alone() -> None:
    """The rows of the base are loaded as if the subclass had never been."""

    class Base(DeclarativeBase):
        pass

    class Task(WorkflowStateMixin[Good], Base):
        __tablename__ = "tasks"
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "task"}  # noqa: RUF012

    with pytest.raises(MappingError):
        type(
            "Errand",
            (Task,),
            {
                "__schema_version__": 2,
                "__module__": __name__,
                "__mapper_args__": {"polymorphic_identity": "errand"},
            },
        )
    gc.collect()
    configure_mappers()
    assert set(inspect(Task).polymorphic_map) == {"task"}
    assert "tasks" in Base.metadata.tables

    class Errand(Task):
        __mapper_args__ = {"polymorphic_identity": "errand"}  # noqa: RUF012

    with Session() as session:
        session.add(Errand(workflow_key="k", state=Good()))


def test_table_of_the_application_stays() -> None:
    """A refused class, mapped imperatively, does not take the given table with it."""
    metadata = MetaData()
    table = Table(
        "orders",
        metadata,
        Column("workflow_key", Text, primary_key=True),
        Column("state", PydanticJSON(Secret, accept={"Secret.token"})),
    )
    mapping = registry(metadata=metadata)

    class Order:
        pass

    plain = Table(
        "plain",
        metadata,
        Column("key", Text, primary_key=True),
        Column("payload", PydanticJSON(Secret)),
    )
    with pytest.raises(MappingError, match="Order"):
        mapping.map_imperatively(Order, plain)
    configure_mappers()
    assert set(metadata.tables) == {"orders", "plain"}
    mapping.map_imperatively(Order, table)
    configure_mappers()
