"""What a conflict costs, with and without its changes; and what a rebase costs.

A flush that loses is compared with the same one whose conflict is asked for its
changes; a commit that wins, with and without ``base=`` and ``rebase=True``. A flush of
a session that rebases sends one statement more, for the lock.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
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


def main() -> None:
    """Measure and print."""
    with postgresql(fsync="off") as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        tables: dict[str, dict[str, Any]] = {}
        for size, lines in SIZES.items():
            with Session(engine) as session:
                state = OrderState(lines=[Line()] * lines)
                session.add(Order(workflow_key=size, state=state))
                session.commit()
            for title, runs in contenders(engine, size).items():
                first = next(iter(runs))
                result = compare(runs, baseline=first, rounds=60)
                tables.setdefault(title, {})[size] = result
        for title, table in tables.items():
            print_table(title, table)
        engine.dispose()


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
