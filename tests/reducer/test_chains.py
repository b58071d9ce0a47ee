"""What waits for one key is one write, and each action a version of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

import sa_wfstate.asyncio
from sa_wfstate import Action, CanonicalStore, ReducerService, WorkflowStateMixin
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.hooks import Hooks
from sa_wfstate.payload.actions import digest
from sa_wfstate.versions import version_trigger

from ..orders import Base, Order, OrderActions, OrderState, write_as_another
from ..verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine


class Others(DeclarativeBase):
    pass


class Kept(WorkflowStateMixin[OrderState], Others):
    __tablename__ = "kept_orders"


class KeptHistory(HistoryMixin, Others):
    __tablename__ = "kept_history"


keep_history(Kept, KeptHistory)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata, Others.metadata)


class Heard(Hooks):
    """Note what a service is told."""

    def __init__(self) -> None:
        self.committed_versions: list[int] = []
        self.conflicts = 0

    def committed(self, _: str, __: Any, outcome: Any, ___: float) -> None:
        self.committed_versions.append(outcome.version)

    def conflicted(self, *_: object) -> None:
        self.conflicts += 1


def note(state: OrderState, action: Action[int]) -> OrderState:
    """Append the payload; refuse a negative one."""
    if action.payload < 0:
        raise ValueError(action.payload)
    return OrderState(notes=[*state.notes, action.payload])


def action(payload: int, key: str = "o-1") -> Action[int]:
    """Make an action."""
    return Action(workflow_key=key, action_id=uuid4(), payload=payload)


def stored(engine: Engine, entity: Any = Order) -> tuple[int, list[int]]:
    """Read version and notes of the order."""
    snapshot = CanonicalStore(engine, entity).get_state("o-1")
    return snapshot.version, snapshot.state.notes


def claims(engine: Engine) -> dict[Any, tuple[int | None, str]]:
    """Read version and digest of each claim."""
    with Session(engine) as session:
        rows = session.scalars(select(OrderActions))
        return {row.action_id: (row.version, row.result_hash) for row in rows}


class Line:
    """A service one of whose actions waits until others wait behind it."""

    def __init__(self, engine: Engine, entity: Any = Order, **options: Any) -> None:
        self._ready, self._go_on = threading.Event(), threading.Event()
        options = {"initial": OrderState, "dedup": OrderActions} | options
        reduce = options.pop("reducer", note)

        def reducer(state: OrderState, action: Action[int]) -> Any:
            if action is self._first:
                self._ready.set()
                self._go_on.wait(30)
            return reduce(state, action)

        self._first: Action[int] | None = None
        self.service: Any = ReducerService(engine, entity, reducer, **options)
        self.service.handle(action(1))

    def lock(self) -> None:
        """Lock the row for the next commits, as after conflicts."""
        self.service._keys._idle["o-1"].locks = 99
        self.service.handle(action(2))

    def handle(
        self,
        given: Sequence[Action[int]],
        then: Callable[[], object] = lambda: None,
        *,
        first: int = 0,
    ) -> list[Any]:
        """Handle *given*, which wait behind the *first*, that goes on after *then*."""
        handle, waiting = self.service.handle, self.service._keys
        self._first = action(first)
        self._ready.clear()
        self._go_on.clear()
        with ThreadPoolExecutor(len(given) + 1) as threads:
            leading = threads.submit(handle, self._first)
            self._ready.wait(30)
            futures = []
            for each in given:
                futures.append(threads.submit(handle, each))
                while waiting.waiting <= len(futures):
                    time.sleep(0.001)
            then()
            self._go_on.set()
            leading.exception(30)
            return [each.exception(30) or each.result() for each in futures]


def test_chain_is_one_statement(engine: Engine) -> None:
    """Each action has its version, state, provenance, claim and hook."""
    hooks, sent = Heard(), verbs_of(engine)
    line = Line(engine, hooks=hooks)
    given = [action(n) for n in (2, 3, 4)]
    results = line.handle(given, sent.clear)
    assert sent == ["UPDATE", "UPDATE"]
    notes = [1, 0, 2, 3, 4]
    snapshots = [each.snapshot for each in results]
    assert [each.version for each in results] == [3, 4, 5]
    assert [each.version for each in snapshots] == [3, 4, 5]
    assert [each.state.notes for each in snapshots] == [notes[:n] for n in (3, 4, 5)]
    assert [each.provenance.action_id for each in snapshots] == [
        each.action_id for each in given
    ]
    assert len({each.provenance.effect_id for each in snapshots}) == 3
    assert len({each.updated_at for each in snapshots}) == 1
    assert {(each.attempts, each.replayed) for each in results} == {(1, False)}
    found = claims(engine)
    assert [found[each.action_id] for each in given] == [
        (each.version, digest(each.state.model_dump_json())) for each in snapshots
    ]
    row = CanonicalStore(engine, Order).get_state("o-1")
    assert row == snapshots[-1]
    assert sorted(hooks.committed_versions) == [1, 2, 3, 4, 5]
    again = [line.service.handle(each) for each in given]
    assert [(each.version, each.replayed) for each in again] == [
        (version, True) for version in (3, 4, 5)
    ]


def test_chain_of_a_new_key(engine: Engine) -> None:
    """The row is created at the version of its last action."""
    line = Line(engine)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM orders"))
    line.service._keys._idle["o-1"].forget()
    given = [action(2), action(3), action(4)]
    results = line.handle(given, first=-1)
    assert [each.version for each in results] == [1, 2, 3]
    assert [each.snapshot.state.notes for each in results] == [[2], [2, 3], [2, 3, 4]]
    assert stored(engine) == (3, [2, 3, 4])
    assert [claims(engine)[each.action_id][0] for each in given] == [1, 2, 3]


def test_poison_in_a_chain(engine: Engine) -> None:
    """It fails alone; what is behind it goes on from the state before it."""
    sent, line = verbs_of(engine), Line(engine)
    results = line.handle([action(2), action(-1), action(3)], sent.clear)
    assert isinstance(results.pop(1), ValueError)
    assert sent == ["UPDATE", "UPDATE"]
    assert [each.version for each in results] == [3, 4]
    assert stored(engine) == (4, [1, 0, 2, 3])
    only = line.handle([action(-1), action(-1)])
    assert all(isinstance(each, ValueError) for each in only)
    assert stored(engine) == (5, [1, 0, 2, 3, 0])


def test_provenance_that_cannot_be_stored(engine: Engine) -> None:
    """One action's further keys are refused: the others are committed."""
    line = Line(engine)
    poison = Action(workflow_key="o-1", action_id=uuid4(), payload=3, lease="\0")
    results = line.handle([action(2), poison, action(4)])
    assert isinstance(results.pop(1), sa_wfstate.PayloadError)
    assert [each.version for each in results] == [3, 4]
    assert stored(engine) == (4, [1, 0, 2, 4])


def test_duplicate_in_a_chain(engine: Engine) -> None:
    """One that another process has done has its first outcome, the others go on."""
    line, one = Line(engine), action(5)
    other = ReducerService(engine, Order, note, initial=OrderState, dedup=OrderActions)
    results = line.handle([action(2), one, action(3)], lambda: other.handle(one))
    assert [each.replayed for each in results] == [False, True, False]
    assert [each.version for each in results] == [4, 2, 5]
    assert stored(engine) == (5, [1, 5, 0, 2, 3])
    results = line.handle([action(6), one, action(7), one])  # Of a cached state.
    assert [each.replayed for each in results] == [False, True, False, True]
    assert stored(engine) == (8, [1, 5, 0, 2, 3, 0, 6, 7])
    assert len(claims(engine)) == 8


def test_conflict_of_a_chain(engine: Engine) -> None:
    """Another process was first: the whole chain is decided again."""
    hooks = Heard()
    line = Line(engine, hooks=hooks)
    seen: list[Any] = []

    def interfere(*_: object) -> None:
        # Once, before the chain's statement.
        if hooks.committed_versions == [1, 2] and not seen:
            seen.append(True)
            write_as_another(engine)

    def listen() -> None:
        event.listen(engine, "before_cursor_execute", interfere)

    results = line.handle([action(2), action(3), action(4)], listen)
    event.remove(engine, "before_cursor_execute", interfere)
    assert (hooks.conflicts, seen) == (1, [True])
    assert {each.attempts for each in results} == {2}
    assert [each.version for each in results] == [4, 5, 6]
    assert stored(engine) == (6, [1, 0, 99, 2, 3, 4])
    assert len(claims(engine)) == 5


class LostConnection(Exception):
    """As libpq reports it: without a code."""

    sqlstate = None


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_to_a_chain(engine: Engine, done: bool, moved: bool) -> None:
    """Each action learns whether it was committed, with its own version."""
    lost: list[str] = []

    def lose(_: object, __: object, sql: str, *___: Any) -> None:
        lost.append(sql)
        if len(lost) == 2:  # The first one is that of the commit in progress.
            if moved and done:
                write_as_another(engine)
            raise OperationalError("COMMIT", None, LostConnection())

    when = "after_cursor_execute" if done else "before_cursor_execute"
    line = Line(engine)
    given = [action(2), action(3), action(4)]
    results = line.handle(given, lambda: event.listen(engine, when, lose))
    event.remove(engine, when, lose)
    assert {each.replayed for each in results} == {done}
    assert [each.version for each in results] == [3, 4, 5]
    found = claims(engine)
    assert [found[each.action_id][0] for each in given] == [3, 4, 5]
    rest = [99] if moved and done else []
    assert stored(engine) == (5 + len(rest), [1, 0, 2, 3, 4, *rest])
    if done and moved:
        for each in results:
            with pytest.raises(LookupError, match=f"version {each.version}"):
                _ = each.snapshot
    else:
        assert results[0].snapshot.state.notes == [1, 0, 2]


@pytest.mark.parametrize("why", ["history", "intents", "fold", "group", "no log"])
def test_where_each_version_is_written(engine: Engine, why: str) -> None:
    """What follows each version sees each; a fold is one version."""
    options: dict[str, Any] = {
        "history": {},
        "intents": {"on_intents": print},
        "fold": {"fold": 8},
        "group": {"group": 1},
        "no log": {"dedup": None},
    }[why]
    entity = Kept if why == "history" else Order
    sent, line = verbs_of(engine), Line(engine, entity, **options)
    results = line.handle([action(2), action(3)], sent.clear)
    assert sent.count("UPDATE") == (2 if why == "fold" else 3)
    versions = [3, 3] if why == "fold" else [3, 4]
    assert [each.version for each in results] == versions
    assert stored(engine, entity) == (versions[-1], [1, 0, 2, 3])
    if why == "history":
        with Session(engine) as session:
            kept = session.scalars(select(KeptHistory.version))
            assert sorted(kept) == [1, 2, 3, 4]


def test_trigger_sees_each_version(engine: Engine) -> None:
    """From the moment of its creation on: it ends the chains of the service."""
    sent, line = verbs_of(engine), Line(engine)
    line.handle([action(2), action(3)], sent.clear)
    assert sent.count("UPDATE") == 2
    with engine.begin() as connection:
        connection.execute(text(AUDIT))
    for updates, versions in ((1 + 1 + 2, [6, 7]), (1 + 2, [9, 10])):
        results = line.handle([action(2), action(3)], sent.clear)
        assert [each.version for each in results] == versions
        assert sent.count("UPDATE") == updates
    with engine.connect() as connection:
        seen = connection.scalars(text("SELECT version FROM audit")).all()
    assert seen == [5, 6, 7, 8, 9, 10]
    assert stored(engine) == (10, [1, 0, 2, 3, 0, 2, 3, 0, 2, 3])


AUDIT = """
CREATE TABLE audit (version bigint);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit VALUES (NEW.version);
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION note();
"""


def test_version_trigger_ends_chains(engine: Engine) -> None:
    """It would refuse each of them; their actions are committed one by one."""
    with engine.begin() as connection:
        for ddl in version_trigger(Order.__table__):
            connection.execute(ddl)
    line = Line(engine)
    results = line.handle([action(2), action(3)])
    assert [each.version for each in results] == [3, 4]
    assert stored(engine) == (4, [1, 0, 2, 3])


# Which of them may have intents is not known, so each of the versions is written.
CROWD: dict[str, Any] = {"on_intents": print}


@pytest.mark.parametrize("options", [{}, CROWD], ids=["chain", "crowd"])
def test_crowd_under_a_lock_is_one_transaction(
    engine: Engine, options: dict[str, Any]
) -> None:
    """Each of those that wait has its version, state and claim, or its own error."""
    one, sent, line = action(4), verbs_of(engine), Line(engine, **options)
    given = [action(3), one, action(-1), action(5), action(6)]
    line.lock()
    results = line.handle(given, sent.clear)
    last = ["UPDATE", "INSERT"] if options else ["UPDATE"]
    assert sent == [*last, "SELECT", "SELECT", *last * (4 if options else 1)]
    assert isinstance(results.pop(2), ValueError)
    assert [each.version for each in results] == [4, 5, 6, 7]
    assert {each.attempts for each in results} == {1}
    notes = [1, 2, 0, 3, 4, 5, 6]
    seen = [each.snapshot.state.notes for each in results]
    assert seen == [notes[:n] for n in range(4, 8)]
    assert (stored(engine), len(claims(engine))) == ((7, notes), 7)
    again = line.handle([one, action(7), one])
    assert [each.replayed for each in again] == [True, False, True]
    assert stored(engine) == (9, [*notes, 0, 7])


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("options", [{}, CROWD], ids=["chain", "crowd"])
def test_refused_state_in_a_crowd(
    engine: Engine, options: dict[str, Any], lock: bool
) -> None:
    """The database refuses one state: the others commit, each of them once."""
    with engine.begin() as connection:
        check = "CHECK (NOT state @> '{\"notes\": [666]}')"
        connection.execute(text(f"ALTER TABLE orders ADD {check}"))
    line = Line(engine, **options)
    if lock:
        line.lock()
    results = line.handle([action(3), action(666), action(4)])
    assert isinstance(results.pop(1), IntegrityError)
    notes = [1, *[2] * lock, 0, 3, 4]
    assert [each.version for each in results] == [len(notes) - 1, len(notes)]
    assert (stored(engine), len(claims(engine))) == ((len(notes), notes), len(notes))


@pytest.mark.parametrize("options", [{}, CROWD], ids=["chain", "crowd"])
@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_to_a_crowd(
    engine: Engine, done: bool, options: dict[str, Any]
) -> None:
    """Each of those committed together learns whether it was, with its version."""

    def lose() -> None:
        event.listen(engine, "commit", commit)

    def commit(connection: Connection) -> None:
        commits.append(connection)
        if len(commits) == 2:  # The first is that of the commit in progress.
            raw: Any = connection.connection.dbapi_connection
            if done:
                raw.commit()
            else:
                raw.rollback()
            raise OperationalError("COMMIT", None, LostConnection())

    commits: list[Connection] = []
    line = Line(engine, **options)
    line.lock()
    results = line.handle([action(3), action(4), action(5)], lose)
    event.remove(engine, "commit", commit)
    assert {each.replayed for each in results} == {done}
    assert [each.version for each in results] == [4, 5, 6]
    assert (stored(engine), len(claims(engine))) == ((6, [1, 2, 0, 3, 4, 5]), 6)


async def awaiting(engine: AsyncEngine, reducer: Any = note) -> Any:
    """Make a service of asyncio that has committed an action."""
    service = sa_wfstate.asyncio.ReducerService(
        engine, Order, reducer, initial=OrderState, dedup=OrderActions
    )
    await asyncio.create_task(service.handle(action(0)))
    return service


@pytest.mark.parametrize("kind", ["plain", "awaitable"])
async def test_chain_of_tasks(async_engine: AsyncEngine, kind: str) -> None:
    """Each sees the context of its caller; what is awaited is committed one by one."""
    who: ContextVar[int] = ContextVar("who", default=0)

    def reducer(state: OrderState, action: Action[int]) -> OrderState:
        assert who.get() == action.payload
        return note(state, action)

    async def wait(state: OrderState, action: Action[int]) -> OrderState:
        await asyncio.sleep(0)
        return note(state, action)

    service = await awaiting(async_engine, reducer if kind == "plain" else wait)
    service._service._loop._attempts._reductions.waits = False  # As if not known yet.

    async def handle(number: int) -> int:
        who.set(number)
        return (await service.handle(action(number))).version

    sent = verbs_of(async_engine.sync_engine)
    assert await asyncio.gather(*map(handle, range(1, 11))) == [*range(2, 12)]
    assert sent.count("UPDATE") == (1 if kind == "plain" else 10)
    state = await sa_wfstate.asyncio.CanonicalStore(async_engine, Order).get_state(
        "o-1"
    )
    assert state.state.notes == [*range(11)]


async def test_cancelled_in_a_chain(async_engine: AsyncEngine) -> None:
    """Its action may be committed; those of the others are, each with its outcome."""
    service = await awaiting(async_engine)
    one = action(2)
    cancelled: list[bool] = []

    def cancel(*_: object) -> None:
        if not cancelled:
            cancelled.append(tasks[1].cancel())

    given = [action(1), one, action(3)]
    tasks = [asyncio.create_task(service.handle(each)) for each in given]
    event.listen(async_engine.sync_engine, "before_cursor_execute", cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    event.remove(async_engine.sync_engine, "before_cursor_execute", cancel)
    assert isinstance(results.pop(1), asyncio.CancelledError)
    assert [each.version for each in results] == [2, 4]
    again = await service.handle(one)
    assert (again.version, again.replayed) == (3, True)


async def test_chain_in_a_group(async_engine: AsyncEngine) -> None:
    """It is one of its members, beside those of other keys, new ones too."""
    service = await awaiting(async_engine)
    given = [action(n) for n in (1, 2, 3)]
    given[1:1] = [action(1, "o-2"), action(1, "o-3")]
    sent = verbs_of(async_engine.sync_engine)
    results = await asyncio.gather(*map(service.handle, given))
    assert [each.version for each in results] == [2, 1, 1, 3, 4]
    assert sent == ["SELECT", "INSERT"]
    snapshots = [each.snapshot for each in results]
    assert [each.version for each in snapshots] == [2, 1, 1, 3, 4]
    assert [each.state.notes for each in snapshots] == [
        *([0, 1], [1], [1]),
        *([0, 1, 2], [0, 1, 2, 3]),
    ]


async def test_duplicate_in_a_group_with_a_chain(async_engine: AsyncEngine) -> None:
    """It has its first outcome; the chain and the others are committed all the same."""
    service = await awaiting(async_engine)
    one, two = action(5), action(1, "o-2")
    for each in (one, two):
        await asyncio.create_task(service.handle(each))
    given = [action(1), one, action(2), two, action(3, "o-3")]
    results = await asyncio.gather(*map(service.handle, given))
    replays = [each.replayed for each in results]
    assert replays == [False, True, False, True, False]
    assert [each.version for each in results] == [3, 2, 4, 1, 1]
