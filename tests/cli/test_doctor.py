"""The command ``doctor``: what it finds in a database, and what it does not."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text

from sa_wfstate.cli import tables
from sa_wfstate.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import URL, Engine

APPLICATION = """
import os
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sa_wfstate import WorkflowStateMixin
from sa_wfstate.outbox import IntentMixin
from sa_wfstate.projection import Projection, ProjectionMixin

class Base(DeclarativeBase): ...

class Empty(BaseModel): ...

class Order(WorkflowStateMixin[Empty], Base):
    __tablename__ = "orders"

class Mail(IntentMixin, Base):
    __tablename__ = "mail"

class OrderRow(ProjectionMixin, Base):
    __tablename__ = "order_rows"

orders = Projection(Order, OrderRow, lambda snapshot: {"tag": "", "namespace": ""})
url = os.environ["SA_WFSTATE_URL"]
engine = create_engine(url, isolation_level="SERIALIZABLE")
async_engine = create_async_engine(url.replace("+psycopg", "+asyncpg"))
"""

SAFE = ("lock_timeout", "idle_in_transaction_session_timeout")
"""Settings that are 0 unless they are set for the database."""


@pytest.fixture
def shop(
    tmp_path: Path, database: URL, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """Write an application, and make its tables in a database with timeouts."""
    (tmp_path / "clinic.py").write_text(APPLICATION)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clinic", raising=False)
    monkeypatch.setenv("SA_WFSTATE_URL", database.render_as_string(False))
    engine = create_engine(database)
    with engine.begin() as connection:
        for name in SAFE:
            connection.execute(
                text(f"ALTER DATABASE {database.database} SET {name} = '60s'")
            )
    engine.dispose()
    __import__("clinic")
    sys.modules["clinic"].Base.metadata.create_all(engine)
    yield engine
    with engine.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {database.database} RESET ALL"))
    engine.dispose()


@pytest.fixture
def find(
    shop: Engine,  # noqa: ARG001 - the database that is examined
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., list[Any]]:
    """Return what the doctor finds, as (level, subject, finding)."""

    def run(*names: str, code: int) -> list[Any]:
        assert main(["doctor", *names, "--json"]) == code
        found = json.loads(capsys.readouterr().out)
        assert all(each["advice"] for each in found)
        ours = ("fsync", "synchronous_commit")  # The test server is a fast one.
        return [
            (each["level"], each["subject"], each["finding"])
            for each in found
            if not each["subject"].startswith(ours)
        ]

    return run


def settings_of_server(engine: Engine) -> int:
    """Return the exit code that the settings of the test server cause."""
    with engine.connect() as connection:
        shown = [
            connection.scalar(text(f"SHOW {name}"))
            for name in ("fsync", "synchronous_commit")
        ]
    return int("off" in shown)


def test_sound_database(shop: Engine, find: Callable[..., list[Any]]) -> None:
    """Tables as mapped, on a server that is reached directly: nothing is found."""
    code = settings_of_server(shop)
    names = ["clinic:Base", "clinic:orders"]
    assert find(*names, code=code) == []
    assert find(*names, "clinic:async_engine", code=code) == []


def test_tables_that_differ(shop: Engine, find: Callable[..., list[Any]]) -> None:
    """A missing table, column or key, an invalid index, one that costs HOT updates."""
    with shop.begin() as connection:
        for statement in (
            "DROP TABLE order_rows",
            "ALTER TABLE mail DROP COLUMN last_error",
            "ALTER TABLE orders DROP CONSTRAINT orders_pkey",
            "CREATE INDEX by_time ON orders (updated_at)",
            "CREATE INDEX by_version ON orders USING brin (version)",
            """UPDATE pg_index SET indisvalid = false
               WHERE indexrelid = 'by_version'::regclass""",
        ):
            connection.execute(text(statement))
    assert find("clinic:Base", "clinic:orders", code=1) == [
        ("error", "Mail", "mail has no last_error"),
        (
            "warning",
            "Order",
            "nothing keeps (workflow_key) of orders unique",
        ),
        ("warning", "Order", "the index by_version was not finished, and is not used"),
        (
            "note",
            "Order",
            "the index by_time on updated_at costs each commit its HOT update",
        ),
        ("error", "OrderRow", "the table order_rows is missing"),
        ("error", sys.modules["clinic"].orders.name, "a table of it is missing"),
    ]


def test_work_that_waits(shop: Engine, find: Callable[..., list[Any]]) -> None:
    """Dead letters, intents that no dispatcher takes, a projection that is behind."""
    with shop.begin() as connection:
        for number, dead in enumerate(("now()", "NULL")):
            connection.execute(
                text(
                    "INSERT INTO mail (workflow_key, version, position, intent_id,"
                    " intent_type, target, payload, created_at, attempts, due_at,"
                    f" dead_at) VALUES ('o', 1, {number}, gen_random_uuid(), 'mail',"
                    " 'kim', 'null', now(), 0, now() - interval '1 hour',"
                    f" {dead})"
                )
            )
        connection.execute(
            text(
                "INSERT INTO orders (workflow_key, version, state, updated_at,"
                " schema_version, provenance) VALUES ('o', 1, '{}',"
                " now() - interval '1 hour', 1, '{}')"
            )
        )
    found = find("clinic:Mail", "clinic:orders", code=1)
    assert [text.partition("3,6")[0] for _, _, text in found] == [
        "1 dead letters",
        "an intent is due for ",
        "1 workflows are behind, since ",
    ]


def test_following_without_an_index(
    shop: Engine, find: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note for a large table, until it has an index on the time of its rows."""
    monkeypatch.setattr(tables, "MANY", 20)
    code = settings_of_server(shop)
    insert = (
        "INSERT INTO orders (workflow_key, state, provenance)"
        " SELECT 'o-' || n, '{}', '{}' FROM generate_series(1, 30) n"
    )
    with shop.begin() as connection:
        connection.execute(text(insert))
        connection.execute(text("ANALYZE orders"))
    ((level, subject, found),) = find("clinic:orders", code=code)
    assert (level, subject) == ("note", sys.modules["clinic"].orders.name)
    assert found.startswith("some 30 rows of orders have no index on their time")
    with shop.begin() as connection:
        index = "CREATE INDEX recent ON orders USING brin (updated_at)"
        connection.execute(text(index))
    assert find("clinic:orders", code=code) == []


def test_settings_with_a_cost(
    shop: Engine, find: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """No timeouts, another isolation level of the engine: notes, which fail nothing."""
    code = settings_of_server(shop)
    with shop.begin() as connection:
        name = shop.url.database
        connection.execute(text(f"ALTER DATABASE {name} RESET ALL"))
    found = find("clinic:engine", code=code)
    assert [(level, subject) for level, subject, _ in found] == [
        ("note", "isolation"),
        *(("note", f"{name} = 0") for name in SAFE),
    ]
    assert main(["doctor", "clinic:engine"]) == code
    line = "note: isolation: transactions run at serializable; retry"
    assert line in capsys.readouterr().out


@pytest.mark.usefixtures("shop")
def test_what_cannot_be_examined(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is nothing of a database is refused in one line."""
    assert main(["doctor", "clinic:Empty"]) == 1
    assert "is not a mapped class, a declarative base" in capsys.readouterr().err


def test_sqlite_is_for_trials(capsys: pytest.CaptureFixture[str]) -> None:
    """Another database than PostgreSQL is a finding."""
    assert main(["doctor", "--url", "sqlite://"]) == 1
    assert "sqlite is not PostgreSQL" in capsys.readouterr().out
