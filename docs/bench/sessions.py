"""A Session for workflows, and for the usual recipe with the same six columns.

The usual recipe is a TypeDecorator over JSONB for the state, ``version_id_col``, and a
provenance that a default makes and the application dumps. It reads one row, reads,
changes and commits one, and inserts 1,000 rows in one flush. The figures are the CPU of
the client; ratios are to the usual recipe, medians of rounds that take turns.

    python docs/bench/sessions.py [--rounds 31] [--rows 1000]
"""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any

from _harness import Result, compare, postgresql, print_table
from _usual import UsualJSON
from pydantic import BaseModel
from sqlalchemy import BigInteger, DateTime, Engine, Text, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import Provenance, WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Callable


class OrderState(BaseModel):
    """The state of both, about 0.3 kB."""

    status: str = "new"
    lines: list[str] = ["apple"] * 20


def provenance() -> dict[str, Any]:
    """Make a provenance as the application would store it."""
    return Provenance.now().model_dump(mode="json")


class Base(DeclarativeBase):
    """The declarative base of both."""


class Usual(Base):
    """The usual recipe, with all that a workflow stores."""

    __tablename__ = "usual"

    workflow_key: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[OrderState] = mapped_column(UsualJSON(OrderState))
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )
    schema_version: Mapped[int] = mapped_column(default=1)
    provenance: Mapped[dict[str, Any]] = mapped_column(
        JSONB, default=provenance, onupdate=provenance
    )

    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}  # noqa: RUF012


class Order(WorkflowStateMixin[OrderState], Base):
    """The same as a workflow."""

    __tablename__ = "orders"


KEY = "order-1"
ENTITIES: dict[str, Any] = {"the usual recipe": Usual, "sa_wfstate": Order}


def read_one(engine: Engine, entity: Any) -> Callable[[], None]:
    """Read one row in a session of its own, and use its state."""

    def run() -> None:
        with Session(engine) as session:
            assert session.get_one(entity, KEY).state.status

    return run


def change_one(engine: Engine, entity: Any) -> Callable[[], None]:
    """Read one row, change its state and commit."""
    numbers = count()

    def run() -> None:
        with Session(engine) as session:
            row, change = session.get_one(entity, KEY), {"status": str(next(numbers))}
            row.state = row.state.model_copy(update=change)
            session.commit()

    return run


def insert_many(engine: Engine, entity: Any, rows: int) -> Callable[[], None]:
    """Create rows in one flush and commit."""
    numbers = count()

    def run() -> None:
        batch = next(numbers)
        keys = (f"{batch}-{number}" for number in range(rows))
        with Session(engine) as session:
            made = [entity(workflow_key=key, state=OrderState()) for key in keys]
            session.add_all(made)
            session.commit()

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    results: dict[str, dict[str, Result]] = {}
    with postgresql(fsync="off") as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all(
                entity(workflow_key=KEY, state=OrderState())
                for entity in ENTITIES.values()
            )
            session.commit()
        work: dict[str, Callable[[Any], Callable[[], None]]] = {
            "read one": lambda entity: read_one(engine, entity),
            "read, change, commit": lambda entity: change_one(engine, entity),
            f"insert {options.rows}": lambda entity: insert_many(
                engine, entity, options.rows
            ),
        }
        for title, contender in work.items():
            results[title] = compare(
                {name: contender(entity) for name, entity in ENTITIES.items()},
                baseline="the usual recipe",
                rounds=options.rounds,
                clock=time.process_time,
            )
        engine.dispose()
    print_table("CPU of the client, six columns", results)


if __name__ == "__main__":
    main()
