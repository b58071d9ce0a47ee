"""Each action takes effect exactly once, whoever is killed, and when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sa_wfstate.canonical import ActionDedupLog, CanonicalBase, WorkflowState
from sa_wfstate.testing import temporary_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

pytestmark = pytest.mark.stress

PROCESSES = 6
WORKERS = [
    ("psycopg", "threads"),
    ("asyncpg", "tasks"),
    ("psycopg", "threads"),
    ("psycopg", "tasks"),
]
ACTIONS = 150
LIVES = 12
WORKER = Path(__file__).with_name("worker.py")


def start(
    url: URL, number: int, seed: str, fold: int, danger: float
) -> subprocess.Popen[bytes]:
    """Start a worker that imports what this process imports; half of them await."""
    driver, mode = WORKERS[number % len(WORKERS)]
    url = url.set(drivername=f"postgresql+{driver}")
    address = url.render_as_string(hide_password=False)
    return subprocess.Popen(
        [sys.executable, str(WORKER), address, mode, seed, str(fold), str(danger)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def run(url: URL, fold: int, *, danger: float, meanwhile: Callable[[], Any]) -> int:
    """Keep six workers alive until each has delivered everything; return the deaths."""
    deaths = 0
    workers = {
        number: start(url, number, f"{fold}-{number}-0", fold, danger)
        for number in range(PROCESSES)
    }
    lives = dict.fromkeys(workers, LIVES)
    deadline = time.monotonic() + 240
    while workers:
        assert time.monotonic() < deadline
        meanwhile()
        for number, worker in list(workers.items()):
            code = worker.poll()
            if code == 0:
                del workers[number]
            elif code is not None:
                assert code == -signal.SIGKILL
                deaths += 1
                lives[number] -= 1
                seed = f"{fold}-{number}-{lives[number]}"
                safe = lives[number] <= 0
                risk = 0 if safe else danger
                workers[number] = start(url, number, seed, fold, risk)
        time.sleep(0.02)
    return deaths


def check(url: URL) -> None:
    """Compare the states and the log with what was delivered."""
    engine = create_engine(url, poolclass=NullPool)
    with Session(engine) as session:
        states = session.scalars(select(WorkflowState)).all()
        counted: dict[str, int] = {}
        for row in states:
            counted |= {k: v for k, v in row.state.items() if k != "begun"}
        assert counted == {str(number): 1 for number in range(ACTIONS)}
        log = session.scalars(select(ActionDedupLog)).all()
        assert sorted(row.action_id.int for row in log) == list(range(ACTIONS))
        newest = {row.workflow_key: row.version for row in states}
        assert all(1 <= row.version <= newest[row.workflow_key] for row in log)


@pytest.mark.parametrize("fold", [1, 16])
def test_killed_processes(database: URL, fold: int) -> None:
    """Six processes deliver the same 150 actions and are killed again and again."""
    engine = create_engine(database)
    CanonicalBase.metadata.create_all(engine)
    engine.dispose()
    deaths = run(database, fold, danger=0.02, meanwhile=lambda: None)
    check(database)
    assert deaths >= 20
    print(f"fold {fold}: {deaths} processes were killed")  # noqa: T201


def test_killed_server() -> None:
    """The server crashes three times under the workers and recovers from its log."""
    random.seed(1)
    crashes = 0
    due = time.monotonic() + 2.0

    def crash() -> None:
        nonlocal crashes, due
        if crashes == 3 or time.monotonic() < due:
            return
        try:
            with engine.connect() as connection:
                pid = connection.scalar(
                    text(
                        "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                        " AND backend_type = 'client backend' ORDER BY random() LIMIT 1"
                    )
                )
        except DBAPIError:
            return
        if pid is not None:
            # A backend that dies so takes all others along, and the server recovers.
            os.kill(pid, signal.SIGKILL)
            crashes += 1
            due = time.monotonic() + random.uniform(0.3, 0.8)

    with temporary_server(settings={"max_connections": "100", "fsync": "off"}) as url:
        engine = create_engine(url, poolclass=NullPool)
        CanonicalBase.metadata.create_all(engine)
        run(url, 1, danger=0.004, meanwhile=crash)
        check(url)
    assert crashes == 3
