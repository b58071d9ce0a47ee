"""The command ``upcast``: counts, progress, a plain log, and what it exits with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin
from sa_wfstate.cli import upcast as cli_upcast
from sa_wfstate.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str
    vip: bool


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: data | {"vip": False}}  # noqa: RUF012


def execute(database: URL, statement: str) -> None:
    """Run *statement* past the library."""
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture
def run(
    create_tables: Callable[..., None],
    database: URL,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., int]:
    """Return a function that runs the command on ten orders."""
    create_tables(Base.metadata)
    execute(
        database,
        """
        INSERT INTO orders (workflow_key, schema_version, state, provenance)
        SELECT 'o-' || n, CASE WHEN n <= 6 THEN 1 WHEN n <= 9 THEN 2 ELSE 3 END,
               '{"status": "new", "vip": true}', '{}'
        FROM generate_series(1, 10) AS n
        """,
    )
    module = sys.modules[__name__] = sys.modules.get(__name__) or type(sys)(__name__)
    monkeypatch.setattr(module, "Order", Order, raising=False)
    url = database.render_as_string(hide_password=False)

    def run(*arguments: str) -> int:
        return main(["upcast", f"{__name__}:Order", "--url", url, *arguments])

    return run


def test_dry_run_counts_per_version(run: Any, capsys: Any) -> None:
    """Nothing is written, and newer rows are pointed out."""
    for _ in range(2):
        assert run("--dry-run") == 0
        assert capsys.readouterr().out.splitlines() == [
            "schema version 1: 6 rows, to become version 2",
            "schema version 2: 3 rows",
            "schema version 3: 1 row, newer than this code",
        ]


def test_rows_are_upcast_and_logged(
    run: Any, capsys: Any, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away from a terminal there are plain lines."""
    monkeypatch.setattr(cli_upcast, "LOG_INTERVAL", 0)
    execute(database, "DELETE FROM orders WHERE schema_version = 3")
    assert run("--batch-size", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("4 of 6 rows, ")
    assert lines[-1].startswith("upcast 6 rows in ")
    assert run("--dry-run") == 0
    assert "schema version 2: 9 rows" in capsys.readouterr().out


def test_terminal_has_a_bar(
    run: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rows done, the rate, and the time that is left."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run()
    shown = capsys.readouterr().err
    assert "upcasting" in shown
    assert "6/6" in shown


def test_rows_that_cannot_be_upcast_fail_the_command(
    run: Any, capsys: Any, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are named, all are counted, and the exit code tells."""
    monkeypatch.setattr(cli_upcast, "SHOWN_FAILURES", 1)
    execute(database, "DELETE FROM orders WHERE schema_version = 3")
    execute(database, "UPDATE orders SET state = '{}' WHERE schema_version = 1")
    assert run() == 1
    *_, first, more, left = capsys.readouterr().out.splitlines()
    named = "cannot be upcast: Order 'o-1' state (schema version 1), at 'status': "
    assert first.startswith(named)
    assert more == "cannot be upcast: 5 more"
    assert left == "left as they are: 6 rows at version 1"


def test_newer_rows_fail_the_command(run: Any, capsys: Any) -> None:
    """They are left to newer code, which is no success."""
    assert run() == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "left as they are: 1 row at version 3, newer than this code"
