"""What an application with ten workflow classes takes until it is warm.

Each run is a process of its own, which reports the CPU seconds of each part: the import
of the package, the mapping of ten classes, their configuration, the first SELECT of
each, the first INSERT and UPDATE of each; and, beside these, the import of the
services, which only an application with one of them loads. The same ten classes with
the usual recipe and the same six columns are the other contender, so their runs take
turns. What both need, SQLAlchemy, Pydantic and the driver, is imported before. Python
loads compiled modules, as from an installed package, wherever this one may not keep
any.

    python docs/bench/warmup.py [--rounds 11]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from itertools import pairwise
from tempfile import TemporaryDirectory

from _harness import postgresql
from rich.console import Console
from rich.table import Table

PARTS = ("import", "map", "configure", "first SELECTs", "first writes")

APPLICATION = """
import json
import sys
import time
from datetime import datetime
from types import new_class
from typing import Any

import psycopg
from pydantic import BaseModel, create_model
from sqlalchemy import BigInteger, DateTime, Text, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import (
    DeclarativeBase, Mapped, Session, configure_mappers, mapped_column
)
from sqlalchemy.types import TypeDecorator

kind, url, creates = sys.argv[1:]


class Line(BaseModel):
    sku: str = ""
    quantity: int = 1


class Base(DeclarativeBase):
    pass


models = [
    create_model(f"State{n}", status=(str, "new"), lines=(list[Line], []),
        total=(float, 0.0))
    for n in range(10)
]
clock, marks = time.process_time, []
marks.append(clock())
if kind == "sa_wfstate":
    from sa_wfstate import WorkflowStateMixin
marks.append(clock())


def usual_type(model):
    class UsualJSON(TypeDecorator):
        impl = JSONB
        cache_ok = True

        def process_bind_param(self, value, dialect):
            return value.model_dump(mode="json")

        def process_result_value(self, value, dialect):
            return model.model_validate(value)

    return UsualJSON


def usual(n, model):
    class Usual(Base):
        __module__ = f"usual_{n}"  # The names of classes are unique in a module.
        __tablename__ = f"usual_{n}"

        workflow_key: Mapped[str] = mapped_column(Text, primary_key=True)
        version: Mapped[int] = mapped_column(BigInteger)
        state: Mapped[Any] = mapped_column(usual_type(model))
        updated_at: Mapped[datetime] = mapped_column(
            DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
        )
        schema_version: Mapped[int] = mapped_column(default=1)
        provenance: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)

        __mapper_args__ = {"version_id_col": version, "eager_defaults": True}

    return Usual


def workflow(n, model):
    class Order(WorkflowStateMixin[model], Base):
        __module__ = f"orders_{n}"
        __tablename__ = f"orders_{n}"

    return Order


make = workflow if kind == "sa_wfstate" else usual
classes = [make(n, model) for n, model in enumerate(models)]
marks.append(clock())
configure_mappers()
marks.append(clock())
engine = create_engine(url)
if creates == "creates":
    Base.metadata.create_all(engine)
with Session(engine) as session:
    session.connection()
begin = clock()
with Session(engine) as session:
    for entity in classes:
        session.get(entity, "order-1")
marks.append(marks[-1] + clock() - begin)
begin = clock()
with Session(engine) as session:
    for entity, model in zip(classes, models):
        session.add(entity(workflow_key="order-1", state=model()))
    session.flush()
    for entity, model in zip(classes, models):
        session.get_one(entity, "order-1").state = model(total=1.0)
    session.flush()
marks.append(marks[-1] + clock() - begin)
begin = clock()
if kind == "sa_wfstate":
    from sa_wfstate import CanonicalStore, ReducerService, run_transaction, try_commit
print(json.dumps([marks, clock() - begin]))
"""


def run(kind: str, url: str, modules: str, *, creates: bool = False) -> list[float]:
    """Return the seconds of each part, of all, and to import the services.

    Compiled *modules* are kept.
    """
    what = "creates" if creates else "uses"
    command = [sys.executable, "-c", APPLICATION, kind, url, what]
    keeping = {**os.environ, "PYTHONPYCACHEPREFIX": modules}
    keeping.pop("PYTHONDONTWRITEBYTECODE", None)
    marks, services = json.loads(subprocess.check_output(command, env=keeping))
    return [*(b - a for a, b in pairwise(marks)), marks[-1] - marks[0], services]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    kinds = ("the usual recipe", "sa_wfstate")
    results: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    with postgresql(fsync="off") as where, TemporaryDirectory() as modules:
        url = where.render_as_string(hide_password=False)
        for kind in kinds:
            run(kind, url, modules, creates=True)
        for number in range(options.rounds):
            for kind in kinds if number % 2 else reversed(kinds):
                results[kind].append(run(kind, url, modules))
    table = Table("", *PARTS, "all", "services", title="CPU until ten classes are warm")
    for kind, runs in results.items():
        parts = [statistics.median(part) for part in zip(*runs, strict=True)]
        table.add_row(kind, *(f"{seconds * 1e3:.1f} ms" for seconds in parts))
    pairs = zip(results[kinds[1]], results[kinds[0]], strict=True)
    ratios = zip(
        *([a / max(b, 1e-5) for a, b in zip(*pair, strict=True)] for pair in pairs),
        strict=True,
    )
    # The usual recipe imports nothing.
    _, *shown, _ = (f"{statistics.median(ratio):.2f}" for ratio in ratios)
    table.add_row("ratio", "", *shown, "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
