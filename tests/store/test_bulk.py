"""Contract: try_commit_many writes many workflows with one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import (
    Commit,
    ConflictReason,
    PayloadError,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.errors import UnflushedChanges, WriteSuppressed
from sa_wfstate.row.chunks import CHUNK

from ..orders import Order, OrderState
from ..triggers import before_update
from ..verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


class Evolved(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "evolved"
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: data}  # noqa: RUF012


class Task(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "tasks"
    kind: Mapped[str] = mapped_column()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "task"}  # noqa: RUF012


class Errand(Task):
    __mapper_args__ = {"polymorphic_identity": "errand"}  # noqa: RUF012


class Named(WorkflowStateMixin[OrderState], Base):
    """An application calls its tables and columns as it likes."""

    __tablename__ = "new"
    key: Mapped[int] = mapped_column(default=1)
    rows: Mapped[int] = mapped_column(default=2)
    state_text: Mapped[int] = mapped_column(default=3)


pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Order.metadata, Base.metadata)


def commit(key: str, expected_version: int, status: str = "paid") -> Commit[OrderState]:
    """Make one commit of a batch."""
    return Commit(
        key,
        expected_version=expected_version,
        state=OrderState(status=status),
        provenance=Provenance.now(f"effect-{key}"),
    )


BROKEN = commit("c", 1)
BROKEN.state = OrderState.model_construct(status=1)  # type: ignore[arg-type]


def place(engine: Engine, *keys: str) -> None:
    """Create orders at version 1."""
    with Session(engine) as session:
        outcomes = try_commit_many(session, Order, [commit(key, 0) for key in keys])
        assert all(isinstance(each, StateCommitted) for each in outcomes)
        session.commit()


def test_each_outcome_is_in_its_place(engine: Engine) -> None:
    """Won, lost, created, existing and missing, in the order given."""
    place(engine, "b", "a", "moved")
    with Session(engine) as session:
        try_commit_many(session, Order, [commit("moved", 1)])
        outcomes: list[Any] = try_commit_many(
            session,
            Order,
            [
                commit("b", 1, "sent"),
                commit("moved", 1),
                commit("new", 0),
                commit("a", 0),
                commit("gone", 3),
            ],
        )
        session.commit()
    assert [
        (each.workflow_key, each.version)
        if isinstance(each, StateCommitted)
        else (each.workflow_key, each.reason, each.actual_version)
        for each in outcomes
    ] == [
        ("b", 2),
        ("moved", ConflictReason.MOVED, 2),
        ("new", 1),
        ("a", ConflictReason.EXISTS, 1),
        ("gone", ConflictReason.MISSING, None),
    ]
    assert outcomes[1].current.provenance.effect_id == "effect-moved"
    with Session(engine) as session:
        assert outcomes[0].snapshot == get_state(session, Order, "b")
        assert outcomes[2].snapshot == get_state(session, Order, "new")


def test_statements_do_not_grow_with_the_rows(engine: Engine) -> None:
    """One statement for each chunk, and one read for each chunk of losers."""
    keys = [f"k-{number:05}" for number in range(CHUNK + 1)]
    place(engine, *keys)
    sent = verbs_of(engine)
    with Session(engine) as session:
        outcomes = try_commit_many(session, Order, [commit(key, 1) for key in keys])
        assert [each.workflow_key for each in outcomes] == keys
        assert sent == ["UPDATE", "UPDATE"]
        del sent[:]
        losers = try_commit_many(session, Order, [commit(key, 7) for key in keys[:99]])
        assert all(isinstance(each, StateConflict) for each in losers)
        assert sent == ["UPDATE", "SELECT"]
        del sent[:]
        losers = try_commit_many(session, Order, [commit(key, 7) for key in keys])
        assert all(isinstance(each, StateConflict) for each in losers)
    assert sent == ["UPDATE", "UPDATE", "SELECT", "SELECT"]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("lose", [True, False])
def test_rows_are_as_their_outcomes_say(
    engine: Engine, *, own: bool, lose: bool
) -> None:
    """Whether they share a provenance, and whether all have won, in any order."""
    place(engine, "b", "c", "a")
    commits = [commit("c", 1), commit("a", 2 if lose else 1), commit("b", 1, "sent")]
    if not own:
        for each in commits:
            each.provenance = commits[0].provenance
    with Session(engine) as session:
        outcomes: list[Any] = try_commit_many(session, Order, commits)
        session.commit()
        rows = {key: get_state(session, Order, key) for key in "abc"}
    won = [each for each in outcomes if isinstance(each, StateCommitted)]
    assert [each.workflow_key for each in outcomes] == ["c", "a", "b"]
    assert [each.workflow_key for each in won] == (["c", "b"] if lose else list("cab"))
    for each in won:
        assert each.snapshot == rows[each.workflow_key]
    assert rows["b"].state.status == "sent"
    assert rows["b"].provenance.effect_id == ("effect-b" if own else "effect-c")


def test_time_of_each_row_is_its_own(engine: Engine) -> None:
    """A trigger may give each row another one than the statement does."""
    place(engine, "a", "b")
    later = "now() + ascii(NEW.workflow_key) * interval '1 day'"
    before_update(engine, f"NEW.updated_at := {later}; RETURN NEW")
    with Session(engine) as session:
        outcomes: list[Any] = try_commit_many(
            session, Order, [commit("b", 1), commit("a", 1)]
        )
        for each in outcomes:
            assert each.snapshot == get_state(session, Order, each.workflow_key)
    assert outcomes[0].snapshot.updated_at > outcomes[1].snapshot.updated_at


def test_unchanged_states_are_not_sent(engine: Engine) -> None:
    """What was changed around the library stays, but for a row of an older shape."""
    with Session(engine) as session:
        created = [commit(key, 0) for key in "abc"]
        try_commit_many(session, Evolved, created)
        commits = [commit(key, 1) for key in "abc"]
        for each in commits:
            each.base = get_state(session, Evolved, each.workflow_key)
        commits[1].state = OrderState(status="sent")
        session.execute(text('UPDATE evolved SET state = \'{"status": "by hand"}\''))
        session.execute(
            text("UPDATE evolved SET schema_version = 1 WHERE workflow_key = 'c'")
        )
        outcomes: list[Any] = try_commit_many(session, Evolved, commits)
        read = [get_state(session, Evolved, key) for key in "abc"]
    assert [each.version for each in outcomes] == [2, 2, 2]
    assert [each.state.status for each in read] == ["by hand", "sent", "paid"]
    assert [each.schema_version for each in read] == [2, 2, 2]
    assert outcomes[2].snapshot == read[2]


def test_batch_that_is_sent_again_is_replayed(engine: Engine) -> None:
    """As a single commit is: the row is there, written by this very effect."""
    place(engine, "a", "b", "c")
    commits = [commit("a", 1), commit("b", 1), commit("c", 2)]
    for replayed in (False, True):
        with Session(engine) as session:
            *won, lost = try_commit_many(session, Order, commits)
            session.commit()
            for each in won:
                assert isinstance(each, StateCommitted)
                assert (each.version, each.replayed) == (2, replayed)
                assert each.snapshot == get_state(session, Order, each.workflow_key)
        assert isinstance(lost, StateConflict)
    commits[1].state = OrderState(status="another")
    with Session(engine) as session:
        again = try_commit_many(session, Order, commits)
    assert [type(each) for each in again] == [
        StateCommitted,
        StateConflict,
        StateConflict,
    ]


def test_flush_after_a_replay_loses_as_any(engine: Engine) -> None:
    """The replayed row was written by an earlier transaction, and is not locked."""
    place(engine, "a")
    sent = [commit("a", 1)]
    with Session(engine) as session, Session(engine) as other:
        try_commit_many(session, Order, sent)
        session.commit()
        order = session.get_one(Order, "a")
        (again,) = try_commit_many(session, Order, sent)
        assert isinstance(again, StateCommitted)
        assert again.replayed
        try_commit_many(other, Order, [commit("a", 2)])
        other.commit()
        order.state = OrderState(status="lost")
        with pytest.raises(StateConflict) as caught:
            session.flush()
    assert (caught.value.expected_version, caught.value.actual_version) == (2, 3)


@pytest.mark.parametrize("damage", ["state = '[]'", "schema_version = 9"])
def test_loser_that_cannot_be_read_is_a_conflict_too(
    engine: Engine, damage: str
) -> None:
    """Its version is known; the others have won."""
    place(engine, "a", "b", "c")
    with Session(engine) as session:
        try_commit_many(session, Order, [commit("b", 1), commit("c", 1)])
        broken = f"UPDATE orders SET {damage} WHERE workflow_key = 'b'"
        session.execute(text(broken))
        outcomes: list[Any] = try_commit_many(
            session, Order, [commit(key, 1) for key in "abc"]
        )
    won, broken_one, lost = outcomes
    assert won.version == 2
    assert (broken_one.actual_version, broken_one.current) == (2, None)
    assert (lost.actual_version, lost.current.version) == (2, 2)


def test_columns_may_have_any_name(engine: Engine) -> None:
    """No parameter of a statement is taken for a column of the application."""
    with Session(engine) as session:
        for version in (0, 1):
            many = [commit(key, version) for key in "ab"]
            assert all(
                isinstance(each, StateCommitted)
                for each in try_commit_many(session, Named, many)
            )
            one = try_commit(session, Named, "c", **_arguments(commit("c", version)))
            assert isinstance(one, StateCommitted)
        row = session.get_one(Named, "a")
        assert (row.key, row.rows, row.state_text) == (1, 2, 3)


def test_no_commits_no_statement(engine: Engine) -> None:
    """An empty batch has no outcomes."""
    with Session(engine) as session:
        assert try_commit_many(session, Order, []) == []
        assert not session.in_transaction()


@pytest.mark.parametrize(
    ("commits", "message"),
    [
        ([commit("a", 1), commit("b", 1), commit("a", 2)], "'a'.*given twice"),
        ([commit("a", 1), commit("", 1)], "1 to 255 characters"),
        ([commit("a", 1), commit("b", -1)], "must be 0 or a version"),
        ([commit("a", 1), BROKEN], "'c' state"),
    ],
)
def test_bad_batch_is_refused_before_sql(
    engine: Engine, commits: Any, message: str
) -> None:
    """Nothing is sent if one of the commits cannot be."""
    with Session(engine) as session:
        with pytest.raises(PayloadError, match=message):
            try_commit_many(session, Order, commits)
        assert not session.in_transaction()


def test_held_instances_are_right_afterwards(engine: Engine) -> None:
    """Instances hold what their rows hold; unflushed ones are refused."""
    place(engine, "a", "b")
    with Session(engine) as session:
        order, other = session.get_one(Order, "a"), session.get_one(Order, "b")
        try_commit_many(session, Order, [commit("a", 1, "sent")])
        assert (order.version, order.state.status) == (2, "sent")
        other.state.status = "changed"
        with pytest.raises(UnflushedChanges, match="'b'"):
            try_commit_many(session, Order, [commit("a", 2), commit("b", 1)])


def test_subclass_has_its_discriminator(engine: Engine) -> None:
    """Rows of a single-table subclass are created and found as such."""
    with Session(engine) as session:
        try_commit_many(session, Errand, [commit("a", 0), commit("b", 0)])
        assert type(session.get_one(Task, "a")) is Errand
        try_commit_many(session, Task, [commit("c", 0), commit("d", 0)])
        outcomes = try_commit_many(session, Errand, [commit("c", 1), commit("b", 1)])
        assert [type(each) for each in outcomes] == [StateConflict, StateCommitted]


def test_key_of_another_class_of_the_table_exists(engine: Engine) -> None:
    """Its version is told; the row is not this class's to read."""
    with Session(engine) as session:
        try_commit_many(session, Task, [commit("a", 0), commit("b", 0)])
        try_commit_many(session, Task, [commit("a", 1)])
        many = try_commit_many(session, Errand, [commit("a", 0), commit("c", 0)])
        one = try_commit(session, Errand, "a", **_arguments(commit("a", 0)))
        session.commit()
        session.add(Errand(workflow_key="a", state=OrderState()))
        with pytest.raises(StateConflict) as caught:
            session.flush()
    assert isinstance(many[1], StateCommitted)
    for each in (many[0], one, caught.value):
        assert isinstance(each, StateConflict)
        assert (each.reason, each.actual_version) == (ConflictReason.EXISTS, 2)
        assert each.current is None


def test_base_of_another_table_is_refused(engine: Engine) -> None:
    """Even if both rows were written at once, under one key."""
    with Session(engine) as session:
        for entity in (Order, Evolved):
            try_commit_many(session, entity, [commit("a", 0)])
        each = commit("a", 1, "sent")
        each.base = get_state(session, Evolved, "a")
        with pytest.raises(PayloadError, match=r"'a'.*base.*this row.*'evolved'"):
            try_commit_many(session, Order, [each])
        each.base = get_state(session, Order, "a")
        assert try_commit_many(session, Order, [each])


def _arguments(each: Commit[OrderState]) -> dict[str, Any]:
    return {
        "expected_version": each.expected_version,
        "state": each.state,
        "provenance": each.provenance,
    }


def test_suppressed_write_is_no_conflict(engine: Engine) -> None:
    """A trigger that hides one write is its own error."""
    place(engine, "a", "b")
    before_update(engine, "RETURN NULL", key="b")
    with Session(engine) as session, pytest.raises(WriteSuppressed, match="'b'"):
        try_commit_many(session, Order, [commit("a", 1), commit("b", 1)])


def test_refused_transaction_is_a_conflict(engine: Engine) -> None:
    """At REPEATABLE READ every commit of the refused statement is lost."""
    place(engine, "a", "b")
    strict = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(strict) as session, Session(engine) as other:
        get_state(session, Order, "a")
        try_commit_many(other, Order, [commit("a", 1), commit("b", 1)])
        other.commit()
        with pytest.raises(StateConflict) as caught:
            try_commit_many(session, Order, [commit("a", 1), commit("b", 1)])
    assert [
        (each.workflow_key, each.reason, each.actual_version)
        for each in caught.value.conflicts
    ] == [(key, ConflictReason.SERIALIZATION, None) for key in "ab"]


def test_schema_translation_is_kept(engine: Engine) -> None:
    """A schema that the engine translates is honoured by the arrays too."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA elsewhere"))
    there = engine.execution_options(schema_translate_map={None: "elsewhere"})
    with there.begin() as connection:
        Order.metadata.create_all(connection)
        Base.metadata.create_all(connection)
    place(there, "a", "b")
    with Session(there) as session:
        assert get_state(session, Order, "a").version == 1
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM public.orders")) == 0


def test_sqlite_gets_the_statements_one_by_one() -> None:
    """A database without unnest gives the same outcomes."""
    engine = create_engine("sqlite://")
    Order.metadata.create_all(engine)
    Base.metadata.create_all(engine)
    place(engine, "a", "b")
    with Session(engine) as session:
        outcomes = try_commit_many(session, Order, [commit("a", 1), commit("b", 2)])
    assert [type(each) for each in outcomes] == [StateCommitted, StateConflict]
    engine.dispose()


def test_outcomes_have_the_versions_that_a_trigger_made(engine: Engine) -> None:
    """Of a batch, too, each outcome says what its row holds."""
    place(engine, "a", "b", "c")
    before_update(engine, "NEW.version := NEW.version + 10; RETURN NEW", key="b")
    with Session(engine) as session:
        outcomes: list[Any] = try_commit_many(
            session, Order, [commit(key, 1) for key in "abc"]
        )
        assert [each.version for each in outcomes] == [2, 12, 2]
        assert [each.snapshot.version for each in outcomes] == [2, 12, 2]
        assert get_state(session, Order, "b").version == 12
