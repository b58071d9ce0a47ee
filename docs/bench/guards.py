"""What a guard on a row that was only read costs; and a column that does not count.

A decision on another row is compared without a guard, with ``require_version``, and
with a lock on that row from the read on. The action of a service does the same by
``depends_on``. A column of the application is written as one that counts a version, and
as one in ``__unversioned__``.

Then two doctors go off call at once, each only if the other one is on call, which both
have read; one of them flushes before both commit, both do, or none does. The time is
that from the COMMIT of both until both have ended, a conflict included, where the
deadlock detector takes 10 s: the median and the maximum of ``--pairs`` pairs.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

from sa_wfstate import Action, ReducerService, StateConflict, WorkflowStateMixin
from sa_wfstate.versions import depends_on, require_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


class DoctorState(BaseModel):
    shifts: int = 0
    on_call: bool = True
    notes: list[str] = ["a note of some length"] * 10


class Doctor(WorkflowStateMixin[DoctorState], Base):
    __tablename__ = "doctors"
    __unversioned__ = frozenset({"hint"})

    ward: Mapped[str | None]
    hint: Mapped[str | None]


NUMBERS = count()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--pairs", type=int, default=100)
    options = parser.parse_args()
    with postgresql(fsync="off") as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for key in ("alice", "bob"):
                session.add(Doctor(workflow_key=key, state=DoctorState()))
            session.commit()
        for title, runs in contenders(engine).items():
            first = next(iter(runs))
            print_table(
                title, {"": compare(runs, baseline=first, rounds=options.rounds)}
            )
        show_pairs(engine, options.pairs)
        engine.dispose()


def contenders(engine: Engine) -> dict[str, dict[str, Callable[[], None]]]:
    """Return what is compared, by table."""
    plain = ReducerService(engine, Doctor, work)
    guarded = ReducerService(engine, Doctor, depends_on(colleague)(work))
    return {
        "A decision on another row": {
            "no guard": lambda: decide(engine),
            "require_version": lambda: decide(engine, guard=True),
            "with_for_update": lambda: decide(engine, with_for_update=True),
        },
        "An action": {
            "no guard": lambda: handle(plain),
            "depends_on": lambda: handle(guarded),
        },
        "A column beside the state": {
            "that counts": lambda: write(engine, "ward"),
            "in __unversioned__": lambda: write(engine, "hint"),
        },
    }


def decide(engine: Engine, *, guard: bool = False, **lock: Any) -> None:
    """Read two rows, write one."""
    with Session(engine) as session:
        alice = session.get_one(Doctor, "alice")
        bob = session.get_one(Doctor, "bob", **lock)
        if guard:
            require_version(session, bob)
        alice.state.shifts = bob.state.shifts + next(NUMBERS)
        session.commit()


def show_pairs(engine: Engine, pairs: int) -> None:
    """Print how long two doctors take who go off call at once."""
    table = Table("flushed before", "median", "maximum", "went off call", "conflicts")
    table.title = "A pair with require_version"
    for flushing in ((), ("alice",), ("alice", "bob")):
        seconds, ends = [], list[str]()
        with ThreadPoolExecutor(2) as pool:
            for _ in range(pairs):
                with Session(engine) as session:
                    for key in ("alice", "bob"):
                        session.get_one(Doctor, key).state = DoctorState()
                    session.commit()
                meet = threading.Barrier(2)
                futures = [
                    pool.submit(go_off_call, engine, *names, meet, flushing)
                    for names in (("alice", "bob"), ("bob", "alice"))
                ]
                results = [future.result() for future in futures]
                begin = min(began for began, _, _ in results)
                seconds.append(max(ended for _, ended, _ in results) - begin)
                ends += [end for _, _, end in results]
        table.add_row(
            " and ".join(flushing) or "none",
            f"{statistics.median(seconds) * 1e3:.1f} ms",
            f"{max(seconds) * 1e3:.1f} ms",
            *(str(ends.count(end)) for end in ("done", "conflict")),
        )
    Console(width=100).print(table)


def go_off_call(
    engine: Engine,
    me: str,
    other: str,
    meet: threading.Barrier,
    flushing: tuple[str, ...],
) -> tuple[float, float, str]:
    """Go off call if the other one is on call; return begin, end and result."""
    with Session(engine) as session:
        session.execute(text("SET LOCAL deadlock_timeout = '10s'"))
        own, seen = (session.get_one(Doctor, key) for key in (me, other))
        assert seen.state.on_call
        own.state.on_call = False
        require_version(session, seen)
        meet.wait(60)
        if me in flushing:
            session.flush()
        meet.wait(60)
        begin, end = time.perf_counter(), "done"
        try:
            session.commit()
        except StateConflict:  # Any other error ends the measurement.
            session.rollback()
            end = "conflict"
        return begin, time.perf_counter(), end


def colleague(*_: object) -> list[tuple[type[Doctor], str]]:
    """Name the other row."""
    return [(Doctor, "bob")]


def work(state: DoctorState, _: Action[Any], __: object = ()) -> DoctorState:
    """Take a shift."""
    return state.model_copy(update={"shifts": state.shifts + 1})


def handle(service: ReducerService[DoctorState]) -> None:
    """Handle an action of one key."""
    service.handle(
        Action(workflow_key="alice", action_id=next(NUMBERS), payload=None),
    )


def write(engine: Engine, column: str) -> None:
    """Read a row, set a column of the application."""
    with Session(engine) as session:
        setattr(session.get_one(Doctor, "alice"), column, str(next(NUMBERS)))
        session.commit()


if __name__ == "__main__":
    main()
