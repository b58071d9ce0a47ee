"""A stored workflow keeps its key, whatever would change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Text, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    make_transient,
    mapped_column,
    relationship,
)
from sqlalchemy.orm.attributes import set_attribute

from sa_wfstate import PayloadError, WorkflowStateMixin
from sa_wfstate.errors import KeyNotAssignable, MappingError, UnversionedWrite


class Base(DeclarativeBase):
    pass


class Shop(Base):
    __tablename__ = "shops"

    name: Mapped[str] = mapped_column(Text, primary_key=True)


class Order(WorkflowStateMixin[dict[str, int]], Base):
    __tablename__ = "orders"


class Opening(WorkflowStateMixin[dict[str, int]], Base):
    """A workflow whose key is that of another row."""

    __tablename__ = "openings"

    workflow_key: Mapped[str] = mapped_column(
        ForeignKey("shops.name", onupdate="RESTRICT"), primary_key=True
    )
    shop: Mapped[Shop] = relationship(lambda: Shop, backref="openings")


class Renaming(WorkflowStateMixin[dict[str, int]], Base):
    """Another one, to which SQLAlchemy itself hands on what changes."""

    __tablename__ = "renamings"

    workflow_key: Mapped[str] = mapped_column(
        ForeignKey("shops.name", deferrable=True, initially="DEFERRED"),
        primary_key=True,
    )


Shop.renamings = relationship(Renaming, passive_updates=False)


@pytest.fixture
def session(engine: Engine, create_tables: Callable[..., None]) -> Session:
    """Return a session on a shop, an order and the workflows of the shop."""
    create_tables(Base.metadata)
    with Session(engine) as session:
        session.add_all([Shop(name="a"), Shop(name="b")])
        session.flush()
        for entity in (Order, Opening, Renaming):
            session.add(entity(workflow_key="a", state={"n": 1}))
        session.commit()
    return Session(engine)


def test_key_of_a_stored_row_is_not_assigned(session: Session) -> None:
    """Neither while it is held, nor expired, nor detached; the same key is fine."""
    with session:
        order = session.get_one(Order, "a")
        for prepare in (
            lambda: None,
            session.commit,
            lambda: session.refresh(order),
            lambda: session.expunge(order),
        ):
            prepare()
            with pytest.raises(KeyNotAssignable, match=r"Order 'a' .* new key"):
                order.workflow_key = "b"
            order.workflow_key = "a"
        assert order.workflow_key == "a"
        created = Order(workflow_key="b", state={"n": 2})
        session.add(created)
        session.flush()
        with pytest.raises(KeyNotAssignable):
            created.workflow_key = "c"
        with pytest.raises(PayloadError):
            created.workflow_key = ""


def test_key_of_what_is_not_stored_is_assigned(session: Session) -> None:
    """A transient or pending object takes another key, also after a rollback."""
    with session:
        order = Order(workflow_key="x", state={"n": 2})
        order.workflow_key = "y"
        session.add(order)
        order.workflow_key = "z"
        session.flush()
        session.rollback()
        order.workflow_key = "b"
        session.add(order)
        session.commit()
        copy = session.get_one(Order, "b")
        assert copy.state == {"n": 2}
        make_transient(copy)
        copy.workflow_key = "c"
        session.add(copy)
        session.commit()
        assert session.scalars(select(Order.workflow_key)).all() == ["a", "b", "c"]


def by_set_attribute(session: Session) -> None:
    """Go past the attribute."""
    set_attribute(session.get_one(Order, "a"), "workflow_key", "b")


def by_deletion(session: Session) -> None:
    """Delete the attribute."""
    del session.get_one(Order, "a").workflow_key


def by_another_parent(session: Session) -> None:
    """Refer to another row."""
    session.get_one(Opening, "a").shop = session.get_one(Shop, "b")


def by_the_key_of_the_parent(session: Session) -> None:
    """Have SQLAlchemy hand on the new key of another row."""
    shop = session.get_one(Shop, "a")
    session.delete(session.get_one(Opening, "a"))
    session.flush()
    shop.name = "c"


def change_and_commit(session: Session, change: Callable[[Session], None]) -> None:
    """Change a key, and flush it."""
    change(session)
    session.commit()


@pytest.mark.parametrize(
    "change",
    [by_set_attribute, by_deletion, by_another_parent, by_the_key_of_the_parent],
)
def test_key_that_changes_past_its_attribute_is_refused(
    session: Session, change: Callable[[Session], None]
) -> None:
    """It is refused when it is set, or by the flush, which writes nothing."""
    with session:
        with pytest.raises(KeyNotAssignable, match="'a' is stored"):
            change_and_commit(session, change)
        session.rollback()
        for entity in (Order, Opening, Renaming):
            assert session.scalars(select(entity.workflow_key)).all() == ["a"]


def test_key_that_the_database_would_change(session: Session) -> None:
    """Without ON UPDATE the database refuses it, and with it the class is refused."""
    with session:
        session.delete(session.get_one(Renaming, "a"))
        session.get_one(Shop, "a").name = "c"
        with pytest.raises(IntegrityError):
            session.commit()
    for rule in ("CASCADE", "set default"):

        class Own(DeclarativeBase):
            pass

        key = ForeignKey("shops.name", onupdate=rule)
        with pytest.raises(MappingError, match=f"ON UPDATE {rule} .* leave onupdate"):

            class Cascaded(WorkflowStateMixin[dict[str, int]], Own):
                __tablename__ = "cascaded"

                workflow_key: Mapped[str] = mapped_column(key, primary_key=True)


def test_statement_that_changes_a_key_is_refused(session: Session) -> None:
    """Also one that goes without a version check by name."""
    rename = {"workflow_key": "b", "version": Order.version + 1}
    upsert = postgresql.insert(Order).values(workflow_key="a", state={"n": 1})
    statements: list[Any] = [
        update(Order).values(rename),
        upsert.on_conflict_do_update(index_elements=["workflow_key"], set_=rename),
    ]
    with session:
        for statement in statements:
            with pytest.raises(UnversionedWrite, match="create a workflow with"):
                session.execute(
                    statement, execution_options={"wfstate_unversioned": True}
                )
