"""A flush with one changed row: plain version_id_col, and as a workflow.

Both write the same columns. The plain class counts versions with SQLAlchemy's
``version_id_col``, has JSONB for its state, and gets a new dict each time. A flush
without workflow rows is measured in processes side by side, of which one has mapped and
written a workflow before; two others are the same, to show what no difference looks
like.

A Session for one row is compared with what SQLAlchemy itself takes for it: a class of
the same columns that are all text, of which the program makes the model and the JSON.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import Any

import psycopg
from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from sqlalchemy import BigInteger, DateTime, Engine, Text, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import Provenance, WorkflowStateMixin


class Base(DeclarativeBase):
    """The declarative base of both."""


class Plain(Base):
    """What an application has without this library."""

    __tablename__ = "plain"

    workflow_key: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[dict[str, Any]] = mapped_column(JSONB)
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )
    schema_version: Mapped[int] = mapped_column(default=1)
    provenance: Mapped[dict[str, Any]] = mapped_column(JSONB)

    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}  # noqa: RUF012


class Texts(Base):
    """The least that the ORM does: no type has anything to convert."""

    __tablename__ = "texts"

    workflow_key: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )
    schema_version: Mapped[int] = mapped_column(default=1)
    provenance: Mapped[str] = mapped_column(Text)

    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}  # noqa: RUF012


class OrderState(BaseModel):
    """The state of both, about 0.3 kB."""

    status: str = "new"
    lines: list[str] = ["apple"] * 20


class Order(WorkflowStateMixin[OrderState], Base):
    """The same as a workflow."""

    __tablename__ = "orders"


BYSTANDER = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

url, has_workflow = sys.argv[1:]

class Base(DeclarativeBase):
    pass

class Note(Base):
    __tablename__ = "notes_" + has_workflow
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]

if has_workflow == "with":
    from sa_wfstate import WorkflowStateMixin

    class Job(WorkflowStateMixin[int], Base):
        __tablename__ = "jobs"

engine = create_engine(url)
Base.metadata.create_all(engine)
session = Session(engine)
note = Note(id=1, text="")
session.add(note)
if has_workflow == "with":
    session.add(Job(workflow_key="job", state=1))
session.commit()
note.text
number = 0
for line in sys.stdin:
    for _ in range(20):
        number += 1
        note.text = str(number)
        session.flush()
    print(flush=True)
"""


class Bystander:
    """A process that flushes 20 rows of no workflow when it is called."""

    def __init__(self, url: str, has_workflow: str) -> None:
        command = [sys.executable, "-c", BYSTANDER, url, has_workflow]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()


def main() -> None:
    """Measure and print."""
    with postgresql(fsync="off") as url:
        engine = create_engine(url)
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        Base.metadata.create_all(engine)
        with Session(engine, expire_on_commit=False) as session:
            measure_changed_row(session)
        with psycopg.connect(dsn) as raw:
            measure_sessions(engine, raw)
        plain_url = url.render_as_string(hide_password=False)
        names = ("without", "again", "with")  # The first two are the same: the noise.
        processes = {name: Bystander(plain_url, name) for name in names}
        results = compare(processes, baseline="without", rounds=60)
        print_table("20 flushes of another class", {"a workflow in use": results})
        for process in processes.values():
            process.stop()
        engine.dispose()


def measure_changed_row(session: Session) -> None:
    """Change one row of each kind, and flush it; then the whole transaction."""
    row = Plain(
        workflow_key="o-1",
        state=OrderState().model_dump(),
        provenance={"effect_id": "effect-1"},
    )
    order = Order(workflow_key="o-1", state=OrderState())
    session.add_all([row, order])
    session.commit()
    numbers = count()

    def flush_plain() -> None:
        row.state = OrderState(status=str(next(numbers))).model_dump()
        row.provenance = Provenance.now().model_dump(mode="json")
        session.flush()

    def flush_assigned() -> None:
        order.state = OrderState(status=str(next(numbers)))
        session.flush()

    def flush_in_place() -> None:
        order.state.status = str(next(numbers))
        session.flush()

    def committed(flush: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            flush()
            session.commit()

        return run

    flushes = {
        "plain version_id_col": flush_plain,
        "workflow, assigned": flush_assigned,
        "workflow, in place": flush_in_place,
    }
    baseline = "plain version_id_col"
    commits = {name: committed(flush) for name, flush in flushes.items()}
    whole = compare(commits, baseline=baseline)
    print_table("One changed row", {"transaction": whole})


def measure_sessions(engine: Engine, raw: psycopg.Connection[Any]) -> None:
    """Read one row in a Session; then read it, change it and commit."""
    first, numbers = OrderState(), count()
    with Session(engine) as session:
        text = first.model_dump_json()
        session.add(Texts(workflow_key="o-2", state=text, provenance="effect-1"))
        session.add(Order(workflow_key="o-2", state=first))
        session.commit()
    read = "SELECT version, state::text FROM orders WHERE workflow_key = 'o-1'"

    def read_raw() -> None:
        _, text = raw.execute(read).fetchone()  # type: ignore[misc]
        assert OrderState.model_validate_json(text).status
        raw.rollback()

    def read_texts() -> None:
        with Session(engine) as session:
            row = session.get_one(Texts, "o-2")
            assert OrderState.model_validate_json(row.state).status

    def read_workflow() -> None:
        with Session(engine) as session:
            assert session.get_one(Order, "o-2").state.status

    def change_raw() -> None:
        version, text = raw.execute(read).fetchone()  # type: ignore[misc]
        state = OrderState.model_validate_json(text)
        state.status = str(next(numbers))
        raw.execute(
            "UPDATE orders SET version = %s, state = %s::jsonb, updated_at = now()"
            " WHERE workflow_key = 'o-1' AND version = %s",
            (version + 1, state.model_dump_json(), version),
        )
        raw.commit()

    def change_texts() -> None:
        with Session(engine) as session:
            row = session.get_one(Texts, "o-2")
            state = OrderState.model_validate_json(row.state)
            state.status = str(next(numbers))
            row.state = state.model_dump_json()
            row.provenance = Provenance.now().model_dump_json()
            session.commit()

    def change_workflow() -> None:
        with Session(engine) as session:
            session.get_one(Order, "o-2").state.status = str(next(numbers))
            session.commit()

    tables: dict[str, tuple[Callable[[], None], ...]] = {
        "read one": (read_raw, read_texts, read_workflow),
        "read, change, commit": (change_raw, change_texts, change_workflow),
    }
    names = ("raw psycopg", "SQLAlchemy, text only", "workflow")
    results = {
        title: compare(
            dict(zip(names, runs, strict=True)), baseline=names[0], rounds=60
        )
        for title, runs in tables.items()
    }
    print_table("One row in a Session", results)


if __name__ == "__main__":
    main()
