"""A migration changes the type of a column under connections that have prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, event, text
from sqlalchemy.exc import NotSupportedError
from sqlalchemy.orm import Session, sessionmaker

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    ErrorKind,
    Provenance,
    ReducerService,
    classify,
    field_of,
    run_transaction,
)
from sa_wfstate.orm.entity import statements_of
from sa_wfstate.patching import set_to
from sa_wfstate.store.connections import Connections

from ..orders import Base, Order, OrderActions, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from ..conftest import Driver

KEPT_PLANS = 7
"""psycopg prepares a statement when it is executed for the sixth time."""


@pytest.fixture
def engine(driver: Driver, create_tables: Callable[[MetaData], None]) -> Engine:
    """Connect to a database with the tables, always by the same connection."""
    create_tables(Base.metadata)
    return driver.create_engine(pool_size=1, max_overflow=0)


def pay_for(state: OrderState, action: Action[str]) -> OrderState:
    """Note the payload."""
    return state.model_copy(update={"notes": [*state.notes, action.payload]})


def service_of(engine: Engine) -> ReducerService[OrderState, str]:
    """Return a service, each action of which is processed once."""
    return ReducerService(
        engine, Order, pay_for, initial=OrderState, dedup=OrderActions
    )


def action(number: int) -> Action[str]:
    """Return an action of the workflow."""
    return Action(workflow_key="o-1", action_id=number, payload="paid")


def refuse(connection: Connection, what: str, when: str) -> None:
    """Let the server refuse statements as it refuses what is not supported."""
    connection.execute(
        text(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE 'not supported' USING ERRCODE = '0A000'; END $$"
        )
    )
    connection.execute(
        text(
            f"CREATE TRIGGER refuse BEFORE {what} FOR EACH ROW"
            f" WHEN ({when}) EXECUTE FUNCTION refuse()"
        )
    )


class Verbs:
    """What needs no transaction of the caller, on one workflow."""

    def __init__(self, engine: Engine) -> None:
        self.store = CanonicalStore(engine, Order)
        self.group = CanonicalStore(engine, Order, group=True)
        self.service = service_of(engine)
        self.calls = 0

    def call(self) -> None:
        """Call each of them once; none may raise."""
        self.calls += 1
        new = Provenance.now()
        store, key = self.store, "o-1"
        self.service.handle(action(self.calls))
        for each in (store, self.group):
            current = each.get_state(key)
            each.try_commit(base=current, state=OrderState(), provenance=new)
        current = store.get_state(key)
        commit = Commit(base=current, state=OrderState(), provenance=new)
        store.try_commit_many([commit])
        store.try_patch(
            workflow_key=key,
            edits=[set_to(field_of(Order.state, lambda s: s.status), str(self.calls))],
            provenance=new,
        )
        assert store.get_state(key).state.status == str(self.calls)


def migrate(driver: Driver, length: int) -> None:
    """Change the types of two columns that statements return."""
    with driver.create_engine().begin() as connection:
        connection.execute(
            text(
                f"ALTER TABLE orders ALTER workflow_key TYPE varchar({length}),"
                f" ALTER updated_at TYPE timestamptz({length % 7})"
            )
        )


@pytest.mark.contract
@pytest.mark.parametrize("listened", [False, True], ids=["plain", "listened"])
@pytest.mark.usefixtures("unobserved")
def test_store_and_service_notice_no_migration(
    engine: Engine, driver: Driver, listened: bool
) -> None:
    """What the server refuses for its plan is sent again, with or without a context."""
    if listened:
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    verbs = Verbs(engine)
    for _ in range(KEPT_PLANS):
        verbs.call()
    for length in (300, 400):
        migrate(driver, length)
        verbs.call()
    with engine.connect() as connection:
        assert not connection.connection.dbapi_connection.autocommit  # type: ignore[union-attr]


@pytest.mark.contract
def test_session_meets_the_error_once(engine: Engine, driver: Driver) -> None:
    """It is transient: run_transaction retries, and a store of sessions reads again."""
    sessions = sessionmaker(engine)
    store = CanonicalStore(sessions, Order)
    service_of(engine).handle(action(1))

    def pay(session: Session) -> None:
        session.get_one(Order, "o-1").state.notes.append("paid")

    for _ in range(KEPT_PLANS):
        run_transaction(sessions, pay)
    migrate(driver, 300)
    run_transaction(sessions, pay)
    for _ in range(KEPT_PLANS):
        store.get_state("o-1")
    migrate(driver, 400)
    with pytest.raises(NotSupportedError) as caught:
        store.get_state("o-1")
    assert classify(caught.value) is ErrorKind.TRANSIENT
    assert len(store.get_state("o-1").state.notes) == KEPT_PLANS + 2


def test_statement_of_many_rows_is_not_sent_again(engine: Engine) -> None:
    """In autocommit, the rows before the one that was refused are written."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (n int)"))
        refuse(connection, "INSERT ON numbers", "NEW.n > 1")
    numbers = Table("numbers", MetaData(), Column("n", Integer))
    insert = numbers.insert().returning(numbers.c.n)
    one_by_one = {"insertmanyvalues_page_size": 1}
    lending = Connections(engine, statements_of(Order).mapper)
    with pytest.raises(NotSupportedError) as caught, lending.autocommit() as lent:
        lent.execute(insert, [{"n": 1}, {"n": 2}], execution_options=one_by_one)
    assert classify(caught.value) is ErrorKind.FATAL
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT n FROM numbers")).all() == [1]


def test_store_does_not_end_the_transaction_that_it_joins(engine: Engine) -> None:
    """What is refused there is told as it is; no driver prepares anew within it."""
    service_of(engine).handle(action(1))
    with engine.connect() as connection, connection.begin():
        refuse(connection, "UPDATE ON orders", "true")
        joined = sessionmaker(connection, join_transaction_mode="create_savepoint")
        store = CanonicalStore(joined, Order)
        with pytest.raises(NotSupportedError, match="not supported"):
            store.try_commit(
                base=store.get_state("o-1"),
                state=OrderState(),
                provenance=Provenance.now(),
            )
        assert connection.in_transaction()
