"""How the environment gets at a database: URLs, drivers, a Connection, offline."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.config import Config
    from sqlalchemy import URL, Connection

ROOT = Path(__file__).resolve().parents[2]
HEAD = {
    "workflow_state",
    "action_dedup_log",
    "workflow_projection",
    "projection_watermarks",
    "workflow_history",
    "workflow_intents",
    "sa_wfstate_alembic_version",
}
DRIVERS = [
    "postgresql",
    "postgresql+psycopg",
    "postgresql+psycopg_async",
    "postgresql+asyncpg",
]


def written(url: URL) -> str:
    """Write *url* with its password, as ``-x`` needs it."""
    return url.render_as_string(hide_password=False)


@pytest.mark.parametrize("drivername", DRIVERS)
def test_url_may_name_any_driver(
    database: URL, catalog: Any, make_config: Callable[..., Config], drivername: str
) -> None:
    """Migrations run over synchronous and asynchronous drivers, up and down."""
    config = make_config(f"url={written(database.set(drivername=drivername))}")
    command.upgrade(config, "head")
    command.check(config)
    assert catalog.tables() == HEAD
    command.downgrade(config, "base")
    assert catalog.tables() == {"sa_wfstate_alembic_version"}


@pytest.fixture
def plain_url(database: URL) -> str:
    """Write the URL as most tools would."""
    return written(database.set(drivername="postgresql"))


def test_url_may_be_in_the_environment(
    plain_url: str,
    catalog: Any,
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SA_WFSTATE_URL is enough."""
    monkeypatch.setenv("SA_WFSTATE_URL", plain_url)
    command.upgrade(make_config(), "head")
    assert catalog.tables() == HEAD


def test_url_on_the_command_line_wins(
    config: Config, catalog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said here and now counts more than what the environment says."""
    monkeypatch.setenv("SA_WFSTATE_URL", "postgresql://nobody@/nowhere?host=/nowhere")
    command.upgrade(config, "head")
    assert catalog.tables() == HEAD


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([], "no database URL; give one with -x url="),
        (["url="], "no database URL; give one with -x url="),
        (["url=secret"], "the database URL cannot be read; give one with -x url="),
        (["url=postgresql://secret@host:port/"], "the database URL cannot be read"),
        (["url=postgresql+secret://host/"], "the database URL cannot be read"),
        (["url=sqlite:///secret"], "need PostgreSQL, not sqlite; give one with -x"),
    ],
)
def test_bad_url_is_one_clear_error(
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    x: list[str],
    message: str,
) -> None:
    """The error says what to do, in one line, and does not repeat the URL."""
    monkeypatch.delenv("SA_WFSTATE_URL", raising=False)
    with pytest.raises(CommandError) as caught:
        command.upgrade(make_config(*x), "head")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_connection_handed_in_is_used_as_it_is(
    database: URL, catalog: Any, make_config: Callable[..., Config]
) -> None:
    """The caller's transaction stays the caller's: open, and his to roll back."""
    config = make_config("url=postgresql://nobody@/nowhere?host=/nowhere")
    engine = create_engine(database, poolclass=NullPool)
    with engine.connect() as connection, connection.begin() as transaction:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        command.check(config)
        assert transaction.is_active
        assert connection.exec_driver_sql("TABLE workflow_state").all() == []
        transaction.rollback()
    assert catalog.tables() == set()


def test_connection_handed_in_without_transaction_is_committed(
    database: URL, catalog: Any, make_config: Callable[..., Config]
) -> None:
    """A Connection that is in no transaction gets one for the command."""
    config = make_config()
    with create_engine(database, poolclass=NullPool).connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        assert not connection.in_transaction()
        assert not connection.closed
    assert catalog.tables() == HEAD


def test_async_connection_is_handed_in_by_run_sync(
    database: URL, catalog: Any, make_config: Callable[..., Config]
) -> None:
    """An application on asyncio migrates inside its own event loop."""
    config = make_config()

    def upgrade(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async def main() -> None:
        url = database.set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(upgrade)

    asyncio.run(main())
    assert catalog.tables() == HEAD


def test_offline_sql_makes_the_same_tables(
    config: Config, catalog: Any, make_config: Callable[..., Config]
) -> None:
    """--sql writes scripts that psql could run; it needs neither URL nor server."""
    up, down = make_config(), make_config()
    command.upgrade(up, "head", sql=True)
    command.downgrade(down, "head:base", sql=True)

    catalog.execute(up.output_buffer.getvalue())
    by_script = catalog.describe_all()
    command.check(config)
    catalog.execute(down.output_buffer.getvalue())
    assert catalog.tables() <= {"sa_wfstate_alembic_version"}

    command.upgrade(config, "head")
    assert by_script == catalog.describe_all()


def test_loggers_of_the_application_stay_on(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """Migrating inside an application leaves its logging alone."""
    theirs = logging.getLogger("their.application")
    level = logging.getLogger("alembic").level
    handlers = list(logging.getLogger().handlers)
    command.upgrade(config, "head")
    assert not theirs.disabled
    assert logging.getLogger("alembic").level == level
    assert logging.getLogger().handlers == handlers
    caplog.set_level(logging.INFO)
    command.downgrade(config, "base")
    assert {record.name.partition(".")[0] for record in caplog.records} == {"alembic"}


def run_alembic(
    *arguments: str, url: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in the root of the repository, warnings being errors."""
    env = {k: v for k, v in os.environ.items() if k != "SA_WFSTATE_URL"}
    if url is not None:
        env["SA_WFSTATE_URL"] = url
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic", *arguments],
        cwd=ROOT,
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )


def test_command_line_takes_the_url_by_x(plain_url: str, catalog: Any) -> None:
    """``alembic -x url=… upgrade head`` needs no configuration file of its own."""
    upgrade = run_alembic("-x", f"url={plain_url}", "upgrade", "head")
    assert upgrade.returncode == 0, upgrade.stderr
    assert "Running upgrade wfstate_0001 -> wfstate_0002" in upgrade.stderr
    assert catalog.tables() == HEAD


def test_command_line_takes_the_url_from_the_environment(
    plain_url: str, catalog: Any
) -> None:
    """With SA_WFSTATE_URL set, upgrade, check and downgrade need nothing more."""
    for arguments in [("upgrade", "head"), ("check",), ("downgrade", "base")]:
        done = run_alembic(*arguments, url=plain_url)
        assert done.returncode == 0, done.stderr
    assert catalog.tables() == {"sa_wfstate_alembic_version"}


def test_command_line_without_url_says_so_in_one_line() -> None:
    """Nothing but the error is printed, and the exit code tells."""
    done = run_alembic("current")
    assert done.returncode != 0
    assert done.stdout.strip().startswith("FAILED: no database URL; give one with")
    assert done.stderr == ""


def test_command_line_writes_sql_without_url() -> None:
    """The script is on standard output and the log is not."""
    done = run_alembic("upgrade", "head", "--sql")
    assert done.returncode == 0, done.stderr
    assert "CREATE TABLE workflow_state" in done.stdout
    assert "INFO" not in done.stdout


def test_quiet_command_line_shows_no_log(plain_url: str, catalog: Any) -> None:
    """-q is for scripts."""
    done = run_alembic("-q", "upgrade", "head", url=plain_url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert catalog.tables() == HEAD
