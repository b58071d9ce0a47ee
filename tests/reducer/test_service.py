"""Contract: ReducerService reads, reduces, commits, and again after a conflict."""

from __future__ import annotations

import pickle
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from sa_wfstate import (
    Action,
    CanonicalStore,
    ConflictReason,
    Intent,
    PayloadError,
    Provenance,
    ReducerService,
    Reduction,
    RetryPolicy,
    StateCommitted,
    WorkflowNotFound,
    WorkflowStateMixin,
)
from sa_wfstate.errors import (
    ActionIdReused,
    OutcomeUnknown,
    ReducerGaveUp,
    VersionNotKept,
)
from sa_wfstate.hooks import Hooks
from sa_wfstate.reducer.key_queue import FRESH
from sa_wfstate.store.connections import READ_COMMITTED, Connections

from ..orders import Order, OrderActions, OrderState
from ..triggers import before_update
from ..verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

    from sa_wfstate import StateConflict, WorkflowSnapshot

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class Named(BaseModel):
    count: int = 0
    name: UUID = Field(default_factory=uuid4)


class Drawn(WorkflowStateMixin[Named], Base):
    __tablename__ = "drawn"


class TooLate(Exception):
    """What a reducer of the application raises."""


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Order.metadata, Base.metadata)


class LostConnection(Exception):
    """As libpq reports it: without a code."""

    sqlstate = None


def note(state: OrderState, action: Action[str]) -> OrderState:
    """Append the payload, in place: the state belongs to the reducer."""
    if state.status == "closed":
        raise TooLate(action.payload)
    state.notes.append(action.payload)
    return state


def service(engine: Any, reducer: Any = note, **options: Any) -> ReducerService[Any]:
    """Make a service that creates what it does not find."""
    return ReducerService(engine, Order, reducer, **{"initial": OrderState} | options)


def action(payload: Any = "a", **more: Any) -> Action[Any]:
    """Make an action of the one order."""
    return Action(
        **{"workflow_key": "o-1", "action_id": uuid4(), "payload": payload} | more
    )


def write(engine: Engine, state: OrderState | None = None) -> None:
    """Commit to the order as another process would."""
    store = CanonicalStore(engine, Order)
    current = store.get_state("o-1")
    outcome = store.try_commit(
        workflow_key="o-1",
        expected_version=current.version,
        state=state or OrderState(notes=[*current.state.notes, "other"]),
        provenance=Provenance.now(),
    )
    assert isinstance(outcome, StateCommitted)


def delete(engine: Engine) -> None:
    """Delete the order as another process would."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM orders"))


class Recorded(Hooks):
    """Hooks that write down what they are told."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def started(self, entity: str, action: Action[Any]) -> None:
        self.heard.append(("started", entity))

    def committed(self, entity: str, action: Any, outcome: Any, seconds: float) -> None:
        assert 0 < seconds < 60
        self.heard.append(("committed", outcome.version))

    def duplicate(self, entity: str, action: Any, outcome: Any, seconds: float) -> None:
        self.heard.append(("duplicate", outcome.version))

    def conflicted(self, entity: str, conflict: StateConflict, attempt: int) -> None:
        self.heard.append(("conflicted", conflict.actual_version, attempt))

    def retried(self, entity: str, key: str, attempt: int, delay: float) -> None:
        assert 0 <= delay <= 0.25
        self.heard.append(("retried", key, attempt))

    def gave_up(self, entity: str, action: Any, error: Any, seconds: float) -> None:
        self.heard.append(("gave up", error.attempts))


def test_actions_are_reduced_one_after_the_other(engine: Engine) -> None:
    """The first action creates the row, the next one stands on it."""
    handle = service(engine).handle
    first, second = handle(action("a")), handle(action("b"))
    assert (first.version, first.attempts, first.replayed) == (1, 1, False)
    assert first.snapshot.state == OrderState(notes=["a"])
    assert second.snapshot == CanonicalStore(engine, Order).get_state("o-1")
    assert second.snapshot.state == OrderState(notes=["a", "b"])


def test_initial_is_called_for_each_new_workflow(engine: Engine) -> None:
    """A model with a default that is computed has another state each time."""
    calls = iter(range(2))
    orders = service(engine, initial=lambda: OrderState(notes=[next(calls)]))
    for number in range(2):
        made = orders.handle(action(workflow_key=f"o-{number}")).snapshot.state
        assert made.notes == [number, "a"]
    draws = ReducerService(engine, Drawn, lambda state, _: state, initial=Named)
    names = {
        draws.handle(action(workflow_key=f"d-{n}")).snapshot.state.name
        for n in range(2)
    }
    assert len(names) == 2


def test_initial_state_of_a_model_is_not_shared(engine: Engine) -> None:
    """What a reducer changes in it is not in that of the next workflow."""
    orders = service(engine)
    for number in range(3):
        made = orders.handle(action(workflow_key=f"o-{number}")).snapshot.state
        assert made == OrderState(notes=["a"])


def test_missing_workflow_without_initial(engine: Engine) -> None:
    """Without initial a key that does not exist is WorkflowNotFound."""
    with pytest.raises(WorkflowNotFound):
        service(engine, initial=None).handle(action())


def test_sessionmaker_is_a_bind_too(engine: Engine) -> None:
    """The sessions of the application choose the engine."""
    sessions = sessionmaker(binds={Order: engine})
    for dedup in (None, OrderActions):
        assert service(sessions, dedup=dedup).handle(action())
    assert CanonicalStore(engine, Order).get_state("o-1").version == 2


def test_provenance_is_filled_in(engine: Engine) -> None:
    """An effect id of its own, the action's id, and the action's further keys."""
    handle = service(engine).handle
    one = action(lease_id="lease-7", epoch=3)
    provenance = handle(one).snapshot.provenance
    assert provenance.action_id == one.action_id
    assert provenance.model_extra == {"lease_id": "lease-7", "epoch": 3}
    assert UUID(provenance.effect_id)
    assert handle(action()).snapshot.provenance.effect_id != provenance.effect_id


class Leased(Action[Any]):
    lease_id: UUID
    epoch: int = 1


class Stamped(Action[Any]):
    timestamp: str = ""


def test_declared_keys_of_an_action_are_in_the_provenance(engine: Engine) -> None:
    """As JSON, beside those that it does not declare."""
    one = Leased(**dict(action()) | {"lease_id": UUID(int=7), "shard": 2})
    provenance = service(engine).handle(one).snapshot.provenance
    assert provenance.model_extra == {
        "lease_id": str(UUID(int=7)),
        "epoch": 1,
        "shard": 2,
    }
    with pytest.raises(PayloadError, match="'timestamp': is written by the service"):
        Stamped(**dict(action()))


@pytest.mark.parametrize("key", ["effect_id", "timestamp", "folded"])
def test_action_cannot_write_what_the_service_writes(key: str) -> None:
    """A further key that would be lost is refused."""
    with pytest.raises(PayloadError, match=f"action, at '{key}': is written by the"):
        action(**{key: "x"})


@pytest.mark.parametrize(
    ("field", "value"),
    [("workflow_key", ""), ("action_id", ["secret"]), ("payload", {"paid": "secret"})],
)
def test_wrong_action_is_refused(field: str, value: Any) -> None:
    """The error names the field and shows no payload, also where pydantic raises it."""
    data = {"workflow_key": "o-1", "action_id": uuid4(), "payload": {"paid": 1}}
    data[field] = value
    with pytest.raises(PayloadError, match=f"action, at '{field}") as caught:
        Action[dict[str, int]](**data)
    with pytest.raises(ValidationError, match=field) as wrapped:
        Action[dict[str, int]].model_validate(data)
    assert caught.value.path.split(".")[0] == field
    for shown in (str(caught.value), repr(caught.value), str(wrapped.value)):
        assert "secret" not in shown
        assert "input" not in shown


def test_conflict_is_reduced_again(engine: Engine) -> None:
    """After a conflict the reducer sees the state of the winner."""
    seen: list[list[str]] = []

    def reducer(state: OrderState, action: Action[str]) -> OrderState:
        seen.append(list(state.notes))
        if len(seen) == 2:
            time.sleep(0.05)  # It is overtaken during the attempt, not before.
            write(engine)
        return note(state, action)

    hooks = Recorded()
    handle = service(engine, reducer, hooks=hooks).handle
    handle(action("a"))
    outcome = handle(action("b"))
    assert seen == [[], ["a"], ["a", "other"]]
    assert outcome.snapshot.state.notes == ["a", "other", "b"]
    assert (outcome.version, outcome.attempts) == (3, 2)
    assert hooks.heard == [
        ("started", "Order"),
        ("committed", 1),
        ("started", "Order"),
        ("conflicted", 2, 1),
        ("retried", "o-1", 1),
        ("committed", 3),
    ]


def test_locked_attempt_wins(engine: Engine) -> None:
    """After conflicts the row is locked: no other write until the reducer ends."""

    def reducer(state: OrderState, action: Action[str]) -> OrderState:
        try:
            with engine.begin() as connection:
                connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
                connection.execute(text("UPDATE orders SET version = version + 1"))
        except Exception:  # noqa: BLE001
            state.notes.append("locked")
        return note(state, action)

    handle = service(engine, reducer).handle
    handle(action("a"))
    assert handle(action("b")).snapshot.state.notes == ["a", "locked", "b"]


def test_recreated_workflow_is_not_written_over(engine: Engine) -> None:
    """What is kept has the version of the new row by chance, and still loses."""
    hooks = Recorded()
    orders = service(engine, hooks=hooks)
    orders.handle(action("old"))
    delete(engine)
    CanonicalStore(engine, Order).try_commit(
        workflow_key="o-1",
        expected_version=0,
        state=OrderState(notes=["new"]),
        provenance=Provenance.now(),
    )
    outcome = orders.handle(action("a"))
    assert outcome.snapshot.state.notes == ["new", "a"]
    assert outcome.version == 2
    assert ("conflicted", 1, 1) in hooks.heard


def test_deleted_workflow_is_begun_again(engine: Engine) -> None:
    """What is kept of a row that is gone does not bring it back."""
    orders = service(engine)
    orders.handle(action("old"))
    delete(engine)
    assert orders.handle(action("a")).snapshot.state.notes == ["a"]
    without = service(engine, initial=None)
    without.handle(action("b"))
    delete(engine)
    with pytest.raises(WorkflowNotFound):
        without.handle(action("c"))


def test_gives_up_after_the_last_attempt(engine: Engine) -> None:
    """ReducerGaveUp tells the last conflict, the attempts and the time they took."""

    def reducer(state: OrderState, action: Action[str]) -> OrderState:
        write(engine)
        return note(state, action)

    hooks = Recorded()
    service(engine).handle(action("a"))
    handle = service(engine, reducer, lock_on_contention=False, hooks=hooks).handle
    with pytest.raises(ReducerGaveUp, match="not committed after 3") as caught:
        handle(action("b"))
    error = caught.value
    assert error.conflict is not None
    assert error.conflict.reason is ConflictReason.MOVED
    assert (error.attempts, error.conflict.actual_version) == (3, 4)
    assert 0 < error.elapsed < 10
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert hooks.heard[-1] == ("gave up", 3)


@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_rival_of_the_same_reducer_does_not_hang(engine: Engine, dedup: Any) -> None:
    """Under the lock of the row, what the reducer itself waits for ends the attempt."""
    hooks = Recorded()

    def reducer(state: OrderState, action: Action[str]) -> OrderState:
        if state.notes:
            # Greenlets have one thread, so what it waits for must not be awaited.
            with rival.begin() as connection:
                connection.execute(text("UPDATE orders SET version = version + 1"))
        return note(state, action)

    rival = create_engine(engine.url.set(drivername="postgresql+psycopg"))
    orders = service(engine, reducer, dedup=dedup, lock_limit=0.3, hooks=hooks)
    orders.handle(action("a"))
    one = action("b")
    with pytest.raises(ReducerGaveUp, match="not committed after 3") as caught:
        orders.handle(one)
    assert caught.value.conflict is not None
    assert caught.value.conflict.reason is ConflictReason.MOVED
    assert caught.value.elapsed < 10
    assert isinstance(caught.value.__cause__, DBAPIError | OSError)
    assert hooks.heard[-1] == ("gave up", 3)
    rival.dispose()
    assert service(engine, dedup=dedup).handle(one).snapshot.state.notes == ["a", "b"]


def test_rival_of_a_writer_does_not_hang(engine: Engine) -> None:
    """A writer runs under the lock that the write has taken, in each attempt."""

    def writer(_: object, snapshot: WorkflowSnapshot[Any], __: object) -> None:
        if snapshot.version > 1:
            with rival.begin() as connection:
                connection.execute(text("UPDATE orders SET version = version + 1"))

    rival = create_engine(engine.url.set(drivername="postgresql+psycopg"))
    options: dict[str, Any] = {"dedup": OrderActions, "lock_limit": 0.3}
    handle = service(engine, writers=[writer], **options).handle
    handle(action("a"))
    with pytest.raises(ReducerGaveUp):
        handle(action("b"))
    rival.dispose()
    assert CanonicalStore(engine, Order).get_state("o-1").state.notes == ["a"]


def test_limit_of_a_lock_ends_with_its_transaction(engine: Engine) -> None:
    """Connections go back to the pool as they came."""
    orders = service(engine, writers=[lambda *_: None], lock_limit=7)
    orders.handle(action("a"))
    with engine.connect() as connection:
        limit = connection.scalar(text("SHOW idle_in_transaction_session_timeout"))
    assert limit == "0"


def test_reducer_error_changes_nothing(engine: Engine) -> None:
    """What the reducer raises comes out as it is, and nothing was written."""
    handle = service(engine, dedup=OrderActions).handle
    handle(action("a"))
    write(engine, OrderState(status="closed"))
    one = action("b")
    for _ in range(2):
        with pytest.raises(TooLate, match=r"^b$"):
            handle(one)
    assert CanonicalStore(engine, Order).get_state("o-1").version == 2


def test_error_on_an_old_state_is_no_answer(engine: Engine) -> None:
    """A reducer that refuses a state which is outdated by then is asked again."""
    handle = service(engine).handle
    handle(action("a"))
    other = service(engine, lambda state, _: state.model_copy(update={"status": "new"}))
    service(
        engine, lambda state, _: state.model_copy(update={"status": "closed"})
    ).handle(action())
    closed = service(engine)
    with pytest.raises(TooLate):
        closed.handle(action("b"))
    other.handle(action())
    assert closed.handle(action("c")).snapshot.state.notes == ["a", "c"]


@pytest.mark.parametrize(
    "result", [None, {"status": "new"}, OrderState.model_construct(status=1)]
)
def test_bad_result_is_refused(engine: Engine, result: Any) -> None:
    """A reducer that returns no state, or a broken one, gets a PayloadError."""
    with pytest.raises(PayloadError, match="Order 'o-1' state"):
        service(engine, lambda *_: result).handle(action())


def test_returned_state_is_not_shared(engine: Engine) -> None:
    """A reducer that later changes an object it has seen affects no outcome."""
    mine: list[OrderState] = []

    def reducer(state: OrderState, action: Action[str]) -> OrderState:
        for old in mine:
            old.notes.append("late")
        mine.append(state)
        return note(state, action)

    handle = service(engine, reducer).handle
    first = handle(action("a"))
    second = handle(action("b"))
    second.snapshot.state.notes.append("late")
    assert first.snapshot.state.notes == ["a"]
    assert handle(action("c")).snapshot.state.notes == ["a", "b", "c"]


def test_intents_follow_the_commit(engine: Engine) -> None:
    """Those of the committed attempt are delivered, once the row shows the state."""
    handed: list[tuple[int, list[str]]] = []
    calls: list[int] = []

    def reducer(state: OrderState, action: Action[str]) -> Reduction[OrderState]:
        calls.append(1)
        if len(calls) == 2:
            write(engine)
        intent = Intent(intent_type="mail", target=f"after {len(state.notes)} notes")
        return Reduction(note(state, action), [intent])

    def on_intents(outcome: StateCommitted[Any], intents: Sequence[Intent]) -> None:
        assert CanonicalStore(engine, Order).get_state("o-1").version == outcome.version
        handed.append((outcome.version, [intent.target for intent in intents]))

    handle = service(engine, reducer, on_intents=on_intents).handle
    handle(action())
    handle(action())
    assert handed == [(1, ["after 0 notes"]), (3, ["after 2 notes"])]


@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_intents_without_a_taker_are_refused(engine: Engine, dedup: Any) -> None:
    """Nothing is committed of what would lose its intents; others are not harmed."""

    def reducer(state: OrderState, action: Action[str]) -> Reduction[OrderState]:
        intents = [Intent(intent_type="mail", target="kim")]
        return Reduction(note(state, action), intents if action.payload == "b" else [])

    orders = service(engine, reducer, dedup=dedup)
    orders.handle(action("a"))
    one = action("b")
    expected = f"Order 'o-1' action {one.action_id}, at 'intents': would be dropped"
    with pytest.raises(PayloadError, match=expected):
        orders.handle(one)
    results = orders.handle_many([action("c"), one, action("d")])
    assert [type(each) for each in results] == [
        StateCommitted,
        PayloadError,
        StateCommitted,
    ]
    stored = CanonicalStore(engine, Order).get_state("o-1").state
    assert stored.notes == ["a", "c", "d"]
    taken = service(engine, reducer, dedup=dedup, writers=[lambda *_: None])
    assert taken.handle(one).snapshot.state.notes[-1] == "b"


def test_intent_handler_may_handle_the_same_key(engine: Engine) -> None:
    """The queue of the key is released before the intents are delivered."""

    def reducer(state: OrderState, action: Action[str]) -> Reduction[OrderState]:
        intents = [Intent(intent_type="more", target="o-1")]
        return Reduction(note(state, action), intents if action.payload == "a" else [])

    def on_intents(outcome: StateCommitted[Any], _: Sequence[Intent]) -> None:
        assert orders.handle(action("b")).version == outcome.version + 1

    orders = service(engine, reducer, on_intents=on_intents)
    assert orders.handle(action("a")).version == 1
    assert CanonicalStore(engine, Order).get_state("o-1").version == 2


def test_writer_shares_the_transaction(engine: Engine) -> None:
    """A writer sees the snapshot and the intents; if it fails, nothing is committed."""
    seen: list[tuple[int, int]] = []

    def reducer(state: OrderState, action: Action[str]) -> Reduction[OrderState]:
        return Reduction(note(state, action), [Intent(intent_type="m", target="t")])

    def writer(
        connection: Connection,
        snapshot: WorkflowSnapshot[OrderState],
        intents: Sequence[Intent],
    ) -> None:
        assert connection.in_transaction()
        if snapshot.state.notes[-1] == "bad":
            raise TooLate
        seen.append((snapshot.version, len(intents)))

    handle = service(engine, reducer, writers=[writer], dedup=OrderActions).handle
    handle(action())
    bad = action("bad")
    for _ in range(2):
        with pytest.raises(TooLate):
            handle(bad)
    assert handle(action("c")).version == 2
    assert seen == [(1, 1), (2, 1)]


def test_failing_hook_harms_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """What a hook raises is logged; the commit stands."""

    class Broken(Hooks):
        def committed(self, *_: Any) -> None:
            raise TooLate

    assert service(engine, hooks=Broken()).handle(action()).version == 1
    assert "a hook failed" in caplog.text


def test_duplicate_returns_the_first_outcome(engine: Engine) -> None:
    """A second delivery changes nothing and has the version of the first."""
    hooks = Recorded()
    one = action("a")
    handle = service(engine, dedup=OrderActions, hooks=hooks).handle
    first = handle(one)
    for each in (handle, service(engine, dedup=OrderActions).handle):
        again = each(one)
        assert (again.replayed, again.version) == (True, first.version)
        assert again.snapshot == first.snapshot
    handle(action("b"))
    late = handle(one)
    assert late.version == first.version
    with pytest.raises(VersionNotKept, match="had version 1"):
        _ = late.snapshot
    assert [each for each in hooks.heard if each[0] != "started"] == [
        ("committed", 1),
        ("duplicate", 1),
        ("committed", 2),
        ("duplicate", 1),
    ]


def test_same_id_with_another_payload_is_refused(engine: Engine) -> None:
    """An id is that of one action; the order of its keys does not matter."""
    handle = service(
        engine, lambda state, _: state.model_copy(), dedup=OrderActions
    ).handle
    first = action({"a": 1, "b": 2})
    handle(first)
    assert handle(first.model_copy(update={"payload": {"b": 2, "a": 1}})).replayed
    for payload in ({"a": 1}, {"a": True, "b": 2}):
        with pytest.raises(ActionIdReused, match=str(first.action_id)):
            handle(first.model_copy(update={"payload": payload}))


def test_ids_of_two_workflows_do_not_meet(engine: Engine) -> None:
    """The key of the log is workflow and action: one id, two workflows, two effects."""
    handle = service(engine, dedup=OrderActions).handle
    one = action()
    assert not handle(one).replayed
    assert not handle(one.model_copy(update={"workflow_key": "o-2"})).replayed


def test_payload_that_is_not_json_is_refused(engine: Engine) -> None:
    """With a dedup log the payload must have a digest."""
    one = action(object())
    assert service(engine, lambda state, _: state).handle(one)
    with pytest.raises(PayloadError, match="cannot be JSON: object"):
        service(engine, lambda state, _: state, dedup=OrderActions).handle(one)


def test_stricter_isolation_is_retried(engine: Engine, isolation_level: Any) -> None:
    """What 40001 refuses is reduced and committed again, with dedup and without."""
    strict = engine.execution_options(isolation_level=isolation_level)
    for dedup in (None, OrderActions):
        pending = [1]

        def reducer(
            state: OrderState, action: Action[str], pending: list[int] = pending
        ) -> OrderState:
            if pending and state.notes:
                pending.pop()
                write(engine)
            return note(state, action)

        handle = service(strict, reducer, dedup=dedup).handle
        handle(action("a"))
        outcome = handle(action("b"))
        assert outcome.attempts == 2 - (dedup is not None)
        assert outcome.snapshot.state.notes[-2:] in (["other", "b"], ["a", "b"])


def test_one_statement_without_side_tables(engine: Engine) -> None:
    """A commit on a state that was kept is one statement, and no BEGIN."""
    handle = service(engine).handle
    handle(action())
    sent = verbs_of(engine)
    handle(action())
    assert sent == ["UPDATE"]


def test_kept_state_is_read_again_after_a_while(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot is offered for a moment only: others write too."""
    now = [100.0]
    monkeypatch.setattr("sa_wfstate.reducer.key_queue.monotonic", lambda: now[0])
    handle = service(engine).handle
    handle(action("a"))
    write(engine)
    now[0] += FRESH
    assert handle(action("b")).attempts == 1


def test_wrong_options_are_refused(engine: Engine) -> None:
    """A batch of none, and a coroutine function where nothing awaits it."""

    async def reducer(state: OrderState, _: Action[Any]) -> OrderState:
        return state

    with pytest.raises(ValueError, match="fold"):
        service(engine, fold=0)
    for limit in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="lock_limit"):
            service(engine, lock_limit=limit)
    with pytest.raises(TypeError, match=r"sa_wfstate\.asyncio"):
        service(engine, reducer)


@pytest.mark.parametrize("dedup", [None, OrderActions])
@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_is_found_out(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    dedup: Any,
    create: bool,
    done: bool,
) -> None:
    """A connection lost in the commit: it was done, or it is done once more."""
    # With a log, a service that has intents to deliver commits in a transaction.
    intents = {"on_intents": lambda *_: None} if dedup else {}
    orders = service(engine, dedup=dedup, **intents)
    if not create:
        orders.handle(action("a"))
    lose = [True]
    within = Connections.transaction if dedup else Connections.commit

    @contextmanager
    def losing(self: Connections, *arguments: Any) -> Iterator[Connection]:
        with within(self, *arguments) as connection:
            yield connection
            if lose and not done:
                lose.pop()
                connection.rollback()
                raise OperationalError("COMMIT", None, LostConnection())
        if lose and READ_COMMITTED not in arguments:  # That is the search for it.
            lose.pop()
            raise OperationalError("COMMIT", None, LostConnection())

    if not done and dedup is None:
        pytest.skip("an autocommit statement that was sent cannot be undone here")
    monkeypatch.setattr(Connections, within.__name__, losing)
    outcome = orders.handle(action("b"))
    assert (outcome.replayed, outcome.version) == (done, 1 if create else 2)
    assert outcome.snapshot.state.notes[-1] == "b"
    assert CanonicalStore(engine, Order).get_state("o-1").version == outcome.version


def test_lost_answer_that_cannot_be_found_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After later writes the outcome is unknown, and the effect is named."""
    orders = service(engine)
    orders.handle(action("a"))
    commit = Connections.commit

    @contextmanager
    def losing(self: Connections, *arguments: Any) -> Iterator[Connection]:
        with commit(self, *arguments) as connection:
            yield connection
        monkeypatch.undo()
        write(engine)
        raise OperationalError("COMMIT", None, LostConnection())

    monkeypatch.setattr(Connections, "commit", losing)
    with pytest.raises(OutcomeUnknown, match="'o-1'"):
        orders.handle(action("b"))


def test_retry_policy_is_obeyed(engine: Engine) -> None:
    """With one attempt allowed, the first conflict ends it."""
    service(engine).handle(action())
    handle = service(
        engine,
        lambda state, _: (write(engine), state)[1],
        retry=RetryPolicy(max_attempts=1),
    ).handle
    with pytest.raises(ReducerGaveUp) as caught:
        handle(action())
    assert caught.value.attempts == 1


def test_mixin_brings_the_index(database: URL) -> None:
    """The log of an application has the index that cleaning it up needs."""
    engine = create_engine(database)
    with engine.connect() as connection:
        found = connection.scalars(
            text("SELECT indexname FROM pg_indexes WHERE tablename = 'order_actions'")
        ).all()
    engine.dispose()
    assert sorted(found) == ["idx_order_actions_expires", "order_actions_pkey"]


def test_default_of_a_reading_is_written(engine: Engine) -> None:
    """What an outcome shows is in the row, though the reducer has changed nothing."""
    drawn = ReducerService(engine, Drawn, lambda state, _: state, initial=Named)
    drawn.handle(action())
    with engine.begin() as connection:
        connection.execute(text("UPDATE drawn SET state = '{\"count\": 1}'"))
    shown = drawn.handle(action()).snapshot.state
    again = CanonicalStore(engine, Drawn).get_state("o-1").state
    assert again == shown


def test_version_that_a_trigger_made(engine: Engine, database: URL) -> None:
    """Claim and kept state have the version of the row, not the one counted on."""
    plain = create_engine(database)
    before_update(plain, "NEW.version := NEW.version + 10; RETURN NEW")
    plain.dispose()
    one = service(engine, dedup=OrderActions)
    one.handle(action())
    second, third = action("b"), action("c")
    assert one.handle(second).version == 12
    outcome = one.handle(third)
    assert (outcome.version, outcome.attempts) == (23, 1)
    again = service(engine, dedup=OrderActions).handle(third)
    assert (again.version, again.snapshot.state.notes) == (23, ["a", "b", "c"])
    assert one.handle(second).version == 12
