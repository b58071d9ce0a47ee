"""What a commit costs with history, projection and intents; how late a worker is.

python docs/bench/projection.py [SECONDS]: of load for the measurement of the lag.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from itertools import count
from threading import Event, Thread
from types import new_class
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    Action,
    CanonicalStore,
    Intent,
    Provenance,
    ReducerService,
    Reduction,
    WorkflowStateMixin,
)
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.hooks import Hooks
from sa_wfstate.outbox import IntentDispatcher, IntentMixin, store_intents
from sa_wfstate.projection import (
    Projection,
    ProjectionMixin,
    ProjectionWorker,
    WatermarkMixin,
    measure_lag,
    rebuild,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sa_wfstate.projection import ProjectionBatch

SIZES = {"0.3 kB": 5, "2 kB": 40, "20 kB": 400}
RATE = 500
"""Commits per second for the lag; the target is a p99 below 250 ms."""


class Base(DeclarativeBase): ...


class Line(BaseModel):
    product: str
    count: int
    price: float


class OrderState(BaseModel):
    status: str = "new"
    lines: list[Line] = []


def table(name: str, *bases: Any) -> Any:
    """Map a class of its own, so that each workflow has its own side writes."""
    return new_class(
        name, (*bases, Base), {}, lambda names: names.update(__tablename__=name.lower())
    )


def project(order: Any) -> dict[str, Any]:
    """Make the row of a projection."""
    return {"tag": order.state.status, "namespace": "shop"}


Off, Kept, Projected, Both = (
    table(name, WorkflowStateMixin[OrderState])
    for name in ("Off", "Kept", "Projected", "Both")
)
keep_history(Kept, table("KeptHistory", HistoryMixin))
Projection(Projected, table("ProjectedRow", ProjectionMixin), project).keep_inline()
keep_history(Both, table("BothHistory", HistoryMixin))
Projection(Both, table("BothRow", ProjectionMixin), project).keep_inline()
CLASSES = {"off": Off, "history": Kept, "inline projection": Projected, "both": Both}

Intents = table("Intents", IntentMixin)
Watermark = table("Watermark", WatermarkMixin)
soon = Projection(Off, table("Soon", ProjectionMixin), project)


def state_of(lines: int) -> OrderState:
    """Make a state of a size."""
    line = Line(product="a product of some kind", count=1, price=9.5)
    return OrderState(lines=[line] * lines)


def committer(engine: Engine, entity: Any, lines: int) -> Any:
    """Return a function that commits the next version of a workflow, by a store."""
    store, state, versions = CanonicalStore(engine, entity), state_of(lines), count()
    key = f"store-{lines}"

    def commit() -> None:
        store.try_commit(
            workflow_key=key,
            expected_version=next(versions),
            state=state,
            provenance=Provenance.now(),
        )

    return commit


def flusher(engine: Engine, entity: Any, lines: int) -> Any:
    """Return a function that changes a workflow in a Session, and commits."""
    key, numbers = f"flush-{lines}", count()
    with Session(engine) as session:
        session.add(entity(workflow_key=key, state=state_of(lines)))
        session.commit()

    def flush() -> None:
        with Session(engine) as session:
            order = session.get_one(entity, key)
            order.state.status = str(next(numbers))
            session.commit()

    return flush


def reducing(engine: Engine, *, intents: bool) -> Any:
    """Return a function that handles an action, with an intent to store or without."""
    asked = [Intent(intent_type="mail", target="kim", payload={"n": 1})] * intents
    service = ReducerService(
        engine,
        Off,
        lambda state, _: Reduction(state, intents=asked),
        initial=partial(state_of, 5),
        writers=[store_intents(Intents)] if intents else [],
    )
    key = f"reduce-{intents}"

    def handle() -> None:
        service.handle(Action(workflow_key=key, action_id=uuid4(), payload=None))

    return handle


class Lags(Hooks):
    """Notes how late the worker was."""

    def __init__(self) -> None:
        self.batches: list[ProjectionBatch] = []

    def projected(self, batch: ProjectionBatch) -> None:
        self.batches.append(batch)


def measure_worker(engine: Engine, seconds: float, partitions: int) -> None:
    """Commit at RATE, and look at the projection as a reader would."""
    hooks, stop = Lags(), Event()
    worker = ProjectionWorker(
        engine, soon, Watermark, poll=0.02, partitions=partitions, hooks=hooks
    )
    worker.sweep()
    worker.follow()
    thread = Thread(target=worker.run, args=(stop,))
    thread.start()
    store = CanonicalStore(engine, Off)
    state, versions = state_of(5), dict.fromkeys(range(200), 0)
    begin, late, done = time.perf_counter(), 0.0, 0
    while time.perf_counter() - begin < seconds:
        due = begin + done / RATE
        if (pause := due - time.perf_counter()) > 0:
            time.sleep(pause)
        late = max(late, -pause)
        key = done % 200
        store.try_commit(
            workflow_key=f"lag-{partitions}-{key}",
            expected_version=versions[key],
            state=state,
            provenance=Provenance.now(),
        )
        versions[key] += 1
        done += 1
    spent = time.perf_counter() - begin
    time.sleep(0.2)
    stop.set()
    thread.join()
    assert measure_lag(engine, soon).keys == 0
    lags = sorted(batch.lag_seconds for batch in hooks.batches)
    print(
        f"{partitions} partition(s), {done / spent:.0f} commits/s: lag of a batch "
        f"p50 {statistics.median(lags) * 1e3:.0f} ms, "
        f"p99 {lags[int(0.99 * len(lags))] * 1e3:.0f} ms, max {lags[-1] * 1e3:.0f} ms; "
        f"at most {max(batch.lag_versions for batch in hooks.batches)} version(s)"
    )


def main() -> None:
    """Measure all of it."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    with postgresql(synchronous_commit="off") as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        for title, make in {"try_commit": committer, "flush": flusher}.items():
            print_table(
                f"One commit by {title}",
                {
                    size: compare(
                        {
                            name: make(engine, entity, lines)
                            for name, entity in CLASSES.items()
                        },
                        baseline="off",
                    )
                    for size, lines in SIZES.items()
                },
            )
        contenders = {
            "off": reducing(engine, intents=False),
            "intents": reducing(engine, intents=True),
        }
        compared = compare(contenders, baseline="off")
        print_table("One action by ReducerService", {"0.3 kB": compared})
        for partitions in (1, 4):
            measure_worker(engine, seconds, partitions)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO off"
                    " SELECT 'many-' || n, 1, state, now(), 1, provenance"
                    " FROM off, generate_series(1, 20000) n"
                    " WHERE workflow_key = 'store-5'"
                )
            )
        begin = time.perf_counter()
        rows = rebuild(engine, soon)
        print(f"rebuild: {rows / (time.perf_counter() - begin):.0f} rows/s")
        worker = ProjectionWorker(engine, soon, Watermark)
        begin = time.perf_counter()
        worker.sweep()
        swept = rows / (time.perf_counter() - begin)
        print(f"sweep with nothing to do: {swept:.0f} rows/s")
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO intents (workflow_key, version, position, intent_id,"
                    " intent_type, target) SELECT 'many-' || n / 5, n % 5, 0,"
                    " gen_random_uuid(), 'mail', 'kim' FROM generate_series(1, 5000) n"
                )
            )
        dispatcher = IntentDispatcher(engine, Intents, lambda _: None, batch_size=200)
        begin, given = time.perf_counter(), 0
        while batch := dispatcher.dispatch():
            given += batch
        print(f"dispatcher: {given / (time.perf_counter() - begin):.0f} intents/s")
        engine.dispose()


if __name__ == "__main__":
    main()
