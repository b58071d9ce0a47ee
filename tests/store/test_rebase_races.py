"""Two threads rebase: disjoint changes all win, overlapping ones are merged or lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    CanonicalStore,
    Commit,
    Provenance,
    StateConflict,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.merging import Rebase, add, append, union

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, MetaData


STEPS = 40


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    own: dict[str, int] = {}
    visits: int = 0
    paid: int = 0
    notes: list[str] = []
    tags: set[str] = set()


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __rebase__ = Rebase({"visits": add, "notes": append, "tags": union})


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Base.metadata)


def in_flush(engine: Engine, change: Callable[[OrderState], object]) -> None:
    """Change the state in a session that rebases."""
    rebasing = engine.execution_options(sa_wfstate_rebase=True)
    with Session(rebasing) as session:
        change(session.get_one(Order, "k").state)
        session.commit()


def by_commit(
    engine: Engine, change: Callable[[OrderState], object], send: Callable[..., Any]
) -> None:
    """Change the state of a snapshot, and commit it with that as its base."""
    with Session(engine) as session:
        base = get_state(session, Order, "k")
        state = base.state.model_copy(deep=True)
        change(state)
        outcome = send(session, base=base, state=state, provenance=Provenance.now())
        session.commit()
    if isinstance(outcome, StateConflict):
        raise outcome


WAYS: list[Callable[[Engine, Callable[[OrderState], object]], None]] = [
    in_flush,
    lambda engine, change: by_commit(
        engine,
        change,
        lambda session, **options: try_commit(session, Order, rebase=True, **options),
    ),
    lambda engine, change: by_commit(
        engine,
        change,
        lambda session, **options: try_commit_many(
            session, Order, [Commit(**options)], rebase=True
        )[0],
    ),
    lambda engine, change: by_commit(
        engine,
        change,
        lambda _, **options: CanonicalStore(engine, Order).try_commit(
            rebase=True, **options
        ),
    ),
]


def race(engine: Engine, change: Callable[[OrderState, str, int], object]) -> int:
    """Let two threads make their changes, in any way; count those that were lost."""
    with Session(engine) as session:
        session.add(Order(workflow_key="k", state=OrderState()))
        session.commit()
    barrier = Barrier(2)

    def run(name: str) -> int:
        chance, lost = Random(name), 0
        for step in range(STEPS):
            if not step % 10:
                barrier.wait(30)
            try:
                chance.choice(WAYS)(engine, lambda state: change(state, name, step))  # noqa: B023 - called at once
            except StateConflict as conflict:
                # Nothing else may be a reason.
                lost += bool(conflict.changes and conflict.changes.overlapping)
        return lost

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(run, ("one", "two")))


def read(engine: Engine) -> tuple[int, OrderState]:
    """Return the row's version and state."""
    with Session(engine) as session:
        snapshot = get_state(session, Order, "k")
    return snapshot.version, snapshot.state


def test_disjoint_and_merged_changes_all_win(engine: Engine) -> None:
    """Each has its own key, and the counter, the list and the set have their rules."""

    def change(state: OrderState, name: str, step: int) -> None:
        state.own[name] = state.own.get(name, 0) + 1
        state.visits += 1
        state.notes.append(f"{name}-{step}")
        state.tags = {*state.tags, f"{name}-{step % 10}"}

    assert race(engine, change) == 0
    version, state = read(engine)
    assert version == 1 + 2 * STEPS
    assert state.own == {"one": STEPS, "two": STEPS}
    assert state.visits == 2 * STEPS
    assert len({*state.notes}) == len(state.notes) == 2 * STEPS
    for name in ("one", "two"):
        own = [note for note in state.notes if note.startswith(name)]
        assert own == [f"{name}-{step}" for step in range(STEPS)]
    assert len(state.tags) == 20


def test_overlapping_changes_are_refused(engine: Engine) -> None:
    """Without a rule each change is there as a whole, or its writer knows."""

    def change(state: OrderState, name: str, _: int) -> None:
        state.own[name] = state.own.get(name, 0) + 1
        state.paid += 1

    lost = race(engine, change)
    version, state = read(engine)
    assert version == 1 + 2 * STEPS - lost
    assert lost  # They did race.
    assert state.paid == sum(state.own.values()) == 2 * STEPS - lost
