"""Errors are classified by SQLSTATE, on every driver alike."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError

from sa_wfstate import (
    ConflictReason,
    ErrorKind,
    StateConflict,
    classify,
)
from sa_wfstate.errors import OutcomeUnknown, WriteSuppressed

CONFLICT, TRANSIENT = ErrorKind.CONFLICT, ErrorKind.TRANSIENT
UNKNOWN, FATAL = ErrorKind.UNKNOWN, ErrorKind.FATAL

# From facts to kinds: the code, what it is in general, and what it is at COMMIT.
CODES = [
    ("40001", TRANSIENT, TRANSIENT),
    ("40P01", TRANSIENT, TRANSIENT),
    ("55P03", TRANSIENT, TRANSIENT),
    ("57014", TRANSIENT, TRANSIENT),
    ("25P03", TRANSIENT, TRANSIENT),
    ("25P04", TRANSIENT, TRANSIENT),
    ("25006", TRANSIENT, TRANSIENT),
    ("53300", TRANSIENT, TRANSIENT),
    ("57P01", TRANSIENT, UNKNOWN),
    ("57P02", TRANSIENT, UNKNOWN),
    ("57P03", TRANSIENT, UNKNOWN),
    ("08000", TRANSIENT, UNKNOWN),
    ("08003", TRANSIENT, UNKNOWN),
    ("08006", TRANSIENT, UNKNOWN),
    ("40003", UNKNOWN, UNKNOWN),
    ("22P02", FATAL, FATAL),
    ("22P05", FATAL, FATAL),
    ("22003", FATAL, FATAL),
    ("54000", FATAL, FATAL),
    ("54001", FATAL, FATAL),
    ("25P02", FATAL, FATAL),
    ("23502", FATAL, FATAL),
    ("23505", FATAL, FATAL),
    ("23514", FATAL, FATAL),
]


@pytest.mark.contract
def test_codes_on_the_server(engine: Engine) -> None:
    """Each code, raised by the server, is classified as the table says."""
    with engine.connect() as connection:
        for code, kind, committing in CODES:
            with pytest.raises(DBAPIError) as caught:
                connection.execute(text(f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$"))
            connection.rollback()
            if code not in {"57P01", "57P02"}:  # SQLAlchemy may drop the connection.
                assert classify(caught.value) is kind, code
                assert classify(caught.value, committing=True) is committing, code


@pytest.mark.contract
def test_cut_connection(driver: Any) -> None:
    """A backend that is terminated leaves an error of whichever kind the driver has."""
    engine, other = driver.create_engine(), driver.create_engine()
    with engine.connect() as connection, other.connect() as killer:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        killer.execute(text(f"SELECT pg_terminate_backend({pid})"))
        with pytest.raises(DBAPIError) as caught:
            connection.execute(text("SELECT pg_sleep(5)"))
        assert classify(caught.value) is TRANSIENT
        assert classify(caught.value, committing=True) is UNKNOWN


@pytest.mark.contract
def test_server_out_of_reach(driver: Any) -> None:
    """A refused connection is transient, whatever class of error it is."""
    driver.url = driver.url.set(host="127.0.0.1", port=1, query={})
    engine = driver.create_engine()
    with pytest.raises((DBAPIError, OSError)) as caught:
        engine.connect()
    assert classify(caught.value) is TRANSIENT


@pytest.mark.contract
def test_exhausted_pool(driver: Any) -> None:
    """No connection in time: nothing was sent, not even a COMMIT."""
    engine = driver.create_engine(pool_size=1, max_overflow=0, pool_timeout=0.05)
    with engine.connect(), pytest.raises(PoolTimeoutError) as caught:
        engine.connect()
    assert classify(caught.value, committing=True) is TRANSIENT


def test_errors_without_a_code() -> None:
    """Errors of this library, of SQLAlchemy, and bare ones."""
    conflict = StateConflict("Order", "o-1", 1, 2, ConflictReason.MOVED)
    assert classify(conflict) is CONFLICT
    assert classify(StaleDataError()) is CONFLICT
    assert classify(WriteSuppressed("Order", "o-1", 1)) is FATAL
    assert classify(OutcomeUnknown("Order", "o-1", ("e-1",))) is UNKNOWN
    assert classify(TimeoutError(), committing=True) is UNKNOWN
    assert classify(ConnectionResetError()) is TRANSIENT
    assert classify(asyncio.CancelledError()) is FATAL
    assert classify(asyncio.CancelledError(), committing=True) is UNKNOWN
    assert classify(ValueError()) is FATAL
    assert classify(OperationalError("SELECT", {}, ValueError())) is FATAL


KNOWN_RAISES = {
    "orm/attributes.py": 1,  # a parent that was collected; no workflow's business
    "orm/dependency.py": 2,  # rows of a secondary table
    "orm/loading.py": 1,  # a locked load
    "orm/persistence.py": 3,  # UPDATE, post_update, DELETE
    "orm/session.py": 1,  # merge()
}


def test_sqlalchemy_has_no_new_way_to_be_stale() -> None:
    """Every place that raises StaleDataError is one that this library knows."""
    package = Path(sqlalchemy.__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        source = path.read_text()
        if re.search(r"raise \w*\.?StaleDataError", source):
            raises = [
                node
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Raise) and "StaleDataError" in ast.dump(node)
            ]
            found[path.relative_to(package).as_posix()] = len(raises)
    assert found == KNOWN_RAISES
