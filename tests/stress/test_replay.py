"""A real event log, with history, both projections and intents, and killed workers.

``SA_WFSTATE_XES`` names the log; the repository carries none.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from sa_wfstate.projection import measure_lag, rebuild
from sa_wfstate.testing import temporary_database, temporary_server

pytestmark = pytest.mark.stress

REPLAY = Path(__file__).with_name("replay.py")
LOG = os.environ.get("SA_WFSTATE_XES")
COMMITTERS = 2
ROLES = [("commit", n) for n in range(COMMITTERS)] + [
    (role, n) for role in ("project", "dispatch") for n in range(2)
]
DANGER = {"commit": 60.0, "project": 20.0, "dispatch": 20.0}
"""After how many seconds a process kills itself, on average, by its role."""
HOUR = 3600.0
# Processes are killed here, not the server.
SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def start(url: str, deliveries: Path, role: str, number: int, seed: int) -> Any:
    """Start a process of *role* that imports what this one imports."""
    arguments = [role, url, LOG, deliveries, number, COMMITTERS, DANGER[role]]
    return subprocess.Popen(
        [sys.executable, REPLAY, *map(str, arguments), f"{role}-{number}-{seed}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def run(url: str, deliveries: Path, finished: Any) -> Counter[str]:
    """Keep all processes alive until all is done; return the deaths by role."""
    deaths: Counter[str] = Counter()
    running = {each: start(url, deliveries, *each, 0) for each in ROLES}
    deadline = time.monotonic() + HOUR
    try:
        while any(role == "commit" for role, _ in running) or not finished():
            assert time.monotonic() < deadline
            for (role, number), process in list(running.items()):
                code = process.poll()
                if code == 0:
                    del running[role, number]
                elif code is not None:
                    assert code == -signal.SIGKILL
                    deaths[role] += 1
                    seed = deaths.total()
                    running[role, number] = start(url, deliveries, role, number, seed)
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return deaths


def check_deliveries(deliveries: Path, cases: dict[str, list[Any]]) -> int:
    """See that each event was told, in the order of its case; return how many again."""
    rows = [line.split(" ") for line in deliveries.read_text().splitlines()]
    firsts: dict[str, tuple[str, int]] = {}
    told: dict[tuple[str, int], str] = {}
    for intent_id, key, version, position in rows:
        firsts.setdefault(intent_id, (key, int(version)))
        assert told.setdefault((key, int(version)), position) == position
    assert told == {
        (key, version): str(event["position"])
        for key, events in cases.items()
        for version, event in enumerate(events, start=1)
    }
    order: defaultdict[str, list[int]] = defaultdict(list)
    for key, version in firsts.values():
        order[key].append(version)
    assert all(
        order[key] == list(range(1, len(events) + 1)) for key, events in cases.items()
    )
    return len(rows) - len(firsts)


@pytest.mark.skipif(LOG is None, reason="SA_WFSTATE_XES names no event log")
def test_replay_with_everything_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Projections, history and deliveries are what the log says, to the last event."""
    replay: Any = runpy.run_path(str(REPLAY))
    case_class, step = replay["Case"], replay["step"]
    with (
        temporary_server(settings=SETTINGS) as server,
        temporary_database(server) as url,
    ):
        engine = create_engine(url)
        replay["Base"].metadata.create_all(engine)
        cases = replay["cases_of"](LOG)
        total = sum(map(len, cases.values()))

        def finished() -> bool:
            with Session(engine) as session:
                left = session.scalars(select(replay["CaseIntent"]).limit(1)).first()
            return left is None and measure_lag(engine, replay["soon"]).keys == 0

        started = time.monotonic()
        deliveries = tmp_path / "deliveries"
        address = url.render_as_string(hide_password=False)
        deaths = run(address, deliveries, finished)
        seconds = time.monotonic() - started

        # What each version must hold, by folding the log.
        expected: dict[tuple[str, int], Any] = {}
        for key, events in cases.items():
            state = replay["CaseState"]()
            for version, event in enumerate(events, start=1):
                state = expected[key, version] = step(state, event)
        newest = {key: len(events) for key, events in cases.items()}
        with Session(engine) as session:
            found = {
                row.workflow_key: (row.version, row.state)
                for row in session.scalars(select(case_class))
            }
            assert found == {
                key: (version, expected[key, version])
                for key, version in newest.items()
            }
            history = replay["CaseHistory"]
            kept = {
                (row.workflow_key, row.version): replay["CaseState"](**row.state)
                for row in session.scalars(select(history))
            }
            assert kept == expected
            assert session.scalar(select(func.count()).select_from(history)) == total
            tables = [replay["CaseNow"], replay["CaseSoon"]]
            projected = [
                {
                    row.workflow_key: (
                        row.version,
                        row.tag,
                        row.last_action,
                        row.indices,
                        row.extras,
                    )
                    for row in session.scalars(select(table))
                }
                for table in tables
            ]
            recomputed = {}
            for key, (version, state) in found.items():
                values = replay["project"](type("Snapshot", (), {"state": state}))
                values.pop("namespace")
                recomputed[key] = (version, *values.values())
            assert projected == [recomputed, recomputed]
        again = check_deliveries(deliveries, cases)

        before = time.monotonic()
        assert rebuild(engine, replay["soon"]) == len(cases)
        rebuilt = len(cases) / (time.monotonic() - before)
        engine.dispose()
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{len(cases)} cases, {total} events in {seconds:.0f} s, deaths: "
            f"{dict(deaths)}, {again} intents delivered again, "
            f"rebuild: {rebuilt:.0f} rows/s"
        )
