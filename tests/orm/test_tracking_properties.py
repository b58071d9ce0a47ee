"""Property: whatever a session does, the row holds what a plain record of it says."""

from __future__ import annotations

import gc
import json
import os
import pickle
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, text
from sqlalchemy.orm import DeclarativeBase, Session
from typing_extensions import TypedDict

from sa_wfstate import WorkflowStateMixin
from sa_wfstate.payload.canonical import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

SEQUENCES = int(os.environ.get("SA_WFSTATE_SEQUENCES", "8"))
KEYS = ["a", "b"]
# Not by codec: Hypothesis would try each character there is, for ten seconds.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
words = st.text(characters, max_size=4)
numbers = st.integers(-(2**40), 2**40)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2)
    | st.sampled_from([0.0, 1.0, 1.5])
    | words,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2)
    ),
    max_leaves=4,
)


class Line(BaseModel):
    sku: str
    quantity: int = 1


@dataclass
class Place:
    city: str
    tags: list[str] = field(default_factory=list)


class Note(TypedDict, total=False):
    author: str
    stars: int


class Card(BaseModel):
    kind: Literal["card"] = "card"
    digits: list[int] = []


class Cash(BaseModel):
    kind: Literal["cash"] = "cash"
    amount: float = 0.0


class Rich(BaseModel):
    status: str = "new"
    lines: list[Line] = []
    free: dict[str, Any] = {}
    names: set[str] = set()
    place: Place | None = None
    note: Note = {}
    paid: Annotated[Card | Cash, Field(discriminator="kind")] = Cash()


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)

    status: str = "new"
    amounts: tuple[int, ...] = ()


lines = st.builds(Line, sku=words, quantity=numbers)
frozen = st.builds(Frozen, status=words, amounts=st.tuples(numbers))
rich = st.builds(
    Rich,
    status=words,
    lines=st.lists(lines, max_size=3),
    free=st.dictionaries(words, json_values, max_size=3),
    names=st.sets(words, max_size=3),
    place=st.none() | st.builds(Place, city=words, tags=st.lists(words, max_size=2)),
    note=st.fixed_dictionaries({}, optional={"author": words, "stars": numbers}),
    paid=st.builds(Card, digits=st.lists(st.integers(0, 9), max_size=3))
    | st.builds(Cash, amount=st.sampled_from([0.0, 1.0, 2.5])),
)
free = st.dictionaries(words, json_values, max_size=3)
rows = st.lists(lines, max_size=3)


class Base(DeclarativeBase):
    pass


class RichRow(WorkflowStateMixin[Rich], Base):
    __tablename__ = "rich"


class FrozenRow(WorkflowStateMixin[Frozen], Base):
    __tablename__ = "frozen"


class FreeRow(WorkflowStateMixin[dict[str, Any]], Base):
    __tablename__ = "free"


class ListRow(WorkflowStateMixin[list[Line]], Base):
    __tablename__ = "list"


@st.composite
def changes(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> Callable[[Any], None]:
    """Draw a change in place: parts of another value are put into the one given."""
    other = draw(values)
    seed = draw(st.randoms(use_true_random=False))

    def change(value: Any) -> None:
        _mix(value, other, seed)

    return change


def _mix(value: Any, other: Any, random: Any) -> None:  # noqa: C901, PLR0912
    if isinstance(value, BaseModel) or is_dataclass(value):
        names = (
            list(type(value).model_fields)
            if isinstance(value, BaseModel)
            else [each.name for each in fields(value)]
        )
        names = [name for name in names if name != "kind"]
        name = random.choice(names)
        if type(value) is not type(other):
            return
        if random.random() < 0.5:
            _mix(getattr(value, name), getattr(other, name), random)
        else:
            setattr(value, name, getattr(other, name))
    elif isinstance(value, dict) and isinstance(other, dict):
        if value and random.random() < 0.4:
            key = random.choice(list(value))
            if key in other and random.random() < 0.5:
                _mix(value[key], other[key], random)
            else:
                del value[key]
        else:
            value.update(other)
    elif isinstance(value, list) and isinstance(other, list):
        if value and random.random() < 0.5:
            if other:
                _mix(value[0], other[0], random)
            else:
                value.pop()
        else:
            value += other
            value.reverse()
    elif isinstance(value, set) and isinstance(other, set):
        value ^= other


class Machine(RuleBasedStateMachine):
    """A session with two rows, and a record of what they should hold.

    *seen* is what the application sees, *flushed* what the transaction has written,
    *committed* what is there when it is rolled back; each a pair of JSON and version.
    """

    row: type[Any]
    values: st.SearchStrategy[Any]
    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        with Session(self.engine) as session:
            session.execute(text(f"TRUNCATE {self.row.__tablename__}"))
            session.commit()
        self.session = Session(self.engine)
        self.seen: dict[str, str] = {}
        self.flushed: dict[str, tuple[str, int]] = {}
        self.committed: dict[str, tuple[str, int]] = {}
        self.savepoints: list[tuple[Any, dict[str, tuple[str, int]]]] = []
        self.kept: dict[str, Any] = {}

    def teardown(self) -> None:
        self.session.close()

    def dump(self, value: Any) -> str:
        column_type = self.row.__table__.c.state.type
        value = column_type.load(column_type.dump(value))
        plain = column_type.codec._adapter.dump_python(value, mode="json")
        if isinstance(value, Rich):
            plain["names"].sort()
        return canonical_json(json.dumps(plain))

    def get(self, key: str) -> Any:
        with self.session.no_autoflush:
            return self.session.get_one(self.row, key)

    def note_flush(self) -> None:
        for key, seen in self.seen.items():
            flushed, version = self.flushed.get(key, ("", 0))
            if seen != flushed:
                self.flushed[key] = (seen, version + 1)

    def note_loss(self) -> None:
        self.seen = {key: flushed for key, (flushed, _) in self.flushed.items()}

    @rule(key=st.sampled_from(KEYS), data=st.data())
    def create(self, key: str, data: st.DataObject) -> None:
        if key not in self.seen:
            value = data.draw(self.values)
            self.session.add(self.row(workflow_key=key, state=value))
            self.seen[key] = self.dump(value)
            self.flush()

    @rule(key=st.sampled_from(KEYS), data=st.data(), keep=st.booleans())
    def change(self, key: str, data: st.DataObject, keep: bool) -> None:
        if key in self.seen and self.row is not FrozenRow:
            row = self.get(key)
            row.state  # noqa: B018 - read, then changed through another reference
            data.draw(changes(self.values))(row.state)
            self.seen[key] = self.dump(row.state)
            if keep:
                self.kept[key] = row

    @rule(key=st.sampled_from(KEYS), data=st.data(), again=st.booleans())
    def assign(self, key: str, data: st.DataObject, again: bool) -> None:
        if key in self.seen:
            row = self.get(key)
            column_type = self.row.__table__.c.state.type
            value = (
                column_type.load(self.seen[key]) if again else data.draw(self.values)
            )
            row.state = value
            self.seen[key] = self.dump(row.state)

    @rule()
    def flush(self) -> None:
        self.session.flush()
        self.note_flush()

    @rule()
    def query(self) -> None:
        rows = self.session.scalars(select(self.row)).all()
        self.note_flush()
        states = self.session.execute(select(self.row.workflow_key, self.row.state))
        assert {key: self.dump(state) for key, state in states} == self.seen
        assert {row.workflow_key: self.dump(row.state) for row in rows} == self.seen

    @rule()
    def commit(self) -> None:
        self.session.commit()
        self.note_flush()
        self.committed = dict(self.flushed)
        self.savepoints.clear()

    @rule()
    def rollback(self) -> None:
        self.session.rollback()
        self.flushed = dict(self.committed)
        self.note_loss()
        self.savepoints.clear()

    @rule(refresh=st.booleans(), key=st.sampled_from(KEYS))
    def forget(self, refresh: bool, key: str) -> None:
        if key in self.flushed:
            row = self.get(key)
            self.seen[key] = self.flushed[key][0]
            if refresh:
                self.session.refresh(row)
                self.note_flush()
            else:
                self.session.expire(row)

    @rule()
    def drop_references(self) -> None:
        self.kept.clear()
        gc.collect()

    @precondition(lambda self: not self.savepoints)
    @rule(key=st.sampled_from(KEYS), travel=st.booleans())
    def reattach(self, key: str, travel: bool) -> None:
        if key in self.seen:
            row = self.get(key)
            self.session.refresh(row, ["version"])
            self.note_flush()
            self.session.expunge(row)
            if travel:
                row = pickle.loads(pickle.dumps(row))
            self.session.add(row)

    @precondition(lambda self: len(self.savepoints) < 2)
    @rule()
    def begin_nested(self) -> None:
        savepoint = self.session.begin_nested()
        self.note_flush()
        self.savepoints.append((savepoint, dict(self.flushed)))

    @precondition(lambda self: self.savepoints)
    @rule(keep=st.booleans())
    def end_nested(self, keep: bool) -> None:
        savepoint, flushed = self.savepoints.pop()
        if keep:
            savepoint.commit()
            self.note_flush()
        else:
            savepoint.rollback()
            self.flushed = flushed
            self.note_loss()

    @invariant()
    def rows_hold_what_was_flushed(self) -> None:
        with self.session.no_autoflush:
            table = self.row.__table__.name
            stored = self.session.execute(
                text(f"SELECT workflow_key, state::text, version FROM {table}")
            ).all()
        load = self.row.__table__.c.state.type.load
        found = {key: (self.dump(load(json_)), v) for key, json_, v in stored}
        assert found == self.flushed


@pytest.mark.contract
def test_rows_hold_what_the_session_was_told(
    engine: Engine, create_tables: Callable[..., None]
) -> None:
    """Any sequence of changes and session operations leaves the rows as recorded.

    The environment's ``SA_WFSTATE_SEQUENCES`` says how many sequences are tried.
    """
    create_tables(Base.metadata)
    run_machine(engine, RichRow, rich)


@pytest.mark.parametrize(
    ("row", "values"),
    [(FrozenRow, frozen), (FreeRow, free), (ListRow, rows)],
    ids=["frozen", "dict", "list"],
)
def test_rows_of_other_types_hold_it_too(
    engine: Engine,
    create_tables: Callable[..., None],
    row: type[Any],
    values: st.SearchStrategy[Any],
) -> None:
    """A frozen model, and payloads that are no models."""
    create_tables(Base.metadata)
    run_machine(engine, row, values)


def run_machine(engine: Engine, row: type[Any], values: st.SearchStrategy[Any]) -> None:
    """Run the state machine for one mapped class."""
    machine = type("Run", (Machine,), {"row": row, "values": values, "engine": engine})
    gc.collect()
    gc.freeze()  # Or each collection of the machine looks at everything imported.
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=SEQUENCES,
                stateful_step_count=25,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        gc.unfreeze()
