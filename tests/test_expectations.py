"""The effect of the base is compared by those statements that write workflow rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Engine, MetaData


class Base(DeclarativeBase):
    pass


class Job(WorkflowStateMixin[dict[str, int]], Base):
    __tablename__ = "jobs"


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Archived(WorkflowStateMixin[dict[str, int]], Note):
    __tablename__ = "archived"
    __mapper_args__ = {"concrete": True}  # noqa: RUF012


@pytest.fixture
def engine(
    create_tables: Callable[[MetaData], None], database: URL
) -> Iterator[Engine]:
    """Return an engine with one workflow and one row of another class."""
    create_tables(Base.metadata)
    engine = create_engine(database)
    with Session(engine) as session:
        session.add_all([Job(workflow_key="job", state={"a": 1}), Note(id=1, text="")])
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def sent(engine: Engine) -> list[str]:
    """Return the statements that are sent from now on."""
    statements: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        statements.append(f"{args[2]} {args[3]}")

    return statements


def test_update_and_delete_compare_the_effect(engine: Engine, sent: list[str]) -> None:
    """What writes over a row names the effect that wrote it."""
    with Session(engine) as session:
        job = session.get_one(Job, "job")
        job.state = {"a": 2}
        session.flush()
        session.delete(job)
        session.commit()
    writes = [sql for sql in sent if sql.startswith(("UPDATE", "DELETE"))]
    assert ["effect_id" in sql for sql in writes] == [True, True]


def test_update_of_a_concrete_subclass_compares_the_effect(
    engine: Engine, sent: list[str]
) -> None:
    """A class with a table of its own has statements of its own."""
    with Session(engine) as session:
        archived = Archived(workflow_key="old", state={"a": 1})
        session.add(archived)
        session.flush()
        archived.state = {"a": 2}
        session.commit()
    (write,) = [sql for sql in sent if sql.startswith("UPDATE archived")]
    assert "effect_id" in write


def test_statement_is_compiled_once(engine: Engine) -> None:
    """The comparison of the effect does not keep the UPDATE out of the cache."""
    sizes = []
    with Session(engine) as session:
        for number in (2, 3, 4):
            session.get_one(Job, "job").state["a"] = number
            session.commit()
            sizes.append(len(engine._compiled_cache))
    assert sizes[1] == sizes[2]
