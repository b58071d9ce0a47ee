"""Two processes that read a class each, through the same PgBouncer."""

from __future__ import annotations

import asyncio
import multiprocessing
import warnings
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.util import greenlet_spawn

from sa_wfstate import WorkflowStateMixin, get_state

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

KEY = "42"
"""A key of both classes."""


class Base(DeclarativeBase):
    """The declarative base of these classes."""


class Named(BaseModel):
    """A state that says of which class it is."""

    name: str


class Order(WorkflowStateMixin[Named], Base):
    """One class."""

    __tablename__ = "orders"


class Refund(WorkflowStateMixin[Named], Base):
    """Another one, with the same columns."""

    __tablename__ = "refunds"


def make(url: URL) -> None:
    """Make a row of each class."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for entity in (Order, Refund):
            state = Named(name=entity.__name__)
            session.add(entity(workflow_key=KEY, state=state))
    engine.dispose()


def read_both(url: URL, times: int, **options: Any) -> Counter[str]:
    """Read each class *times* times; count right rows, wrong ones, and errors.

    A driver may number its statements in each process, so there are two of them.
    """
    there = multiprocessing.get_context("fork")
    counts, start = there.SimpleQueue(), there.Barrier(2)

    def run(entity: type[Any]) -> None:
        start.wait(60)
        counts.put(_read_all(url, entity, times, options))

    processes = [
        there.Process(target=run, args=(entity,)) for entity in (Order, Refund)
    ]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        for process in processes:
            process.start()
    total: Counter[str] = Counter()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
        total += counts.get()
    return total


def read_in_turns(engines: dict[type[Any], Engine], rounds: int) -> Counter[str]:
    """Read each class in an open transaction of its own; count as read_both().

    Which of them begins first changes, so that the connections change hands.
    """
    found: Counter[str] = Counter()
    entities = list(engines)
    for number in range(rounds):
        with ExitStack() as transactions:
            for entity in entities if number % 3 else reversed(entities):
                session = transactions.enter_context(Session(engines[entity]))
                transactions.enter_context(session.begin())
                found[_name_in(session, entity)] += 1
    return found


def _name_in(session: Session, entity: type[Any]) -> str:
    name = get_state(session, entity, KEY).state.name
    return "right" if name == entity.__name__ else "wrong"


def _read_all(
    url: URL, entity: type[Any], times: int, options: dict[str, Any]
) -> Counter[str]:
    if not url.get_dialect().is_async:
        engine = create_engine(url, **options)
        try:
            return _read(engine, entity, times)
        finally:
            engine.dispose()

    async def run() -> Counter[str]:
        engine = create_async_engine(url, **options)
        try:
            return await greenlet_spawn(_read, engine.sync_engine, entity, times)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def _read(engine: Engine, entity: type[Any], times: int) -> Counter[str]:
    """Commit after each read: a rollback makes psycopg forget its statements."""
    found: Counter[str] = Counter()
    for _ in range(times):
        try:
            with Session(engine) as session, session.begin():
                found[_name_in(session, entity)] += 1
        except DBAPIError as error:
            found[str(getattr(error.orig, "sqlstate", None))] += 1
    return found
