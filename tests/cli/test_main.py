"""The terminal commands, run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sa_wfstate import Provenance, try_commit
from sa_wfstate.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL

APPLICATION = """
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase
from sa_wfstate import WorkflowStateMixin
from sa_wfstate.history import HistoryMixin, keep_history

class Base(DeclarativeBase): ...

class OrderState(BaseModel):
    status: str = "new"
    lines: list[str] = []

class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"

class Bare(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "bare"

keep_history(Order, OrderHistory)
"""


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Terminal:
    """Runs the commands where the application is, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *arguments: str) -> Done:
        return Done(main(arguments), *self._capsys.readouterr())

    def read(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def terminal(
    tmp_path: Path,
    database: URL,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Terminal:
    """Make an application with one order of three versions."""
    (tmp_path / "shop.py").write_text(APPLICATION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    monkeypatch.setenv("SA_WFSTATE_URL", database.render_as_string(False))
    monkeypatch.setenv("COLUMNS", "100")
    shop = import_module("shop")
    engine = create_engine(database)
    shop.Base.metadata.create_all(engine)
    state = shop.OrderState
    with Session(engine) as session:
        for version, given in enumerate(
            [state(), state(status="paid"), state(status="paid", lines=["tea"])]
        ):
            try_commit(
                session,
                shop.Order,
                "o-1",
                expected_version=version,
                state=given,
                provenance=Provenance.now(f"effect-{version + 1}", user="kim"),
            )
        session.commit()
    engine.dispose()
    return Terminal(capsys)


@pytest.mark.usefixtures("terminal")
def test_module_is_a_program() -> None:
    """``python -m sa_wfstate`` finds the application in the working folder."""
    command = [sys.executable, "-W", "error", "-m", "sa_wfstate"]
    done = subprocess.run(
        [*command, "show", "shop:Order", "o-1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Order 'o-1' version 3" in done.stdout


def test_show(terminal: Terminal) -> None:
    """The workflow as it is, as it was, for a person and for a program."""
    shown = terminal.run("show", "shop:Order", "o-1")
    assert shown.returncode == 0, shown.stderr
    for part in (
        "Order 'o-1' version 3",
        '"status": "paid"',
        "effect effect-3, user kim",
    ):
        assert part in shown.stdout
    facts = terminal.read("show", "shop:Order", "o-1")
    assert (facts["version"], facts["state"]["lines"]) == (3, ["tea"])
    before = terminal.read("show", "shop:Order", "o-1", "--version", "1")
    assert before["state"] == {"status": "new", "lines": []}


def test_history(terminal: Terminal) -> None:
    """Who changed what, when; the newest first."""
    shown = terminal.run("history", "shop:Order", "o-1")
    assert shown.returncode == 0, shown.stderr
    assert "replace /status" in shown.stdout
    assert "effect effect-2, user kim" in shown.stdout
    newest, *_ = rows = terminal.read("history", "shop:Order", "o-1")
    assert [row["version"] for row in rows] == [3, 2, 1]
    assert newest["changes"] == [{"op": "add", "path": "/lines/0", "value": "tea"}]
    assert newest["provenance"]["effect_id"] == "effect-3"
    limited = terminal.read("history", "shop:Order", "o-1", "--limit", "1")
    assert limited == [newest]


def test_diff(terminal: Terminal) -> None:
    """What changed between two versions."""
    shown = terminal.run("diff", "shop:Order", "o-1", "1", "2")
    assert shown.stdout.split() == ["replace", "/status", '"new"', '"paid"']
    patch = terminal.read("diff", "shop:Order", "o-1", "2", "3")
    assert patch == [{"op": "add", "path": "/lines/0", "value": "tea"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "shop:Order", "o-9"], "Order 'o-9' does not exist"),
        (["show", "shop", "o-1"], "write package.module:Class"),
        (["show", "shop:Nothing", "o-1"], "shop has no Nothing"),
        (["show", "nowhere:Order", "o-1"], "cannot import nowhere"),
        (["show", "shop:OrderState", "o-1"], "is not a mapped class"),
        (["history", "shop:Bare", "o-1"], "Bare: has no history"),
        (["diff", "shop:Order", "o-1", "1", "9"], "holds no version 9"),
        (["show", "shop:Order", "o-1", "--url", "?"], "URL cannot be read"),
        (["show", "shop:Order", "o-1", "--url", "postgresql:///no"], "refused"),
    ],
)
def test_errors_are_one_line(
    terminal: Terminal, arguments: list[str], message: str
) -> None:
    """What cannot be done is said in a line, without a traceback."""
    done = terminal.run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sa_wfstate: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "wrong_url",
    [
        "postgresql://kim:se@cret@nowhere.invalid/db",
        "postgresql://kim:se@cret:word@nowhere.invalid/db",
        "postgresql://kim:se@x/cret@nowhere.invalid/db",
        "postgresql://kim:cret@nowhere.invalid:12x/db",
        "postgresql://kim:cret@nowhere.invalid/db",
        "nodriver://kim:cret@nowhere.invalid/db",
        "postgresql://kim:cret@" + 80 * "a" + ".invalid/db",
    ],
)
def test_no_part_of_a_password_is_shown(terminal: Terminal, wrong_url: str) -> None:
    """Whatever is wrong with a URL is said in one line."""
    for command in (("show", "shop:Order", "o-1"), ("upcast", "shop:Order")):
        done = terminal.run(*command, "--url", wrong_url)
        assert done.returncode == 1
        assert "cret" not in done.stdout + done.stderr
        assert done.stderr.startswith("sa_wfstate: ")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ("history", "shop:Order", "o-1", "--limit", "0"),
        ("upcast", "shop:Order", "--batch-size", "-1"),
    ],
)
def test_number_that_is_none_is_refused(terminal: Terminal, wrong: Any) -> None:
    """Less than one row makes no sense, and the usage says so."""
    with pytest.raises(SystemExit) as caught:
        terminal.run(*wrong)
    assert caught.value.code == 2
