"""A patch against reading a state, changing a field, and committing it.

The first table has time and CPU of the client for each, in rounds that take turns: the
median of the ratios, and in brackets that of the fastest rounds. The second one has a
counter on one key that several processes increment: by reading and committing until the
commit wins, with the pauses of ``RetryPolicy``; by patches that need no transaction; by
patches of a field with a bound, whose result is validated before COMMIT; and by psycopg
alone, with the three statements of the latter, and with a single UPDATE. ``--seconds``
is the length of each run there. The targets are in the last row and column.

Commits do not wait for the disk, unless ``--durable`` is given: a slow one hides all
else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from _harness import postgresql
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import (
    CanonicalStore,
    Provenance,
    RetryPolicy,
    StateConflict,
    WorkflowStateMixin,
    field_of,
)
from sa_wfstate.patching import increment, set_to

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"0.3 kB": 6, "2 kB": 50, "20 kB": 510}
"""Lines of each state; one has some 40 bytes."""

CALLS = 20
"""Calls of each contender in a round."""


WAYS = ("read and commit", "try_patch", "try_patch, bounded")
BY_HAND = ("psycopg, transaction", "psycopg, one statement")
TIME, CPU, TIMES = 0.8, 0.7, 3.0
"""The targets: time, CPU of the client from 20 kB on, and increments per second."""

INCREMENT = """
    UPDATE orders SET version = version + 1, updated_at = now(), provenance = %s::jsonb,
        state = jsonb_set(state, '{visits}', to_jsonb((state->>'visits')::int + 1))
    WHERE workflow_key = 'counter' AND schema_version = 1 RETURNING state::text
"""


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"
    visits: int = 0
    bounded: int = Field(0, le=10**9)
    lines: list[str] = []


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


STATUS = field_of(Order.state, lambda state: state.status)
VISITS = field_of(Order.state, lambda state: state.visits)
BOUNDED = field_of(Order.state, lambda state: state.bounded)


def create(store: CanonicalStore[OrderState], key: str, lines: int) -> None:
    """Create an order."""
    state = OrderState(lines=[uuid4().hex for _ in range(lines)])
    provenance = Provenance.now()
    store.try_commit(
        workflow_key=key, expected_version=0, state=state, provenance=provenance
    )


def contenders(
    store: CanonicalStore[OrderState], key: str
) -> dict[str, Callable[[], object]]:
    """Return the two ways to change a field."""

    def commit() -> object:
        snapshot = store.get_state(key)
        state = snapshot.state.model_copy(update={"status": uuid4().hex})
        return store.try_commit(
            workflow_key=key,
            expected_version=snapshot.version,
            state=state,
            provenance=Provenance.now(),
        )

    def patch() -> object:
        return store.try_patch(
            workflow_key=key,
            edits=[set_to(STATUS, uuid4().hex)],
            provenance=Provenance.now(),
        )

    return {"get_state + try_commit": commit, "try_patch": patch}


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Return seconds and CPU seconds of some calls."""
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(CALLS):
        run()
    return time.perf_counter() - begin, time.process_time() - cpu


def compare(url: Any, rounds: int) -> None:
    """Print the table of one writer."""
    engine = create_engine(url)
    store = CanonicalStore(engine, Order)
    table = Table("", *SIZES, title="Change a field: time, and CPU of the client")
    cells: dict[str, list[str]] = {}
    for size, lines in SIZES.items():
        create(store, size, lines)
        runs = contenders(store, size)
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for run in runs.values():
            measure(run)
        for _ in range(rounds):
            for name in random.sample(list(runs), len(runs)):
                results[name].append(measure(runs[name]))
        (base, times), (other, patched) = results.items()
        pairs = list(zip(patched, times, strict=True))
        ratios = [
            f"{statistics.median(p[i] / t[i] for p, t in pairs):.2f}"
            f" ({min(p[i] for p in patched) / min(t[i] for t in times):.2f})"
            for i in (0, 1)
        ]
        each = statistics.median(t[0] for t in times) / CALLS * 1e6
        cells.setdefault(base, []).append(f"{each:.0f} µs")
        cells.setdefault(other, []).append(" CPU ".join(ratios))
    for name, row in cells.items():
        table.add_row(name, *row)
    targets = [f"{TIME} CPU {CPU}" if size == "20 kB" else str(TIME) for size in SIZES]
    table.add_row("target, at most", *targets)
    Console(width=120).print(table)
    engine.dispose()


def count(address: str, way: str, seconds: float, done: Any) -> None:
    """Increment the counter for some seconds, in a process of its own."""
    engine = create_engine(address)
    store, policy = CanonicalStore(engine, Order), RetryPolicy()
    store.get_state("counter")
    make = attempt_of(store, address, way)
    until, won, lost = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        attempt, outcome = 1, make()
        while isinstance(outcome, StateConflict) and time.monotonic() < until:
            lost += 1
            time.sleep(random.random() * policy.ceiling(attempt))
            attempt, outcome = attempt + 1, make()
        won += not isinstance(outcome, StateConflict)
    engine.dispose()
    done.put((won, lost))


def attempt_of(
    store: CanonicalStore[OrderState], address: str, way: str
) -> Callable[[], object]:
    """Return what makes one attempt to increment the counter."""
    if way in BY_HAND:
        return by_hand(address, in_transaction=way == BY_HAND[0])
    edits = [increment(VISITS if way == WAYS[1] else BOUNDED, 1)]
    return lambda: once(store, way, edits)


def by_hand(address: str, *, in_transaction: bool) -> Callable[[], object]:
    """Return what a patch does, without a library."""
    dsn = make_url(address).set(drivername="postgresql")
    connection = psycopg.connect(
        dsn.render_as_string(hide_password=False), autocommit=not in_transaction
    )

    def increment_it() -> object:
        provenance = Provenance.now().model_dump_json()
        row = connection.execute(INCREMENT, (provenance,)).fetchone()
        assert row is not None
        state = OrderState.model_validate_json(row[0])
        connection.commit()
        return state

    return increment_it


def once(store: CanonicalStore[OrderState], way: str, edits: Any) -> Any:
    """Make one attempt to increment the counter."""
    now = Provenance.now()
    if way in WAYS[1:]:
        return store.try_patch(workflow_key="counter", edits=edits, provenance=now)
    snapshot = store.get_state("counter")
    state = snapshot.state
    state.visits += 1
    return store.try_commit(
        workflow_key="counter",
        expected_version=snapshot.version,
        state=state,
        provenance=now,
    )


def contend(url: Any, processes: list[int], seconds: float, rounds: int) -> None:
    """Print the table of a counter that processes contend for."""
    engine = create_engine(url)
    create(CanonicalStore(engine, Order), "counter", SIZES["0.3 kB"])
    engine.dispose()
    address = url.render_as_string(hide_password=False)
    context = multiprocessing.get_context("fork")
    target = f"target for {WAYS[1]}"
    table = Table("processes", *WAYS, *BY_HAND, "conflicts", target)
    for number in processes:
        rates: dict[str, list[float]] = {way: [] for way in (*WAYS, *BY_HAND)}
        conflicts = dict.fromkeys(rates, 0)
        for _ in range(rounds):
            for way, each in rates.items():
                done = context.Queue()
                arguments = (address, way, seconds, done)
                workers = [
                    context.Process(target=count, args=arguments) for _ in range(number)
                ]
                for worker in workers:
                    worker.start()
                answers = [done.get(timeout=120) for _ in workers]
                for worker in workers:
                    worker.join()
                each.append(sum(won for won, _ in answers) / seconds)
                conflicts[way] += sum(lost for _, lost in answers)
        cells = []
        for each in rates.values():
            pairs = zip(each, rates[WAYS[0]], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            cells.append(f"{statistics.median(each):.0f}/s ({ratio:.1f})")
        lost = [str(conflicts[way]) for way in WAYS]
        table.add_row(str(number), *cells, ", ".join(lost), f"at least {TIMES}")
    Console(width=150).print(table)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25, help="of one writer")
    parser.add_argument("--processes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each run")
    parser.add_argument("--durable", action="store_true")
    parser.add_argument("--runs", type=int, default=3, help="of each contender")
    options = parser.parse_args()
    settings = {} if options.durable else {"fsync": "off"}
    with postgresql(**settings) as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        engine.dispose()
        compare(url, options.rounds)
        contend(url, options.processes, options.seconds, options.runs)


if __name__ == "__main__":
    main()
