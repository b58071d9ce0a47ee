"""RetryPolicy and classify(): pauses, tenacity, and which errors are retried."""

from __future__ import annotations

import ast
import asyncio
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from tenacity import RetryError, Retrying, retry_if_result

from sa_wfstate import (
    ConflictReason,
    ErrorKind,
    RetryPolicy,
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
    ("XX000", FATAL, FATAL),  # But UNKNOWN if COMMIT itself has raised it.
    ("OC000", TRANSIENT, TRANSIENT),
    ("OC001", TRANSIENT, TRANSIENT),
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

seconds = st.floats(0, 1000)


@st.composite
def policies(draw: st.DrawFn) -> RetryPolicy:
    """Any policy that is not refused."""
    base_delay, max_delay = sorted((draw(seconds), draw(seconds)))
    max_attempts = draw(st.none() | st.integers(1, 10_000))
    deadline = draw(seconds if max_attempts is None else st.none() | seconds)
    return RetryPolicy(
        max_attempts=max_attempts,
        base_delay=base_delay,
        max_delay=max_delay,
        deadline=deadline,
    )


@given(policies(), st.integers(1, 10**9), seconds, st.floats(0, 1, exclude_max=True))
def test_no_delay_is_longer_than_allowed(
    policy: RetryPolicy, attempt: int, elapsed: float, drawn: float
) -> None:
    """A delay is within 0 and max_delay, and ends before the deadline."""
    delay = policy.next_delay(attempt, elapsed, draw=lambda: drawn)
    if delay is not None:
        assert 0 <= delay <= policy.ceiling(attempt) <= policy.max_delay
        assert policy.max_attempts is None or attempt < policy.max_attempts
        assert policy.deadline is None or elapsed + delay <= policy.deadline


@given(policies(), st.integers(1, 200))
def test_ceiling_never_falls(policy: RetryPolicy, attempt: int) -> None:
    """The longest pause grows with each attempt, up to max_delay."""
    assert policy.ceiling(attempt) <= policy.ceiling(attempt + 1)


def test_default_is_three_attempts_of_10_to_250_ms() -> None:
    """Without arguments: three attempts, the pauses jittered below 10 and 20 ms."""
    policy = RetryPolicy()
    assert policy.next_delay(1, 0, draw=lambda: 0.5) == pytest.approx(0.005)
    assert policy.next_delay(2, 0, draw=lambda: 0.5) == pytest.approx(0.010)
    assert policy.next_delay(3, 0) is None
    assert policy.ceiling(1000) == 0.250


def test_deadline_is_not_waited_past() -> None:
    """An attempt that could only start after the deadline is given up at once."""
    policy = RetryPolicy(max_attempts=None, base_delay=0.1, deadline=1.0)
    assert policy.next_delay(1, 0.95, draw=lambda: 0.4) == pytest.approx(0.04)
    assert policy.next_delay(1, 0.95, draw=lambda: 0.6) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_attempts": 0},
        {"max_attempts": None},
        {"base_delay": -1},
        {"base_delay": 1, "max_delay": 0.5},
        {"max_delay": float("inf")},
        {"base_delay": float("nan")},
        {"deadline": -1},
        {"deadline": float("nan")},
    ],
)
def test_impossible_policy_is_refused(arguments: dict[str, float | None]) -> None:
    """A policy without an end, or with delays that cannot be, is a ValueError."""
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "policy", [RetryPolicy.for_contention(), RetryPolicy.for_lock_wait()]
)
def test_presets_end(policy: RetryPolicy) -> None:
    """The presets set no number of attempts, but a deadline."""
    assert policy.next_delay(10_000, 0) is not None
    assert policy.next_delay(1, 30.1) is None


def test_call_repeats_what_it_is_told_to() -> None:
    """It repeats errors that are chosen, pauses between them, and raises the last."""
    pauses: list[float] = []
    errors = iter([OSError("1"), OSError("2"), ValueError("3")])

    def fail() -> None:
        raise next(errors)

    policy = RetryPolicy(max_attempts=2)
    retry = partial(
        policy.call,
        retry_if=lambda error: isinstance(error, OSError),
        sleep=pauses.append,
    )
    with pytest.raises(OSError, match="2"):
        retry(fail)
    with pytest.raises(ValueError, match="3"):
        retry(fail)
    assert len(pauses) == 1
    assert retry(lambda: 7) == 7


def test_policy_drives_tenacity() -> None:
    """The methods wait and stop are what tenacity's parameters of these names take."""
    pauses: list[float] = []
    policy = RetryPolicy(max_attempts=4)
    retrying = Retrying(
        stop=policy.stop,
        wait=policy.wait,
        sleep=pauses.append,
        retry=retry_if_result(lambda _: True),
    )
    with pytest.raises(RetryError):
        retrying(lambda: None)
    assert len(pauses) == 3
    assert all(pause <= policy.ceiling(n) for n, pause in enumerate(pauses, 1))


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
        # Waits for its end: asyncpg has an error of its own for one that is ending.
        killer.execute(text(f"SELECT pg_terminate_backend({pid}, 5000)"))
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
