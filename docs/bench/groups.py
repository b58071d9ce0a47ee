"""Many keys at once: a ReducerService with and without group commit.

    python docs/bench/groups.py --beside ../older/.venv/bin/python

Workers handle actions with a dedup log, on a durable server. The contenders run side by
side, each in a process of its own, in rounds that take turns; each cell is the median
of the ratios to the first contender of the same round, and their range.

* beside: the service of another checkout, whose Python is given by --beside;
* group=1: each action is a transaction of its own;
* groups: the default, what arrives together is committed together;
* handle_many: one caller with batches of 100, which needs no workers;
* asyncpg by hand: ``SELECT … FOR UPDATE``, dedup row, UPDATE or INSERT;
* version_id_col: the unit of work of a plain Session, repeated until it wins;
* DBOS: a workflow for each action, whose step is a transaction of its datasource.

CPU is that of the process, or processes, per action.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from _actions import Base
from _harness import postgresql
from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, create_engine

WORKER = Path(__file__).with_name("_actions.py")
SERVICES = ("beside", "group=1", "groups")
ALTERNATIVES = ("asyncpg by hand", "version_id_col", "DBOS")


class Case(NamedTuple):
    """One block of the table."""

    title: str
    workers: int
    contenders: tuple[str, ...] = SERVICES
    driver: str = "asyncpg"
    threads: bool = False
    keys: str = "new"
    dedup: bool = True
    more: bool = False
    fsync: bool = True
    processes: int = 1


ALL = (*SERVICES, *ALTERNATIVES)
ZIPF = (*SERVICES, *ALTERNATIVES[:2])
CASES = {
    "1": Case("1 task", 1, ALL),
    "8": Case("8 tasks", 8),
    "32": Case("32 tasks", 32),
    "100": Case("100 tasks", 100, (*ALL, "handle_many")),
    "threads": Case("32 threads, psycopg", 32, driver="psycopg", threads=True),
    "psycopg": Case("100 tasks, psycopg", 100, driver="psycopg"),
    "no-dedup": Case("100 tasks, no dedup log", 100, dedup=False),
    "more": Case("100 tasks, history, projection, intents", 100, more=True),
    "no-fsync": Case("100 tasks, fsync off", 100, fsync=False),
    "zipf": Case("2 x 50 tasks, Zipf keys", 50, ZIPF, keys="zipf", processes=2),
    "one": Case("100 tasks, one key, folded", 100, keys="one"),
}


class Run(NamedTuple):
    """Actions per second, CPU seconds per action, and percentiles in seconds."""

    rate: float
    cpu: float
    p50: float
    p99: float


class Workers:
    """Processes that run cases: two of this checkout, and two of the other one."""

    def __init__(self, beside: str | None) -> None:
        pythons = {False: sys.executable, True: beside}
        self._processes = {
            (other, number): subprocess.Popen(
                [python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for other, python in pythons.items()
            if python is not None
            for number in range(2)
        }

    def run(self, url: URL, case: Case, contender: str, seconds: float) -> Run:
        """Run *case*, in all its processes at once."""
        given = case._asdict() | {
            "url": url.render_as_string(hide_password=False),
            "contender": contender,
            "alternative": contender in ALTERNATIVES,
            "seconds": seconds,
        }
        other = contender == "beside"
        processes = [self._processes[other, n] for n in range(case.processes)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(given).encode() + b"\n")
            process.stdin.flush()
        answers: list[dict[str, Any]] = []
        for process in processes:
            assert process.stdout is not None
            answers.append(json.loads(process.stdout.readline()))
        each = sorted(x for answer in answers for x in answer["latencies"])
        rate = sum(len(answer["latencies"]) / answer["seconds"] for answer in answers)
        cpu = sum(answer["cpu"] for answer in answers) / len(each)
        return Run(rate, cpu, each[len(each) // 2], each[int(len(each) * 0.99)])

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.communicate()


def measure(
    workers: Workers, url: URL, case: Case, names: list[str], options: Any
) -> dict[str, list[Run]]:
    """Run the contenders side by side, each round in another order."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(options.rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            runs[name].append(workers.run(url, case, name, options.seconds))
    return runs


def add_rows(table: Table, case: Case, runs: dict[str, list[Run]]) -> None:
    """Add the ratios of *runs* to the first contender."""
    base = next(iter(runs.values()))
    for name, own in runs.items():
        rate = statistics.median(run.rate for run in own)
        pairs = list(zip(own, base, strict=True))
        cells = []
        for index in range(len(Run._fields)):
            ratios = [a[index] / b[index] for a, b in pairs]
            middle = statistics.median(ratios)
            cells.append(f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        table.add_row(case.title, name, f"{rate:.0f}", *cells)
    table.add_section()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each")
    parser.add_argument("--beside", help="the Python of another checkout")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    table = Table(
        *("case", "contender", "actions/s", *Run._fields),
        title="Median ratio to the first contender (range)",
        title_justify="left",
    )
    console = Console(width=150)
    with ExitStack() as stack:
        workers = Workers(options.beside)
        stack.callback(workers.close)
        urls: dict[bool, URL] = {}
        for case in (CASES[name] for name in options.cases):
            if case.fsync not in urls:
                settings = {} if case.fsync else {"fsync": "off"}
                urls[case.fsync] = stack.enter_context(postgresql(**settings))
                engine = create_engine(urls[case.fsync])
                Base.metadata.create_all(engine)
                engine.dispose()
            names = [n for n in case.contenders if n != "beside" or options.beside]
            runs = measure(workers, urls[case.fsync], case, names, options)
            add_rows(table, case, runs)
            console.print(f"{case.title}: done")
    console.print(table)


if __name__ == "__main__":
    main()
