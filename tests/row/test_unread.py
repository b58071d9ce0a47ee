"""What ``vars()`` of a loaded instance shows for a state that was not read yet."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    PayloadError,
    Provenance,
    WorkflowStateMixin,
    get_state,
    try_commit,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Base(DeclarativeBase):
    pass


class TaskState(BaseModel):
    status: str = "new"
    notes: list[str] = []


class Task(WorkflowStateMixin[TaskState], Base):
    __tablename__ = "unread_tasks"
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: {"status": data["was"]}}  # noqa: RUF012


class EagerTask(WorkflowStateMixin[TaskState], Base):
    __tablename__ = "eager_tasks"
    __state_options__ = {"eager": True}  # noqa: RUF012


class Labels(WorkflowStateMixin[set[str]], Base):
    __tablename__ = "unread_labels"


@pytest.fixture
def session() -> Iterator[Session]:
    """Yield a session that has loaded nothing, on rows named "a"."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for entity in (Task, EagerTask):
            session.add(entity(workflow_key="a", state=TaskState(notes=["x"])))
        session.add(Labels(workflow_key="a", state={"x"}))
        session.commit()
    with Session(engine) as session:
        yield session
    engine.dispose()


def held(instance: object) -> Any:
    """Return what encoders find that look into the instance."""
    return vars(instance)["state"]


def test_equals_the_value(session: Session) -> None:
    """It is equal to the state in the row, from each side, and to nothing else."""
    task = session.get_one(Task, "a")
    value = TaskState(notes=["x"])
    assert held(task) == value
    assert value == held(task)
    assert held(task) != TaskState()
    assert inspect(task).attrs.state.loaded_value == value
    assert "x" not in repr(held(task))
    assert not session.dirty
    assert task.state == value


def test_has_the_fields_of_the_json(session: Session) -> None:
    """``dict()``, with which FastAPI's encoder begins, gives plain JSON."""
    assert dict(held(session.get_one(Task, "a"))) == {"status": "new", "notes": ["x"]}


def test_older_schema_version(session: Session) -> None:
    """It equals what the attribute would give, upcast."""
    statement = 'UPDATE unread_tasks SET schema_version = 1, state = \'{"was": "old"}\''
    session.execute(text(statement))
    assert held(session.get_one(Task, "a")) == TaskState(status="old")
    assert dict(held(session.get_one(Task, "a")))["status"] == "old"


def test_no_fields(session: Session) -> None:
    """A state that is no object, and one that was pickled, say so."""
    labels = session.get_one(Labels, "a")
    assert held(labels) == {"x"}
    with pytest.raises(TypeError, match="read the attribute"):
        dict(held(labels))
    task = session.get_one(Task, "a")
    again = pickle.loads(pickle.dumps(task))
    assert held(again) == held(task)
    with pytest.raises(TypeError, match="read the attribute"):
        dict(held(again))
    assert again.state == TaskState(notes=["x"])


def test_eager(session: Session) -> None:
    """An eager state is built with its row: loaded, refreshed, reset."""
    task = session.get_one(EagerTask, "a")
    assert held(task) is task.state
    assert isinstance(held(task), TaskState)
    session.refresh(task)
    assert isinstance(held(task), TaskState)
    session.expire(task)
    session.get(EagerTask, "a")
    assert isinstance(held(task), TaskState)
    base = get_state(session, EagerTask, "a")
    assert base is not None
    sent, who = TaskState(status="sent"), Provenance.now()
    try_commit(session, EagerTask, base=base, state=sent, provenance=who)
    session.get(EagerTask, "a")
    assert held(task) == TaskState(status="sent")
    assert isinstance(held(task), TaskState)


def test_eager_changes_are_written(session: Session) -> None:
    """A change of an eager state is written, also if it was reached by ``vars()``."""
    held(session.get_one(EagerTask, "a")).status = "sent"
    session.commit()
    task = session.get_one(EagerTask, "a")
    assert (task.version, task.state.status) == (2, "sent")
    task.state.status = "paid"
    session.flush()
    assert task.version == 3
    session.commit()
    assert session.get_one(EagerTask, "a").version == 3


def test_eager_only_read(session: Session) -> None:
    """An eager state that is not changed is not written."""
    session.get_one(EagerTask, "a")
    session.commit()
    assert session.get_one(EagerTask, "a").version == 1


def test_eager_broken_row(session: Session) -> None:
    """A row that cannot be read raises when it is loaded, and names itself."""
    session.execute(text("""UPDATE eager_tasks SET state = '{"status": 7}'"""))
    with pytest.raises(PayloadError, match="EagerTask 'a' state"):
        session.get(EagerTask, "a")
