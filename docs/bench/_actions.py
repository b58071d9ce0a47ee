"""Handle actions for a while, in a process of its own; see groups.py.

It reads cases as lines of JSON, runs them, and answers with what was measured. It uses
only what older versions of the library have too, so that two can be compared.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import accumulate, cycle
from typing import Any
from uuid import uuid4

from pydantic import BaseModel
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    Intent,
    ReducerService,
    Reduction,
    RetryPolicy,
    WorkflowStateMixin,
)
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.outbox import IntentMixin, store_intents
from sa_wfstate.projection import Projection, ProjectionMixin

BATCH = 100
POOL = 20
ZIPF_KEYS = 10_000


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


class Sale(WorkflowStateMixin[OrderState], Base):
    """An order with everything that a commit can write beside it."""

    __tablename__ = "sales"


class SaleHistory(HistoryMixin, Base):
    __tablename__ = "sale_history"


class SaleRow(ProjectionMixin, Base):
    __tablename__ = "sale_rows"


class SaleIntents(IntentMixin, Base):
    __tablename__ = "sale_intents"


def project(sale: Any) -> dict[str, Any]:
    """Make the row of the projection."""
    return {"tag": sale.state.status, "namespace": "shop"}


keep_history(Sale, SaleHistory)
Projection(Sale, SaleRow, project).keep_inline()


def reducer(state: OrderState, _: Action[int]) -> OrderState:
    """Count the actions."""
    return state.model_copy(update={"count": state.count + 1})


def telling(state: OrderState, action: Action[int]) -> Reduction[OrderState]:
    """Count the actions, and ask for an effect of each."""
    intent = Intent(intent_type="mail", target="kim", payload=action.payload)
    return Reduction(reducer(state, action), [intent])


class Clock:
    """Give out actions until the time is over, and note how long each takes."""

    def __init__(self, case: dict[str, Any]) -> None:
        self._seconds = case["seconds"]
        self._keys = keys_of(case["keys"])
        self._latencies: list[float] = []
        self._begin = self._cpu = 0.0

    def start(self) -> None:
        """Begin: the connections and caches are warm."""
        # Or a collection of all that was imported, some 150 ms, falls into some runs.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._latencies.clear()
        self._begin, self._cpu = time.perf_counter(), time.process_time()

    def action(self) -> Action[int]:
        """Make an action."""
        return Action(workflow_key=next(self._keys), action_id=uuid4(), payload=1)

    def actions(self) -> Iterator[Action[int]]:
        """Make actions until the time is over."""
        while time.perf_counter() < self._begin + self._seconds:
            yield self.action()

    def note(self, begin: float, actions: int = 1) -> None:
        """Note that *actions* begun at *begin* are done."""
        self._latencies.extend([time.perf_counter() - begin] * actions)

    def answer(self) -> dict[str, Any]:
        """Return what was noted."""
        return {
            "seconds": time.perf_counter() - self._begin,
            "cpu": time.process_time() - self._cpu,
            "latencies": self._latencies,
        }


def keys_of(kind: str) -> Iterator[str]:
    """Return new keys, keys by Zipf's law, or one key."""
    if kind == "new":
        return iter(lambda: str(uuid4()), None)
    if kind == "one":
        return cycle(["hot"])
    weights = list(accumulate(1 / (n + 1) for n in range(ZIPF_KEYS)))
    numbers = random.choices(range(ZIPF_KEYS), cum_weights=weights, k=50_000)
    return cycle([f"zipf-{number}" for number in numbers])


def arguments_of(case: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return class, reducer and options of the service of a case."""
    options: dict[str, Any] = {
        "initial": OrderState,
        "dedup": OrderActions if case["dedup"] else None,
        "retry": RetryPolicy(max_attempts=10_000),
    }
    if case["contender"] == "group=1":
        options["group"] = 1
    if case["keys"] == "one":
        options["fold"] = BATCH
    if not case["more"]:
        return Order, reducer, options
    return Sale, telling, options | {"writers": [store_intents(SaleIntents)]}


async def run_asyncio(url: URL, case: dict[str, Any]) -> Clock:
    """Run tasks."""
    clock, workers = Clock(case), case["workers"]
    if case["alternative"]:
        from _alternatives import ALTERNATIVES  # Older checkouts have no use for it.

        async with ALTERNATIVES[case["contender"]](url) as handle:
            await _work(clock, workers, handle)
        return clock
    engine = create_async_engine(url, pool_size=POOL, max_overflow=0)
    entity, reduce, options = arguments_of(case)
    service = sa_wfstate.asyncio.ReducerService(engine, entity, reduce, **options)
    if case["contender"] == "handle_many":
        await service.handle_many([clock.action() for _ in range(BATCH)])
        clock.start()
        while batch := [a for a, _ in zip(clock.actions(), range(BATCH), strict=False)]:
            begin = time.perf_counter()
            await service.handle_many(batch)
            clock.note(begin, len(batch))
    else:
        await _work(clock, workers, service.handle)
    await engine.dispose()
    return clock


async def _work(
    clock: Clock, workers: int, handle: Callable[[Action[int]], Awaitable[object]]
) -> None:
    await asyncio.gather(*(handle(clock.action()) for _ in range(workers)))

    async def work() -> None:
        for action in clock.actions():
            begin = time.perf_counter()
            await handle(action)
            clock.note(begin)

    clock.start()
    await asyncio.gather(*(work() for _ in range(workers)))


def run_threads(url: URL, case: dict[str, Any]) -> Clock:
    """Run threads."""
    engine = create_engine(url, pool_size=POOL, max_overflow=0)
    entity, reduce, options = arguments_of(case)
    service = ReducerService(engine, entity, reduce, **options)
    clock = Clock(case)
    ready = threading.Barrier(case["workers"], action=clock.start)

    def work() -> None:
        service.handle(clock.action())
        ready.wait()
        for action in clock.actions():
            begin = time.perf_counter()
            service.handle(action)
            clock.note(begin)

    threads = [threading.Thread(target=work) for _ in range(case["workers"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    return clock


def serve() -> None:
    """Run the cases of standard input."""
    for line in sys.stdin:
        case = json.loads(line)
        url = make_url(case["url"]).set(drivername=f"postgresql+{case['driver']}")
        if case["threads"]:
            clock = run_threads(url, case)
        else:
            clock = asyncio.run(run_asyncio(url, case))
        print(json.dumps(clock.answer()), flush=True)


if __name__ == "__main__":
    serve()
