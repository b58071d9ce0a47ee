"""Many workers, one key: ReducerService against the loop that everyone writes.

The loop: read, reduce, compare and set, and after a conflict sleep with full jitter, 10
to 250 ms, until it wins. Every contender runs for a while in turn, for each number of
workers; asyncio, threads, or asyncio in two processes. *Think* is the time that a
worker spends elsewhere between two actions.

The ratios are within three rows that belong together. ``--seconds`` sets how long each
runs. Without ``--durable`` no commit waits for the disk: a slow one hides all else, and
a key cannot be committed to more often than the disk can be flushed.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from _harness import postgresql
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    CanonicalStore,
    Hooks,
    Provenance,
    ReducerService,
    RetryPolicy,
    StateConflict,
)
from sa_wfstate.canonical import CanonicalBase, WorkflowState

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

KEY = "hot"
FOLD = 64
PADDING = "x" * 250
POLICY = RetryPolicy(max_attempts=100_000)
CONTENDERS = ("loop", "service", "folding")


class Done(NamedTuple):
    """What all workers of one run did: a latency and a number of attempts each."""

    seconds: float
    latencies: list[float]
    attempts: list[int]
    conflicts: int


class Counted(Hooks):
    """Count the conflicts; folded actions share theirs."""

    conflicts = 0

    def conflicted(self, entity: str, conflict: StateConflict, attempt: int) -> None:
        self.conflicts += 1


def reducer(state: dict[str, Any], _: Action[int]) -> dict[str, Any]:
    """Count the actions."""
    return {"n": state["n"] + 1, "padding": PADDING}


def pause(attempt: int) -> float:
    """Return the pause of the loop, in seconds."""
    return random.random() * POLICY.ceiling(attempt)


def provenance() -> Provenance:
    """Make one for each attempt."""
    return Provenance.now(uuid4())


async def run_tasks(
    url: str, contender: str, workers: int, think: float, seconds: float
) -> Done:
    """Run the workers as tasks of one event loop."""
    engine = create_async_engine(url, pool_size=workers, max_overflow=0)
    store = sa_wfstate.asyncio.CanonicalStore(engine, WorkflowState)
    hooks = Counted()
    service = sa_wfstate.asyncio.ReducerService(
        engine,
        WorkflowState,
        reducer,
        retry=POLICY,
        fold=FOLD if contender == "folding" else 1,
        hooks=hooks,
    )
    latencies: list[float] = []
    attempts: list[int] = []

    async def loop(action: Action[int]) -> int:
        attempt = 1
        while True:
            read = await store.get_state(KEY)
            outcome = await store.try_commit(
                workflow_key=KEY,
                expected_version=read.version,
                state_prime=reducer(read.state, action),
                provenance=provenance(),
            )
            if not isinstance(outcome, StateConflict):
                return attempt
            hooks.conflicts += 1
            await asyncio.sleep(pause(attempt))
            attempt += 1

    async def work(until: float) -> None:
        while time.monotonic() < until:
            action = Action(workflow_key=KEY, action_id=uuid4(), payload=1)
            begin = time.perf_counter()
            if contender == "loop":
                attempt = await loop(action)
            else:
                attempt = (await service.handle(action)).attempts
            latencies.append(time.perf_counter() - begin)
            attempts.append(attempt)
            if think:
                await asyncio.sleep(think)

    await asyncio.gather(*(store.get_state(KEY) for _ in range(workers)))
    begin = time.monotonic()
    await asyncio.gather(*(work(begin + seconds) for _ in range(workers)))
    elapsed = time.monotonic() - begin
    await engine.dispose()
    return Done(elapsed, latencies, attempts, hooks.conflicts)


def run_threads(
    url: str, contender: str, workers: int, think: float, seconds: float
) -> Done:
    """Run the workers as threads."""
    engine = create_engine(url, pool_size=workers, max_overflow=0)
    store = CanonicalStore(engine, WorkflowState)
    hooks = Counted()
    service = ReducerService(
        engine,
        WorkflowState,
        reducer,
        retry=POLICY,
        fold=FOLD if contender == "folding" else 1,
        hooks=hooks,
    )
    latencies: list[float] = []
    attempts: list[int] = []

    def loop(action: Action[int]) -> int:
        attempt = 1
        while True:
            read = store.get_state(KEY)
            outcome = store.try_commit(
                workflow_key=KEY,
                expected_version=read.version,
                state_prime=reducer(read.state, action),
                provenance=provenance(),
            )
            if not isinstance(outcome, StateConflict):
                return attempt
            hooks.conflicts += 1
            time.sleep(pause(attempt))
            attempt += 1

    def work(until: float) -> None:
        while time.monotonic() < until:
            action = Action(workflow_key=KEY, action_id=uuid4(), payload=1)
            begin = time.perf_counter()
            if contender == "loop":
                attempt = loop(action)
            else:
                attempt = service.handle(action).attempts
            latencies.append(time.perf_counter() - begin)
            attempts.append(attempt)
            time.sleep(think)

    begin = time.monotonic()
    threads = [
        threading.Thread(target=work, args=(begin + seconds,)) for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - begin
    engine.dispose()
    return Done(elapsed, latencies, attempts, hooks.conflicts)


def _run_process(ready: Any, done: Queue[Done], *arguments: Any) -> None:
    ready.wait()
    done.put(asyncio.run(run_tasks(*arguments)))


def run_processes(
    url: str, contender: str, workers: int, think: float, seconds: float
) -> Done:
    """Run half of the workers as tasks in each of two processes."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(2), context.Queue()
    arguments = (ready, done, url, contender, workers // 2, think, seconds)
    processes = [context.Process(target=_run_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    one, two = done.get(timeout=60), done.get(timeout=60)
    for process in processes:
        process.join()
    return Done(
        max(one.seconds, two.seconds),
        one.latencies + two.latencies,
        one.attempts + two.attempts,
        one.conflicts + two.conflicts,
    )


def run_asyncio(*arguments: Any) -> Done:
    """Run the workers in an event loop of their own."""
    return asyncio.run(run_tasks(*arguments))


MODES = {
    "asyncio": run_asyncio,
    "threads": run_threads,
    "two processes": run_processes,
}


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e3


def main() -> None:
    """Run every contender in every mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 32, 100])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--think", type=float, nargs="+", default=[0.0, 0.005])
    parser.add_argument("--durable", action="store_true")
    options = parser.parse_args()
    settings = {} if options.durable else {"synchronous_commit": "off"}
    table = Table(
        *("mode", "workers", "think", "contender", "actions/s", "ratio"),
        *("p50", "p95", "p99 ms", "p99 ratio", "conflicts/action"),
        *("attempts", "within 3"),
        title="One hot key, state of 0.3 kB",
        title_justify="left",
    )
    with postgresql(**settings) as url:
        address = url.render_as_string(hide_password=False)
        engine = create_engine(url)
        CanonicalBase.metadata.create_all(engine)
        CanonicalStore(engine, WorkflowState).try_commit(
            workflow_key=KEY,
            expected_version=0,
            state_prime={"n": 0, "padding": PADDING},
            provenance=provenance(),
        )
        for mode in options.modes:
            for think in options.think:
                for workers in options.workers:
                    base = None
                    for contender in CONTENDERS:
                        done = MODES[mode](
                            address, contender, workers, think, options.seconds
                        )
                        rate = len(done.latencies) / done.seconds
                        p99 = percentile(done.latencies, 0.99)
                        base = base or (rate, p99)
                        within = sum(n <= 3 for n in done.attempts)
                        table.add_row(
                            mode,
                            str(workers),
                            f"{think * 1e3:.0f} ms",
                            contender,
                            f"{rate:.0f}",
                            f"{rate / base[0]:.2f}",
                            f"{percentile(done.latencies, 0.5):.1f}",
                            f"{percentile(done.latencies, 0.95):.1f}",
                            f"{p99:.1f}",
                            f"{p99 / base[1]:.3f}",
                            f"{done.conflicts / len(done.latencies):.2f}",
                            f"{statistics.mean(done.attempts):.2f}",
                            f"{within / len(done.attempts):.1%}",
                        )
        engine.dispose()
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
