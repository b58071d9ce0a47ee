"""Contract: what tells of a COMMIT whose answer was lost, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    Engine,
    create_engine,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import sa_wfstate.asyncio
from sa_wfstate import RetryPolicy, WorkflowStateMixin, run_transaction
from sa_wfstate.errors import OutcomeUnknown
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.testing import temporary_database

from ..orders import OrderState
from ..versions import ENDS_REFUSED_PREPARE
from .test_transactions import Faults, refuse_one_commit

SHORTLY = RetryPolicy(max_attempts=None, base_delay=0.05, deadline=1.5)


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class Parcel(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "parcels"


class ParcelHistory(HistoryMixin, Base):
    __tablename__ = "parcel_history"


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]


keep_history(Parcel, ParcelHistory)


@pytest.fixture
def beyond(server_url: URL, database: URL) -> Iterator[Engine]:
    """Make the tables in another database, and foreign tables for them in this one."""
    with temporary_database(server_url) as url:
        there, here = create_engine(url), create_engine(database)
        Base.metadata.create_all(there)
        options = {"dbname": url.database, "port": url.port, "host": url.host}
        options = {key: value for key, value in options.items() if value} | url.query
        named = ", ".join(f"{key} '{value}'" for key, value in options.items())
        named, wrapper = f"({named})", "postgres_fdw"
        defaults = "public OPTIONS (import_default 'true')"
        user = f"user '{url.username}', password_required 'false'"
        if url.password:
            user += f", password '{url.password}'"
        with here.begin() as connection:
            for statement in (
                f"CREATE EXTENSION {wrapper}",
                f"CREATE SERVER beyond FOREIGN DATA WRAPPER {wrapper} OPTIONS {named}",
                f"CREATE USER MAPPING FOR CURRENT_USER SERVER beyond OPTIONS ({user})",
                f"IMPORT FOREIGN SCHEMA public FROM SERVER beyond INTO {defaults}",
            ):
                connection.execute(text(statement))
        with Session(there) as session, session.begin():
            session.add(Order(workflow_key="o-1", state=OrderState()))
        yield there
        there.dispose()
        here.dispose()


class Calls:
    """Counts the calls of a function, and passes them on."""

    def __init__(self, function: Callable[[Session], Any]) -> None:
        self.function = function
        self.count = 0

    def __call__(self, session: Session) -> Any:
        self.count += 1
        return self.function(session)


def change(session: Session) -> None:
    """Write the next version of the order."""
    order = session.get_one(Order, "o-1")
    order.state = OrderState(status=f"changed {order.version}")


def create(session: Session) -> None:
    """Create a second order."""
    session.add(Order(workflow_key="o-2", state=OrderState()))


def delete(session: Session) -> None:
    """Delete the order."""
    session.delete(session.get_one(Order, "o-1"))


NOTE = {"id": 1, "text": "paid"}


def versions(engine: Engine, entity: Any = Order) -> dict[str, int]:
    """Read all versions."""
    with Session(engine) as session:
        return {
            row.workflow_key: row.version for row in session.scalars(select(entity))
        }


def notes(engine: Engine) -> int | None:
    """Count the notes."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Note))


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
def test_row_on_another_server_tells(
    engine: Engine, beyond: Engine, done: bool
) -> None:
    """A changed row says what became of the COMMIT; the change is there once."""
    faults = Faults(engine)
    faults.times, faults.done = 1, done
    calls = Calls(change)
    run_transaction(sessionmaker(engine), calls)
    assert versions(beyond) == {"o-1": 2}
    assert calls.count == (1 if done else 2)


@pytest.mark.contract
def test_creation_on_another_server_is_found(engine: Engine, beyond: Engine) -> None:
    """A row that is there with this effect was created by this transaction."""
    faults = Faults(engine)
    faults.times = 1
    calls = Calls(create)
    run_transaction(sessionmaker(engine), calls)
    assert calls.count == 1
    assert versions(beyond) == {"o-1": 1, "o-2": 1}


@pytest.mark.contract
def test_absence_on_another_server_proves_nothing(
    engine: Engine, beyond: Engine
) -> None:
    """A row that is not there may come yet, or is gone again: it is not guessed."""
    faults = Faults(engine)
    sessions = sessionmaker(engine)
    faults.times, faults.done = 1, False
    with pytest.raises(OutcomeUnknown, match="Order 'o-2'"):
        run_transaction(sessions, create)
    faults.times, faults.done = 1, True
    with pytest.raises(OutcomeUnknown, match="Order 'o-1'"):
        run_transaction(sessions, delete)
    assert versions(beyond) == {}


@pytest.mark.contract
def test_row_that_was_not_deleted_tells(engine: Engine, beyond: Engine) -> None:
    """A row that is still what it was before shows that nothing was committed."""
    faults = Faults(engine)
    faults.times, faults.done = 1, False
    calls = Calls(delete)
    run_transaction(sessionmaker(engine), calls)
    assert calls.count == 2
    assert versions(beyond) == {}


WITHOUT_WORKFLOW_ROWS = [
    lambda session: session.add(Note(**NOTE)),
    lambda session: session.execute(insert(Note).values(**NOTE)),
    lambda session: session.connection().execute(insert(Note.__table__), [NOTE]),
    lambda session: session.execute(text("INSERT INTO notes VALUES (1, 'paid')")),
    lambda session: session.connection().exec_driver_sql(
        "INSERT INTO notes VALUES (1, 'paid')"
    ),
    lambda session: session.scalars(
        select(insert(Note).values(**NOTE).returning(Note.id).cte())
    ).one(),
    lambda session: session.scalar(select(func.write_note())),
    lambda session: session.scalar(select(text("write_note()"))),
]
WAYS = ["flush", "orm", "core", "text", "driver", "cte", "function", "text in select"]


@pytest.mark.parametrize("write", WITHOUT_WORKFLOW_ROWS, ids=WAYS)
def test_what_wrote_no_workflow_row_is_not_done_twice(
    engine: Engine, beyond: Engine, write: Any
) -> None:
    """Whichever way it was written on another server, this one has no number for it."""
    with Session(engine) as session, session.begin():
        session.execute(
            text(
                "CREATE FUNCTION write_note() RETURNS int LANGUAGE sql AS"
                " $$INSERT INTO notes VALUES (1, 'paid') RETURNING 1$$"
            )
        )
    Faults(engine).times = 1
    calls = Calls(write)
    with pytest.raises(OutcomeUnknown):
        run_transaction(sessionmaker(engine), calls)
    assert (calls.count, notes(beyond)) == (1, 1)


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
def test_no_number_is_no_evidence(engine: Engine, beyond: Engine, done: bool) -> None:
    """Neither that it was committed nor that it was not; the error says so."""
    faults = Faults(engine)
    faults.times, faults.done = 1, done
    calls = Calls(lambda session: session.execute(insert(Note).values(**NOTE)))
    with pytest.raises(OutcomeUnknown, match=r"workflow rows: .* whether it") as caught:
        run_transaction(sessionmaker(engine), calls)
    assert caught.value.effect_ids == ()
    assert (calls.count, notes(beyond)) == (1, int(done))


@pytest.mark.contract
@pytest.mark.usefixtures("beyond")
def test_reading_is_done_again(engine: Engine) -> None:
    """Where nothing was written there is nothing to lose."""

    def read(session: Session) -> int | None:
        with session.begin_nested():
            session.get_one(Order, "o-1", with_for_update=True)
        return session.scalar(select(func.count()).select_from(Order))

    def read_by_text(session: Session) -> Any:
        connection = session.connection(execution_options={"postgresql_readonly": True})
        return connection.scalar(text("SELECT count(*) FROM orders"))

    faults = Faults(engine)
    for fn in map(Calls, (read, read_by_text)):
        faults.times, faults.done = 1, False
        assert run_transaction(sessionmaker(engine), fn) == 1
        assert fn.count == 2


@pytest.mark.contract
def test_rolled_back_savepoint_is_no_evidence(engine: Engine, beyond: Engine) -> None:
    """What a savepoint took back was not written, whatever else was."""

    def fn(session: Session) -> None:
        with session.begin_nested() as savepoint:
            change(session)
            session.flush()
            savepoint.rollback()
        create(session)

    faults = Faults(engine)
    faults.times = 1
    calls = Calls(fn)
    run_transaction(sessionmaker(engine), calls)
    assert calls.count == 1
    assert versions(beyond) == {"o-1": 1, "o-2": 1}


async def test_async_function_without_workflow_rows(
    async_engine: AsyncEngine, beyond: Engine
) -> None:
    """The async counterpart does not do it a second time either."""
    calls = []

    async def fn(session: Any) -> None:
        calls.append(session)
        await session.execute(insert(Note).values(**NOTE))

    faults = Faults(async_engine.sync_engine)
    faults.times = 1
    with pytest.raises(OutcomeUnknown):
        await sa_wfstate.asyncio.run_transaction(async_sessionmaker(async_engine), fn)
    assert (len(calls), notes(beyond)) == (1, 1)


@pytest.fixture
def two(server_url: URL, database: URL) -> Iterator[tuple[Engine, Engine]]:
    """Make two databases; the orders are in one, parcels and notes in the other."""
    with temporary_database(server_url) as url:
        engines = create_engine(database), create_engine(url)
        for engine in engines:
            Base.metadata.create_all(engine)
        with Session(engines[0]) as session, session.begin():
            session.add(Order(workflow_key="o-1", state=OrderState()))
        with Session(engines[1]) as session, session.begin():
            session.add(Parcel(workflow_key="p-1", state=OrderState()))
        yield engines
        for engine in engines:
            settle_prepared(engine)
            engine.dispose()


def over(two: tuple[Engine, Engine], **options: Any) -> sessionmaker[Session]:
    """Make sessions that use both databases."""
    binds = {Order: two[0], Parcel: two[1], Note: two[1]}
    return sessionmaker(binds=binds, **options)


def change_both(session: Session) -> None:
    """Write the next version of the order and of the parcel."""
    change(session)
    parcel = session.get_one(Parcel, "p-1")
    parcel.state = OrderState(status=f"changed {parcel.version}")


@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
@pytest.mark.parametrize("at", [0, 1])
def test_several_databases_each_have_their_evidence(
    two: tuple[Engine, Engine], at: int, done: bool
) -> None:
    """What one of them has committed is not done again for the other's sake."""
    faults = Faults(two[at])
    faults.times, faults.done = 1, done
    calls = Calls(change_both)
    unknown = False
    try:
        run_transaction(over(two), calls, resolve=SHORTLY)
    except OutcomeUnknown as error:
        unknown = len(error.effect_ids) == 2
    found = [versions(two[0])["o-1"], versions(two[1], Parcel)["p-1"]]
    # Which of the two commits first is left to chance.
    assert sorted(found) == ([1, 2] if unknown else [2, 2])
    assert calls.count == 1 or not unknown


def sharded(two: tuple[Engine, Engine]) -> sessionmaker[Any]:
    """Make sessions that keep each order in one database, by its key."""
    shards = dict(zip(("o-1", "o-2"), two, strict=True))
    return sessionmaker(
        class_=ShardedSession,
        shards=shards,
        shard_chooser=lambda _, instance, **__: instance.workflow_key,
        identity_chooser=lambda _, primary_key, **__: [primary_key[0]],
        execute_chooser=lambda _: list(shards),
    )


@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
@pytest.mark.parametrize("at", [0, 1])
def test_shards_each_have_their_evidence(
    two: tuple[Engine, Engine], at: int, done: bool
) -> None:
    """Rows of one class in several databases are looked for where they were written."""
    with Session(two[1]) as session, session.begin():
        session.add(Order(workflow_key="o-2", state=OrderState()))
    faults = Faults(two[at])
    faults.times, faults.done = 1, done

    def change_shards(session: Session) -> None:
        for key in ("o-1", "o-2"):
            order = session.get_one(Order, key)
            order.state = OrderState(status=f"changed {order.version}")

    calls = Calls(change_shards)
    unknown = False
    try:
        run_transaction(sharded(two), calls, resolve=SHORTLY)
    except OutcomeUnknown as error:
        unknown = len(error.effect_ids) == 2
    found = [versions(two[0])["o-1"], versions(two[1])["o-2"]]
    assert sorted(found) == ([1, 2] if unknown else [2, 2])
    assert calls.count == 1 or not unknown
    assert calls.count == 1 or not done


@pytest.mark.parametrize("at", [0, 1])
def test_refusal_by_one_database_is_not_that_of_the_other(
    two: tuple[Engine, Engine], at: int
) -> None:
    """A conflict of one COMMIT says nothing about another that was done before."""
    refuse_one_commit(two[at])
    calls = Calls(change_both)
    try:
        run_transaction(over(two), calls)
    except OutcomeUnknown:
        assert calls.count == 1
    else:
        assert versions(two[0]) == {"o-1": 2}
        assert versions(two[1], Parcel) == {"p-1": 2}


def test_database_that_was_only_read_has_no_say(two: tuple[Engine, Engine]) -> None:
    """The evidence of those that were written is enough."""

    def fn(session: Session) -> None:
        session.get_one(Parcel, "p-1")
        change(session)

    for engine in two:
        Faults(engine).times = 1
    calls = Calls(fn)
    run_transaction(over(two), calls)
    assert versions(two[0])["o-1"] == 2


@pytest.mark.parametrize("step", ["do_prepare_twophase", "do_commit_twophase"])
@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
def test_two_phases_are_not_done_twice(
    two: tuple[Engine, Engine], step: str, done: bool
) -> None:
    """A prepared transaction holds its rows, so its outcome stays open."""
    if step == "do_prepare_twophase" and not ENDS_REFUSED_PREPARE:
        pytest.skip("SQLAlchemy before 2.0.51")
    dialect: Any = two[0].dialect
    real = getattr(dialect, step)
    losses = [1]

    def lose(connection: Any, *rest: Any, **options: Any) -> None:
        if not losses:
            real(connection, *rest, **options)
            return
        losses.pop()
        if done:
            real(connection, *rest, **options)
        connection.connection.driver_connection.close()
        raise dialect.loaded_dbapi.OperationalError("connection is closed")

    setattr(dialect, step, lose)
    calls = Calls(change_both)
    unknown = False
    try:
        run_transaction(over(two, twophase=True), calls, resolve=SHORTLY)
    except OutcomeUnknown:
        unknown = True
        assert calls.count == 1
    found = versions(two[0])["o-1"], versions(two[1], Parcel)["p-1"]
    assert unknown or found == (2, 2)


def settle_prepared(engine: Engine) -> None:
    """Roll back what was left prepared, or the database could not be dropped."""
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        prepared = (
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        )
        for gid in connection.scalars(text(prepared)).all():
            connection.execute(text(f"ROLLBACK PREPARED '{gid}'"))


@pytest.mark.contract
def test_history_tells_of_a_row_that_others_have_written(
    engine: Engine, create_tables: Any, database: URL
) -> None:
    """Where each version is kept, later commits take no evidence away."""
    create_tables(Base.metadata)
    others = create_engine(database)
    with Session(others) as session, session.begin():
        session.add(Parcel(workflow_key="p-1", state=OrderState()))

    def again() -> None:
        with Session(others) as session, session.begin():
            session.get_one(Parcel, "p-1").state = OrderState(status="by others")

    def fn(session: Session) -> None:
        session.get_one(Parcel, "p-1").state = OrderState(status="mine")

    faults = Faults(engine)
    faults.times, faults.meanwhile = 1, again
    calls = Calls(fn)
    run_transaction(sessionmaker(engine), calls)
    others.dispose()
    assert (calls.count, versions(engine, Parcel)) == (1, {"p-1": 3})


@pytest.mark.contract
def test_recreated_row_is_no_evidence(
    engine: Engine, create_tables: Any, database: URL
) -> None:
    """The version before the write may be that of another workflow of the same key."""
    create_tables(Base.metadata)
    others = sessionmaker(create_engine(database))
    with others.begin() as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))

    def recreate() -> None:
        with others.begin() as session:
            delete(session)
        with others.begin() as session:
            session.add(Order(workflow_key="o-1", state=OrderState()))

    faults = Faults(engine)
    faults.times, faults.meanwhile = 1, recreate
    calls = Calls(change)
    with pytest.raises(OutcomeUnknown):
        run_transaction(sessionmaker(engine), calls)
    others.kw["bind"].dispose()
    assert calls.count == 1


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False], ids=["done", "undone"])
def test_last_write_of_a_row_tells(
    engine: Engine, create_tables: Any, done: bool
) -> None:
    """A row that was written several times holds the last effect of the transaction."""
    create_tables(Base.metadata)
    with Session(engine) as session, session.begin():
        session.add(Order(workflow_key="o-1", state=OrderState()))

    def fn(session: Session) -> None:
        change(session)
        session.flush()
        delete(session)
        session.flush()
        session.add(Order(workflow_key="o-1", state=OrderState(status="again")))
        session.flush()
        create(session)
        session.flush()
        session.get_one(Order, "o-2").state = OrderState(status="twice")

    faults = Faults(engine)
    faults.times, faults.done = 1, done
    calls = Calls(fn)
    run_transaction(sessionmaker(engine), calls)
    assert calls.count == (1 if done else 2)
    assert versions(engine) == {"o-1": 1, "o-2": 2}


def test_unknown_outcome_of_a_call_comes_out_as_it_is(
    engine: Engine, create_tables: Any
) -> None:
    """What the function itself raises says nothing about this transaction."""
    create_tables(Base.metadata)
    raised = OutcomeUnknown("Order", "o-9", ())

    def fn(_: Session) -> None:
        raise raised

    with pytest.raises(OutcomeUnknown) as caught:
        run_transaction(sessionmaker(engine), fn)
    assert caught.value is raised
