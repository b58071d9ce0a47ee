"""Upcasting in bulk: all rows, resumable, shared, and beside other writers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import StateConflict, WorkflowStateMixin
from sa_wfstate.errors import MappingError
from sa_wfstate.upcasting import (
    Upcaster,
    UpcastProgress,
    count_schema_versions,
    upcast_all,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Engine


class Base(DeclarativeBase):
    pass


class SQLBase(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str
    lines: list[str]
    vip: bool


def v1_to_v2(data: Any) -> Any:
    """Rename the lines."""
    return {"status": data["status"], "lines": data["items"]}


def v2_to_v3(data: Any) -> Any:
    """Add a field that follows from another."""
    return data | {"vip": "gold" in data["lines"]}


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __schema_version__ = 3
    __upcasters__ = {1: v1_to_v2, 2: v2_to_v3}  # noqa: RUF012


class SQLOrder(WorkflowStateMixin[OrderState], SQLBase):
    __tablename__ = "orders"
    __schema_version__ = 3
    __upcasters__ = {  # noqa: RUF012
        1: Upcaster(
            v1_to_v2, "state - 'items' || jsonb_build_object('lines', state->'items')"
        ),
        2: Upcaster(
            v2_to_v3,
            "state || CASE WHEN state->'lines' ? 'gold' THEN '{\"vip\":true}'::jsonb "
            "ELSE '{\"vip\":false}' END",
        ),
    }


ROWS = """
    INSERT INTO orders (workflow_key, version, schema_version, state, provenance)
    SELECT 'o-' || n, n, 1 + mod(n, 3),
           CAST(CASE mod(n, 3) WHEN 0 THEN '{"status": "new", "items": ["gold"]}'
                           WHEN 1 THEN '{"status": "new", "lines": ["gold"]}'
                           ELSE '{"status": "new", "lines": ["gold"], "vip": true}'
           END AS JSONB),
           '{"effect_id": "e-0", "timestamp": "2026-01-01T00:00:00Z"}'
    FROM generate_series(1, 100) AS n
"""
CURRENT = {"status": "new", "lines": ["gold"], "vip": True}


def execute(database: URL, statement: str) -> None:
    """Run *statement* past the library."""
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def rows(engine: Engine) -> list[tuple[str, int, int, Any]]:
    """Read the rows as they are stored."""
    query = text(
        "SELECT workflow_key, version, schema_version, CAST(state AS TEXT), updated_at "
        "FROM orders ORDER BY version, workflow_key"
    )
    with engine.connect() as connection:
        return [
            (key, version, schema_version, json.loads(state))
            for key, version, schema_version, state, _ in connection.execute(query)
        ]


@pytest.fixture(autouse=True)
def _orders(create_tables: Callable[..., None], database: URL) -> None:
    create_tables(Base.metadata)
    execute(database, ROWS)


@pytest.mark.contract
@pytest.mark.parametrize("entity", [Order, SQLOrder])
def test_all_rows_get_the_current_shape(engine: Engine, entity: Any) -> None:
    """In batches, with the same outcome in Python and in SQL; versions stay."""
    before = {key: version for key, version, _, _ in rows(engine)}
    seen: list[UpcastProgress] = []
    report = upcast_all(engine, entity, batch_size=7, progress=seen.append)
    assert (report.upcast, report.failures) == (67, ())
    assert seen[-1] == UpcastProgress(67, 0, 67)
    assert len(seen) > 9
    after = rows(engine)
    assert all(row[2:] == (3, CURRENT) for row in after)
    assert {key: version for key, version, _, _ in after} == before
    assert upcast_all(engine, entity).upcast == 0


@pytest.mark.contract
def test_time_of_the_last_write_stays(engine: Engine) -> None:
    """It is the same version in another shape."""
    query = text("SELECT workflow_key, updated_at FROM orders ORDER BY workflow_key")
    with engine.connect() as connection:
        before = connection.execute(query).all()
    upcast_all(engine, Order)
    with engine.connect() as connection:
        assert connection.execute(query).all() == before


def test_schema_versions_are_counted(engine: Engine) -> None:
    """What is there, before and after."""
    with engine.connect() as connection:
        assert count_schema_versions(connection, Order) == {1: 33, 2: 34, 3: 33}
    upcast_all(engine, Order)
    with engine.connect() as connection:
        assert count_schema_versions(connection, Order) == {3: 100}


def test_writer_of_an_old_row_still_wins(engine: Engine) -> None:
    """A writer that read a row before it was upcast can commit to it afterwards."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-3")
        assert order.state.vip
        upcast_all(engine, Order)
        order.state.status = "paid"
        session.commit()
        assert order.version == 4


def test_rows_that_cannot_be_upcast_are_left_and_reported(
    engine: Engine, database: URL
) -> None:
    """Neither a step that fails nor a payload that would not validate stops the job."""
    execute(
        database,
        "UPDATE orders SET state = '{\"status\": 1}' WHERE workflow_key = 'o-3'",
    )
    execute(
        database,
        'UPDATE orders SET state = \'{"status": 1, "lines": []}\' '
        "WHERE workflow_key = 'o-1'",
    )
    report = upcast_all(engine, Order, batch_size=10)
    assert report.upcast == 65
    first, second = sorted(str(failure) for failure in report.failures)
    assert first.startswith("Order 'o-1' state (schema version 2), at 'status': ")
    assert second.startswith("Order 'o-3' state (schema version 1): the step from")
    left = {key: row for key, *row in rows(engine)}
    assert left["o-1"][1:] == [2, {"status": 1, "lines": []}]


class Reading(BaseModel):
    value: float | str


class LossyBase(DeclarativeBase):
    pass


class Lossy(WorkflowStateMixin[Reading], LossyBase):
    __tablename__ = "orders"
    __schema_version__ = 2
    __upcasters__ = {  # noqa: RUF012
        1: lambda data: {
            "value": {"nan": float("nan"), "nul": "a\0", "object": object()}.get(
                data["status"], data["status"]
            )
        }
    }


def test_what_cannot_be_stored_does_not_stop_the_job(
    engine: Engine, database: URL
) -> None:
    """A step that makes what the model takes and the database does not is reported."""
    execute(
        database,
        "UPDATE orders SET state = jsonb_build_object('status', CASE workflow_key "
        "WHEN 'o-3' THEN 'nan' WHEN 'o-6' THEN 'nul' WHEN 'o-9' THEN 'object' "
        "ELSE 'NaN, Infinity' END)",
    )
    report = upcast_all(engine, Lossy)
    assert report.upcast == 30
    problems = [
        ("o-3", ": holds NaN, which is not JSON"),
        ("o-6", ", at 'value': contains NUL, which PostgreSQL cannot store"),
        ("o-9", ": dumping the result of the steps raised PydanticSerializationError"),
    ]
    assert sorted(str(failure) for failure in report.failures) == [
        f"Lossy {key!r} state (schema version 1){problem}" for key, problem in problems
    ]


def test_interrupted_job_goes_on_where_it_was(engine: Engine) -> None:
    """A batch is one transaction; what was done stays done."""

    def interrupt(progress: UpcastProgress) -> None:
        if progress.done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upcast_all(engine, Order, batch_size=5, progress=interrupt)
    with engine.connect() as connection:
        assert count_schema_versions(connection, Order)[3] == 33 + 20
    assert upcast_all(engine, Order).upcast == 67 - 20


def test_newer_rows_are_left_alone(engine: Engine, database: URL) -> None:
    """Upcasting never goes down."""
    execute(database, "UPDATE orders SET schema_version = 4 WHERE workflow_key = 'o-2'")
    upcast_all(engine, Order)
    with engine.connect() as connection:
        assert count_schema_versions(connection, Order) == {3: 99, 4: 1}


def make_many(database: URL, count: int) -> None:
    """Add *count* orders of version 1, without lines."""
    execute(
        database,
        "INSERT INTO orders (workflow_key, version, schema_version, state, provenance) "
        'SELECT \'p-\' || n, 1, 1, \'{"status": "0", "items": []}\', '
        '\'{"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}\' '
        f"FROM generate_series(1, {count}) AS n",
    )


@contextmanager
def four_writers(database: URL, entity: Any, keys: int) -> Iterator[None]:
    """Write lines to the first *keys* orders meanwhile; then see that all are there."""
    engine = create_engine(database, pool_size=4)
    written = [0] * 4
    stop = threading.Event()

    def write(index: int) -> None:
        while not stop.is_set():
            with Session(engine) as session:
                order = session.get_one(entity, f"p-{1 + written[index] % keys}")
                order.state.lines.append(str(index))
                try:
                    session.commit()
                except StateConflict:
                    continue
                written[index] += 1

    writers = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in writers:
        thread.start()
    try:
        yield
        time.sleep(0.1)
    finally:
        stop.set()
        for thread in writers:
            thread.join()
    after = rows(engine)
    assert {row[2] for row in after} == {3}
    ours = [row for row in after if row[0].startswith("p-")]
    assert sum(len(row[3]["lines"]) for row in ours) == sum(written) > 0
    assert sum(row[1] - 1 for row in ours) == sum(written)
    engine.dispose()


@pytest.mark.parametrize("entity", [Order, SQLOrder])
def test_jobs_share_the_work_during_writes(database: URL, entity: Any) -> None:
    """Three jobs and four writers at once: nothing is lost, nothing is done twice."""
    make_many(database, 2000)
    engine = create_engine(database)
    reports: list[Any] = []
    jobs = [
        threading.Thread(
            target=lambda: reports.append(upcast_all(engine, entity, batch_size=50))
        )
        for _ in range(3)
    ]
    with four_writers(database, entity, keys=500):
        for thread in jobs:
            thread.start()
        for thread in jobs:
            thread.join()
    assert 67 <= sum(report.upcast for report in reports) <= 2067
    assert not any(report.failures for report in reports)
    engine.dispose()


@pytest.mark.parametrize(
    ("entity", "count", "kills"),
    [
        (Order, 1000, 2),
        pytest.param(Order, 60_000, 40, marks=pytest.mark.stress),
        pytest.param(SQLOrder, 60_000, 40, marks=pytest.mark.stress),
    ],
)
def test_killed_command_is_resumed_during_writes(
    engine: Engine, database: URL, entity: Any, count: int, kills: int
) -> None:
    """SIGKILL at any moment, several times: the next run does the rest, and no more."""
    make_many(database, count)
    command = [sys.executable, "-m", "sa_wfstate", "upcast", "--batch-size", "5"]
    command += ["--url", database.render_as_string(hide_password=False)]
    command.append(f"{Path(__file__).stem}:{entity.__name__}")

    def start() -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def left() -> int:
        with engine.connect() as connection:
            counts = count_schema_versions(connection, Order)
        return counts.get(1, 0) + counts.get(2, 0)

    with four_writers(database, entity, keys=100):
        for kill in range(kills):
            before = left()
            enough = before - random.randrange(before // (2 * (kills - kill)))
            with start() as job:
                while left() >= enough and job.poll() is None:
                    time.sleep(0.001)
                job.kill()
            assert job.returncode == -signal.SIGKILL
            assert 0 < left() < before
        with start() as job:
            pass
    assert job.returncode == 0


def test_sql_is_refused_where_a_step_has_none(engine: Engine) -> None:
    """It is said before anything is done."""
    with pytest.raises(MappingError, match="Order: not every upcaster has SQL"):
        upcast_all(engine, Order, in_sql=True)


def test_sqlite_is_upcast_for_unit_tests() -> None:
    """The same call, one row at a time."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO orders (workflow_key, schema_version, state, provenance) "
            "VALUES "
            '(\'o-1\', 1, \'{"status": "new", "items": ["gold"]}\', \'{}\')'
        )
    assert upcast_all(engine, Order).upcast == 1
    assert rows(engine) == [("o-1", 1, 3, CURRENT)]
    engine.dispose()
