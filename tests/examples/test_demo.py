"""The demo: its reducers, its workers, its check, and the program as it is run."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from blind import BlindStore
from cases import Base, Case, CaseState, add_event
from orders import count_action, order_actions
from rich.console import Console
from screen import watch
from sqlalchemy import text
from verify import canonical, differences
from workers import Crew, Store, Workload
from xes import Event

from sa_wfstate import CanonicalStore, StateConflict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy import URL, Engine

WORKERS = 6


def case_event(key: str, position: int, *, minute: int | None = None) -> Event:
    """Make an event; its *minute* follows its *position* unless given."""
    return Event(
        workflow_key=key,
        position=position,
        timestamp=datetime(2012, 3, 1, tzinfo=UTC)
        + timedelta(minutes=position if minute is None else minute),
        activity=("register", "check", "decide")[position % 3],
        transition="complete",
        resource=None if position % 5 == 4 else f"Resource{position % 4}",
    )


def replayed(events: Sequence[Event]) -> Workload[CaseState, Event]:
    """Make the workload of a log."""
    return Workload(
        entity=Case,
        initial=CaseState(),
        reducer=add_event,
        actions=list(events),
        counted=lambda stored: len(stored["steps"]),
    )


def work(store: Store[CaseState], events: Sequence[Event]) -> Crew[CaseState, Event]:
    """Let the workers do all of *events*."""
    crew = Crew(store, replayed(events), WORKERS)
    crew.start()
    crew.join()
    return crew


@pytest.fixture
def cases(engine: Engine) -> Engine:
    """Connect to a database with the table of cases."""
    Base.metadata.create_all(engine)
    return engine


def test_order_of_arrival_does_not_matter() -> None:
    """Every order of the same events gives the same state, equal times included."""
    minutes = (3, 1, 1, 2, 0)
    events = [case_event("a", n, minute=minute) for n, minute in enumerate(minutes)]
    states = {
        canonical(reduce(add_event, order, CaseState()))
        for order in permutations(events)
    }
    assert len(states) == 1
    state = CaseState.model_validate_json(states.pop())
    assert [step.position for step in state.steps] == [4, 1, 2, 3, 0]
    assert state.activities == {"register": 2, "check": 2, "decide": 1}
    assert state.resources == {
        "Resource0": 1,
        "Resource1": 1,
        "Resource2": 1,
        "Resource3": 1,
    }
    assert (state.started_at, state.last_at) == (
        events[4].timestamp,
        events[0].timestamp,
    )


def test_event_delivered_twice_counts_once() -> None:
    """A repeated event leaves the state as it is."""
    events = [case_event("a", n) for n in range(4)]
    state = reduce(add_event, events, CaseState())
    assert add_event(state, events[2]) is state


def test_half_of_the_orders_actions_meet_on_one_order() -> None:
    """The default mode is contended, and its counters add up."""
    actions = list(order_actions(keys=10, actions=100))
    assert sum(action.workflow_key == "order-0" for action in actions) >= 50
    assert {action.workflow_key for action in actions} == {
        f"order-{number}" for number in range(10)
    }
    state = reduce(count_action, actions, {"handled": 0, "by_kind": {}})
    assert state == {
        "handled": 100,
        "by_kind": {"reserve": 34, "charge": 33, "ship": 33},
    }


def test_contended_replay_equals_the_fold(cases: Engine) -> None:
    """Several workers on the same cases lose races, and no update."""
    events = [case_event(f"case-{n // 20}", n) for n in range(200)]
    crew = work(CanonicalStore(cases, Case), events)
    assert crew.commits == 200
    assert crew.conflicts == crew.retries > 0
    conflict = next(t.last_conflict for t in crew.tallies if t.last_conflict)
    assert isinstance(conflict, StateConflict)
    assert conflict.workflow_key.startswith("case-")
    assert list(differences(cases, crew.workload, crew.acknowledged)) == []


def test_events_out_of_time_are_put_in_order(cases: Engine) -> None:
    """A case whose events are logged backwards ends in the order of time."""
    events = [case_event("a", n, minute=50 - n) for n in range(50)]
    crew = work(CanonicalStore(cases, Case), events)
    assert list(differences(cases, crew.workload, crew.acknowledged)) == []
    state = CanonicalStore(cases, Case).get_state("a").state
    assert [step.position for step in state.steps] == list(reversed(range(50)))


def test_check_finds_lost_updates(cases: Engine) -> None:
    """Without the version check, acknowledged events are missing, and it is said."""
    crew = work(BlindStore(cases, Case), [case_event("a", n) for n in range(200)])
    (difference,) = differences(cases, crew.workload, crew.acknowledged)
    assert difference.startswith("a: the state holds ")
    assert difference.endswith(" actions, but 200 commits were acknowledged")


@pytest.mark.parametrize(
    ("tampering", "difference"),
    [
        ("UPDATE demo_case SET version = 4", "a: version 4, but 3 commits were"),
        ("DELETE FROM demo_case", "a: no row, but 3 commits were acknowledged"),
        (
            """INSERT INTO demo_case (workflow_key, state, provenance)
            SELECT 'b', state, provenance FROM demo_case""",
            "b: a row that no acknowledged commit has written",
        ),
        (
            "UPDATE demo_case SET state = jsonb_set(state, '{activities,check}', '2')",
            "a: the state differs from the fold in: activities",
        ),
        (
            "UPDATE demo_case SET state = state || '{\"more\": true}'",
            "a: the state differs from the fold in: more",
        ),
    ],
)
def test_check_finds_every_difference(
    cases: Engine, tampering: str, difference: str
) -> None:
    """Wrong version, row gone, row too many, field changed, field added."""
    crew = work(CanonicalStore(cases, Case), [case_event("a", n) for n in range(3)])
    with cases.begin() as connection:
        connection.execute(text(tampering))
    (found,) = differences(cases, crew.workload, crew.acknowledged)
    assert found.startswith(difference)


def test_error_in_a_worker_comes_out(cases: Engine) -> None:
    """A reducer that fails stops all workers, and its error is raised."""

    def fail(_state: CaseState, _event: Event) -> CaseState:
        raise ZeroDivisionError

    workload = replayed([case_event("a", n) for n in range(100)])
    broken = Workload(
        workload.entity, workload.initial, fail, workload.actions, workload.counted
    )
    crew = Crew(CanonicalStore(cases, Case), broken, WORKERS)
    crew.start()
    with pytest.raises(ZeroDivisionError):
        crew.join()
    assert crew.commits == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_counts_are_shown_live(cases: Engine, *, terminal: bool) -> None:
    """In a terminal they are redrawn in place, in a file they are plain lines."""
    crew = Crew(CanonicalStore(cases, Case), replayed([case_event("a", 0)]), workers=1)
    shown = io.StringIO()
    crew.start()
    watch(
        Console(file=shown, force_terminal=terminal, width=120, color_system=None),
        crew,
        None,
    )
    crew.join()
    assert ("1/1" if terminal else "1 commits") in shown.getvalue()
    assert ("\r" in shown.getvalue() or "\x1b" in shown.getvalue()) is terminal


def test_time_limit_stops_between_actions(cases: Engine) -> None:
    """What was handed out in time is committed and checked, the rest is untouched."""
    crew = Crew(
        CanonicalStore(cases, Case),
        replayed([case_event("a", n) for n in range(5_000)]),
        WORKERS,
    )
    crew.start()
    watch(Console(file=io.StringIO()), crew, 0.3)
    crew.join()
    assert 0 < crew.commits < 5_000
    assert list(differences(cases, crew.workload, crew.acknowledged)) == []


def run(demo: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, demo, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def server(server_url: URL) -> str:
    """Locate the server for ``--url``."""
    return server_url.render_as_string(hide_password=False)


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """Write a log of two cases with 30 events each."""
    events = "".join(
        f'<event><string key="concept:name" value="step {n % 4}"/>'
        f'<date key="time:timestamp" value="2012-03-01T10:{n:02}:00+01:00"/></event>'
        for n in range(30)
    )
    traces = "".join(
        f'<trace><string key="concept:name" value="case-{c}"/>{events}</trace>'
        for c in (1, 2)
    )
    path = tmp_path / "log.xes"
    path.write_text(f"<log>{traces}</log>")
    return path


def test_default_run_loses_nothing(demo: Path, server: str) -> None:
    """The program ends with the counts, one conflict in full, and the verdict."""
    ended = run(demo, "--url", server, "--actions", 200, "--keys", 5, "--workers", 6)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "200 commits" in ended.stdout
    assert "sa_wfstate.StateConflict: WorkflowState 'order-0'" in ended.stdout
    assert "no update was lost" in ended.stdout


def test_replay_loses_nothing(demo: Path, server: str, log_file: Path) -> None:
    """A log is replayed from the command line."""
    ended = run(demo, "--url", server, "--log", log_file)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "no update was lost: 60 actions" in ended.stdout


def test_blind_run_is_found_out(demo: Path, server: str) -> None:
    """Lost updates are an exit code of 1 and lines that say where."""
    ended = run(demo, "--url", server, "--blind", "--actions", 300, "--keys", 2)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "order-0: the state holds " in ended.stdout
    assert "updates were lost; workflows that show it: " in ended.stdout


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("no.xes", None, "no.xes: No such file or directory"),
        ("log.xes", b"<html/>", "log.xes: not an XES log: its root element is <html>"),
        ("log.xes.gz", b"<log/>", "log.xes.gz: named .gz, but not a gzip file"),
    ],
)
def test_bad_log_gives_one_line(
    demo: Path, tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    """No server is started for a file that cannot be read, and no traceback shown."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    ended = run(demo, "--log", path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"demo: {tmp_path}/{complaint}\n"


def test_unreachable_server_gives_one_line(demo: Path, tmp_path: Path) -> None:
    """So does a server that is not there."""
    ended = run(demo, "--url", f"postgresql:///postgres?host={tmp_path}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("demo: no database on postgresql+psycopg://")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workers", "0"], "--workers: 0 is not greater than 0"),
        (["--seconds", "nan"], "--seconds: nan is not greater than 0"),
        (["--actions", "many"], "--actions: 'many' is not a number"),
        (["--url", "nonsense"], "--url: not a SQLAlchemy URL"),
        (["--url", "sqlite://"], "--url: not a PostgreSQL URL"),
        (["--log", "log.xes", "--keys", "3"], "--keys does not go with --log"),
    ],
)
def test_bad_arguments_are_refused(
    demo: Path, arguments: list[str], complaint: str
) -> None:
    """Each with its usage and what is wrong."""
    ended = run(demo, *arguments)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


def test_interrupt_stops_cleanly(demo: Path, server_url: URL, engine: Engine) -> None:
    """Ctrl-C ends the work, checks what was done, and leaves no database behind."""
    name = f"interrupted-{os.getpid()}"
    url = server_url.update_query_dict({"application_name": name})
    arguments = [
        "--url",
        url.render_as_string(hide_password=False),
        "--actions",
        "9" * 5,
    ]
    # A shell has its background jobs ignore Ctrl-C, and they pass that on.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    program = subprocess.Popen(
        [sys.executable, "-u", demo, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, handler)
    assert program.stdout is not None
    first_counts = program.stdout.readline()
    with engine.connect() as connection:
        used: Any = connection.scalars(
            text(
                "SELECT DISTINCT datname FROM pg_stat_activity"
                " WHERE application_name = :name AND datname LIKE 'demo%'"
            ),
            {"name": name},
        ).one()
    program.send_signal(signal.SIGINT)
    shown, complaints = program.communicate(timeout=60)
    assert "commits" in first_counts
    assert (program.returncode, complaints) == (130, "")
    assert "no update was lost" in shown
    # As many losses as new tries: every worker had ended when they were counted.
    counts = dict(
        re.findall(r"(conflicts|retries)\W+([\d,]+)\W*$", shown, re.MULTILINE)
    )
    assert counts["conflicts"] == counts["retries"]
    with engine.connect() as connection:
        left: Any = connection.scalars(text("SELECT datname FROM pg_database")).all()
    assert used not in left
