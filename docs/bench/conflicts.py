"""What a conflict costs, with and without its changes; and what a rebase costs.

A flush that loses is compared with the same one whose conflict is asked for its
changes; a commit that wins, with and without ``base=`` and ``rebase=True``. A flush of
a session that rebases sends one statement more, for the lock.

The last table has what a loss pays for the changes that it could be asked for: CPU of
the client, and calls of Python, which do not depend on the machine, with what keeps the
texts for them and without. Each table is printed when it is done; ``--rounds`` is the
number of rounds of each contender.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    CanonicalStore,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
)
from sa_wfstate.merging import Rebase

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


class Line(BaseModel):
    name: str = "apples"
    amount: int = 1
    price: float = 1.25


class OrderState(BaseModel):
    status: str = "new"
    note: str = ""
    lines: list[Line]


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __rebase__ = Rebase()


NUMBERS = count()
SIZES = {"0.3 kB": 6, "2 kB": 45, "20 kB": 450}
KEEPING: dict[str, Callable[..., object]] = {
    "sa_wfstate.orm.attempts.values_of": lambda *_: {},
    "sa_wfstate.orm.conflicts.explain": lambda conflict, _: conflict,
    "sa_wfstate.store.rebasing.explain": lambda *given: given[-1],
}
"""What keeps values for the changes of a conflict, and what would keep nothing."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with postgresql(fsync="off") as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for size, lines in SIZES.items():
                state = OrderState(lines=[Line()] * lines)
                session.add(Order(workflow_key=size, state=state))
            session.commit()
        by_size = {size: contenders(engine, size) for size in SIZES}
        for title in by_size[next(iter(SIZES))]:
            table: dict[str, Any] = {}
            for size in SIZES:
                runs = by_size[size][title]
                first = next(iter(runs))
                table[size] = compare(runs, baseline=first, rounds=rounds)
            print_table(title, table)
        show_unasked(engine, rounds)
        engine.dispose()


def show_unasked(engine: Engine, rounds: int) -> None:
    """Print what is paid for changes that are not asked for."""
    store = CanonicalStore(engine, Order)
    table = Table("", "CPU", "calls", title="Changes that are not asked for")
    for size in SIZES:
        losses = {
            "a flush that loses": lambda: lose(engine, size, ask=False),  # noqa: B023 - called at once
            "a try_commit that loses": lambda: lose_commit(store, size),  # noqa: B023
            "a try_commit that wins": lambda: win(store, size, rebase=False),  # noqa: B023
        }
        for title, run in losses.items():
            cpu: dict[bool, list[float]] = {True: [], False: []}
            calls = {with_them: calls_of(run, with_them) for with_them in cpu}
            for _ in range(rounds):
                for with_them in random.sample([True, False], 2):
                    cpu[with_them].append(cpu_of(run, with_them))
            ratio = statistics.median(
                a / b for a, b in zip(cpu[True], cpu[False], strict=True)
            )
            more = calls[True] / calls[False] - 1
            table.add_row(
                f"{title}, {size}",
                f"{ratio - 1:+.1%}",
                f"{more:+.2%} of {calls[False]:.0f}",
            )
    Console(width=100).print(table)


def unasked(with_them: bool) -> ExitStack:
    """Return a context in which conflicts keep the texts for their changes, or not."""
    stack = ExitStack()
    if not with_them:
        for place, nothing in KEEPING.items():
            stack.enter_context(patch(place, nothing))
    return stack


def cpu_of(run: Callable[[], None], with_them: bool) -> float:
    """Return the CPU seconds of some calls."""
    with unasked(with_them):
        begin = time.process_time()
        for _ in range(3):
            run()
        return time.process_time() - begin


def calls_of(run: Callable[[], None], with_them: bool) -> float:
    """Return how many functions are called, in Python and in C."""
    found = 0

    def note(_: object, what: str, __: object) -> None:
        nonlocal found
        found += what in {"call", "c_call"}

    with unasked(with_them):
        for _ in range(8):  # Caches, and statements that the driver prepares.
            run()
        sys.setprofile(note)
        for _ in range(5):
            run()
        sys.setprofile(None)
    return found / 5


def lose_commit(store: CanonicalStore[OrderState], key: str) -> None:
    """Commit on a base that has moved."""
    base = store.get_state(key)
    win(store, key)
    base.state.note = str(next(NUMBERS))
    outcome = store.try_commit(base=base, state=base.state, provenance=Provenance.now())
    assert isinstance(outcome, StateConflict)


def contenders(engine: Engine, key: str) -> dict[str, dict[str, Callable[[], None]]]:
    """Return what is compared, by table."""
    rebasing = engine.execution_options(sa_wfstate_rebase=True)
    store = CanonicalStore(engine, Order)
    return {
        "A flush that loses": {
            "its conflict": lambda: lose(engine, key, ask=False),
            "and its changes": lambda: lose(engine, key, ask=True),
        },
        "A commit that wins": {
            "get_state, try_commit": lambda: win(store, key),
            "with base=": lambda: win(store, key, rebase=False),
            "with base= and rebase=True": lambda: win(store, key, rebase=True),
        },
        "A flush that wins": {
            "session": lambda: flush(engine, key, "status"),
            "session that rebases": lambda: flush(rebasing, key, "status"),
        },
        "A race of two, until both have won": {
            "conflict, and the work again": lambda: race(engine, engine, key),
            "rebase": lambda: race(rebasing, engine, key),
        },
    }


def lose(engine: Engine, key: str, *, ask: bool) -> None:
    """Commit after another one, and look at the conflict."""
    with Session(engine) as session:
        session.get_one(Order, key).state.note = str(next(NUMBERS))
        flush(engine, key, "status")
        try:
            session.commit()
        except StateConflict as conflict:
            if ask:
                _ = conflict.changes
            session.rollback()


def win(store: CanonicalStore[OrderState], key: str, **options: Any) -> None:
    """Read and commit."""
    base = store.get_state(key)
    where: dict[str, Any] = {"base": base, **options}
    if not options:
        where = {
            "workflow_key": key,
            "expected_version": base.version,
            "expected_effect_id": base.provenance.effect_id,
        }
    base.state.status = str(next(NUMBERS))
    outcome = store.try_commit(state=base.state, provenance=Provenance.now(), **where)
    assert isinstance(outcome, StateCommitted)


def flush(bind: Engine, key: str, field: str) -> None:
    """Read, change a field, commit."""
    with Session(bind) as session:
        setattr(session.get_one(Order, key).state, field, str(next(NUMBERS)))
        session.commit()


def race(bind: Engine, engine: Engine, key: str) -> None:
    """Commit after another one, by a rebase or by a second attempt."""
    with Session(bind) as session:
        session.get_one(Order, key).state.note = str(next(NUMBERS))
        flush(engine, key, "status")
        try:
            session.commit()
        except StateConflict:
            session.rollback()
            session.get_one(Order, key).state.note = str(next(NUMBERS))
            session.commit()


if __name__ == "__main__":
    main()
