"""Property: a workflow's row ends as that of a plain, versioned MutableDict class.

Two sessions are told the same, and listeners of both do the same. A listener of the
kind ``after_…`` comes too late for the flush that calls it: MutableDict drops its
change, a workflow writes it in the next flush of the same commit. So the plain side is
given that change when the flush has ended, and flushes as often as there is one.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import JSON, Engine, create_engine, event, inspect, select, text
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    object_session,
)

from sa_wfstate import WorkflowStateMixin

SEQUENCES = int(os.environ.get("SA_WFSTATE_SEQUENCES", "40"))
KEYS = ["a", "b"]
MAPPER_EVENTS = [
    f"{when}_{verb}"
    for when in ("before", "after")
    for verb in ("insert", "update", "delete")
]
SESSION_EVENTS = ["before_flush", "after_flush", "after_flush_postexec"]
IN_THIS_FLUSH = {"before_insert", "before_update", "before_flush"}


class Base(DeclarativeBase):
    pass


class Workflow(WorkflowStateMixin[dict[str, int]], Base):
    __tablename__ = "workflows"


class Plain(Base):
    __tablename__ = "plains"

    workflow_key: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    state: Mapped[dict[str, int]] = mapped_column(MutableDict.as_mutable(JSON))

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own


class QuietWorkflow(WorkflowStateMixin[dict[str, int]], Base):
    """A workflow of which no mapper event tells, so that its text is made once."""

    __tablename__ = "quiet_workflows"


class QuietPlain(Base):
    __tablename__ = "quiet_plains"

    workflow_key: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    state: Mapped[dict[str, int]] = mapped_column(MutableDict.as_mutable(JSON))

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own


class Tick(Base):
    """A new row of it makes every flush of both sessions one that has work to do."""

    __tablename__ = "ticks"

    id: Mapped[int] = mapped_column(primary_key=True)


class Armed(NamedTuple):
    """What a listener does the next time that it is called for the row *at*."""

    at: str
    what: str
    on: str
    value: int


class Veto(Exception):
    """A listener refuses the flush."""


session_of: WeakKeyDictionary[Session, Side] = WeakKeyDictionary()


def listen(name: str) -> None:
    """Pass a mapper event of either class to the side of its session."""

    def listener(_mapper: object, _connection: object, row: Any) -> None:
        side = session_of.get(object_session(row))
        if side is not None:
            side.fire(name, row.workflow_key)

    for entity in (Workflow, Plain):
        event.listen(entity, name, listener)


for each in MAPPER_EVENTS:
    listen(each)


class Side:
    """A session, its rows, and what its listeners are going to do."""

    def __init__(
        self, entity: type[Any], engine: Engine, *, expire_on_commit: bool
    ) -> None:
        self.entity = entity
        self.late = not issubclass(entity, WorkflowStateMixin)
        self.session = Session(engine, expire_on_commit=expire_on_commit)
        self.armed: dict[str, Armed] = {}
        self.rows: dict[str, Any] = {}
        self.held: dict[str, Any] = {}
        self.plan: set[str] = set()
        self.dropped: list[Armed] = []
        self.savepoints: list[Any] = []
        for name in SESSION_EVENTS:
            event.listen(self.session, name, self._session_listener(name))
        for table in reversed(Base.metadata.sorted_tables):
            self.session.execute(text(f"DELETE FROM {table.name}"))
        self.session.commit()

    def _session_listener(self, name: str) -> Any:
        def listener(session: Session, *_: object) -> None:
            self.fire(name, None)
            if name == "before_flush":
                written = [*session.new, *session.dirty]
                rows = [row for row in written if isinstance(row, self.entity)]
                self.plan = {inspect(row).dict["workflow_key"] for row in rows}

        session_of[self.session] = self
        return listener

    def fire(self, name: str, at: str | None) -> None:
        """Do what is armed for an event of the row *at*, or of the session."""
        armed = self.armed.get(name)
        if armed is None or at not in {None, armed.at}:
            return
        del self.armed[name]
        if armed.what == "veto":
            raise Veto
        row = self.rows.get(armed.on)
        if row is None or row not in self.session or row in self.session.deleted:
            return
        in_time = name in IN_THIS_FLUSH and (
            at in {None, armed.on} or armed.on in self.plan
        )
        if armed.what == "read":
            row.state  # noqa: B018
        elif armed.what != "held" or self.holds(armed.on):
            if self.late and not in_time:
                self.dropped.append(armed)
            else:
                self.change(armed.on, armed.what, armed.value)

    def holds(self, key: str) -> bool:
        """Return whether the state object that is held still is that of its row."""
        held = self.held.get(key)
        return held is not None and inspect(self.rows[key]).dict.get("state") is held

    def change(self, key: str, what: str, value: int) -> None:
        """Change a row; *value* is new, so this is a change in any case."""
        if what == "held":
            self.held[key]["n"] = value
        elif what == "assign":
            self.rows[key].state = {"n": value, "more": 0}
        else:
            state = self.rows[key].state
            state["n"] = value
            state.pop("more", None)

    def apply_dropped(self) -> bool:
        """Give the plain rows what after_… listeners changed; tell if there was any."""
        dropped, self.dropped = self.dropped, []
        with self.session.no_autoflush:
            for armed in dropped:
                if self.rows[armed.on] in self.session:
                    self.change(armed.on, armed.what, armed.value)
        return bool(dropped)

    def tick(self) -> None:
        self.session.add(Tick())

    def flush(self) -> None:
        self.tick()
        self.session.flush()
        self.apply_dropped()

    def query(self) -> None:
        self.tick()
        self.session.scalars(select(Tick)).all()
        self.apply_dropped()

    def commit(self) -> None:
        self.complete(self.session.commit)
        self.savepoints.clear()

    def complete(self, end: Any) -> None:
        """Let *end* commit, after what its own flushes would write."""
        self.tick()
        if self.late:
            self.session.flush()
            while self.apply_dropped():
                self.session.flush()
        end()

    def settle(self) -> None:
        """Write everything, without listeners, and load the rows again."""
        self.armed.clear()
        self.flush()
        for row in self.rows.values():
            self.session.refresh(row)

    def rollback(self) -> None:
        self.session.rollback()
        self.dropped.clear()
        self.savepoints.clear()

    def stored(self) -> dict[str, tuple[Any, int]]:
        """Read the rows as they are in the transaction."""
        query = text(
            f"SELECT workflow_key, state, version FROM {self.entity.__tablename__}"
        )
        with self.session.no_autoflush:
            rows = self.session.execute(query).all()
        return {key: (json.loads(state), version) for key, state, version in rows}


def engine_of() -> Engine:
    """Make an engine on a database of its own in memory."""
    engine = create_engine("sqlite://")

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # sqlite3 begins none before a savepoint.

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    Base.metadata.create_all(engine)
    return engine


keys = st.sampled_from(KEYS)
kinds = st.sampled_from(["change", "assign", "held"])
ends = st.sampled_from([Side.flush, Side.query, Side.commit, None])


class Machine(RuleBasedStateMachine):
    """Tell both sides the same, and compare their rows."""

    engines: tuple[Engine, Engine]
    entities: tuple[type[Any], type[Any]]
    sides: tuple[Side, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.values = iter(range(1, 10_000))

    @initialize(expire_on_commit=st.booleans(), value=st.sampled_from(KEYS))
    def begin(self, expire_on_commit: bool, value: str) -> None:
        self.sides = tuple(
            Side(entity, engine, expire_on_commit=expire_on_commit)
            for entity, engine in zip(self.entities, self.engines, strict=True)
        )
        self.create(value, Side.commit)

    def teardown(self) -> None:
        for side in self.sides:
            side.session.close()

    def both(self, do: Any) -> None:
        """Do the same on both sides; a veto of a listener is that of both."""
        vetoed = []
        for side in self.sides:
            try:
                do(side)
            except Veto:
                vetoed.append(side)
        assert len(vetoed) in {0, 2}
        for side in vetoed:
            side.rollback()
        plain, workflow = stored = [side.stored() for side in self.sides]
        assert workflow == plain
        # Sessions let go of rows that they need not hold, each of others.
        for side, found in zip(self.sides, stored, strict=True):
            with side.session.no_autoflush:
                side.rows = {
                    key: side.session.get_one(side.entity, key) for key in found
                }

    def exists(self, key: str) -> bool:
        return key in self.sides[0].rows

    @rule(
        name=st.sampled_from(MAPPER_EVENTS + SESSION_EVENTS),
        at=keys,
        on=keys,
        what=st.sampled_from(["read", "change", "change", "assign", "held", "veto"]),
    )
    def arm(self, name: str, at: str, on: str, what: str) -> None:
        if (name, what) == ("after_flush_postexec", "held"):
            return  # The one change that a commit does not detect; it is documented.
        if name in MAPPER_EVENTS and QuietPlain in self.entities:
            return
        armed = Armed(at, what, on, next(self.values))
        for side in self.sides:
            side.armed[name] = armed

    @rule(key=keys, end=ends)
    def create(self, key: str, end: Any) -> None:
        if not self.exists(key):
            value = next(self.values)

            def do(side: Side) -> None:
                row = side.entity(workflow_key=key, state={"n": value})
                side.rows[key] = row
                side.session.add(row)
                (end or Side.flush)(side)

            self.both(do)

    @rule(key=keys, what=kinds, end=ends)
    def change(self, key: str, what: str, end: Any) -> None:
        if self.exists(key):
            value = next(self.values)
            if what == "held" and not all(side.holds(key) for side in self.sides):
                return

            def do(side: Side) -> None:
                with side.session.no_autoflush:
                    side.change(key, what, value)
                if end:
                    end(side)

            self.both(do)

    @rule(key=keys)
    def hold(self, key: str) -> None:
        if self.exists(key):
            for side in self.sides:
                with side.session.no_autoflush:
                    side.held[key] = side.rows[key].state

    @rule(end=ends.filter(bool))
    def end(self, end: Any) -> None:
        self.both(end)

    @rule()
    def rollback(self) -> None:
        self.both(Side.rollback)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        if self.exists(key):

            def do(side: Side) -> None:
                side.session.delete(side.rows[key])
                side.flush()

            self.both(do)

    @rule(key=keys, names=st.sampled_from([None, ["state"]]))
    def expire(self, key: str, names: list[str] | None) -> None:
        if self.exists(key):
            self.both(lambda side: side.session.expire(side.rows[key], names))

    @rule()
    def refresh(self) -> None:
        self.both(Side.settle)

    @precondition(lambda self: not self.sides[0].savepoints)
    @rule(key=keys, what=st.sampled_from(["", "change", "assign"]), merge=st.booleans())
    def detach(self, key: str, what: str, merge: bool) -> None:
        if self.exists(key):
            value = next(self.values)

            def do(side: Side) -> None:
                side.settle()
                row = side.rows[key]
                side.session.expunge(row)
                if what:
                    side.change(key, what, value)
                if merge:
                    side.rows[key] = side.session.merge(row)
                else:
                    side.session.add(row)

            self.both(do)

    @precondition(lambda self: len(self.sides[0].savepoints) < 2)
    @rule()
    def begin_nested(self) -> None:
        def do(side: Side) -> None:
            side.tick()
            side.savepoints.append(side.session.begin_nested())
            side.apply_dropped()

        self.both(do)

    @precondition(lambda self: self.sides[0].savepoints)
    @rule(keep=st.booleans())
    def end_nested(self, keep: bool) -> None:
        def do(side: Side) -> None:
            savepoint = side.savepoints.pop()
            if keep:
                side.complete(savepoint.commit)
            else:
                savepoint.rollback()
                side.dropped.clear()

        self.both(do)

    @rule()
    def look(self) -> None:
        """See that the application reads the same of both."""
        plain, workflow = ({} for _ in range(2))
        for side, seen in zip(self.sides, (plain, workflow), strict=True):
            with side.session.no_autoflush:
                for key, row in side.rows.items():
                    seen[key] = dict(row.state)
        assert workflow == plain


@pytest.mark.filterwarnings("ignore:Attribute history events accumulated")
@pytest.mark.parametrize(
    "entities",
    [(Plain, Workflow), (QuietPlain, QuietWorkflow)],
    ids=["heard", "quiet"],
)
def test_listeners_change_a_workflow_as_they_change_a_mutable_dict(
    entities: tuple[type[Any], type[Any]],
) -> None:
    """Any sequence of operations and listeners leaves the rows of the plain class.

    The environment's ``SA_WFSTATE_SEQUENCES`` says how many sequences are tried.
    """
    engines = (engine_of(), engine_of())
    try:
        run_state_machine_as_test(
            type("Run", (Machine,), {"engines": engines, "entities": entities}),
            settings=settings(
                max_examples=SEQUENCES,
                stateful_step_count=12,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        for engine in engines:
            engine.dispose()
