"""Many keys at once: a ReducerService with and without group commit.

    python docs/bench/groups.py --workers 1 8 32 100

Workers handle actions, each of a key of its own, with a dedup log, on a durable server.
The contenders run side by side, in rounds that take turns; each cell is the median of
the ratios to ``handle`` without groups in the same round, and their range.

* handle: ``group=1``, each action is a transaction of its own;
* groups: the default, what arrives together is committed together;
* handle_many: one caller with batches of 100, which needs no workers;
* by hand: asyncpg alone, ``SELECT … FOR UPDATE``, dedup row, UPDATE or INSERT.

CPU is that of this process, per action.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple
from uuid import uuid4

from _harness import postgresql
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase

import sa_wfstate.asyncio
from sa_wfstate import Action, ReducerService, WorkflowStateMixin
from sa_wfstate.dedup import ActionDedupMixin

BATCH = 100
POOL = 20


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    """A state of some 0.3 kB."""

    status: str = "new"
    count: int = 0
    lines: list[str] = ["a line of the order"] * 8


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class OrderActions(ActionDedupMixin, Base):
    __tablename__ = "order_actions"


def reducer(state: OrderState, _: Action[int]) -> OrderState:
    """Count the actions."""
    return state.model_copy(update={"count": state.count + 1})


class Run(NamedTuple):
    """Actions per second, CPU seconds per action, and percentiles in seconds."""

    rate: float
    cpu: float
    p50: float
    p99: float


class Clock:
    """Give out actions until the time is over, and note how long each takes."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._latencies: list[float] = []
        self._begin = self._cpu = 0.0

    def start(self) -> None:
        """Begin: the connections and caches are warm."""
        self._latencies.clear()
        self._begin, self._cpu = time.perf_counter(), time.process_time()

    def actions(self) -> Iterator[Action[int]]:
        """Make actions of new keys."""
        while time.perf_counter() < self._begin + self._seconds:
            yield new_action()

    def note(self, begin: float, actions: int = 1) -> None:
        """Note that *actions* begun at *begin* are done."""
        self._latencies.extend([time.perf_counter() - begin] * actions)

    def run(self) -> Run:
        """Return what was noted."""
        seconds = time.perf_counter() - self._begin
        each = sorted(self._latencies)
        cpu = (time.process_time() - self._cpu) / len(each)
        middle, high = each[len(each) // 2], each[int(len(each) * 0.99)]
        return Run(len(each) / seconds, cpu, middle, high)


def new_action() -> Action[int]:
    """Make an action of a new key."""
    return Action(workflow_key=str(uuid4()), action_id=uuid4(), payload=1)


def options_of(name: str) -> dict[str, Any]:
    """Return how the service of a contender is made."""
    group = {"group": 1} if name == "handle" else {}
    return {"initial": OrderState, "dedup": OrderActions} | group


async def run_asyncio(url: URL, name: str, workers: int, seconds: float) -> Run:
    """Run *workers* tasks over asyncpg."""
    clock = Clock(seconds)
    if name == "by hand":
        import asyncpg

        query = {"host": url.query["host"]} if "host" in url.query else {}
        pool = await asyncpg.create_pool(
            user=url.username,
            password=url.password,
            database=url.database,
            host=query.get("host", url.host),
            port=url.port,
            max_size=POOL,
        )
        await _work(clock, workers, lambda action: by_hand(pool, action))
        await pool.close()
        return clock.run()
    engine = create_async_engine(
        url.set(drivername="postgresql+asyncpg"), pool_size=POOL, max_overflow=0
    )
    service = sa_wfstate.asyncio.ReducerService(
        engine, Order, reducer, **options_of(name)
    )
    if name == "handle_many":
        await service.handle_many([new_action() for _ in range(BATCH)])
        clock.start()
        while batch := [a for a, _ in zip(clock.actions(), range(BATCH), strict=False)]:
            begin = time.perf_counter()
            await service.handle_many(batch)
            clock.note(begin, len(batch))
    else:
        await _work(clock, workers, service.handle)
    await engine.dispose()
    return clock.run()


async def _work(
    clock: Clock, workers: int, handle: Callable[[Action[int]], Awaitable[object]]
) -> None:
    await asyncio.gather(*(handle(new_action()) for _ in range(workers)))

    async def work() -> None:
        for action in clock.actions():
            begin = time.perf_counter()
            await handle(action)
            clock.note(begin)

    clock.start()
    await asyncio.gather(*(work() for _ in range(workers)))


async def by_hand(pool: Any, action: Action[int]) -> None:
    """Handle *action* as an application would without a library."""
    key = action.workflow_key
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(
            "SELECT version, state FROM orders WHERE workflow_key = $1 FOR UPDATE", key
        )
        claimed = await connection.fetchval(
            "INSERT INTO order_actions (workflow_key, action_id, result_hash,"
            " expires_at) VALUES ($1, $2, '', now() + interval '6 hours')"
            " ON CONFLICT DO NOTHING RETURNING true",
            key,
            action.action_id,
        )
        assert claimed
        state = OrderState.model_validate_json(row[1]) if row else OrderState()
        text = reducer(state, action).model_dump_json()
        provenance = f'{{"effect_id": "{uuid4()}", "timestamp": "2026-01-01"}}'
        if row is None:
            await connection.execute(
                "INSERT INTO orders (workflow_key, state, provenance)"
                " VALUES ($1, $2, $3)",
                key,
                text,
                provenance,
            )
        else:
            await connection.execute(
                "UPDATE orders SET version = version + 1, state = $2,"
                " provenance = $3, updated_at = now() WHERE workflow_key = $1",
                key,
                text,
                provenance,
            )


def run_threads(url: URL, name: str, workers: int, seconds: float) -> Run:
    """Run *workers* threads over psycopg."""
    engine = create_engine(url, pool_size=POOL, max_overflow=0)
    service = ReducerService(engine, Order, reducer, **options_of(name))
    clock = Clock(seconds)
    ready = threading.Barrier(workers, action=clock.start)

    def work() -> None:
        service.handle(new_action())
        ready.wait()
        for action in clock.actions():
            begin = time.perf_counter()
            service.handle(action)
            clock.note(begin)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    return clock.run()


def measure(
    url: URL, mode: str, workers: int, options: argparse.Namespace
) -> dict[str, list[Run]]:
    """Run the contenders side by side, each round in another order."""
    names = ["handle", "groups"]
    if mode == "asyncio":
        names += ["handle_many", "by hand"]
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(options.rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            case = url, name, workers, options.seconds
            run = asyncio.run(run_asyncio(*case)) if mode == "asyncio" else None
            runs[name].append(run or run_threads(*case))
    return runs


def main() -> None:
    """Print a table of ratios for each mode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32, 100])
    parser.add_argument("--modes", nargs="+", default=["asyncio", "threads"])
    parser.add_argument("--fsync-off", action="store_true")
    options = parser.parse_args()
    settings = {"fsync": "off"} if options.fsync_off else {}
    with postgresql(**settings) as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        engine.dispose()
        for mode in options.modes:
            table = Table(
                *("workers", "contender", "actions/s", *Run._fields),
                title=f"Distinct keys, {mode}: median ratio to handle (range)",
                title_justify="left",
            )
            for workers in options.workers:
                runs = measure(url, mode, workers, options)
                for name, own in runs.items():
                    rate = statistics.median(run.rate for run in own)
                    pairs = list(zip(own, runs["handle"], strict=True))
                    cells = []
                    for index in range(len(Run._fields)):
                        ratios = [a[index] / b[index] for a, b in pairs]
                        low, high = min(ratios), max(ratios)
                        middle = statistics.median(ratios)
                        cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
                    table.add_row(str(workers), name, f"{rate:.0f}", *cells)
                table.add_section()
            Console(width=150).print(table)


if __name__ == "__main__":
    main()
