"""Several sessions against a model of the row: nobody writes over the unseen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import BaseModel
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    CanonicalStore,
    ConflictReason,
    Provenance,
    StateConflict,
    WorkflowStateMixin,
)

SESSIONS = st.integers(0, 2)
KEY = "o-1"


class Base(DeclarativeBase):
    pass


class Number(BaseModel):
    value: int = 0


class Order(WorkflowStateMixin[Number], Base):
    __tablename__ = "orders"


class SwallowingSession(Session):
    """What an application must not do: lose, and say nothing."""

    def commit(self) -> None:
        try:
            super().commit()
        except StateConflict:
            self.rollback()


class Races(RuleBasedStateMachine):
    """The model: the row's version, value, and incarnation; what each session saw."""

    engine: Engine
    session_class: type[Session] = Session

    def __init__(self) -> None:
        super().__init__()
        with self.engine.begin() as connection:
            connection.execute(text("TRUNCATE orders"))
        self.row: tuple[int, int, str] | None = None
        self.value = 0
        self.sessions = [self.session_class(self.engine) for _ in range(3)]
        self.held: list[Any] = [None] * 3
        self.seen: list[tuple[int, str] | None] = [None] * 3

    def teardown(self) -> None:
        for session in self.sessions:
            session.close()

    def actual(self) -> tuple[int, str] | None:
        return None if self.row is None else (self.row[0], self.row[2])

    def commit(self, n: int, row: tuple[int, int, str] | None) -> None:
        """Commit session *n*; it wins if and only if it has seen the newest row."""
        if self.seen[n] == self.actual():
            self.sessions[n].commit()
            self.row = row
            self.seen[n] = self.actual()
            if row is None:
                self.held[n] = None
            return
        expected, actual = self.seen[n], self.actual()
        with pytest.raises(StateConflict) as caught:
            self.sessions[n].commit()
        self.sessions[n].rollback()
        conflict = caught.value
        assert conflict.expected_version == (0 if expected is None else expected[0])
        assert conflict.actual_version == (None if actual is None else actual[0])
        if expected is None:
            assert conflict.reason is ConflictReason.EXISTS
            self.held[n] = None
        elif actual is None:
            assert conflict.reason is ConflictReason.MISSING
            self.sessions[n].expunge_all()
            self.held[n] = self.seen[n] = None
        else:
            recreated = expected[0] == actual[0]
            assert (conflict.reason is ConflictReason.RECREATED) is recreated

    @rule(n=SESSIONS)
    def read(self, n: int) -> None:
        self.sessions[n].rollback()
        order = self.sessions[n].get(Order, KEY, populate_existing=True)
        self.held[n] = order
        self.seen[n] = self.actual()
        found = order and (
            order.version,
            order.state.value,
            order.provenance.effect_id,
        )
        assert found == self.row
        self.sessions[n].commit()

    @precondition(lambda self: any(self.held))
    @rule(n=SESSIONS, in_place=st.booleans(), savepoint=st.booleans())
    def write(self, n: int, in_place: bool, savepoint: bool) -> None:
        order = self.held[n]
        if order is None:
            return
        self.value += 1
        provenance = Provenance.now()
        if in_place and self.row is not None:
            # Reading what has expired is seeing it.
            order.state.value = self.value
            self.seen[n] = self.actual() if order.version else None
        else:
            order.state = Number(value=self.value)
        order.provenance = provenance
        version = self.seen[n][0] + 1  # type: ignore[index]
        if savepoint and self.seen[n] == self.actual():
            with self.sessions[n].begin_nested():
                order.state = Number(value=self.value)
        self.commit(n, (version, self.value, provenance.effect_id))

    @rule(n=SESSIONS)
    def create(self, n: int) -> None:
        if self.held[n] is None:
            self.value += 1
            self.seen[n] = None
            provenance = Provenance.now()
            order = Order(
                workflow_key=KEY,
                state=Number(value=self.value),
                provenance=provenance,
            )
            self.sessions[n].add(order)
            self.held[n] = order
            self.commit(n, (1, self.value, provenance.effect_id))

    @precondition(lambda self: any(self.held))
    @rule(n=SESSIONS)
    def delete(self, n: int) -> None:
        if self.held[n] is not None:
            self.sessions[n].delete(self.held[n])
            self.commit(n, None)

    @rule(n=SESSIONS)
    def roll_back(self, n: int) -> None:
        if self.held[n] is not None:
            self.held[n].state = Number(value=-1)
            self.sessions[n].rollback()

    @invariant()
    def row_is_as_modelled(self) -> None:
        store = CanonicalStore(self.engine, Order)
        if self.row is not None:
            snapshot = store.get_state(KEY)
            effect_id = snapshot.provenance.effect_id
            assert self.row == (snapshot.version, snapshot.state.value, effect_id)


@pytest.fixture
def races(database: Any) -> Iterator[type[Races]]:
    """Make the machine, on tables of its own."""
    engine = create_engine(database)
    Base.metadata.create_all(engine)
    yield type("RacesHere", (Races,), {"engine": engine})
    engine.dispose()


FEW = settings(
    max_examples=25,
    stateful_step_count=20,
    suppress_health_check=list(HealthCheck),
    database=None,
)


def test_sessions_agree_with_the_model(races: type[Races]) -> None:
    """Reads, writes, creations and deletions in any order end as the model says."""
    run_state_machine_as_test(races, settings=FEW)


def test_swallowed_conflict_is_noticed(races: type[Races]) -> None:
    """The model is no rubber stamp: a session that swallows conflicts fails it."""
    races.session_class = SwallowingSession
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        run_state_machine_as_test(races, settings=settings(FEW, print_blob=False))
