"""What needs no transaction is committed, with its claims, by one statement."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Text, event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import (
    Action,
    ReducerService,
    RetryPolicy,
    TenantKey,
    WorkflowStateMixin,
)
from sa_wfstate.dedup import remember
from sa_wfstate.errors import VersionNotKept
from sa_wfstate.row.engine_profiles import PROFILES
from sa_wfstate.store import connections
from sa_wfstate.store.groups import FLIGHTS

from ..orders import Base, Order, OrderActions, OrderState, write_as_another
from ..verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine


class Others(DeclarativeBase):
    pass


class Parcel(WorkflowStateMixin[OrderState], Others):
    __tablename__ = "parcels"

    workflow_key: Mapped[UUID] = mapped_column(primary_key=True)


class Lease(WorkflowStateMixin[OrderState], Others):
    __tablename__ = "leases"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    workflow_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata, Others.metadata)


def note(state: OrderState, action: Action[int]) -> OrderState:
    """Append the payload."""
    return OrderState(notes=[*state.notes, action.payload])


def service(engine: Any, entity: Any = Order, **options: Any) -> ReducerService[Any]:
    """Make a service with a dedup log, and no receiver of intents."""
    options = {"initial": OrderState, "dedup": OrderActions} | options
    return ReducerService(engine, entity, options.pop("reducer", note), **options)


def action(payload: int = 1, key: Any = "o-1") -> Action[int]:
    """Make an action."""
    return Action(workflow_key=key, action_id=uuid4(), payload=payload)


def stored(engine: Engine, entity: Any = Order) -> dict[Any, list[int]]:
    """Read the notes of all workflows."""
    with Session(engine) as session:
        rows = session.scalars(select(entity))
        return {row.workflow_key: row.state.notes for row in rows}


def claims(engine: Engine) -> int:
    """Count the rows of the log."""
    with Session(engine) as session:
        return session.query(OrderActions).count()


def execute(engine: Engine, statement: str) -> None:
    """Do what another process does."""
    with engine.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.contract
def test_statements_of_one_action(engine: Engine) -> None:
    """Row and log are read by one, written by one; a cached state is not read."""
    handle = service(engine).handle
    handle(action(key="o-0"))
    levels: set[object] = set()

    def see(connection: Connection, *_: object) -> None:
        levels.add(connection.get_execution_options()["isolation_level"])

    event.listen(engine, "before_cursor_execute", see)
    sent = verbs_of(engine)
    for verbs in (["SELECT", "INSERT"], ["UPDATE"], ["UPDATE"]):
        handle(action())
        assert sent == verbs
        sent.clear()
    service(engine).handle(action())
    assert sent == ["SELECT", "UPDATE"]
    assert levels == {"AUTOCOMMIT"}
    event.remove(engine, "before_cursor_execute", see)
    assert stored(engine) == {"o-0": [1], "o-1": [1, 1, 1, 1]}
    assert claims(engine) == 5


@pytest.mark.contract
def test_statements_of_a_locked_attempt(engine: Engine) -> None:
    """The lock with its limit, the log, and row and claim, in a transaction."""
    orders, one = service(engine), action(2)
    orders.handle(action(1))
    sent = verbs_of(engine)
    for given, verbs in ((one, ["UPDATE"]), (action(3), ["UPDATE"]), (one, [])):
        orders._keys._idle["o-1"].locks = 1
        replayed = orders.handle(given).replayed
        assert (replayed, sent) == (verbs == [], ["SELECT", "SELECT", *verbs])
        sent.clear()
    assert (stored(engine), claims(engine)) == ({"o-1": [1, 2, 3]}, 3)


@pytest.mark.contract
def test_statements_of_many_actions(engine: Engine) -> None:
    """New rows and others, folded or not, are read by one and written by one."""
    orders = service(engine)
    orders.handle_many([action(n, f"o-{n}") for n in range(3)])
    sent = verbs_of(engine)
    given = [action(n, f"o-{n % 6}") for n in range(12)]
    results = orders.handle_many(given)
    assert sent == ["SELECT", "INSERT"]
    assert [each.version for each in results] == [2, 2, 2, 1, 1, 1] * 2
    first = {f"o-{n}": [n, n, n + 6] for n in range(3)}
    assert stored(engine) == first | {f"o-{n}": [n, n + 6] for n in range(3, 6)}
    assert claims(engine) == 15
    assert [each.replayed for each in orders.handle_many(given)] == [True] * 12


@pytest.mark.contract
def test_duplicate_of_a_cached_key(engine: Engine) -> None:
    """Its claim is seen before it would fail, and the first outcome is returned."""
    orders, one = service(engine), action(1)
    orders.handle(one)
    orders.handle(action(2))
    failed: list[object] = []
    event.listen(engine, "handle_error", failed.append)
    again = orders.handle(one)
    assert (again.replayed, again.version) == (True, 1)
    assert (stored(engine), claims(engine), failed) == ({"o-1": [1, 2]}, 2, [])


@pytest.mark.contract
def test_claim_of_a_row_that_is_gone(engine: Engine) -> None:
    """The new row is undone with the claim that fails: an action has one effect."""
    other, one, pending = service(engine), action(1), [1]

    def reducer(state: OrderState, given: Action[int]) -> OrderState:
        if pending:
            pending.pop()
            Context().run(other.handle, one)  # As from another process.
            execute(engine, "DELETE FROM orders")
        return note(state, given)

    again = service(engine, reducer=reducer).handle(one)
    assert (again.replayed, again.version) == (True, 1)
    with pytest.raises(VersionNotKept):
        again.snapshot  # noqa: B018
    assert (stored(engine), claims(engine)) == ({}, 1)


def together(
    orders: Any, given: Sequence[Action[int]], then: Callable[[], object] | None = None
) -> list[Any]:
    """Handle *given* by threads, all of whose commits are one group."""
    groups = orders._loop._attempts._commit
    for _ in range(FLIGHTS):
        groups._flights[object()] = float("inf")
    with ThreadPoolExecutor(len(given)) as threads:
        futures = [threads.submit(orders.handle, each) for each in given]
        while len(groups._pending) < len(given):
            time.sleep(0.001)
        if then is not None:
            then()
        with groups._lock:
            groups._flights.clear()
        groups._wake_next()
        return [each.exception(30) or each.result() for each in futures]


def test_group_is_one_statement(engine: Engine) -> None:
    """New rows and others, and the limit of its waits ends with the statement."""
    orders = service(engine)
    orders.handle_many([action(n, f"o-{n}") for n in range(3)])
    sent = verbs_of(engine)
    results = together(orders, [action(n, f"o-{n}") for n in range(6)], sent.clear)
    assert [each.version for each in results] == [2, 2, 2, 1, 1, 1]
    assert sent == ["INSERT"]
    assert claims(engine) == 9
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW lock_timeout")) == "0"


def test_duplicate_in_a_group(engine: Engine) -> None:
    """One member's action is in the log: the others are committed all the same."""
    orders = service(engine)
    given = [action(n, f"o-{n}") for n in range(5)]
    orders.handle_many(given)  # Their states are cached now.
    more = [action(n + 10, f"o-{n}") for n in range(5)]
    more[2] = given[2]
    results = together(orders, more)
    assert [each.replayed for each in results] == [False, False, True, False, False]
    others = {f"o-{n}": [n, n + 10] for n in (0, 1, 3, 4)}
    assert stored(engine) == {"o-2": [2]} | others


def test_locked_row_holds_up_no_other(engine: Engine) -> None:
    """The others of its group are committed while it waits for the lock."""
    orders = service(engine, retry=RetryPolicy(max_attempts=9))
    orders.handle(action(2, "o-2"))
    with engine.connect() as other:
        other.execute(text("SELECT FROM orders WHERE workflow_key = 'o-2' FOR UPDATE"))

        def unlock() -> None:
            deadline = time.monotonic() + 20
            while len(stored(engine)) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(len(stored(engine)))
            other.rollback()

        seen: list[int] = []
        thread = threading.Thread(target=unlock)
        given = [action(n, f"o-{n}") for n in range(5)]
        results = together(orders, given, thread.start)
        thread.join()
    assert seen == [5]
    assert [each.version for each in results] == [1, 1, 2, 1, 1]


class LostConnection(Exception):
    """As libpq reports it: without a code."""

    sqlstate = None


class Losing:
    """Loses the answer to the next write, which is done unless *done* is false."""

    def __init__(self, engine: Engine, *, done: bool) -> None:
        self.then: Callable[[], object] | None = None
        event.listen(
            engine,
            "after_cursor_execute" if done else "before_cursor_execute",
            self._lose,
        )

    def _lose(self, _: object, __: object, sql: str, *___: Any) -> None:
        then = self.then
        if then is not None and sql.startswith("WITH"):
            self.then = None
            then()
            raise OperationalError("COMMIT", None, LostConnection())


@pytest.mark.contract
@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("then", ["nothing", "moved", "deleted"])
def test_lost_answer_is_looked_up(
    engine: Engine, create: bool, done: bool, then: str
) -> None:
    """It was done or not, and the row may have moved on: one effect, one outcome."""
    attempts = 1 if done else 2
    orders = service(engine, retry=RetryPolicy(max_attempts=attempts))
    if not create:
        orders.handle(action(1))

    def follow() -> None:
        if then == "moved" and stored(engine):
            write_as_another(engine)
        if then == "deleted":
            execute(engine, "DELETE FROM orders")

    losing = Losing(engine, done=done)
    losing.then = follow
    outcome = orders.handle(action(2))
    assert outcome.replayed == done
    if done or then == "nothing":
        assert outcome.version == (1 if create else 2)
    assert claims(engine) == (1 if create else 2)
    notes = stored(engine).get("o-1", [])
    assert notes.count(2) == (0 if done and then == "deleted" else 1)


@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_of_a_group(engine: Engine, done: bool) -> None:
    """Each member learns whether it was committed, and is not committed twice."""
    orders, losing = service(engine), Losing(engine, done=done)
    given = [action(n, f"o-{n}") for n in range(6)]

    def arm() -> None:
        losing.then = lambda: None

    results = together(orders, given, arm)
    assert {each.replayed for each in results} == {done}
    assert stored(engine) == {f"o-{n}": [n] for n in range(6)}
    assert claims(engine) == 6


@pytest.mark.contract
def test_other_delivery_has_committed_it(engine: Engine) -> None:
    """The same action, version and state, but not its commit: it has its outcome."""
    one, orders = action(2), service(engine, retry=RetryPolicy(max_attempts=1))
    orders.handle(action(1))
    losing = Losing(engine, done=False)

    def deliver() -> None:
        Context().run(service(engine).handle, one)  # As from another process.
        write_as_another(engine)

    losing.then = deliver
    outcome = orders.handle(one)
    assert (outcome.replayed, outcome.version) == (True, 2)
    assert stored(engine) == {"o-1": [1, 2, 99]}


def test_claim_beside_a_lock(engine: Engine) -> None:
    """Where the application itself remembers an action, it has no second effect."""
    one = action(2)

    def reducer(state: OrderState, given: Action[int]) -> OrderState:
        if given is one:
            with Session(engine) as session, session.begin():
                remember(session, OrderActions, "o-1", one.action_id, result="{}")
        return note(state, given)

    orders = service(engine, reducer=reducer)
    orders.handle(action(1))
    orders._keys._idle["o-1"].locks = 1
    assert orders.handle(one).replayed
    assert (stored(engine), claims(engine)) == ({"o-1": [1]}, 2)


@pytest.mark.parametrize("where", ["level", "shards"])
def test_transaction_is_kept_where_it_counts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """At a stricter level of the engine, and on a server that routes each statement."""
    if where == "shards":
        monkeypatch.setattr(connections, "profile_on", lambda _: PROFILES["citus"])
    else:
        engine = engine.execution_options(isolation_level="SERIALIZABLE")
    handle = service(engine).handle
    handle(action(key="o-0"))
    sent = verbs_of(engine)
    handle(action(1))
    handle(action(2))
    assert sent == ["SELECT", "SELECT", "INSERT", "INSERT", "UPDATE", "INSERT"]
    assert stored(engine)["o-1"] == [1, 2]


@pytest.mark.contract
@pytest.mark.parametrize(
    ("entity", "keys"),
    [
        (Parcel, [uuid4() for _ in range(3)]),
        (Lease, [TenantKey("acme", n) for n in range(3)]),
    ],
)
def test_keys_of_other_types(engine: Engine, entity: Any, keys: list[Any]) -> None:
    """Their log has their texts; those of a tenant are sent by one statement each."""
    parcels = service(engine, entity)
    given = [action(1, key) for key in keys]
    assert [parcels.handle(each).version for each in given] == [1, 1, 1]
    assert [parcels.handle(each).replayed for each in given] == [True] * 3
    more = [action(2, key) for key in [*keys, *keys]]
    assert [each.version for each in parcels.handle_many(more)] == [2] * 6
    assert [parcels.handle(each).replayed for each in more] == [True] * 6
    assert list(stored(engine, entity).values()) == [[1, 2, 2]] * 3
