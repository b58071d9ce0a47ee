"""What the measurements share: a server, interleaved rounds, medians, a table.

The machine is seldom idle, so nothing is measured by itself: each round runs every
contender for a moment, in a new order, and a contender is judged by the median of its
ratios to the baseline *of the same round*. Where others work at the same time, even
that is noise; the ratio of the fastest rounds, in brackets, comes close to the truth.

    with postgresql() as url:
        results = compare({"raw": raw, "ours": ours}, baseline="raw")
    print_table("Read one", {"2 kB": results})
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from sqlalchemy import URL

from sa_wfstate.testing import temporary_database, temporary_server

ROUND = 0.01
"""Seconds that a contender runs in each round, at least one call."""


class Result(NamedTuple):
    """The median of a contender: *seconds* per call, and *ratio* to the baseline.

    *best* is the ratio of the fastest rounds of the two.
    """

    seconds: float
    ratio: float
    best: float = 0.0


@contextmanager
def postgresql(**settings: str) -> Iterator[URL]:
    """Start a server that is durable, as a real one is, unless *settings* say else."""
    with (
        temporary_server(settings={"max_connections": "200", **settings}) as server,
        temporary_database(server) as url,
    ):
        yield url


def compare(
    contenders: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int = 25,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Result]:
    """Run *contenders* side by side and return the result of each.

    With ``time.process_time`` as the *clock*, seconds are those of the CPU.
    """
    calls = {name: _calibrate(run) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            seconds[name].append(_time(contenders[name], calls[name], clock))
    base = seconds[baseline]
    return {
        name: Result(
            statistics.median(times),
            statistics.median(a / b for a, b in zip(times, base, strict=True)),
            min(times) / min(base),
        )
        for name, times in seconds.items()
    }


def _calibrate(run: Callable[[], object]) -> int:
    once = _time(run, 1)
    if once < 10 * ROUND:  # With the caches filled.
        once = min(_time(run, 1) for _ in range(8))
    return max(1, round(ROUND / once))


def _time(
    run: Callable[[], object],
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    gc.collect()
    gc.disable()
    try:
        begin = clock()
        for _ in range(calls):
            run()
        return (clock() - begin) / calls
    finally:
        gc.enable()


def print_table(title: str, columns: Mapping[str, Mapping[str, Result]]) -> None:
    """Print one row per contender, one column per set of results."""
    table = Table("", *columns, title=title, title_justify="left")
    names = dict.fromkeys(name for results in columns.values() for name in results)
    for name in names:
        cells = []
        for results in columns.values():
            result = results.get(name)
            cells.append(
                ""
                if result is None
                else f"{result.ratio:.2f} ({result.best:.2f})  {_spell(result.seconds)}"
            )
        table.add_row(name, *cells)
    Console(width=150).print(table)


def _spell(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms"


def save(path: Path, tables: Mapping[str, Mapping[str, Mapping[str, Result]]]) -> None:
    """Keep *tables* as JSON, for a plot."""
    plain: dict[str, Any] = {
        title: {
            column: {name: result._asdict() for name, result in results.items()}
            for column, results in columns.items()
        }
        for title, columns in tables.items()
    }
    path.write_text(json.dumps(plain, indent=1) + "\n")
