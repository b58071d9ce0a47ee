"""What each option of a commit costs: time, and CPU of the client, of one action.

An action of a ``ReducerService`` is handled with nothing, and with the dedup log, the
history, an inline projection, intents and hooks, each alone and all together, in rounds
that take turns. Ratios are to nothing, medians over the rounds. Commits do not wait for
the disk, unless ``--durable`` is given; ``--save`` keeps the ratios for the picture.

    python docs/bench/options.py [--rounds 31] [--durable] [--save]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import random
import statistics
import time
from pathlib import Path
from types import new_class
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from _actions import OrderState, project, reducer, telling
from _harness import postgresql
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import Action, ReducerService, WorkflowStateMixin
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.hooks import LoggingHooks
from sa_wfstate.outbox import IntentMixin, store_intents
from sa_wfstate.projection import Projection, ProjectionMixin

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

CALLS = 30
"""Actions of each contender in a round."""


class Base(DeclarativeBase):
    pass


def table(name: str, *bases: Any) -> Any:
    """Map a class of its own."""
    names = {"__tablename__": name.lower()}
    return new_class(name, (*bases, Base), {}, lambda body: body.update(names))


def services(engine: Engine) -> dict[str, ReducerService[OrderState]]:
    """Return a service for each option, each with tables of its own."""
    logger = logging.getLogger("bench")
    logger.setLevel(logging.INFO)  # As in production: a commit is at DEBUG.
    made: dict[str, dict[str, Any]] = {
        "nothing": {},
        "hooks": {"hooks": LoggingHooks(logger)},
        "dedup": {"dedup": table("DedupLog", ActionDedupMixin)},
        "history": {},
        "inline projection": {},
        "intents": {"writers": [store_intents(table("Intents", IntentMixin))]},
        "all": {
            "hooks": LoggingHooks(logger),
            "dedup": table("AllLog", ActionDedupMixin),
            "writers": [store_intents(table("AllIntents", IntentMixin))],
        },
    }
    found = {}
    for number, (name, options) in enumerate(made.items()):
        entity = table(f"Orders{number}", WorkflowStateMixin[OrderState])
        if name in {"history", "all"}:
            keep_history(entity, table(f"History{number}", HistoryMixin))
        if name in {"inline projection", "all"}:
            rows = table(f"Rows{number}", ProjectionMixin)
            Projection(entity, rows, project).keep_inline()
        work: Any = telling if "writers" in options else reducer
        found[name] = ReducerService(
            engine, entity, work, initial=OrderState, **options
        )
    Base.metadata.create_all(engine)
    return found


def measure(service: ReducerService[OrderState]) -> tuple[float, float]:
    """Return seconds and CPU seconds of one action."""
    gc.collect()
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(CALLS):
        service.handle(Action(workflow_key="order-42", action_id=uuid4(), payload=1))
    seconds = time.perf_counter() - begin, time.process_time() - cpu
    return seconds[0] / CALLS, seconds[1] / CALLS


def compare(engine: Engine, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Measure all options in rounds that take turns."""
    runs: dict[str, Callable[[], tuple[float, float]]] = {
        name: (lambda each=service: measure(each))  # type: ignore[misc]
        for name, service in services(engine).items()
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            results[name].append(runs[name]())
    return results


def main() -> None:
    """Print the table, and keep the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--durable", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    settings = {} if options.durable else {"fsync": "off"}
    with postgresql(**settings) as url:
        engine = create_engine(url)
        results = compare(engine, options.rounds)
        engine.dispose()
    table_ = Table("", "time", "", "CPU of the client", "", title="One action with …")
    ratios: dict[str, dict[str, float]] = {}
    base = results["nothing"]
    for name, each in results.items():
        medians = [statistics.median(took[n] for took in each) for n in (0, 1)]
        time_, cpu = (
            statistics.median(a[n] / b[n] for a, b in zip(each, base, strict=True))
            for n in (0, 1)
        )
        ratios[name] = {"time": round(time_, 2), "cpu": round(cpu, 2)}
        table_.add_row(
            name,
            *(f"{medians[0] * 1e6:.0f} µs", f"{time_:.2f}"),
            *(f"{medians[1] * 1e6:.0f} µs", f"{cpu:.2f}"),
        )
    Console(width=100).print(table_)
    if options.save:
        path = Path(__file__).with_suffix(".json")
        path.write_text(json.dumps(ratios, indent=1) + "\n")


if __name__ == "__main__":
    main()
