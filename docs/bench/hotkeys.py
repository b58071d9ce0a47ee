"""Many workers, one key: ReducerService against the loop that everyone writes.

The loop: read, reduce, compare and set, and after a conflict sleep with full jitter, 10
to 250 ms, until it wins. Every contender runs for a while in turn, for each number of
workers: threads, tasks of asyncio, or tasks in two processes. *Think* is the time that
a worker spends elsewhere between two actions.

Each run begins with half a second that is not counted, in which statements are compiled
and connections opened. Ratios are to the loop in the same round, the median of all
rounds. *Commits* are the versions written, *lost* the attempts that lost; *within 3* is
the share of actions that took at most three attempts.

The whole table takes about ten minutes; ``--modes``, ``--workers``, ``--think`` and
``--contenders`` choose a part of it. Without ``--durable`` no commit waits for the
disk: a slow one hides all else, and a key cannot be committed to more often than the
disk can be flushed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import random
import statistics
import threading
import time
from itertools import count
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
    Provenance,
    ReducerService,
    RetryPolicy,
    StateConflict,
)
from sa_wfstate.canonical import CanonicalBase, WorkflowState
from sa_wfstate.hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.queues import Queue

    from sa_wfstate import WorkflowSnapshot

KEY = "hot"
WARM_UP = 0.5
"""Seconds before each run that are not counted."""

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


class Tally(Hooks):
    """Note what is done in *seconds*, once caches and connections are warm."""

    def __init__(self, seconds: float) -> None:
        # Or a collection of all that was imported, some 40 ms, falls into each run.
        gc.collect()
        gc.freeze()
        self._begin = time.monotonic() + WARM_UP
        self._until = self._begin + seconds
        self._done = Done(0.0, [], [], set(), 0)
        self._conflicts = 0

    def conflicted(self, *_: object) -> None:
        """Count the conflicts; folded actions share theirs."""
        self._conflicts += time.monotonic() >= self._begin

    def actions(self) -> Iterator[Action[int]]:
        """Make actions until the time is over."""
        while time.monotonic() < self._until:
            yield Action(workflow_key=KEY, action_id=uuid4(), payload=1)

    def note(self, begin: float, attempts: int, version: int) -> None:
        """Note an action that was begun at *begin*."""
        if begin >= self._begin:
            self._done.latencies.append(time.monotonic() - begin)
            self._done.attempts.append(attempts)
            self._done.versions.add(version)

    def done(self) -> Done:
        """Return what was noted."""
        seconds = time.monotonic() - self._begin
        return self._done._replace(seconds=seconds, conflicts=self._conflicts)


def reducer(state: dict[str, Any], _: Action[int]) -> dict[str, Any]:
    """Count the actions."""
    return {"n": state["n"] + 1, "padding": PADDING}


def pause(attempt: int) -> float:
    """Return the pause of the loop, in seconds."""
    return random.random() * POLICY.ceiling(attempt)


def next_of(snapshot: WorkflowSnapshot[Any], action: Action[int]) -> dict[str, Any]:
    """Return what the loop commits on top of *snapshot*."""
    return {
        "workflow_key": KEY,
        "expected_version": snapshot.version,
        "state": reducer(snapshot.state, action),
        "provenance": Provenance.now(uuid4()),
    }


def options_of(contender: str, tally: Tally) -> dict[str, Any]:
    """Return how the service of a contender is made."""
    fold = FOLD if contender == "folding" else 1
    return {"retry": POLICY, "fold": fold, "hooks": tally}


async def run_tasks(
    url: str, contender: str, workers: int, think: float, seconds: float
) -> Done:
    """Run the workers as tasks of one event loop."""
    engine = create_async_engine(url, pool_size=workers, max_overflow=0)
    store = sa_wfstate.asyncio.CanonicalStore(engine, WorkflowState)
    await asyncio.gather(*(store.get_state(KEY) for _ in range(workers)))
    tally = Tally(seconds)
    service = sa_wfstate.asyncio.ReducerService(
        engine, WorkflowState, reducer, **options_of(contender, tally)
    )

    async def loop(action: Action[int]) -> tuple[int, int]:
        for attempt in count(1):
            commit = next_of(await store.get_state(KEY), action)
            outcome = await store.try_commit(**commit)
            if not isinstance(outcome, StateConflict):
                return attempt, outcome.version
            tally.conflicted()
            await asyncio.sleep(pause(attempt))
        raise AssertionError

    async def handle(action: Action[int]) -> tuple[int, int]:
        outcome = await service.handle(action)
        return outcome.attempts, outcome.version

    async def work() -> None:
        for action in tally.actions():
            begin = time.monotonic()
            tally.note(begin, *await (loop if contender == "loop" else handle)(action))
            if think:
                await asyncio.sleep(think)

    await asyncio.gather(*(work() for _ in range(workers)))
    done = tally.done()
    await engine.dispose()
    return done


def run_threads(
    url: str, contender: str, workers: int, think: float, seconds: float
) -> Done:
    """Run the workers as threads."""
    engine = create_engine(url, pool_size=workers, max_overflow=0)
    store = CanonicalStore(engine, WorkflowState)
    tally = Tally(seconds)
    service = ReducerService(
        engine, WorkflowState, reducer, **options_of(contender, tally)
    )

    def loop(action: Action[int]) -> tuple[int, int]:
        for attempt in count(1):
            outcome = store.try_commit(**next_of(store.get_state(KEY), action))
            if not isinstance(outcome, StateConflict):
                return attempt, outcome.version
            tally.conflicted()
            time.sleep(pause(attempt))
        raise AssertionError

    def handle(action: Action[int]) -> tuple[int, int]:
        outcome = service.handle(action)
        return outcome.attempts, outcome.version

    def work() -> None:
        for action in tally.actions():
            begin = time.monotonic()
            tally.note(begin, *(loop if contender == "loop" else handle)(action))
            time.sleep(think)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = tally.done()
    engine.dispose()
    return done


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
            state={"n": 0, "padding": PADDING},
            provenance=Provenance.now(),
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
