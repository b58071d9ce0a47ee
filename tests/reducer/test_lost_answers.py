"""The answer to a COMMIT is lost: a ReducerService looks its outcome up."""

from __future__ import annotations

import time
from contextvars import Context
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    CanonicalStore,
    Intent,
    ReducerService,
    Reduction,
    RetryPolicy,
    StateCommitted,
    WorkflowNotFound,
)
from sa_wfstate.errors import OutcomeUnknown, ReducerGaveUp
from sa_wfstate.hooks import Hooks

from ..orders import Base, Order, OrderActions, OrderState, write_as_another

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


class LostConnection(Exception):
    """As libpq reports it: without a code."""

    sqlstate = None


class Losing:
    """Loses the answer to the next commits of an engine.

    They are done unless *done* is false. *then* is called before the loss is noticed.
    """

    def __init__(self, engine: Engine) -> None:
        self.times, self.done = 0, True
        self.then: Callable[[], object] = lambda: None
        dialect: Any = engine.dialect
        self._commit, self._roll_back = dialect.do_commit, dialect.do_rollback
        dialect.do_commit = self._commit_and_lose
        event.listen(engine, "after_cursor_execute", self._after_statement)

    def _commit_and_lose(self, connection: Any) -> None:
        lose = self.times > 0
        (self._commit if self.done or not lose else self._roll_back)(connection)
        if lose:
            self._lose()

    def _after_statement(self, connection: Any, _: object, sql: str, *__: Any) -> None:
        options = connection.get_execution_options()
        writes = sql.startswith(("INSERT", "UPDATE", "WITH"))
        if options.get("isolation_level") == "AUTOCOMMIT" and writes and self.times > 0:
            self._lose()

    def _lose(self) -> None:
        self.times -= 1
        self.then()
        raise OperationalError("COMMIT", None, LostConnection())


@pytest.fixture
def losing(engine: Engine) -> Losing:
    """Make the engine of the test lose answers when it is told to."""
    return Losing(engine)


class Told(Hooks):
    """Write down what becomes of actions."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def committed(self, *_: Any) -> None:
        self.heard.append("committed")

    def duplicate(self, *_: Any) -> None:
        self.heard.append("duplicate")

    def gave_up(self, *_: Any) -> None:
        self.heard.append("gave up")


def reducer(state: OrderState, action: Action[int]) -> Reduction[OrderState]:
    """Append the payload, and ask for it to be told."""
    state.notes.append(action.payload)
    return Reduction(state, [Intent(intent_type="tell", target=str(action.payload))])


class Service:
    """A service, what its hooks have heard, and what its intents have told."""

    def __init__(self, engine: Any, **options: Any) -> None:
        self.hooks, self.told = Told(), list[tuple[list[int], str]]()
        self.made = ReducerService(
            engine,
            Order,
            reducer,
            initial=OrderState,
            hooks=self.hooks,
            on_intents=self._tell,
            **options,
        )
        self.handle, self.handle_many = self.made.handle, self.made.handle_many

    def _tell(self, outcome: StateCommitted[Any], intents: Sequence[Intent]) -> None:
        notes = outcome.snapshot.state.notes
        self.told.extend((notes, intent.target) for intent in intents)


def action(payload: int, key: str = "o-1") -> Action[int]:
    """Make an action."""
    return Action(workflow_key=key, action_id=uuid4(), payload=payload)


def stored(engine: Engine, key: str = "o-1") -> list[int]:
    """Read the notes of an order; of none that is not there."""
    try:
        return CanonicalStore(engine, Order).get_state(key).state.notes
    except WorkflowNotFound:
        return []


@pytest.mark.contract
@pytest.mark.parametrize("dedup", [None, OrderActions])
@pytest.mark.parametrize("create", [True, False])
def test_answer_of_the_last_attempt(
    engine: Engine, losing: Losing, isolation_level: Any, dedup: Any, create: bool
) -> None:
    """It is committed: that is the outcome, and its intents are delivered."""
    strict = engine.execution_options(isolation_level=isolation_level)
    orders = Service(strict, dedup=dedup, retry=ONCE)
    if not create:
        orders.handle(action(1))
    losing.times = 1
    outcome = orders.handle(action(2))
    expected = [2] if create else [1, 2]
    assert (outcome.replayed, outcome.version) == (True, len(expected))
    assert outcome.snapshot.state.notes == expected == stored(engine)
    assert orders.told[-1] == (expected, "2")
    assert orders.hooks.heard[-1] == "duplicate"
    assert orders.handle(action(3)).snapshot.state.notes == [*expected, 3]


@pytest.mark.contract
@pytest.mark.parametrize("create", [True, False])
def test_last_attempt_that_was_not_done(
    engine: Engine, losing: Losing, isolation_level: Any, create: bool
) -> None:
    """It is known not to be committed, and only then is that said."""
    strict = engine.execution_options(isolation_level=isolation_level)
    orders = Service(strict, dedup=OrderActions, retry=ONCE)
    if not create:
        orders.handle(action(1))
    losing.times, losing.done = 1, False
    one = action(2)
    with pytest.raises(ReducerGaveUp, match="not committed after 1 attempt"):
        orders.handle(one)
    assert stored(engine) == ([] if create else [1])
    assert orders.handle(one).snapshot.state.notes[-1] == 2
    assert [target for _, target in orders.told][-1] == "2"


@pytest.mark.contract
@pytest.mark.parametrize("retry", [ONCE, RetryPolicy()])
@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_row_has_moved_on(
    engine: Engine, losing: Losing, dedup: Any, retry: RetryPolicy
) -> None:
    """The claims of the log still tell, and the outcome shows what was committed."""
    orders = Service(engine, dedup=dedup, retry=retry)
    orders.handle(action(1))
    losing.times, losing.then = 1, lambda: write_as_another(engine)
    if dedup is None:
        with pytest.raises(OutcomeUnknown, match="'o-1'"):
            orders.handle(action(2))
    else:
        outcome = orders.handle(action(2))
        assert (outcome.replayed, outcome.version) == (True, 2)
        assert outcome.snapshot.state.notes == [1, 2]
        assert orders.told == [([1], "1"), ([1, 2], "2")]
    assert stored(engine) == [1, 2, 99]


@pytest.mark.contract
@pytest.mark.parametrize("create", [True, False])
def test_row_was_deleted_meanwhile(
    engine: Engine, losing: Losing, create: bool
) -> None:
    """An action that the log holds is not done again."""
    orders = Service(engine, dedup=OrderActions)
    if not create:
        orders.handle(action(1))

    def delete() -> None:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM orders"))

    losing.times, losing.then = 1, delete
    outcome = orders.handle(action(2))
    assert (outcome.replayed, outcome.version) == (True, 1 if create else 2)
    assert orders.told[-1][1] == "2"
    assert stored(engine) == []


@pytest.mark.contract
def test_other_delivery_has_committed_it(engine: Engine, losing: Losing) -> None:
    """The same action, version and state, but not its commit: the intents are its."""
    other, one = Service(engine, dedup=OrderActions), action(2)
    orders = Service(engine, dedup=OrderActions, retry=RetryPolicy(max_attempts=2))
    orders.handle(action(1))

    def deliver() -> None:
        losing.done = True
        Context().run(other.handle, one)  # As from another process.
        write_as_another(engine)

    losing.times, losing.done, losing.then = 1, False, deliver
    outcome = orders.handle(one)
    assert (outcome.replayed, outcome.version) == (True, 2)
    assert [target for _, target in orders.told] == ["1"]
    assert other.told == [([1, 2], "2")]
    assert stored(engine) == [1, 2, 99]


@pytest.mark.contract
@pytest.mark.parametrize("dedup", [None, OrderActions])
@pytest.mark.parametrize("create", [True, False])
def test_answer_to_many(
    engine: Engine, losing: Losing, dedup: Any, create: bool
) -> None:
    """Each key is looked for; with a log or without, none is done twice."""
    orders = Service(engine, dedup=dedup)
    keys = [f"o-{n}" for n in range(5)]
    if not create:
        orders.handle_many([action(0, key) for key in keys])
    told = len(orders.told)
    losing.times = 1
    results: list[Any] = orders.handle_many([action(1, key) for key in keys])
    assert [each.replayed for each in results] == [True] * 5
    assert [target for _, target in orders.told[told:]] == ["1"] * 5
    expected = [1] if create else [0, 1]
    assert [stored(engine, key) for key in keys] == [expected] * 5


@pytest.mark.contract
def test_server_that_stays_away(engine: Engine, losing: Losing) -> None:
    """It cannot be known, of one action and of many, and that is what is said."""
    orders = Service(engine, resolve=RetryPolicy(max_attempts=2))
    orders.handle_many([action(1), action(1, "o-2")])
    away = [True]

    @event.listens_for(engine, "before_cursor_execute")
    def refuse(*_: object) -> None:
        if away and losing.times == 0:
            raise OperationalError("SELECT", None, LostConnection())

    losing.times = 1
    with pytest.raises(OutcomeUnknown, match="'o-1'"):
        orders.handle(action(2))
    losing.times = 1
    away.clear()
    losing.then = lambda: away.append(True)
    results = orders.handle_many([action(3), action(3, "o-2")])
    assert [type(each) for each in results] == [OutcomeUnknown] * 2
    away.clear()
    assert orders.handle(action(4)).snapshot.state.notes == [1, 2, 3, 4]


@pytest.mark.parametrize("dedup", [None, OrderActions])
@pytest.mark.parametrize("create", [True, False])
def test_commit_that_is_still_going_on(
    engine: Engine, losing: Losing, dedup: Any, create: bool
) -> None:
    """It is waited for: a row that it has locked, and one that it is creating."""
    # A writer makes a transaction of what is a single statement otherwise.
    orders = Service(engine, dedup=dedup, retry=ONCE, writers=[lambda *_: None])
    if not create:
        orders.handle(action(1))
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER linger AFTER INSERT OR UPDATE ON orders"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION linger()"
            )
        )

    def send_and_leave(connection: Any) -> None:
        connection.driver_connection.pgconn.send_query(b"COMMIT")
        connection.driver_connection.pgconn.finish()

    losing.times, losing._commit = 1, send_and_leave
    began = time.monotonic()
    outcome = orders.handle(action(2))
    assert time.monotonic() - began > 1
    assert outcome.replayed
    assert orders.told[-1][1] == "2"
    assert stored(engine)[-1] == 2


async def test_awaiting_service_finds_out(async_engine: AsyncEngine) -> None:
    """Of a folded batch each action has its outcome and its intents."""
    losing, told = Losing(async_engine.sync_engine), list[str]()

    async def tell(_: object, intents: Sequence[Intent]) -> None:
        told.extend(intent.target for intent in intents)

    orders = sa_wfstate.asyncio.ReducerService(
        async_engine,
        Order,
        reducer,
        initial=OrderState,
        dedup=OrderActions,
        on_intents=tell,
        retry=ONCE,
        fold=8,
    )
    await orders.handle(action(0))
    losing.times = 2
    results: list[Any] = await orders.handle_many([action(1), action(2)])
    results.append(await orders.handle(action(3)))
    assert [each.replayed for each in results] == [True] * 3
    assert [each.version for each in results] == [2, 2, 3]
    assert told == ["0", "1", "2", "3"]
