"""Contract: an engine that hides parameters shows no part of a row in its errors."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import CheckConstraint, Engine, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    Provenance,
    ReducerService,
    WorkflowStateMixin,
    try_commit,
    try_commit_many,
)

from ..conftest import Driver


class Base(DeclarativeBase):
    pass


class State(BaseModel):
    card: str = "4111-secret"


class Order(WorkflowStateMixin[State], Base):
    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("workflow_key <> 'bad'", name="no_bad_key"),)


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(CheckConstraint("name <> 'secret'"))


WRITE: dict[str, Any] = {"expected_version": 0, "state": State()}


def flush(engine: Engine) -> None:
    """Add an instance."""
    with Session(engine) as session:
        session.add(Order(workflow_key="bad", state=State()))
        session.commit()


def commit(engine: Engine) -> None:
    """Write past the unit of work."""
    with Session(engine) as session:
        provenance = Provenance.now()
        try_commit(session, Order, "bad", **WRITE, provenance=provenance)


def commit_many(engine: Engine) -> None:
    """Write several rows."""
    with Session(engine) as session:
        commits = [
            Commit(key, **WRITE, provenance=Provenance.now()) for key in ("bad", "o-1")
        ]
        try_commit_many(session, Order, commits)


def store(engine: Engine) -> None:
    """Write in a transaction of the store's own."""
    CanonicalStore(engine, Order).try_commit(
        workflow_key="bad",
        expected_version=0,
        state=State(),
        provenance=Provenance.now(),
    )


def handle(engine: Engine) -> None:
    """Write by a service, whose sessions choose their engine."""
    service = ReducerService(
        sessionmaker(engine), Order, lambda state, _: state, initial=State
    )
    service.handle(Action(workflow_key="bad", action_id=uuid4(), payload=None))


def shown(error: BaseException) -> str:
    """Return what a log would show of *error* and its causes."""
    return "".join(traceback.format_exception(error))


WAYS = [flush, commit, commit_many, store, handle]


@pytest.mark.contract
@pytest.mark.parametrize("write", WAYS)
def test_error_shows_no_part_of_the_row(
    driver: Driver, create_tables: Any, write: Callable[[Engine], None]
) -> None:
    """Neither its text nor a traceback of it and its causes holds a value."""
    create_tables(Base.metadata)
    engine = driver.create_engine(hide_parameters=True)
    with pytest.raises(IntegrityError) as caught:
        write(engine)
    assert "secret" not in shown(caught.value) + repr(caught.value)
    assert "no_bad_key" in str(caught.value)
    assert caught.value.orig.sqlstate == "23514"  # type: ignore[union-attr]


@pytest.mark.contract
def test_errors_of_other_tables_stay_as_they_are(
    driver: Driver, create_tables: Any
) -> None:
    """So do those of an engine that shows parameters."""
    create_tables(Base.metadata)
    engine = driver.create_engine(hide_parameters=True)
    with pytest.raises(IntegrityError):
        flush(engine)
    with Session(engine) as session, pytest.raises(IntegrityError) as caught:
        session.execute(insert(Customer).values(name="secret"))
    assert "DETAIL:  Failing row contains" in shown(caught.value)
    with pytest.raises(IntegrityError) as caught:
        flush(driver.create_engine())
    assert "DETAIL:  Failing row contains" in shown(caught.value)
