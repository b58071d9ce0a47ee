"""Statements that the driver gets without a context: only the time can tell."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import CheckConstraint, Engine, event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_wfstate import CanonicalStore, Provenance, StateCommitted, WorkflowStateMixin
from sa_wfstate.orm.entity import statements_of
from sa_wfstate.row.direct import DirectConnection
from sa_wfstate.store.connections import Connections

from ..versions import WRAPS_LISTENERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, ExceptionContext, MetaData

    from ..conftest import Driver

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    """The declarative base of these classes."""


class State(BaseModel):
    """A state that may be refused by the table."""

    card: str = "4111"


class Order(WorkflowStateMixin[State], Base):
    """An order of which one version is refused."""

    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("state ->> 'card' <> 'bad'", name="no_bad"),)


_revisions = count(1)


class Numbered(WorkflowStateMixin[State], Base):
    """A class with a key of another type, and a column that Python fills."""

    __tablename__ = "numbered"

    workflow_key: Mapped[UUID] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(
        default=lambda: next(_revisions), onupdate=lambda: next(_revisions)
    )


@pytest.fixture
def engine(driver: Driver, create_tables: Callable[[MetaData], None]) -> Engine:
    """Connect to a database with the tables."""
    create_tables(Base.metadata)
    return driver.create_engine()


def lend(engine: Engine) -> Any:
    """Lend a connection as a store does."""
    return Connections(engine, statements_of(Order).mapper).autocommit()


def write(engine: Engine, version: int, card: str = "4111", key: Any = "o-1") -> Any:
    """Commit a version through a store of its own."""
    return CanonicalStore(engine, Numbered if key != "o-1" else Order).try_commit(
        workflow_key=key,
        expected_version=version,
        state=State(card=card),
        provenance=Provenance.now(f"effect-{version}"),
    )


@pytest.mark.usefixtures("unobserved")
def test_read_and_write_begin_no_transaction(engine: Engine, driver: Driver) -> None:
    """Of psycopg, the connection of a read sees neither BEGIN nor a context."""
    write(engine, 0)
    statements = statements_of(Order)
    with lend(engine) as connection:
        snapshot = statements.read(connection, "o-1")
        assert snapshot is not None
        assert snapshot.state == State()
        direct = isinstance(connection, DirectConnection)
        assert connection.in_transaction() is not direct
    assert direct is (WRAPS_LISTENERS and driver.name != "asyncpg")
    assert isinstance(write(engine, 1), StateCommitted)


def test_error_is_that_of_the_statement(engine: Engine) -> None:
    """It has SQL and parameters, is told to listeners, and was refused only once."""
    write(engine, 0)
    with engine.begin() as connection:
        connection.execute(text("CREATE SEQUENCE tries"))
        connection.execute(
            text("ALTER TABLE orders ADD CHECK (version < 2 OR nextval('tries') < 0)")
        )
    told: list[ExceptionContext] = []
    event.listen(engine, "handle_error", told.append)
    with pytest.raises(IntegrityError) as caught:
        write(engine, 1, "other")
    assert caught.value.statement is not None
    assert caught.value.statement.startswith("UPDATE orders SET version=")
    assert "other" in str(caught.value.params)
    assert caught.value.__cause__ is caught.value.orig
    assert [context.execution_context is None for context in told] == [False]
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT last_value FROM tries")) == 1


@pytest.mark.usefixtures("engine")
def test_error_shows_no_row_where_parameters_are_hidden(driver: Driver) -> None:
    """Neither the parameters, nor the DETAIL in which the server quotes the row."""
    engine = driver.create_engine(hide_parameters=True)
    write(engine, 0)
    with pytest.raises(IntegrityError) as caught:
        write(engine, 1, "bad")
    assert "no_bad" in str(caught.value)
    assert "effect-1" not in str(caught.value)


def test_lost_connection_empties_the_pool(engine: Engine, driver: Driver) -> None:
    """A read finds its connection gone: the other, which went too, is not lent."""
    write(engine, 0)
    pooled = [engine.connect() for _ in range(2)]
    for each in pooled:
        each.execute(text("SELECT 1"))
        each.close()
    kill = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with driver.create_engine().connect() as killer:
        killer.execute(kill)
    store = CanonicalStore(engine, Order)
    with pytest.raises(DBAPIError) as caught:
        store.get_state("o-1")
    assert caught.value.connection_invalidated
    assert [store.get_state("o-1").version for _ in range(2)] == [1, 1]


def test_listener_that_comes_later_is_told(engine: Engine) -> None:
    """The next statement goes by SQLAlchemy, for a listener of the engine or of all."""
    write(engine, 0)
    store = CanonicalStore(engine, Order)
    seen: list[str] = []

    def listen(_: Connection, __: object, sql: str, *___: object) -> None:
        seen.append(sql.split(maxsplit=1)[0])

    store.get_state("o-1")
    for target in (engine, Engine):
        event.listen(target, "before_cursor_execute", listen)
        store.get_state("o-1")
        event.remove(target, "before_cursor_execute", listen)
        store.get_state("o-1")
    assert seen == ["SELECT", "SELECT"]


def test_driver_call_that_an_application_replaces_is_used(engine: Engine) -> None:
    """A listener of ``do_execute`` executes in place of the driver."""
    write(engine, 0)
    seen: list[str] = []

    def execute(cursor: Any, sql: str, parameters: Any, _: object) -> bool:
        seen.append(sql.split(maxsplit=1)[0])
        cursor.execute(sql, parameters)
        return True

    event.listen(engine, "do_execute", execute)
    assert CanonicalStore(engine, Order).get_state("o-1").version == 1
    assert seen == ["SELECT"]


def test_value_that_python_makes_is_written(engine: Engine) -> None:
    """A column with ``onupdate=`` gets its value; a key need not be a text."""
    key = UUID(int=7)
    for version in range(2):
        write(engine, version, key=key)
    store = CanonicalStore(engine, Numbered)
    assert store.get_state(key).workflow_key == key
    with engine.connect() as connection:
        revision = connection.scalar(select(Numbered.__table__.c.revision))
    assert revision == next(_revisions) - 1


def test_schema_of_an_engine_is_used(engine: Engine) -> None:
    """An engine with a schema_translate_map reads from that schema."""
    write(engine, 0)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA other"))
        connection.execute(text("CREATE TABLE other.orders (LIKE orders)"))
    translated = engine.execution_options(schema_translate_map={None: "other"})
    with pytest.raises(LookupError):
        CanonicalStore(translated, Order).get_state("o-1")


def test_missing_table_is_named(engine: Engine) -> None:
    """An error of the server has its class, and its message."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE orders"))
    with pytest.raises(ProgrammingError, match="orders"):
        CanonicalStore(engine, Order).get_state("o-1")
