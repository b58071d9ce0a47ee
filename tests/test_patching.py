"""Patches: edits of a state in the database, validated, with every outcome."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, Field, RootModel, model_validator
from sqlalchemy import create_engine, event, exists, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    sessionmaker,
)

from sa_wfstate import (
    CanonicalStore,
    ConflictReason,
    ErrorKind,
    PayloadError,
    Provenance,
    RetryPolicy,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    classify,
    field_of,
    get_state,
)
from sa_wfstate.errors import (
    MappingError,
    OutcomeUnknown,
    SchemaVersionAhead,
    UnflushedChanges,
    WriteSuppressed,
)
from sa_wfstate.history import HistoryMixin, keep_history, list_versions
from sa_wfstate.patching import (
    Patch,
    append,
    increment,
    remove,
    set_to,
    try_patch,
    try_patch_many,
)
from sa_wfstate.versions import RowVersion

from .store.test_transactions import Faults
from .triggers import before_update
from .verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine, MetaData


class Base(DeclarativeBase):
    pass


class Part(BaseModel):
    name: str = ""
    tags: list[str] | None = None
    by: dict[str, int] = {}


class Ticket(BaseModel):
    status: str = "new"
    visits: int = Field(0, le=10)
    ratio: float = 0.1
    total: Decimal = Decimal("1.10")
    done: bool = False
    part: Part | None = None
    log: list[str] = []
    lines: list[Part] = []
    either: Part | str = ""

    @model_validator(mode="after")
    def _no_visits_when_closed(self) -> Ticket:
        if self.status == "closed" and self.visits:
            raise ValueError("closed with visits")
        return self


class Order(WorkflowStateMixin[Ticket], Base):
    __tablename__ = "orders"
    customer: Mapped[str] = mapped_column(default="Kim")


class Items(RootModel[list[int]]):
    pass


class Basket(WorkflowStateMixin[Items], Base):
    __tablename__ = "baskets"


class Evolved(WorkflowStateMixin[Ticket], Base):
    __tablename__ = "evolved"
    __schema_version__ = 2
    __upcasters__ = {1: dict}  # noqa: RUF012


class Kept(WorkflowStateMixin[Ticket], Base):
    __tablename__ = "kept"


class KeptHistory(HistoryMixin, Base):
    __tablename__ = "kept_history"


keep_history(Kept, KeptHistory)

STATUS = field_of(Order.state, lambda state: state.status)
VISITS = field_of(Order.state, lambda state: state.visits)
RATIO = field_of(Order.state, lambda state: state.ratio)
TOTAL = field_of(Order.state, lambda state: state.total)
DONE = field_of(Order.state, lambda state: state.done)
LOG = field_of(Order.state, lambda state: state.log)
LINES = field_of(Order.state, lambda state: state.lines)
NAME = field_of(Order.state, lambda state: state.part.name)  # type: ignore[union-attr]
TAGS = field_of(Order.state, lambda state: state.part.tags)  # type: ignore[union-attr]
BY_Q = field_of(Order.state, lambda state: state.part.by['"q\\'])  # type: ignore[union-attr]
EITHER = field_of(Order.state, lambda state: state.either)


def item(index: int) -> Any:
    """Return the path of a log entry."""
    return field_of(Order.state, lambda state: state.log[index])


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None], database: URL) -> None:
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        session.add(Order(workflow_key="o-1", state=Ticket()))
        session.add(Kept(workflow_key="o-1", state=Ticket()))
        session.add(Basket(workflow_key="o-1", state=Items([1, 2])))
        session.commit()
    plain.dispose()


def patch(session: Session, *edits: Any, key: str = "o-1", **options: Any) -> Any:
    """Try to patch an order."""
    provenance = options.pop("provenance", None) or Provenance.now("effect-2")
    return try_patch(session, Order, key, edits, provenance=provenance, **options)


EDITS: dict[str, tuple[list[Any], Callable[[Ticket], bool]]] = {
    "set": ([set_to(STATUS, "paid")], lambda s: s.status == "paid"),
    "set a bool": ([set_to(DONE, True)], lambda s: s.done),
    "set a model": ([set_to(EITHER, Part(name="x"))], lambda s: s.either.name == "x"),
    "set below null": ([set_to(NAME, "x")], lambda s: s.part == Part(name="x")),
    "set to null": (
        [set_to(NAME, "x"), set_to(TAGS, None)],
        lambda s: s.part == Part(name="x"),
    ),
    "increment": (
        [increment(VISITS, 3), increment(VISITS, -1)],
        lambda s: s.visits == 2,
    ),
    "increment a float": ([increment(RATIO, 0.2)], lambda s: s.ratio == 0.1 + 0.2),
    "increment a Decimal": (
        [increment(TOTAL, Decimal("0.05"))],
        lambda s: str(s.total) == "1.15",
    ),
    "increment what is missing": (
        [increment(BY_Q, 2)],
        lambda s: s.part.by == {'"q\\': 2},
    ),
    "append": ([append(LOG, "a"), append(LOG, "b")], lambda s: s.log == ["a", "b"]),
    "append below null": ([append(TAGS, "a")], lambda s: s.part.tags == ["a"]),
    "append a model": (
        [append(LINES, Part(name="x"))],
        lambda s: s.lines == [Part(name="x")],
    ),
    "set an item": (
        [
            append(LOG, "a"),
            append(LOG, "b"),
            set_to(item(1), "B"),
            set_to(item(-2), "A"),
        ],
        lambda s: s.log == ["A", "B"],
    ),
    "remove a key": ([increment(BY_Q, 2), remove(BY_Q)], lambda s: s.part.by == {}),
    "remove what is missing": ([remove(NAME)], lambda s: s.part is None),
    "remove a field": (
        [set_to(STATUS, "x"), remove(STATUS)],
        lambda s: s.status == "new",
    ),
    "remove an item": (
        [append(LOG, "a"), append(LOG, "b"), remove(item(0))],
        lambda s: s.log == ["b"],
    ),
    "ten increments": ([increment(BY_Q, 1)] * 10, lambda s: s.part.by == {'"q\\': 10}),
}


@pytest.mark.contract
def test_each_edit_does_in_the_database_what_it_says(engine: Engine) -> None:
    """The outcome has the row, and the row has the new state at the next version."""
    with Session(engine) as session:
        for name, (edits, holds) in EDITS.items():
            outcome = patch(session, *edits)
            assert isinstance(outcome, StateCommitted), name
            assert (outcome.version, outcome.snapshot.version) == (2, 2), name
            assert holds(outcome.snapshot.state), name
            read = get_state(session, Order, "o-1")
            assert read == outcome.snapshot, name
            assert read.provenance.effect_id == "effect-2"
            session.rollback()


def test_root_of_a_state_that_is_a_list(engine: Engine) -> None:
    """A path may be the state itself."""
    items = field_of(Basket.state, lambda state: state.root)
    first = field_of(items, lambda found: found[0])
    with Session(engine) as session:
        edits = [append(items, 3), increment(first, 10), remove(first)]
        outcome = try_patch(session, Basket, "o-1", edits, provenance=Provenance.now())
        assert outcome.snapshot.state.root == [2, 3]
        with pytest.raises(MappingError, match="cannot remove the state"):
            remove(items)


@pytest.mark.contract
def test_refused_result_leaves_nothing_to_undo(engine: Engine) -> None:
    """Neither the row nor the caller's transaction has changed."""
    with Session(engine) as session:
        session.execute(text("UPDATE orders SET customer = 'Lee'"))
        for edits, problem in (
            ([increment(VISITS, 99)], "Order 'o-1' state, at 'visits': .*less than"),
            ([increment(VISITS, 1), set_to(STATUS, "closed")], "value_error"),
            ([append(LOG, "a"), set_to(item(1), "b")], "'log.1': the list has no such"),
            ([remove(item(0))], "'log.0': the list has no such item for remove"),
            ([set_to(field_of(EITHER, lambda e: e.name), "x")], "set_to.. can change"),
        ):
            with pytest.raises(PayloadError, match=problem):
                patch(session, *edits)
        assert get_state(session, Order, "o-1").version == 1
        assert session.scalar(text("SELECT customer FROM orders")) == "Lee"
        session.commit()


def test_wrong_value_fails_before_any_sql(engine: Engine) -> None:
    """A value is checked as the type of its field, and never shown."""
    sent = verbs_of(engine)
    with Session(engine) as session:
        for edit, problem in (
            (set_to(VISITS, "secret"), r"'visits': is not valid \(int_parsing"),  # type: ignore[arg-type]
            (set_to(VISITS, 11), "at 'visits': Input should be less than"),
            (set_to(STATUS, "a\0"), "at 'status': contains NUL"),
            (append(LOG, 1), "at 'log': Input should be a valid string"),  # type: ignore[type-var]
            (increment(VISITS, 1.5), "incremented by a finite int only"),  # type: ignore[type-var]
            (increment(VISITS, True), "incremented by a finite int only"),
            (increment(RATIO, math.nan), "incremented by a finite int or float only"),
            (set_to(BY_Q, "secret"), r"at 'part.by.\*'"),  # type: ignore[arg-type]
        ):
            with pytest.raises(PayloadError, match=problem) as caught:
                patch(session, edit)
            assert "secret" not in str(caught.value)
            assert '"q' not in str(caught.value)
            assert "secret" not in repr(edit)
        with pytest.raises(PayloadError, match="one edit or more"):
            patch(session)
        with pytest.raises(PayloadError, match="cannot create a workflow"):
            patch(session, set_to(DONE, True), expected_version=0)
    assert sent == []


def test_wrong_path_is_a_mapping_error(engine: Engine) -> None:
    """A path must be one that field_of() made, into the state of this class."""
    other = field_of(Kept.state, lambda state: state.done)
    with pytest.raises(MappingError, match="takes a path that field_of"):
        set_to(Order.customer, "x")
    with pytest.raises(MappingError, match="path of a number, got one of str"):
        increment(STATUS, 1)  # type: ignore[type-var]
    with pytest.raises(MappingError, match="path of a list, got one of str"):
        append(STATUS, "x")  # type: ignore[arg-type]
    with Session(engine) as session:
        with pytest.raises(MappingError, match=r"field_of\(Order.state"):
            patch(session, set_to(other, True))
        with pytest.raises(MappingError, match="made by set_to"):
            patch(session, "paid")
        for when in (
            Kept.version == 1,
            field_of(aliased(Order).state, lambda state: state.done),
        ):
            with pytest.raises(MappingError, match="not in the row of table 'orders'"):
                patch(session, set_to(DONE, True), when=when)


@pytest.mark.contract
def test_condition_that_is_not_met_is_a_conflict(engine: Engine) -> None:
    """It has the current row, and a retry policy does not retry it."""
    paid = set_to(STATUS, "paid")
    some = exists(select(Kept.version).where(Kept.workflow_key == Order.workflow_key))
    with Session(engine) as session:
        for met in (STATUS == "new", Order.customer == "Kim", VISITS < 5, ~DONE, some):
            assert isinstance(patch(session, paid, when=met), StateCommitted)
            session.rollback()
        conflict = patch(session, paid, when=STATUS == "sent")
        assert (conflict.reason, conflict.actual_version) == (
            ConflictReason.CONDITION,
            1,
        )
        assert (conflict.expected_version, conflict.current.state) == (0, Ticket())
        assert "at version 1" in str(conflict)
        assert "does not meet the condition of the patch; read" in str(conflict)
        assert classify(conflict) is ErrorKind.FATAL
        # A missing field is NULL, and not met.
        assert patch(session, paid, when=NAME == "x").reason == "condition"
        assert get_state(session, Order, "o-1").version == 1


@pytest.mark.contract
def test_expected_version_is_checked(engine: Engine) -> None:
    """As by try_commit: moved, re-created, missing, or sent twice."""
    provenance = Provenance.now("twice")
    with Session(engine) as session:
        effect = get_state(session, Order, "o-1").provenance.effect_id
        for expected in (1, RowVersion(1, effect), RowVersion(1, None)):
            assert (
                patch(session, set_to(DONE, True), expected_version=expected).version
                == 2
            )
            session.rollback()
        conflict = patch(session, set_to(DONE, True), expected_version=7)
        assert (conflict.reason, conflict.expected_version) == ("moved", 7)
        other = RowVersion(1, "another")
        conflict = patch(session, set_to(DONE, True), expected_version=other)
        assert conflict.reason == "recreated"
        for expected in (7, None):
            conflict = patch(
                session, set_to(DONE, True), key="o-9", expected_version=expected
            )
            assert (conflict.reason, conflict.actual_version) == ("missing", None)
        assert "there is no such row" in str(conflict)
        options = {"expected_version": 1, "provenance": provenance}
        first, again = (patch(session, increment(VISITS, 1), **options) for _ in "12")
        assert (first.replayed, again.replayed) == (False, True)
        assert again.snapshot.state.visits == 1


def test_rows_of_another_schema_version_are_refused(engine: Engine) -> None:
    """The paths are those of the current shape."""
    done = [set_to(field_of(Evolved.state, lambda state: state.done), True)]
    with Session(engine) as session:
        session.add(Evolved(workflow_key="o-1", state=Ticket()))
        session.commit()

        def again() -> Any:
            return try_patch(session, Evolved, "o-1", done, provenance=Provenance.now())

        assert isinstance(again(), StateCommitted)
        session.execute(text("UPDATE evolved SET schema_version = 1"))
        with pytest.raises(PayloadError, match=r"is 1, and the edits .* version 2"):
            again()
        session.execute(text("UPDATE evolved SET schema_version = 3"))
        with pytest.raises(SchemaVersionAhead):
            again()


@pytest.mark.contract
def test_instance_in_the_session_has_the_new_values(engine: Engine) -> None:
    """It is written on by the unit of work; a rollback takes it back."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state.visits = 1
        with pytest.raises(UnflushedChanges):
            patch(session, increment(VISITS, 1))
        session.flush()
        with session.begin_nested() as savepoint:
            patch(session, increment(VISITS, 1))
            assert (order.version, order.state.visits) == (3, 2)
            savepoint.rollback()
        assert (order.version, order.state.visits) == (2, 1)
        patch(session, increment(VISITS, 1))
        order.state.visits += 1
        session.commit()
        assert (order.version, order.state.visits) == (4, 3)


def test_history_follows_a_patch(engine: Engine) -> None:
    """Commit listeners run in its transaction."""
    edits = [set_to(field_of(Kept.state, lambda state: state.status), "paid")]
    with Session(engine) as session:
        try_patch(session, Kept, "o-1", edits, provenance=Provenance.now())
        session.commit()
        versions = list_versions(session, Kept, "o-1")
    assert [each.state.status for each in versions] == ["paid", "new"]


def test_suppressed_write_is_no_conflict(engine: Engine) -> None:
    """A trigger that lets the row be locked, but not written, is an error."""
    before_update(engine, "RETURN NULL")
    with Session(engine) as session, pytest.raises(WriteSuppressed):
        patch(session, set_to(DONE, True))


@pytest.mark.contract
def test_many_patches_have_an_outcome_each(engine: Engine) -> None:
    """In the order given, with values, keys and shapes of their own."""
    with Session(engine) as session:
        session.add_all(
            Order(workflow_key=f"o-{n}", state=Ticket(visits=n)) for n in range(2, 7)
        )
        session.commit()
        order = session.get_one(Order, "o-3")
        patches = [
            Patch("o-5", [increment(VISITS, 1)], provenance=Provenance.now("five")),
            Patch("o-9", [increment(VISITS, 1)], provenance=Provenance.now()),
            Patch("o-3", [increment(VISITS, 2)], provenance=Provenance.now("three")),
            Patch("o-2", [append(LOG, "x")], provenance=Provenance.now()),
            Patch(
                "o-4",
                [increment(VISITS, 1)],
                provenance=Provenance.now(),
                expected_version=RowVersion(1, "another"),
            ),
            Patch(
                "o-6",
                [increment(VISITS, 1)],
                provenance=Provenance.now(),
                expected_version=1,
            ),
        ]
        outcomes = try_patch_many(session, Order, patches, when=VISITS < 6)
        assert [each.workflow_key for each in outcomes] == [
            each.workflow_key for each in patches
        ]
        reasons = [getattr(each, "reason", "") for each in outcomes]
        assert reasons == ["", "missing", "", "", "recreated", "condition"]
        won = [each.snapshot for each in outcomes if isinstance(each, StateCommitted)]
        for snapshot in won:
            assert get_state(session, Order, snapshot.workflow_key) == snapshot
        assert [each.state.visits for each in won] == [6, 5, 2]
        assert [each.provenance.effect_id for each in won][:2] == ["five", "three"]
        assert (order.version, order.state.visits) == (2, 5)
        assert try_patch_many(session, Order, []) == []


def test_many_patches_write_all_or_none_that_is_refused(engine: Engine) -> None:
    """A result that is refused, or a key that is given twice, writes nothing."""
    now = Provenance.now()
    with Session(engine) as session:
        session.add(Order(workflow_key="o-2", state=Ticket(visits=10)))
        session.commit()
        more = [Patch(f"o-{n}", [increment(VISITS, 1)], provenance=now) for n in (1, 2)]
        with pytest.raises(PayloadError, match="Order 'o-2' state, at 'visits'"):
            try_patch_many(session, Order, more)
        assert get_state(session, Order, "o-1").version == 1
        with pytest.raises(PayloadError, match="is given twice"):
            try_patch_many(session, Order, [more[0], more[0]])
        sent = verbs_of(engine)
        kept = [
            Patch(f"o-{n}", [increment(VISITS, -1)], provenance=now) for n in (1, 2)
        ]
        assert len(try_patch_many(session, Order, kept)) == 2
        assert sent == ["SELECT", "UPDATE"]


def test_many_patches_tell_the_history(engine: Engine) -> None:
    """Commit listeners are called once with all of them."""
    status = field_of(Kept.state, lambda state: state.status)
    with Session(engine) as session:
        session.add(Kept(workflow_key="o-2", state=Ticket()))
        session.flush()
        patches = [
            Patch(f"o-{n}", [set_to(status, f"paid {n}")], provenance=Provenance.now())
            for n in (1, 2)
        ]
        try_patch_many(session, Kept, patches)
        newest = [list_versions(session, Kept, f"o-{n}")[0] for n in (1, 2)]
    assert [each.state.status for each in newest] == ["paid 1", "paid 2"]


@pytest.mark.contract
@pytest.mark.parametrize("wrap", [lambda engine: engine, sessionmaker])
def test_store_commits_a_patch(engine: Engine, wrap: Any) -> None:
    """By one statement, which is rolled back if its result is refused."""
    store, sent = CanonicalStore(wrap(engine), Order), verbs_of(engine)

    def again(*edits: Any, **options: Any) -> Any:
        provenance = Provenance.now()
        return store.try_patch(
            workflow_key="o-1", edits=edits, provenance=provenance, **options
        )

    outcome = again(increment(VISITS, 9), when=STATUS == "new")
    assert sent == ["UPDATE"]
    assert outcome.snapshot == store.get_state("o-1")
    for edits in ([increment(VISITS, 2)], [set_to(item(0), "x")]):
        with pytest.raises(PayloadError):
            again(*edits)
    assert again(set_to(DONE, True), when=STATUS == "x").reason == "condition"
    assert again(set_to(DONE, True), expected_version=1).reason == "moved"
    assert store.get_state("o-1") == outcome.snapshot


@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_to_the_commit_of_a_store(engine: Engine, done: bool) -> None:
    """The row shows whether the patch was committed; it is applied once."""
    store = CanonicalStore(engine, Order)
    dialect, commit = engine.dialect, engine.dialect.do_commit

    def lose(connection: Any) -> None:
        dialect.do_commit = commit  # type: ignore[method-assign]
        (commit if done else dialect.do_rollback)(connection)
        raise OSError("the connection is lost")

    dialect.do_commit = lose  # type: ignore[method-assign]
    edits = [increment(VISITS, 1)]
    outcome = store.try_patch(
        workflow_key="o-1", edits=edits, provenance=Provenance.now()
    )
    assert isinstance(outcome, StateCommitted)
    assert (outcome.version, outcome.replayed) == (2, done)
    assert store.get_state("o-1") == outcome.snapshot
    assert outcome.snapshot.state.visits == 1


def test_patch_of_what_another_writer_holds_waits(engine: Engine) -> None:
    """Two patches of one row, and of one counter, lose nothing."""
    with Session(engine) as one, Session(engine) as two:
        patch(one, increment(VISITS, 1))
        two.execute(text("SET lock_timeout = '50ms'"))
        with pytest.raises(Exception, match="lock timeout"):
            patch(two, increment(VISITS, 1))
        two.rollback()
        one.commit()
        assert patch(two, increment(VISITS, 1)).snapshot.state.visits == 2


@pytest.mark.contract
def test_moved_row_at_repeatable_read_is_a_conflict(engine: Engine) -> None:
    """The database refuses the lock, as it does for try_commit."""
    level = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(level) as session, Session(engine) as other:
        assert get_state(session, Order, "o-1").version == 1
        patch(other, increment(VISITS, 1))
        other.commit()
        with pytest.raises(StateConflict) as caught:
            patch(session, increment(VISITS, 1))
        assert caught.value.reason == "serialization"


def test_sqlite_is_refused() -> None:
    """It has no operators of JSONB."""
    engine = create_engine("sqlite://")
    Order.metadata.create_all(engine, [Order.__table__])  # type: ignore[list-item]
    with Session(engine) as session, pytest.raises(MappingError, match="try_commit"):
        patch(session, set_to(DONE, True))
    engine.dispose()


class Plain(BaseModel):
    status: str = "new"
    visits: int = 0
    maybe: int | None = None
    log: list[str] = []
    names: list[str] | None = None
    by: dict[str, int] = {}
    part: Part | None = None
    note: str = ""


class Counter(WorkflowStateMixin[Plain], Base):
    __tablename__ = "counters"


def place(pick: Any) -> Any:
    """Return a path of a counter."""
    return field_of(Counter.state, pick)


SAFE = {
    "set": [set_to(place(lambda s: s.status), "ö\"'%s:x{}")],
    "set to null": [set_to(place(lambda s: s.names), None)],
    "increment": [increment(place(lambda s: s.visits), -3)],
    "increment null": [increment(place(lambda s: s.maybe), 10**18 - 1)],
    "increment below null": [increment(place(lambda s: s.part.by["q"]), 2)],
    "increment a key": [increment(place(lambda s: s.by['%s:ö"{0}']), 2)],
    "append": [append(place(lambda s: s.log), "a")],
    "append to null": [append(place(lambda s: s.names), "a")],
    "remove": [remove(place(lambda s: s.status)), remove(place(lambda s: s.by["x"]))],
    "all": [
        set_to(place(lambda s: s.part.name), "x"),
        append(place(lambda s: s.part.tags), "x"),
        increment(place(lambda s: s.by["x"]), 1),
        increment(place(lambda s: s.visits), 1),
    ],
}


@pytest.mark.contract
def test_store_sends_a_safe_patch_as_one_statement(engine: Engine) -> None:
    """It commits by itself, and writes what a patch in a transaction does."""
    store, sent, commits = CanonicalStore(engine, Counter), verbs_of(engine), []
    event.listen(engine, "commit", commits.append)
    for name, edits in SAFE.items():
        with Session(engine) as session:
            session.add(Counter(workflow_key=name, state=Plain(by={"x": 1})))
            session.commit()
            now = Provenance.now()
            expected = try_patch(session, Counter, name, edits, provenance=now)
        commits.clear()
        sent.clear()
        outcome = store.try_patch(
            workflow_key=name,
            edits=edits,
            provenance=now,
            when=place(lambda s: s.visits) < 1,
            expected_version=1,
        )
        assert (sent, commits) == (["UPDATE"], []), name
        assert isinstance(outcome, StateCommitted)
        assert outcome.snapshot == store.get_state(name), name
        assert outcome.snapshot.state == expected.snapshot.state, name
        assert (outcome.version, outcome.replayed) == (2, False)
    sent.clear()
    unmet = {"when": place(lambda s: s.status) == "sent"}
    for key, options, reason in (
        ("set", unmet, "condition"),
        ("set", {"expected_version": 1}, "moved"),
        ("no", {}, "missing"),
    ):
        lost = store.try_patch(
            workflow_key=key, edits=SAFE["set"], provenance=Provenance.now(), **options
        )
        assert isinstance(lost, StateConflict)
        assert lost.reason == reason
    assert (sent, commits) == (["UPDATE", "SELECT"] * 3, [])


def test_safe_patch_that_finds_no_place_is_refused(engine: Engine) -> None:
    """It is sent again in a transaction, which says why; the row stays as it was."""
    store = CanonicalStore(engine, Counter)
    with Session(engine) as session:
        session.add(Counter(workflow_key="o-1", state=Plain()))
        session.commit()
    for state, edits in (
        ('{"visits": "5"}', SAFE["increment"]),  # Pydantic reads it as an int.
        ('{"visits": true}', SAFE["increment"]),
        ('{"log": {}}', SAFE["append"]),
        ('{"part": 7}', SAFE["increment below null"]),
    ):
        with engine.begin() as connection:
            new = text("UPDATE counters SET state = CAST(:state AS JSONB)")
            connection.execute(new, {"state": state})
        with pytest.raises(PayloadError):
            store.try_patch(
                workflow_key="o-1", edits=edits, provenance=Provenance.now()
            )
        with engine.begin() as connection:
            now = connection.scalar(text("SELECT CAST(state AS TEXT) FROM counters"))
        assert now == state
    with engine.begin() as connection:
        connection.execute(text("""UPDATE counters SET state = '{"visits": 1e18}'"""))
    outcome = store.try_patch(
        workflow_key="o-1", edits=SAFE["increment"], provenance=Provenance.now()
    )
    assert isinstance(outcome, StateCommitted)
    assert outcome.snapshot.state.visits == 10**18 - 3


def test_row_that_was_invalid_before_a_safe_patch(engine: Engine) -> None:
    """The patch counts; its snapshot raises what reading the row raises."""
    store = CanonicalStore(engine, Counter)
    with Session(engine) as session:
        session.add(Counter(workflow_key="o-1", state=Plain()))
        session.commit()
        session.execute(text("""UPDATE counters SET state = '{"note": 7}'"""))
        session.commit()
    outcome = store.try_patch(
        workflow_key="o-1", edits=SAFE["increment"], provenance=Provenance.now()
    )
    assert outcome.version == 2  # type: ignore[union-attr]
    with pytest.raises(PayloadError) as read:
        store.get_state("o-1")
    with pytest.raises(PayloadError) as found:
        _ = outcome.snapshot  # type: ignore[union-attr]
    assert str(found.value) == str(read.value)


@pytest.mark.contract
@pytest.mark.parametrize("expected_version", [None, 1])
def test_lost_answer_to_a_safe_patch(
    engine: Engine, expected_version: int | None
) -> None:
    """The row's effect shows that it was done; nothing shows that it never will be.

    But a patch of an expected version can be sent again.
    """
    faults, edits = Faults(engine), SAFE["increment"]
    faults.also_updates()
    store = CanonicalStore(engine, Counter, resolve=RetryPolicy(max_attempts=2))
    with Session(engine) as session:
        session.add_all(Counter(workflow_key=key, state=Plain()) for key in "abc")
        session.commit()

    def lose(key: str) -> Any:
        faults.times = 1
        return store.try_patch(
            workflow_key=key,
            edits=edits,
            provenance=Provenance.now(),
            expected_version=expected_version,
        )

    faults.done = True
    outcome = lose("a")
    assert isinstance(outcome, StateCommitted)
    assert (outcome.version, outcome.replayed) == (2, True)
    assert outcome.snapshot == store.get_state("a")

    def write_on() -> None:
        store.try_patch(workflow_key="b", edits=edits, provenance=Provenance.now())

    faults.meanwhile = write_on
    with pytest.raises(OutcomeUnknown, match="'b'"):
        lose("b")
    assert store.get_state("b").state.visits == -6

    faults.done = False
    if expected_version is None:
        with pytest.raises(OutcomeUnknown, match="'c'"):
            lose("c")
        assert store.get_state("c").version == 1
    else:
        outcome = lose("c")
        assert (outcome.version, outcome.replayed) == (2, False)
        assert store.get_state("c") == outcome.snapshot
