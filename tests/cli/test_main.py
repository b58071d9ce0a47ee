"""The terminal commands, run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sa_wfstate import Provenance, try_commit
from sa_wfstate.cli.main import main
from sa_wfstate.cli.targets import TEMPLATE_URL
from sa_wfstate.projection import rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Engine

APPLICATION = """
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sa_wfstate import WorkflowStateMixin
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.outbox import IntentMixin
from sa_wfstate.projection import Projection, ProjectionMixin

class Base(DeclarativeBase): ...

class OrderState(BaseModel):
    status: str = "new"
    lines: list[str] = []

class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"

class OrderIntent(IntentMixin, Base):
    __tablename__ = "order_intents"

class OrderRow(ProjectionMixin, Base):
    __tablename__ = "order_rows"

class Ticket(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "tickets"
    tenant: Mapped[str] = mapped_column(primary_key=True)
    workflow_key: Mapped[int] = mapped_column(primary_key=True)

class TicketHistory(HistoryMixin, Base):
    __tablename__ = "ticket_history"

class TicketRow(ProjectionMixin, Base):
    __tablename__ = "ticket_rows"

class Bare(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "bare"

keep_history(Order, OrderHistory)
keep_history(Ticket, TicketHistory)
tickets = Projection(
    Ticket, TicketRow, lambda snapshot: {"tag": snapshot.state.status, "namespace": "a"}
)
orders = Projection(
    Order, OrderRow, lambda snapshot: {"tag": snapshot.state.status, "namespace": "a"}
)
"""


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Answer:
    """A terminal that answers with one line, and calls *before* first."""

    def __init__(self, answer: str, before: Callable[[], None] = lambda: None) -> None:
        self._answer = answer
        self._before = before

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        self._before()
        return f"{self._answer}\n"


class Terminal:
    """Runs the commands where the application is, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], engine: Engine) -> None:
        self._capsys = capsys
        self.engine = engine

    def run(self, *arguments: str) -> Done:
        return Done(main(arguments), *self._capsys.readouterr())

    def shown(self) -> Any:
        return self._capsys.readouterr()

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
) -> Iterator[Terminal]:
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
    yield Terminal(capsys, engine)
    engine.dispose()


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
        (["history", "shop:Order", "o-9"], "Order 'o-9' does not exist"),
        (["restore", "shop:Order", "o-9", "1", "--yes"], "holds no version 1"),
        (["restore", "shop:Order", "o-1", "1"], "add --yes"),
        (["trim", "shop:Order", "--before", "1d"], "add --yes"),
        (["dead-letters", "drop", "shop:OrderIntent"], "add --yes"),
        (["dead-letters", "show", "shop:Order"], "is not a class with IntentMixin"),
        (["lag", "shop:Order"], "is not a Projection"),
        (["list", "shop:Order", "--tag", "paid"], "give --projection too"),
        (["list", "shop:Order", "--projection", "shop:Order"], "not a Projection"),
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
        ("history", "shop:Order", "o-1", "--limit", "-1"),
        ("upcast", "shop:Order", "--batch-size", "-1"),
        ("trim", "shop:Order", "--before", "yesterday"),
    ],
)
def test_number_that_is_none_is_refused(terminal: Terminal, wrong: Any) -> None:
    """Less than one row makes no sense, and the usage says so."""
    with pytest.raises(SystemExit) as caught:
        terminal.run(*wrong)
    assert caught.value.code == 2
    assert "must be" in terminal.shown().err


def test_history_has_the_values_and_short_ids(terminal: Terminal) -> None:
    """A pipe gets no lines of a table; --full shows ids and values in full."""
    effect_id, status = uuid4(), 50 * "x"
    with Session(terminal.engine) as session:
        order = session.get_one(sys.modules["shop"].Order, "o-1")
        order.state.status = status
        order.provenance = Provenance.now(effect_id)
        session.commit()
    shown = terminal.run("history", "shop:Order", "o-1").stdout
    assert f"effect {str(effect_id)[:8]} " in shown
    assert str(effect_id) not in shown
    assert 'replace /status "new" → "paid"' in " ".join(shown.split())
    assert status not in shown
    assert not set("│┃━─") & {*shown}
    full = terminal.run("history", "shop:Order", "o-1", "--full").stdout
    assert str(effect_id)[:23] in "".join(full.split())


def test_list(terminal: Terminal) -> None:
    """By tag of a projection, age of the version, schema version; in pages."""
    shop = sys.modules["shop"]
    with Session(terminal.engine) as session:
        session.add(shop.Order(workflow_key="o-2", state=shop.OrderState()))
        session.commit()

    def keys(*arguments: str) -> list[str]:
        rows = terminal.read("list", "shop:Order", *arguments)
        return [row["workflow_key"] for row in rows]

    assert keys() == ["o-1", "o-2"]
    assert keys("--limit", "1") == ["o-1"]
    assert keys("--after", "o-1") == ["o-2"]
    assert keys("--schema-version", "2") == []
    assert keys("--unchanged-for", "1h") == []
    assert keys("--unchanged-for", "2200-01-01") == ["o-1", "o-2"]
    assert keys("--projection", "shop:orders") == []
    rebuild(terminal.engine, shop.orders)
    assert keys("--projection", "shop:orders", "--tag", "new") == ["o-2"]
    assert "o-2" in terminal.run("list", "shop:Order").stdout
    assert "no workflow" in terminal.run("list", "shop:Order", "--after", "x").stdout


def test_key_within_a_tenant_is_given_by_its_text(terminal: Terminal) -> None:
    """It is shown so too, and leads to the next page."""
    shop = sys.modules["shop"]
    with Session(terminal.engine) as session:
        for tenant in ("a/b", "c"):
            for key in (7, 10):
                state = shop.OrderState(status=f"{tenant} {key}")
                session.add(shop.Ticket(tenant=tenant, workflow_key=key, state=state))
        session.commit()
    rebuild(terminal.engine, shop.tickets)

    def keys(*arguments: str) -> list[str]:
        rows = terminal.read("list", "shop:Ticket", *arguments)
        return [row["workflow_key"] for row in rows]

    assert keys() == ["a~1b/7", "a~1b/10", "c/7", "c/10"]
    assert keys("--after", "a~1b/10", "--limit", "1") == ["c/7"]
    assert keys("--projection", "shop:tickets", "--tag", "c 7") == ["c/7"]
    facts = terminal.read("show", "shop:Ticket", "a~1b/7")
    assert (facts["workflow_key"], facts["state"]["status"]) == ("a~1b/7", "a/b 7")
    shown = terminal.run("history", "shop:Ticket", "c/7").stdout
    assert "Ticket TenantKey('c', 7)" in shown
    done = terminal.read("restore", "shop:Ticket", "c/7", "1", "--yes")
    assert done == {"workflow_key": "c/7", "version": 2}
    wrong = terminal.run("show", "shop:Ticket", "7")
    assert "must be a TenantKey of str and int, or the text of one" in wrong.stderr


def test_lag(terminal: Terminal) -> None:
    """How many workflows, versions and seconds a projection is behind."""
    measured = terminal.read("lag", "shop:orders")
    assert (measured["keys"], measured["versions"]) == (1, 3)
    assert "order_rows: 1 workflows behind" in terminal.run("lag", "shop:orders").stdout


def test_restore_is_a_new_commit(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks, and a rival that commits meanwhile makes it a conflict."""
    arguments = ("restore", "shop:Order", "o-1", "2")
    done = terminal.read(*arguments, "--yes")
    assert done == {"workflow_key": "o-1", "version": 4}
    facts = terminal.read("show", "shop:Order", "o-1")
    assert facts["state"] == {"status": "paid", "lines": []}
    assert facts["provenance"]["restored_version"] == 2
    monkeypatch.setattr(sys, "stdin", Answer("n"))
    assert terminal.run(*arguments).stderr.endswith("sa_wfstate: nothing was done\n")

    def rival() -> None:
        with Session(terminal.engine) as session:
            session.get_one(sys.modules["shop"].Order, "o-1").state.status = "sent"
            session.commit()

    monkeypatch.setattr(sys, "stdin", Answer("y", rival))
    lost = terminal.run(*arguments)
    assert lost.returncode == 1
    assert "expected version 4, found 5" in lost.stderr
    monkeypatch.setattr(sys, "stdin", Answer("y"))
    assert "at version 6" in terminal.run(*arguments).stdout


def test_trim(terminal: Terminal) -> None:
    """The newest version stays."""
    assert (
        terminal.read("trim", "shop:Order", "--before", "1d", "--yes")["deleted"] == 0
    )
    done = terminal.run("trim", "shop:Order", "--before", "2200-01-01T00:00Z", "-y")
    assert done.stdout == "2 versions deleted\n"
    (row,) = terminal.read("history", "shop:Order", "o-1")
    assert row["version"] == 3


def test_dead_letters(terminal: Terminal) -> None:
    """They are shown, made due again, or dropped; of one workflow or of all."""
    intents = sys.modules["shop"].OrderIntent
    with Session(terminal.engine) as session:
        for key in ("o-1", "o-2", "o-3"):
            intent = intents(
                workflow_key=key,
                version=1,
                position=0,
                intent_id=uuid4(),
                intent_type="mail",
                target="kim",
                attempts=9,
                dead_at=datetime.now(UTC),
                last_error="no such mailbox",
            )
            session.add(intent)
        session.commit()
    name = "shop:OrderIntent"
    shown = terminal.run("dead-letters", "show", name).stdout
    assert "no such mailbox" in " ".join(shown.split())
    done = terminal.run("dead-letters", "retry", name, "--key", "o-1", "--yes")
    assert done.stdout == "1 dead letters due again\n"
    dead = terminal.read("dead-letters", "show", name)
    assert [row["workflow_key"] for row in dead] == ["o-2", "o-3"]
    assert terminal.read("dead-letters", "drop", name, "--yes") == {"dropped": 2}
    assert terminal.read("dead-letters", "show", name) == []


@pytest.mark.parametrize("name", ["postgresql+asyncpg", "postgresql+psycopg_async"])
def test_driver_of_the_url_may_be_asynchronous(
    terminal: Terminal, database: URL, name: str
) -> None:
    """Commands that read, and those that write; an error is one line all the same."""
    url = database.set(drivername=name)
    given = ("--url", url.render_as_string(hide_password=False))
    facts = terminal.read("show", "shop:Order", "o-1", *given)
    assert facts["version"] == 3
    assert terminal.read("restore", "shop:Order", "o-1", "1", "--yes", *given)
    assert terminal.read("upcast", "shop:Order", *given)["left"] == {}
    nowhere = url.set(database="nowhere").render_as_string(hide_password=False)
    done = terminal.run("show", "shop:Order", "o-1", "--url", nowhere)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "nowhere" in done.stderr


@pytest.mark.parametrize(
    ("module", "command", "message"),
    [
        ("psycopg", "show", "pip install 'sa-wfstate[postgresql]'"),
        ("rich.console", "show", "pip install 'sa-wfstate[cli]'"),
        ("jsonpatch", "history", "pip install 'sa-wfstate[history]'"),
    ],
)
def test_missing_library_names_the_pip_command(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    command: str,
    message: str,
) -> None:
    """The extra that has it, in one line."""
    monkeypatch.setitem(sys.modules, module, None)
    done = terminal.run(command, "shop:Order", "o-1")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr


def test_url_of_alembic(
    terminal: Terminal, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """alembic.ini in the working folder has it, unless it is that of the template."""
    monkeypatch.delenv("SA_WFSTATE_URL")
    text = database.render_as_string(hide_password=False).replace("%", "%%")
    ini = Path("alembic.ini")
    for url, shown in ((text, None), (TEMPLATE_URL, "no database URL"), ("%", "%%")):
        ini.write_text(f"[alembic]\nsqlalchemy.url = {url}\n")
        done = terminal.run("show", "shop:Order", "o-1", "--json")
        if shown is None:
            assert json.loads(done.stdout)["version"] == 3
        else:
            assert shown in done.stderr


def test_command_is_installed() -> None:
    """It is the same program as the module."""
    (script,) = entry_points(group="console_scripts", name="wfstate")
    assert script.load() is main
