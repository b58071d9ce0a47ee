"""Connections in autocommit: the pool, its engine and its listeners notice nothing."""

from __future__ import annotations

import logging
from gc import collect
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from sa_wfstate import CanonicalStore, Provenance
from sa_wfstate.orm.entity import statements_of
from sa_wfstate.store.connections import Connections

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from ..conftest import Driver


def new(store: CanonicalStore[OrderState], key: str) -> None:
    """Create an order."""
    store.try_commit(
        workflow_key=key,
        expected_version=0,
        state=OrderState(),
        provenance=Provenance.now("effect-1"),
    )


def commits_alone(engine: Engine) -> list[bool]:
    """Return of each connection that the pool lends whether it is in autocommit."""
    connections = [engine.connect() for _ in range(2)]
    found = [bool(c.connection.dbapi_connection.autocommit) for c in connections]  # type: ignore[union-attr]
    for connection in connections:
        connection.close()
    return found


def lending(engine: Engine) -> Connections:
    """Return what a store has of *engine*."""
    return Connections(engine, statements_of(Order).mapper)


@pytest.mark.contract
def test_pool_gets_back_what_it_lent(engine: Engine) -> None:
    """Within it is autocommit, after it the level of the engine, an error or not."""
    Base.metadata.create_all(engine)
    connections = lending(engine)
    with connections.autocommit() as connection:
        lent: Any = connection.connection.dbapi_connection
        assert lent.autocommit
        connection.execute(text("CREATE TEMPORARY TABLE kept (n int)"))
        connection.rollback()
        connection.execute(text("SELECT * FROM kept"))
        connection.execute(text("DROP TABLE kept"))
    engine.dispose()  # The next pool listens as well.
    with pytest.raises(ProgrammingError), connections.autocommit() as connection:
        connection.execute(text("SELECT * FROM missing"))
    assert commits_alone(engine) == [False, False]


@pytest.mark.contract
def test_level_of_an_engine_stays(engine: Engine) -> None:
    """An engine with a level of its own lends it again after a commit of a store."""
    Base.metadata.create_all(engine)
    strict = engine.execution_options(isolation_level="REPEATABLE READ")
    store = CanonicalStore(strict, Order)
    new(store, "o-1")
    assert store.get_state("o-1").version == 1
    with strict.connect() as connection:
        assert connection.get_isolation_level() == "REPEATABLE READ"


@pytest.mark.usefixtures("unobserved")
def test_connection_that_cannot_be_reset_leaves_the_pool(driver: Driver) -> None:
    """It is closed, for the next transaction would commit each statement by itself."""
    engine = driver.create_engine(pool_reset_on_return=None)
    lent: Any = None
    with lending(engine).autocommit() as connection:
        lent = connection.connection.dbapi_connection
        lent.execute("BEGIN")
    assert lent.closed
    assert commits_alone(engine) == [False, False]


def test_connection_that_was_never_given_back_is_reset(engine: Engine) -> None:
    """An interrupt came before the reset: the pool does it, when it has it again."""
    lent: Any = lending(engine).autocommit()
    kept = lent.__enter__().connection.dbapi_connection
    assert kept.autocommit
    del lent
    collect()
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is kept
        assert not kept.autocommit
    assert commits_alone(engine) == [False, False]


def test_connection_is_invalidated_once(engine: Engine) -> None:
    """One that the body gives up is not given up again."""
    with lending(engine).autocommit() as connection:
        connection.invalidate()
    assert commits_alone(engine) == [False, False]


@pytest.mark.contract
@pytest.mark.usefixtures("unobserved")
def test_store_alone_adds_no_listener_to_its_engine(engine: Engine) -> None:
    """SQLAlchemy would dispatch four events around each statement of the engine."""
    Base.metadata.create_all(engine)
    store = CanonicalStore(engine, Order)
    new(store, "o-1")
    store.get_state("o-1")
    with Session(engine) as session:
        session.get_one(Order, "o-1").state.status = "paid"
        session.commit()
    listens = [n for n in engine.dispatch._event_names if getattr(engine.dispatch, n)]
    assert listens == []


@pytest.mark.contract
def test_listener_rewrites_statements_and_sees_the_level(engine: Engine) -> None:
    """A listener adds a comment to the SQL, as one that traces queries does."""
    Base.metadata.create_all(engine)
    store = CanonicalStore(engine, Order)
    seen: list[tuple[str, object]] = []

    def comment(
        connection: Connection, _: object, sql: str, parameters: Any, *__: object
    ) -> tuple[str, Any]:
        level = connection.get_execution_options().get("isolation_level")
        seen.append((sql.split(maxsplit=1)[0], level))
        return f"{sql} /* route='orders' */", parameters

    event.listen(engine, "before_cursor_execute", comment, retval=True)
    new(store, "o-1")
    assert store.get_state("o-1").version == 1
    event.remove(engine, "before_cursor_execute", comment)
    assert seen == [("INSERT", "AUTOCOMMIT"), ("SELECT", "AUTOCOMMIT")]
    assert commits_alone(engine) == [False, False]


def test_log_says_that_nothing_is_rolled_back(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """With the statements logged, BEGIN and ROLLBACK are said to be of autocommit."""
    Base.metadata.create_all(engine)
    store = CanonicalStore(engine, Order)
    with caplog.at_level(logging.INFO, "sqlalchemy.engine.Engine"):
        new(store, "o-1")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("BEGIN (implicit; DBAPI should not BEGIN")
    assert "ROLLBACK" not in messages
