"""A reducer names what it reads beside its state, and its commit guards that."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, event, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    ReducerService,
    Reduction,
    RetryPolicy,
    StateCommitted,
    StateConflict,
    WorkflowNotFound,
    WorkflowSnapshot,
)
from sa_wfstate.errors import MappingError
from sa_wfstate.hooks import Hooks
from sa_wfstate.testing import given, replay
from sa_wfstate.versions import depends_on

from ..doctors import Base, Doctor, DoctorDedup, OnCall, Ward
from .test_lost_answers import Losing

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine, MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine


class LastOneError(Exception):
    """None would be on call."""


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None], database: URL) -> None:
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        for key in ("alice", "bob", "carol", "dave"):
            session.add(Doctor(workflow_key=key, state=OnCall()))
        session.add(Ward(workflow_key="w-1", state=OnCall()))
        session.commit()
    plain.dispose()


def off_call(key: str, *colleagues: str) -> Action[Any]:
    """Make the action of a doctor who goes off call if one of *colleagues* stays."""
    return Action(workflow_key=key, action_id=uuid4(), payload=colleagues)


def named(_: OnCall, action: Action[Any]) -> list[tuple[type[Doctor], str]]:
    """Name the colleagues."""
    return [(Doctor, key) for key in action.payload]


def decide(_: OnCall, action: Action[Any], others: Any) -> OnCall:
    """Go off call, unless none of the colleagues is on call."""
    if action.payload and not any(each.state.on_call for each in others):
        raise LastOneError
    return OnCall(on_call=False)


def before_first(rival: Callable[[], Any]) -> Any:
    """Return the reducer; between its first reading and its commit comes *rival*."""
    rivals = [rival]

    @depends_on(named)
    def reducer(state: OnCall, action: Action[Any], others: Any) -> OnCall:
        state = decide(state, action, others)
        if rivals and action.payload:
            rivals.pop()()
        return state

    return reducer


def move(engine: Engine, key: str = "bob", *, on_call: bool = False) -> None:
    """Commit a change by another session."""
    with Session(engine) as other:
        other.get_one(Doctor, key).state = OnCall(on_call=on_call)
        other.commit()


def on_call(engine: Engine) -> set[str]:
    """Return the doctors on call."""
    with Session(engine) as session:
        doctors = session.scalars(select(Doctor))
        return {each.workflow_key for each in doctors if each.state.on_call}


class Conflicts(Hooks):
    """Keep the conflicts."""

    def __init__(self) -> None:
        self.seen: list[StateConflict] = []

    def conflicted(self, entity: str, conflict: StateConflict, attempt: int) -> None:
        self.seen.append(conflict)


@pytest.mark.contract
@pytest.mark.parametrize("dedup", [None, DoctorDedup])
def test_moved_row_runs_the_reducer_again(engine: Engine, dedup: Any) -> None:
    """The lost attempt is a conflict with the role read; the next one sees it all."""
    hooks = Conflicts()
    reducer = before_first(lambda: move(engine))
    service = ReducerService(engine, Doctor, reducer, hooks=hooks, dedup=dedup)
    with pytest.raises(LastOneError):
        service.handle(off_call("alice", "bob"))
    (conflict,) = hooks.seen
    assert (conflict.workflow_key, conflict.role, conflict.reason) == (
        "bob",
        "read",
        "moved",
    )
    assert (conflict.expected_version, conflict.actual_version) == (1, 2)
    assert "alice" in on_call(engine)
    action = off_call("alice", "bob", "carol")
    outcome = service.handle(action)
    assert (outcome.version, outcome.attempts) == (2, 1)
    assert service.handle(action).replayed == (dedup is not None)
    assert "alice" not in on_call(engine)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("dedup", [None, DoctorDedup])
def test_doctors_on_call(engine: Engine, level: str, dedup: Any) -> None:
    """Of two processes that decide at once one is refused; it ends soon."""
    leveled = engine.execution_options(isolation_level=level)
    barrier = threading.Barrier(2)

    def go(me: str, other: str) -> Any:
        reducer = before_first(barrier.wait)
        policy = RetryPolicy(max_attempts=5)
        service = ReducerService(leveled, Doctor, reducer, retry=policy, dedup=dedup)
        try:
            return service.handle(off_call(me, other))
        except LastOneError as error:
            return error

    begin = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        ends = list(pool.map(go, ("alice", "bob"), ("bob", "alice")))
    assert {type(end) for end in ends} == {StateCommitted, LastOneError}
    assert len(on_call(engine) & {"alice", "bob"}) == 1
    assert time.perf_counter() - begin < 1  # Less than the deadlock detector takes.


def test_neighbours_of_a_lost_attempt_commit(engine: Engine) -> None:
    """What is guarded commits outside of the groups of the others."""
    hooks = Conflicts()
    reducer = before_first(lambda: move(engine, "dave"))
    service = ReducerService(engine, Doctor, reducer, initial=OnCall, hooks=hooks)
    actions = [off_call("alice", "dave", "bob")]
    actions += [off_call(f"d-{number}") for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(service.handle, actions))
    assert [outcome.attempts for outcome in outcomes[1:]] == [1] * 20
    assert outcomes[0].attempts == 2
    assert [conflict.workflow_key for conflict in hooks.seen] == ["dave"]


def test_actions_in_bulk_are_guarded_one_by_one(engine: Engine) -> None:
    """Each sees what the one before has committed."""
    service = ReducerService(engine, Doctor, depends_on(named)(decide))
    pairs = [("alice", "bob"), ("bob", "alice"), ("carol", "dave")]
    results = service.handle_many([off_call(*pair) for pair in pairs])
    assert [type(result) for result in results] == [
        StateCommitted,
        LastOneError,
        StateCommitted,
    ]


async def test_async_service(async_engine: AsyncEngine, database: URL) -> None:
    """The reducer may be a coroutine function."""
    plain = create_engine(database)
    rivals = [lambda: move(plain)]
    seen: list[bool] = []

    @depends_on(named)
    async def reducer(_: OnCall, __: Action[Any], others: Any) -> OnCall:
        seen.append(others[0].state.on_call)
        if rivals:
            rivals.pop()()
        return OnCall(on_call=not others[0].state.on_call)

    service = sa_wfstate.asyncio.ReducerService(async_engine, Doctor, reducer)
    outcome = await service.handle(off_call("alice", "bob"))
    assert seen == [True, False]
    assert outcome.snapshot.state.on_call
    plain.dispose()


def test_rows_of_other_classes_by_what_the_state_says(engine: Engine) -> None:
    """They are named for each action; a session of a test's transaction reads them."""

    @depends_on(lambda *_: [(Ward, "w-1"), (Doctor, "bob"), (Ward, "w-1")])
    def reducer(state: OnCall, _: Action[Any], others: Any) -> Reduction[OnCall]:
        assert [each.workflow_key for each in others] == ["w-1", "bob", "w-1"]
        return Reduction(OnCall(on_call=not state.on_call))

    with engine.connect() as connection, connection.begin() as outer:
        sessions = sessionmaker(connection, join_transaction_mode="create_savepoint")
        service = ReducerService(sessions, Doctor, reducer)
        assert service.handle(off_call("alice")).version == 2
        assert service.handle(off_call("alice")).version == 3
        outer.rollback()


def test_what_cannot_be_guarded(engine: Engine, database: URL) -> None:
    """A workflow that does not exist, a class that is none, a row elsewhere."""
    service = ReducerService(engine, Doctor, depends_on(named)(decide))
    with pytest.raises(WorkflowNotFound, match=r"'zoe' .* was named by depends_on"):
        service.handle(off_call("alice", "bob", "zoe"))
    elsewhere = create_engine(database)
    sessions: Any = sessionmaker(binds={Doctor: engine, Ward: elsewhere})

    @depends_on(lambda *_: [(Ward, "w-1")])
    def reducer(state: OnCall, *_: Any) -> OnCall:
        return state

    with pytest.raises(MappingError, match="Ward: is in another database than Doctor"):
        ReducerService(sessions, Doctor, reducer).handle(off_call("alice"))
    elsewhere.dispose()
    with pytest.raises(MappingError, match="is not a mapped class"):
        ReducerService(
            engine, Doctor, depends_on(lambda *_: [(OnCall, "alice")])(decide)
        ).handle(off_call("alice"))


def test_failure_to_read_is_a_lost_attempt(engine: Engine) -> None:
    """It is no error of the reducer, and is tried again."""
    failures = [OperationalError("SELECT", {}, Lost())]

    def fail(*args: Any) -> None:
        if failures and "doctors" in args[2] and "bob" in str(args[3]):
            raise failures.pop()

    event.listen(engine, "before_cursor_execute", fail)
    service = ReducerService(engine, Doctor, depends_on(named)(decide))
    assert service.handle(off_call("alice", "bob")).attempts == 2


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_to_a_guarded_commit(engine: Engine, done: bool) -> None:
    """Its outcome is looked up, as that of any other."""
    losing = Losing(engine)
    losing.times, losing.done = 1, done
    service = ReducerService(engine, Doctor, depends_on(named)(decide))
    outcome = service.handle(off_call("alice", "bob"))
    assert (outcome.version, outcome.replayed) == (2, done)
    assert outcome.attempts == (1 if done else 2)
    assert on_call(engine) == {"bob", "carol", "dave"}


class Lost(Exception):
    """What a driver raises when the server goes away."""

    sqlstate = "57P01"


def test_reducer_is_tested_without_a_database() -> None:
    """It is a function of three arguments, and of snapshots for given()."""
    reducer = depends_on(named)(decide)
    bob = WorkflowSnapshot(
        workflow_key="bob",
        version=1,
        state=OnCall(),
        updated_at="2026-01-01T00:00:00Z",
        provenance={"effect_id": "e-1", "timestamp": "2026-01-01T00:00:00Z"},
    )
    assert not reducer(OnCall(), off_call("alice", "bob"), [bob]).on_call
    start = given(OnCall(), reducer=reducer, others=[bob])
    start.when(["bob"]).then(OnCall(on_call=False))
    with pytest.raises(TypeError, match="what it read is not in the history"):
        replay(reducer, [bob], [])
