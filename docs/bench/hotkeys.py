"""Many workers, one key: ReducerService against the loop that everyone writes.

The loop: read, reduce, compare and set, and after a conflict sleep with full jitter, 10
to 250 ms, until it wins. Every contender runs for a while in turn, for each number of
workers: threads, tasks of asyncio, or tasks in two processes. *Think* is the time that
a worker spends elsewhere between two actions.

Ratios are to the loop in the same round, the median of all rounds. *Commits* are the
versions written, *lost* the attempts that lost; *within 3* is the share of actions that
took at most three attempts.

The whole table takes about seven minutes; ``--modes``, ``--workers``, ``--think`` and
``--contenders`` choose a part of it. Without ``--durable`` no commit waits for the
disk: a slow one hides all else, and a key cannot be committed to more often than the
disk can be flushed.
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
FOLD = 128
PADDING = "x" * 250
POLICY = RetryPolicy(max_attempts=100_000)
CONTENDERS = ("loop", "service", "folding")


class Done(NamedTuple):
    """What all workers of one run did: for each action its latency and so on."""

    seconds: float
    latencies: list[float]
    attempts: list[int]
    versions: set[int]
    conflicts: int

    @property
    def rate(self) -> float:
        """Actions per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        latencies = sorted(self.latencies)
        return latencies[min(len(latencies) - 1, int(len(latencies) * share))] * 1e3


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
    versions: set[int] = set()

    async def loop(action: Action[int]) -> tuple[int, int]:
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
                return attempt, outcome.version
            hooks.conflicts += 1
            await asyncio.sleep(pause(attempt))
            attempt += 1

    async def work(until: float) -> None:
        while time.monotonic() < until:
            action = Action(workflow_key=KEY, action_id=uuid4(), payload=1)
            begin = time.perf_counter()
            if contender == "loop":
                attempt, version = await loop(action)
            else:
                outcome = await service.handle(action)
                attempt, version = outcome.attempts, outcome.version
            latencies.append(time.perf_counter() - begin)
            attempts.append(attempt)
            versions.add(version)
            if think:
                await asyncio.sleep(think)

    await asyncio.gather(*(store.get_state(KEY) for _ in range(workers)))
    begin = time.monotonic()
    await asyncio.gather(*(work(begin + seconds) for _ in range(workers)))
    elapsed = time.monotonic() - begin
    await engine.dispose()
    return Done(elapsed, latencies, attempts, versions, hooks.conflicts)


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
    versions: set[int] = set()

    def loop(action: Action[int]) -> tuple[int, int]:
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
                return attempt, outcome.version
            hooks.conflicts += 1
            time.sleep(pause(attempt))
            attempt += 1

    def work(until: float) -> None:
        while time.monotonic() < until:
            action = Action(workflow_key=KEY, action_id=uuid4(), payload=1)
            begin = time.perf_counter()
            if contender == "loop":
                attempt, version = loop(action)
            else:
                outcome = service.handle(action)
                attempt, version = outcome.attempts, outcome.version
            latencies.append(time.perf_counter() - begin)
            attempts.append(attempt)
            versions.add(version)
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
    return Done(elapsed, latencies, attempts, versions, hooks.conflicts)


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
        one.versions | two.versions,
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


def measure(
    address: str, options: argparse.Namespace, *case: Any
) -> dict[str, list[Done]]:
    """Run the contenders side by side, each round in another order."""
    mode, workers, think = case
    names: list[str] = options.contenders
    done: dict[str, list[Done]] = {name: [] for name in names}
    for number in range(options.rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            run = MODES[mode](address, name, workers, think, options.seconds)
            done[name].append(run)
    return done


def row(runs: list[Done], base: list[Done]) -> list[str]:
    """Return the cells of one contender."""
    pairs = list(zip(runs, base, strict=True))
    ratio = statistics.median(run.rate / other.rate for run, other in pairs)
    p99_ratio = statistics.median(
        run.percentile(0.99) / other.percentile(0.99) for run, other in pairs
    )
    seconds = sum(run.seconds for run in runs)
    commits = sum(len(run.versions) for run in runs)
    attempts = [attempt for run in runs for attempt in run.attempts]
    whole = Done(seconds, [x for run in runs for x in run.latencies], [], set(), 0)
    return [
        f"{whole.rate:.0f}",
        f"{ratio:.2f}",
        f"{commits / seconds:.0f}",
        *(f"{whole.percentile(share):.1f}" for share in (0.5, 0.95, 0.99)),
        f"{p99_ratio:.3f}",
        f"{whole.percentile(1):.0f}",
        f"{sum(run.conflicts for run in runs) / commits:.2f}",
        f"{statistics.mean(attempts):.2f}",
        f"{sum(n <= 3 for n in attempts) / len(attempts):.1%}",
    ]


def main() -> None:
    """Run every contender in every mode; print a table for each mode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="for each run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 32, 100])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--think", type=float, nargs="+", default=[0.0, 0.005])
    parser.add_argument(
        "--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS
    )
    parser.add_argument("--durable", action="store_true")
    options = parser.parse_args()
    settings = {} if options.durable else {"synchronous_commit": "off"}
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
        engine.dispose()
        for mode in options.modes:
            table = Table(
                *("workers", "think", "contender", "actions/s", "ratio", "commits/s"),
                *("p50 ms", "p95", "p99", "p99 ratio", "max", "lost/commit"),
                *("attempts", "within 3"),
                title=f"One hot key, state of 0.3 kB, {mode}",
                title_justify="left",
            )
            for think in options.think:
                for workers in options.workers:
                    done = measure(address, options, mode, workers, think)
                    case = str(workers), f"{think * 1e3:.0f} ms"
                    base = done[options.contenders[0]]
                    for name, runs in done.items():
                        table.add_row(*case, name, *row(runs, base))
                    table.add_section()
            Console(width=150).print(table)


if __name__ == "__main__":
    main()
