"""Two writers rebase: disjoint changes all win, overlapping ones are merged or lost."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import event
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

    from ..conftest import Driver


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


def race(
    driver: Driver, engine: Engine, change: Callable[[OrderState, str, int], object]
) -> int:
    """Let two writers make their changes, in any way; count those that were lost."""
    with Session(engine) as session:
        session.add(Order(workflow_key="k", state=OrderState()))
        session.commit()
    meet = driver.meeting(2)

    def run(name: str) -> int:
        chance, lost = Random(name), 0
        for step in range(STEPS):
            if not step % 10:
                assert meet(30)
            try:
                chance.choice(WAYS)(engine, lambda state: change(state, name, step))  # noqa: B023 - called at once
            except StateConflict as conflict:
                # Nothing else may be a reason.
                lost += bool(conflict.changes and conflict.changes.overlapping)
        return lost

    return sum(driver.together(*(partial(run, name) for name in ("one", "two"))))


def read(engine: Engine, key: str = "k") -> tuple[int, OrderState]:
    """Return the row's version and state."""
    with Session(engine) as session:
        snapshot = get_state(session, Order, key)
    return snapshot.version, snapshot.state


@pytest.mark.contract
def test_disjoint_and_merged_changes_all_win(driver: Driver, engine: Engine) -> None:
    """Each has its own key, and the counter, the list and the set have their rules."""

    def change(state: OrderState, name: str, step: int) -> None:
        state.own[name] = state.own.get(name, 0) + 1
        state.visits += 1
        state.notes.append(f"{name}-{step}")
        state.tags = {*state.tags, f"{name}-{step % 10}"}

    assert race(driver, engine, change) == 0
    version, state = read(engine)
    assert version == 1 + 2 * STEPS
    assert state.own == {"one": STEPS, "two": STEPS}
    assert state.visits == 2 * STEPS
    assert len({*state.notes}) == len(state.notes) == 2 * STEPS
    for name in ("one", "two"):
        own = [note for note in state.notes if note.startswith(name)]
        assert own == [f"{name}-{step}" for step in range(STEPS)]
    assert len(state.tags) == 20


@pytest.mark.contract
def test_overlapping_changes_are_refused(driver: Driver, engine: Engine) -> None:
    """Without a rule each change is there as a whole, or its writer knows."""

    def change(state: OrderState, name: str, _: int) -> None:
        state.own[name] = state.own.get(name, 0) + 1
        state.paid += 1

    lost = race(driver, engine, change)
    version, state = read(engine)
    assert version == 1 + 2 * STEPS - lost
    assert lost  # They did race.
    assert state.paid == sum(state.own.values()) == 2 * STEPS - lost


@pytest.mark.contract
def test_batches_that_rebase_do_not_deadlock(driver: Driver, engine: Engine) -> None:
    """Each has lost one of two rows that the other holds: they wait in turn."""
    with Session(engine) as session:
        for key in "ab":
            session.add(Order(workflow_key=key, state=OrderState()))
        session.commit()
    meet = driver.meeting(2)
    waited: set[str] = set()

    def run(stale: str) -> int:
        with Session(engine) as session:
            bases = {key: get_state(session, Order, key) for key in "ab"}
            session.rollback()
            in_flush_of(engine, stale)
            fresh = "ab".replace(stale, "")
            assert meet(30)
            bases[fresh] = get_state(session, Order, fresh)
            session.rollback()
            commits = []
            for key in (stale, fresh):
                state = bases[key].state.model_copy(deep=True)
                state.visits += 1
                commits.append(
                    Commit(base=bases[key], state=state, provenance=Provenance.now())
                )

            @event.listens_for(session.connection(), "after_cursor_execute")
            def sent(*_: Any) -> None:
                if stale not in waited:
                    waited.add(stale)
                    meet(0.3)  # The other one may wait for the rows of this one.

            outcomes = try_commit_many(session, Order, commits, rebase=True)
            session.commit()
        return sum(not isinstance(each, StateConflict) for each in outcomes)

    assert driver.together(partial(run, "a"), partial(run, "b")) == [2, 2]
    for key in "ab":
        assert read(engine, key)[1].visits == 3


def in_flush_of(engine: Engine, key: str) -> None:
    """Commit a change of a row."""
    with Session(engine) as session:
        session.get_one(Order, key).state.visits += 1
        session.commit()
