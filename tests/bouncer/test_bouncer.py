"""What works behind PgBouncer in transaction mode, and with which settings."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_wfstate import Provenance, StateCommitted, try_commit
from sa_wfstate.cli.main import main
from sa_wfstate.cli.pooler import find_pooler

from ..conftest import AsyncDriver, Driver
from ..drives import DRIVES
from ..drives import Base as DriveBase
from . import bouncers
from .readers import KEY, Named, Order, Refund, make, read_both, read_in_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Engine

pytestmark = [
    pytest.mark.bouncer,
    pytest.mark.skipif(
        bouncers.PROGRAM is None,
        reason="no pgbouncer on this machine, and none named by SA_WFSTATE_PGBOUNCER",
    ),
]

UNPREPARED: Final[dict[str, dict[str, Any]]] = {
    "psycopg": {"prepare_threshold": None},
    "psycopg_async": {"prepare_threshold": None},
    "asyncpg": {"statement_cache_size": 0},
}
"""What each driver needs where PgBouncer has no prepared statements."""


@pytest.fixture(params=[True, False], ids=["prepared", "unprepared"])
def prepared(request: pytest.FixtureRequest) -> bool:
    """Run the test with and without support for prepared statements."""
    support: bool = request.param
    if support and bouncers.version() < (1, 21):
        pytest.skip("this pgbouncer is older than 1.21: it has no prepared statements")
    return support


@pytest.fixture
def front(database: URL, prepared: bool) -> Iterator[URL]:
    """Run a PgBouncer in front of an empty database."""
    with bouncers.bouncer(database, prepared=prepared) as url:
        yield url


def failed_drives(engine: Engine) -> dict[str, str]:
    """Run the drives; return those that fail, and why."""
    failed = {}
    for name, drive in DRIVES.items():
        try:
            drive(engine)
        except Exception as error:  # noqa: BLE001 - what comes of it is the result
            failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
    return failed


@pytest.mark.parametrize("name", ["psycopg", "psycopg_async", "asyncpg"])
def test_public_api_works_with_the_settings(
    front: URL,
    prepared: bool,
    name: str,
    create_tables: Callable[..., None],
) -> None:
    """With support all drives pass at the defaults, without by one setting."""
    create_tables(DriveBase.metadata)
    driver = (Driver if name == "psycopg" else AsyncDriver)(name, front)
    failed: dict[str, str] = {}

    def run() -> None:
        settings = {} if prepared else UNPREPARED[name]
        failed.update(failed_drives(driver.create_engine(connect_args=settings)))

    try:
        driver.run(run)
    finally:
        driver.close()
    assert failed == {}


@pytest.mark.parametrize("name", ["psycopg", "asyncpg"])
def test_two_processes_read_what_is_theirs(
    front: URL, prepared: bool, name: str, database: URL
) -> None:
    """Statements of two processes do not meet, whose drivers use the same names."""
    make(database)
    url = front.set(drivername=f"postgresql+{name}")
    settings = {} if prepared else UNPREPARED[name]
    assert read_both(url, 60, connect_args=settings) == {"right": 120}


@pytest.mark.parametrize("name", ["psycopg", "asyncpg"])
def test_defaults_fail_without_prepared_statements(database: URL, name: str) -> None:
    """A statement is missing on the connection of the next transaction."""
    make(database)
    with bouncers.bouncer(database, prepared=False) as front:
        found = read_both(front.set(drivername=f"postgresql+{name}"), 60)
    assert found["26000"] > 0
    assert found["right"] < 120


@pytest.mark.parametrize("threshold", [0, 5, None])
def test_prepared_statement_of_another_client_is_executed(
    database: URL, threshold: int | None
) -> None:
    """Rows of another class are read in silence, unless psycopg prepares nothing.

    Each client has prepared its own statement on a connection, under the same name,
    and executes that of the other after the connections have changed hands.
    """
    make(database)
    with bouncers.bouncer(database, prepared=False, connections=2) as front:
        engines = {
            entity: create_engine(front, connect_args={"prepare_threshold": threshold})
            for entity in (Order, Refund)
        }
        found = read_in_turns(engines, 60)
        for engine in engines.values():
            engine.dispose()
    assert (found["wrong"] > 0) == (threshold is not None)
    assert found["right"] + found["wrong"] == 120


def test_more_statements_than_psycopg_keeps(front: URL, prepared: bool) -> None:
    """The driver closes the oldest ones on a connection of another transaction."""
    settings = {"prepare_threshold": 0} if prepared else UNPREPARED["psycopg"]
    engine = create_engine(front, connect_args=settings)
    for number in [*range(150)] * 2:
        with engine.begin() as connection:
            assert connection.scalar(text(f"SELECT {number}")) == number
    engine.dispose()


def test_settings_hold_for_one_transaction(front: URL, database: URL) -> None:
    """An isolation level and SET LOCAL reach the transaction, and no later one."""
    make(database)
    settings = UNPREPARED["psycopg"]
    engine = create_engine(front, connect_args=settings)
    strict = engine.execution_options(isolation_level="SERIALIZABLE")
    show = text("SHOW transaction_isolation")
    for _ in range(4):
        with Session(strict) as session, session.begin():
            assert session.scalar(show) == "serializable"
            session.execute(text("SET LOCAL lock_timeout = '7s'"))
            version = session.get_one(Order, KEY).version
            outcome = try_commit(
                session,
                Order,
                KEY,
                expected_version=version,
                state=Named(name="Order"),
                provenance=Provenance.now(),
            )
            assert isinstance(outcome, StateCommitted)
    for _ in range(4):
        with engine.begin() as connection:
            assert connection.scalar(show) == "read committed"
            assert connection.scalar(text("SHOW lock_timeout")) == "0"
    engine.dispose()


def test_options_of_the_url_are_refused(front: URL) -> None:
    """PgBouncer lets no startup parameter through that it does not know."""
    engine = create_engine(
        front.update_query_dict({"options": "-c statement_timeout=5s"})
    )
    with pytest.raises(OperationalError, match="unsupported startup parameter"):
        engine.connect()


def test_session_setting_reaches_another_client(front: URL) -> None:
    """SET without LOCAL stays on the server connection: never use it here."""
    engine = create_engine(front, connect_args=UNPREPARED["psycopg"])
    with engine.begin() as connection:
        connection.execute(text("SET lock_timeout = '7s'"))
    engine.dispose()
    other = create_engine(front, connect_args=UNPREPARED["psycopg"])
    shown = []
    for _ in range(6):
        with other.begin() as connection:
            shown.append(connection.scalar(text("SHOW lock_timeout")))
    other.dispose()
    assert "7s" in shown
    assert "0" in shown


@pytest.mark.parametrize("name", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("with_setting", [True, False])
def test_doctor_tells_what_is_dangerous(
    front: URL,
    prepared: bool,
    name: str,
    with_setting: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is an error to prepare statements that the pooler does not know."""
    settings = UNPREPARED[name] if with_setting else {}
    url = front.set(drivername=f"postgresql+{name}")
    make_engine = create_engine if name == "psycopg" else create_async_engine
    application = ModuleType("application")
    application.engine = make_engine(url, connect_args=settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "application", application)
    code = main(["doctor", "application:engine", "--json"])
    found = json.loads(capsys.readouterr().out)
    levels = {each["level"] for each in found if each["subject"] == "pooler"}
    assert levels == ({"note"} if prepared or with_setting else {"error"})
    if levels == {"error"}:
        assert code == 1


@pytest.mark.usefixtures("prepared")
def test_doctor_leaves_no_statement_behind(front: URL) -> None:
    """What psycopg has prepared for it cannot meet a statement of another client.

    asyncpg prepares statements when it connects, here as everywhere.
    """
    engine = create_engine(front)
    find_pooler(engine)
    engine.dispose()
    quiet = create_engine(front, connect_args=UNPREPARED["psycopg"])
    names: set[str] = set()
    for _ in range(6):
        with quiet.begin() as connection:
            names.update(
                connection.scalars(text("SELECT name FROM pg_prepared_statements"))
            )
    quiet.dispose()
    assert [each for each in names if not each.startswith("PGBOUNCER_")] == []
