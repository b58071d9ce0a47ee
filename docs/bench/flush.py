"""A flush with one changed row: plain version_id_col, and as a workflow.

Both write the same columns. The plain class counts versions with SQLAlchemy's
``version_id_col``, has JSONB for its state, and gets a new dict each time. A flush
without workflow rows is measured in two processes side by side, of which one has mapped
and written a workflow before.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import Any

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from sqlalchemy import BigInteger, DateTime, Text, create_engine, func
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
        Base.metadata.create_all(engine)
        with Session(engine, expire_on_commit=False) as session:
            measure_changed_row(session)
        plain_url = url.render_as_string(hide_password=False)
        processes = {each: Bystander(plain_url, each) for each in ("without", "with")}
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


if __name__ == "__main__":
    main()
