"""Contract: get_state, try_commit and CanonicalStore, over every driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine, event, select, text
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    ConflictReason,
    PayloadError,
    Provenance,
    ReducerService,
    StateCommitted,
    StateConflict,
    WorkflowNotFound,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.canonical import CanonicalBase, WorkflowState
from sa_wfstate.errors import MappingError, UnflushedChanges, WriteSuppressed
from sa_wfstate.history import HistoryMixin, keep_history

from ..orders import Customer, Order, OrderState
from ..triggers import before_update

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class Evolved(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "evolved"
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: data | {"notes": ["upcast"]}}  # noqa: RUF012


class Kept(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "kept"


class KeptHistory(HistoryMixin, Base):
    __tablename__ = "kept_history"


keep_history(Kept, KeptHistory)


class Free(WorkflowStateMixin[dict[str, Any]], Base):
    __tablename__ = "free"


PAID = OrderState(status="paid")


@pytest.fixture(autouse=True)
def _tables(
    create_tables: Callable[..., None], sessions: sessionmaker[Session]
) -> None:
    create_tables(Order.metadata, Base.metadata)
    with sessions.begin() as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))


def commit(session: Session, expected_version: int, key: str = "o-1") -> Any:
    """Try to commit a paid order."""
    return try_commit(
        session,
        Order,
        key,
        expected_version=expected_version,
        state=PAID,
        provenance=Provenance.now("effect-2"),
    )


def won(outcome: Any) -> bool:
    """Say which of the two outcomes it is: both are true as they stand."""
    return isinstance(outcome, StateCommitted)


def store_commit(
    store: CanonicalStore[OrderState], expected_version: int, effect_id: str = "e-2"
) -> Any:
    """Try to commit a paid order by itself."""
    return store.try_commit(
        workflow_key="o-1",
        expected_version=expected_version,
        state=PAID,
        provenance={"effect_id": effect_id, "timestamp": "2026-01-01T00:00:00Z"},
    )


def statements_of(engine: Engine) -> list[str]:
    """Collect what is sent from now on."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        sent.append(args[2])

    return sent


def test_get_state_reads_a_snapshot(engine: Engine) -> None:
    """All six columns come out, the state as its model."""
    with Session(engine) as session:
        snapshot = get_state(session, Order, "o-1")
    assert (snapshot.workflow_key, snapshot.version) == ("o-1", 1)
    assert snapshot.state == OrderState()
    assert snapshot.updated_at.tzinfo is not None
    assert isinstance(snapshot.provenance, Provenance)


def test_get_state_sees_the_session_and_shares_nothing(engine: Engine) -> None:
    """Pending changes are flushed first; changing the snapshot changes no row."""
    with Session(engine) as session:
        session.get_one(Order, "o-1").state.status = "packed"
        snapshot = get_state(session, Order, "o-1")
        assert snapshot.state.status == "packed"
        snapshot.state.status = "lost"
        session.commit()
        assert get_state(session, Order, "o-1").state.status == "packed"


def test_missing_workflow_is_named(engine: Engine) -> None:
    """A key without a row raises WorkflowNotFound, in a session and in the store."""
    with Session(engine) as session, pytest.raises(WorkflowNotFound, match="'o-9'"):
        get_state(session, Order, "o-9")
    with pytest.raises(WorkflowNotFound, match="Order 'o-9'"):
        CanonicalStore(engine, Order).get_state("o-9")


def test_commit_wins_with_one_statement(engine: Engine) -> None:
    """The winner's snapshot is what the next reader sees."""
    with Session(engine) as session:
        session.connection()
        sent = statements_of(engine)
        outcome = commit(session, 1)
        assert len(sent) == 1
        session.commit()
        assert isinstance(outcome, StateCommitted)
        assert outcome.version == 2
        assert outcome.snapshot == get_state(session, Order, "o-1")


def test_commit_loses_and_the_session_lives_on(engine: Engine) -> None:
    """The loss is a value, and the rest of the transaction is untouched by it."""
    with Session(engine) as session:
        session.add(Customer(name="Kim"))
        outcome = commit(session, 7)
        assert isinstance(outcome, StateConflict)
        assert outcome.reason is ConflictReason.MOVED
        assert (outcome.expected_version, outcome.actual_version) == (7, 1)
        assert outcome.current == get_state(session, Order, "o-1")
        assert won(commit(session, 1))
        session.commit()
        assert session.scalars(select(Customer.name)).all() == ["Kim"]


def test_commit_checks_also_when_nothing_changes(engine: Engine) -> None:
    """An equal state still counts a version, and is still checked."""
    for expected, kind in (
        (1, StateCommitted),
        (1, StateConflict),
        (2, StateCommitted),
    ):
        with Session(engine) as session:
            assert type(commit(session, expected)) is kind
            session.commit()


@pytest.mark.parametrize("in_place", [False, True])
def test_state_that_the_base_holds_is_not_sent(engine: Engine, in_place: bool) -> None:
    """The version and the provenance are written, the state is left as it is."""
    store = CanonicalStore(engine, Order)
    base: Any = store.get_state("o-1")
    state = base.state if in_place else OrderState()
    sent = statements_of(engine)
    outcome: Any = store.try_commit(
        workflow_key="o-1",
        expected_version=1,
        state=state,
        provenance=Provenance.now("effect-2"),
        base=base,
    )
    (statement,) = sent
    assert "state=" not in statement
    assert won(outcome)
    read = store.get_state("o-1")
    assert (read.version, read.state) == (2, OrderState())
    assert read.provenance.effect_id == "effect-2"
    assert outcome.snapshot == read
    assert outcome.snapshot.state is not state
    del sent[:]
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        again = try_commit(
            session,
            Order,
            "o-1",
            expected_version=2,
            state=OrderState(),
            provenance=Provenance.now(),
            base=outcome.snapshot,
        )
        assert won(again)
        assert (order.version, order.state) == (3, OrderState())
        session.commit()
    assert "state=" not in sent[-1]


def test_state_that_the_base_does_not_hold_is_sent(engine: Engine) -> None:
    """The base is what was read, whatever has become of its state since."""
    store = CanonicalStore(engine, Order)
    version = 1
    for way in ("in place", "copied", "another"):
        base: Any = store.get_state("o-1")
        state = OrderState(status=way)
        if way == "in place":
            state = base.state
            state.status = way
        elif way == "copied":
            base = base.model_copy(update={"state": state})
        outcome = store.try_commit(
            workflow_key="o-1",
            expected_version=version,
            state=state,
            provenance=Provenance.now(),
            base=base,
        )
        assert won(outcome)
        version += 1
        assert store.get_state("o-1").state.status == way


def test_base_detects_a_recreated_row(engine: Engine) -> None:
    """A row that was deleted and created again is not written over."""
    store = CanonicalStore(engine, Order)
    base = store.get_state("o-1")
    with Session(engine) as session:
        session.delete(session.get_one(Order, "o-1"))
        session.flush()
        assert won(commit(session, 0))
        session.commit()
    for state in (OrderState(), PAID):
        outcome: Any = store.try_commit(
            workflow_key="o-1",
            expected_version=1,
            state=state,
            provenance=Provenance.now(),
            base=base,
        )
        assert outcome.reason is ConflictReason.RECREATED
    assert store.get_state("o-1").state == PAID


def test_effect_id_that_is_given_counts_more_than_that_of_the_base(
    engine: Engine,
) -> None:
    """What the base holds says nothing of the state that another effect wrote."""
    store = CanonicalStore(engine, Order)
    base = store.get_state("o-1")
    with Session(engine) as session:
        session.delete(session.get_one(Order, "o-1"))
        session.flush()
        assert won(commit(session, 0))
        session.commit()
    outcome = store.try_commit(
        workflow_key="o-1",
        expected_version=1,
        expected_effect_id="effect-2",
        state=base.state,
        provenance=Provenance.now(),
        base=base,
    )
    assert won(outcome)
    assert store.get_state("o-1").state == base.state


@pytest.mark.parametrize(("key", "version"), [("o-1", 2), ("o-2", 1)])
def test_base_of_another_version_is_refused(
    engine: Engine, key: str, version: int
) -> None:
    """It would not be what the commit is based on."""
    base = CanonicalStore(engine, Order).get_state("o-1")
    with (
        Session(engine) as session,
        pytest.raises(PayloadError, match="'o-1' at version 1") as caught,
    ):
        try_commit(
            session,
            Order,
            key,
            expected_version=version,
            state=PAID,
            provenance=Provenance.now(),
            base=base,
        )
    assert caught.value.path == "base"


@pytest.mark.parametrize("rewritten", ["before", "after"])
def test_unchanged_state_of_an_older_shape_is_sent(
    engine: Engine, rewritten: str
) -> None:
    """Schema version and payload always fit, whenever the row got the older shape."""
    store = CanonicalStore(engine, Evolved)
    created = store.try_commit(
        workflow_key="e-1",
        expected_version=0,
        state=OrderState(notes=["upcast"]),
        provenance=Provenance.now(),
    )
    assert won(created)

    def rewrite() -> None:
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE evolved SET state = state - 'notes', schema_version = 1")
            )

    if rewritten == "before":
        rewrite()
    base = store.get_state("e-1")
    if rewritten == "after":
        rewrite()
    outcome: Any = store.try_commit(
        workflow_key="e-1",
        expected_version=1,
        state=base.state,
        provenance=Provenance.now(),
        base=base,
    )
    assert outcome.snapshot == store.get_state("e-1")
    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT schema_version, state ->> 'notes' FROM evolved")
        )
        assert row.one() == (2, '["upcast"]')


def test_reducer_that_changes_nothing_sends_no_state(engine: Engine) -> None:
    """Its commit counts a version, be the state just read or kept from before."""
    service = ReducerService(engine, Order, lambda state, _: state)
    sent = statements_of(engine)
    for version in (2, 3):
        action = Action(workflow_key="o-1", action_id=uuid4(), payload=None)
        assert service.handle(action).version == version
    updates = [each for each in sent if each.startswith("UPDATE")]
    assert len(updates) == 2
    assert not any("state=" in each for each in updates)


def test_commit_creates_with_version_zero(engine: Engine) -> None:
    """Version 0 creates; when the row is there already, that is a conflict."""
    with Session(engine) as session:
        outcome = commit(session, 0, "o-2")
        assert isinstance(outcome, StateCommitted)
        assert outcome.version == 1
        session.commit()
        assert get_state(session, Order, "o-2").state == PAID
        again = commit(session, 0, "o-2")
        assert isinstance(again, StateConflict)
        assert again.reason is ConflictReason.EXISTS
        assert again.actual_version == 1
        session.commit()


def test_commit_to_a_missing_row_loses(engine: Engine) -> None:
    """A workflow that was deleted, or never was, is missing."""
    with Session(engine) as session:
        outcome = commit(session, 3, "o-9")
    assert isinstance(outcome, StateConflict)
    assert outcome.reason is ConflictReason.MISSING
    assert (outcome.actual_version, outcome.current) == (None, None)


def test_held_instance_is_right_after_commit(engine: Engine) -> None:
    """An instance in the session has the new values, and is still watched."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        assert order.state.status == "new"
        commit(session, 1)
        assert (order.version, order.state) == (2, PAID)
        assert order.state is not PAID
        assert order.provenance.effect_id == "effect-2"
        order.state.status = "sent"
        session.commit()
        assert order.version == 3
        savepoint = session.begin_nested()
        commit(session, 3)
        assert order.state.status == "paid"
        savepoint.rollback()
        assert (order.version, order.state.status) == (3, "sent")


def test_unflushed_changes_are_not_overwritten(engine: Engine) -> None:
    """try_commit on a row that the session has changed itself is refused."""
    with Session(engine, autoflush=False) as session:
        order = session.get_one(Order, "o-1")
        order.state.status = "packed"
        with pytest.raises(UnflushedChanges, match="Order 'o-1'"):
            commit(session, 1)
        session.flush()
        assert won(commit(session, 2))
        session.commit()


def test_hidden_write_is_not_a_conflict(engine: Engine) -> None:
    """A trigger that drops the write is said to do so; retrying would never end."""
    before_update(engine, "RETURN NULL")
    with Session(engine) as session:
        with pytest.raises(WriteSuppressed, match="trigger"):
            commit(session, 1)
        session.get_one(Order, "o-1").state.status = "paid"
        with pytest.raises(WriteSuppressed, match="Order 'o-1'"):
            session.commit()


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"expected_version": -1}, "expected_version"),
        ({"expected_version": True}, "expected_version"),
        ({"expected_version": 2**63}, "expected_version"),
        ({"provenance": {"effect_id": "e"}}, "timestamp"),
        ({"provenance": {"timestamp": "2026-01-01T00:00:00Z"}}, "effect_id"),
        ({"provenance": Provenance.now("a\0b")}, "effect_id"),
        ({"provenance": Provenance.now(lease=(1, 2))}, "*"),
        ({"provenance": Provenance.model_construct(effect_id="e")}, "timestamp"),
        ({"state": {"status": 7}}, "status"),
        ({"workflow_key": ""}, "workflow_key"),
    ],
)
def test_bad_input_is_refused_before_sql(
    engine: Engine, arguments: dict[str, Any], path: str
) -> None:
    """What cannot be stored names itself, and nothing is sent."""
    arguments = {
        "workflow_key": "o-1",
        "expected_version": 1,
        "state": PAID,
        "provenance": Provenance.now(),
    } | arguments
    sent = statements_of(engine)
    with Session(engine) as session, pytest.raises(PayloadError) as caught:
        try_commit(session, Order, arguments.pop("workflow_key"), **arguments)
    assert caught.value.path == path
    assert sent == []


def test_class_that_is_no_workflow_is_refused(engine: Engine) -> None:
    """The error says which class, and what it should derive from."""
    with Session(engine) as session, pytest.raises(MappingError, match="Customer"):
        get_state(session, Customer, "Kim")  # type: ignore[arg-type]
    with pytest.raises(MappingError, match="OrderState: is not a mapped class"):
        CanonicalStore(engine, OrderState)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [lambda engine: engine, sessionmaker])
def test_store_commits_by_itself(engine: Engine, wrap: Any) -> None:
    """Each call of a store is a transaction of its own."""
    store = CanonicalStore(wrap(engine), Order)
    read = store.get_state("o-1")
    outcome = store_commit(store, read.version)
    assert isinstance(outcome, StateCommitted)
    assert store.get_state("o-1") == outcome.snapshot
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    lost = store_commit(store, read.version, "e-3")
    assert isinstance(lost, StateConflict)
    assert lost.current == outcome.snapshot


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_refused_statement_is_a_conflict(engine: Engine, level: Any) -> None:
    """Where the database itself refuses, the session's transaction is over."""
    with Session(engine.execution_options(isolation_level=level)) as session:
        assert get_state(session, Order, "o-1").version == 1
        assert won(store_commit(CanonicalStore(engine, Order), 1))
        with pytest.raises(StateConflict) as caught:
            commit(session, 1)
        assert caught.value.reason is ConflictReason.SERIALIZATION
        session.rollback()
        assert won(commit(session, 2))
        session.commit()


def refuse_effect(engine: Engine, effect_id: str, by: str) -> None:
    """Let the database refuse *effect_id*: at COMMIT, or in its history."""
    table, when = {
        "commit": ("kept", "CONSTRAINT TRIGGER refuse AFTER UPDATE ON kept DEFERRABLE"),
        "listener": ("kept_history", "TRIGGER refuse BEFORE INSERT ON kept_history"),
    }[by]
    deferred = "INITIALLY DEFERRED" if table == "kept" else ""
    function = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.provenance->>'effect_id' = '{effect_id}' THEN"
        " RAISE EXCEPTION 'refused' USING ERRCODE = '40001';"
        " END IF; RETURN NEW; END $$"
    )
    trigger = f"CREATE {when} {deferred} FOR EACH ROW EXECUTE FUNCTION refuse()"
    with engine.begin() as connection:
        connection.execute(text(function))
        connection.execute(text(trigger))


@pytest.mark.parametrize("wrap", [lambda engine: engine, sessionmaker])
@pytest.mark.parametrize("by", ["commit", "listener"])
@pytest.mark.parametrize("moved", [True, False])
def test_refused_transaction_is_an_outcome(
    engine: Engine, wrap: Any, by: str, moved: bool
) -> None:
    """What 40001 ends is a conflict, and the row that was read after it says which."""
    strict = engine.execution_options(isolation_level="SERIALIZABLE")
    store = CanonicalStore(wrap(strict), Kept)
    provenance = Provenance.now("refused")
    write = {"workflow_key": "o-1", "state": PAID, "provenance": provenance}
    store.try_commit(**write | {"provenance": Provenance.now()}, expected_version=0)
    refuse_effect(engine, "refused", by)
    rival = CanonicalStore(engine, Kept)
    pending = [moved]

    @event.listens_for(engine, "checkin")
    def overtake(*_: object) -> None:
        if pending.pop() if pending else False:
            write_of_rival = write | {"provenance": Provenance.now("rival")}
            assert won(rival.try_commit(**write_of_rival, expected_version=1))

    outcome = store.try_commit(**write, expected_version=1)
    assert isinstance(outcome, StateConflict)
    assert (outcome.reason, outcome.actual_version) == (
        (ConflictReason.MOVED, 2) if moved else (ConflictReason.SERIALIZATION, None)
    )
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("by", ["commit", "listener"])
def test_refused_transaction_of_many_is_a_conflict(engine: Engine, by: str) -> None:
    """In a session it is raised, by the statement or by COMMIT."""
    keys = ["o-1", "o-2"]

    def send(session: Session, version: int, effect_id: str) -> None:
        commits = [
            Commit(
                key,
                expected_version=version,
                state=PAID,
                provenance=Provenance.now(effect_id),
            )
            for key in keys
        ]
        assert all(map(won, try_commit_many(session, Kept, commits)))
        session.commit()

    with Session(engine.execution_options(isolation_level="SERIALIZABLE")) as session:
        send(session, 0, "first")
        refuse_effect(engine, "refused", by)
        with pytest.raises(StateConflict) as caught:
            send(session, 1, "refused")
        session.rollback()
        assert {each.workflow_key for each in caught.value.conflicts} == set(keys)
        send(session, 1, "second")


def test_loss_is_refused_although_the_base_holds_its_json(engine: Engine) -> None:
    """That a state is not sent does not mean that it is not looked at."""

    class Fuller(OrderState):
        extra: int = 5

    with Session(engine) as session:
        base = get_state(session, Order, "o-1")
        with pytest.raises(PayloadError, match="Fuller"):
            try_commit(
                session,
                Order,
                "o-1",
                expected_version=1,
                state=Fuller(),
                provenance=Provenance.now(),
                base=base,
            )
        session.get_one(Order, "o-1").state = Fuller()
        with pytest.raises(PayloadError, match="Fuller"):
            session.flush()


def try_empty(session: Session, entity: Any, key: str, expected_version: int) -> Any:
    """Try to commit an empty dict."""
    return try_commit(
        session,
        entity,
        key,
        expected_version=expected_version,
        state={},
        provenance=Provenance.now(),
    )


def test_empty_dict_is_a_state_like_any_other(engine: Engine) -> None:
    """It is written by a flush and by a commit, read, and found by a conflict."""
    with Session(engine) as session:
        session.add(Free(workflow_key="f-1", state={}))
        session.commit()
        assert isinstance(try_empty(session, Free, "f-1", 1), StateCommitted)
        assert isinstance(try_empty(session, Free, "f-2", 0), StateCommitted)
        conflict = try_empty(session, Free, "f-1", 1)
        assert isinstance(conflict, StateConflict)
        assert conflict.current is not None
        assert (conflict.current.version, conflict.current.state) == (2, {})
        assert get_state(session, Free, "f-2").state == {}


def test_canonical_state_is_not_empty(
    engine: Engine, create_tables: Callable[..., None]
) -> None:
    """It is refused where it is written; a row that has one cannot be read, but won."""
    create_tables(CanonicalBase.metadata)
    refused = r"WorkflowState 'w-1' state: .*at least 1"
    with Session(engine) as session:
        with pytest.raises(PayloadError, match=refused):
            try_empty(session, WorkflowState, "w-1", 0)
        session.add(WorkflowState(workflow_key="w-1", state={}))
        with pytest.raises(PayloadError, match=refused):
            session.flush()
        session.rollback()
        session.add(WorkflowState(workflow_key="w-1", state={"pin": "s3cret"}))
        session.commit()
        session.execute(text("UPDATE workflow_state SET state = '{}'"))
        with pytest.raises(PayloadError, match="WorkflowState 'w-1' state"):
            get_state(session, WorkflowState, "w-1")
        lost = try_commit(
            session,
            WorkflowState,
            "w-1",
            expected_version=7,
            state={"a": 1},
            provenance=Provenance.now(),
        )
        assert isinstance(lost, StateConflict)
        assert (lost.actual_version, lost.current) == (1, None)


def test_outcome_has_the_version_that_a_trigger_made(
    engine: Engine, database: URL
) -> None:
    """The outcome, and the instance from then on, have the values of the row."""
    plain = create_engine(database)
    before_update(plain, "NEW.version := NEW.version + 10; RETURN NEW")
    plain.dispose()
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        outcome = commit(session, 1)
        assert (outcome.version, outcome.snapshot.version, order.version) == (
            12,
            12,
            12,
        )
        again = commit(session, 12)
        assert (again.version, get_state(session, Order, "o-1").version) == (23, 23)
        session.commit()
    outcome = store_commit(CanonicalStore(engine, Order), 23)
    assert outcome.version == 34
