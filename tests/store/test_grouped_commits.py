"""A store with group=True commits together what arrives together, each for itself."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

import sa_wfstate.asyncio
from sa_wfstate import (
    CanonicalStore,
    ConflictReason,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
)
from sa_wfstate.history import HistoryMixin, keep_history

from .. import crowds
from ..verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import URL, Engine, MetaData


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    notes: list[int] = []


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"


keep_history(Order, OrderHistory)


def commit_of(number: int, expected: int = 0, note: int | None = None) -> Any:
    """Make the arguments of a commit."""
    return {
        "workflow_key": f"o-{number}",
        "expected_version": expected,
        "state": OrderState(notes=[number if note is None else note]),
        "provenance": Provenance.now(),
    }


class Crowd(crowds.Crowd):
    """Callers of a store."""

    def __init__(self, url: URL, kind: str) -> None:
        super().__init__(url, kind)
        self.store: Any = (
            CanonicalStore(self.plain, Order, group=True)
            if kind == "threads"
            else sa_wfstate.asyncio.CanonicalStore(self.awaiting, Order, group=True)
        )
        core = getattr(self.store, "_store", self.store)
        self._groups: Any = core._send_one.__self__._groups

    def commit(
        self,
        given: Sequence[dict[str, Any]],
        then: Callable[[], object] = lambda: None,
        cancel: int | None = None,
    ) -> list[Any]:
        """Commit all at once; start when all wait."""
        calls = [partial(self.store.try_commit, **each) for each in given]
        return self.call_together(self._groups, calls, then=then, cancel=cancel)

    def stored(self) -> dict[str, tuple[int, list[int]]]:
        """Read version and notes of all orders."""
        with Session(self.plain) as session:
            orders = session.query(Order)
            return {o.workflow_key: (o.version, o.state.notes) for o in orders}


@pytest.fixture(params=["threads", "tasks"])
def crowd(
    request: pytest.FixtureRequest,
    database: URL,
    create_tables: Callable[[MetaData], None],
) -> Iterator[Crowd]:
    """Make callers of each kind."""
    create_tables(Base.metadata)
    crowd = Crowd(database, request.param)
    yield crowd
    crowd.close()


@pytest.mark.contract
def test_lone_commit_is_as_without_groups(
    engine: Engine, create_tables: Callable[[MetaData], None]
) -> None:
    """It commits at once, by the statements that a store without groups sends."""
    create_tables(Base.metadata)
    sent, both = verbs_of(engine), []
    for number, group in enumerate((False, True)):
        store = CanonicalStore(engine, Order, group=group)
        sent.clear()
        outcomes = [store.try_commit(**commit_of(number, v)) for v in (0, 1, 1)]
        assert [type(each) for each in outcomes[:2]] == [StateCommitted] * 2
        assert isinstance(outcomes[2], StateConflict)
        assert outcomes[2].reason is ConflictReason.MOVED
        both.append(list(sent))
    assert both[0] == both[1]


def test_what_queued_up_is_one_transaction(crowd: Crowd) -> None:
    """Rows and history of twenty workflows, and each has its outcome."""
    done: list[object] = []
    event.listen(crowd.engine, "commit", done.append)
    for version in (1, 2):
        outcomes = crowd.commit([commit_of(n, version - 1) for n in range(20)])
        assert [each.version for each in outcomes] == [version] * 20
        assert [each.snapshot.state.notes for each in outcomes] == [
            [n] for n in range(20)
        ]
        assert len(done) == version
    assert crowd.stored() == {f"o-{n}": (2, [n]) for n in range(20)}
    with Session(crowd.plain) as session:
        assert session.query(OrderHistory).count() == 40


def test_each_member_has_its_own_outcome(crowd: Crowd) -> None:
    """A conflict, an error and a second commit of a key are its own."""
    crowd.commit([commit_of(n) for n in range(3)])
    with crowd.plain.begin() as connection:
        check = "ALTER TABLE orders ADD CHECK (state #>> '{notes,0}' <> '666')"
        connection.execute(text(check))
    given = [
        commit_of(0, 1),
        commit_of(1, 7),
        commit_of(2, 1, note=666),
        commit_of(3, note=30),
        commit_of(3, note=31),
        commit_of(4),
    ]
    outcomes = crowd.commit(given)
    assert isinstance(outcomes.pop(2), DBAPIError)
    lost = [n for n, each in enumerate(outcomes) if isinstance(each, StateConflict)]
    assert lost in ([1, 2], [1, 3])
    assert [each.version for n, each in enumerate(outcomes) if n not in lost] == [
        2,
        1,
        1,
    ]
    stored = crowd.stored()
    assert stored.pop("o-3") in ((1, [30]), (1, [31]))
    assert stored == {
        "o-0": (2, [0]),
        "o-1": (1, [1]),
        "o-2": (1, [2]),
        "o-4": (1, [4]),
    }


class LostConnection(Exception):
    """As libpq reports it: without a code."""

    sqlstate = None


@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_is_found_out_by_each(crowd: Crowd, done: bool) -> None:
    """Each member learns whether it was committed; a conflict stays one."""
    crowd.commit([commit_of(9), commit_of(8)])
    dialect: Any = crowd.engine.dialect
    commit, roll_back, losses = dialect.do_commit, dialect.do_rollback, [1]

    def lose(connection: Any) -> None:
        if not losses:
            return commit(connection)
        losses.pop()
        (commit if done else roll_back)(connection)
        raise OperationalError("COMMIT", None, LostConnection())

    def arm() -> None:
        dialect.do_commit = lose

    outcomes = crowd.commit([*(commit_of(n) for n in range(5)), commit_of(9, 7)], arm)
    assert isinstance(outcomes.pop(), StateConflict)
    assert [(each.version, each.replayed) for each in outcomes] == [(1, done)] * 5
    others = {"o-8": (1, [8]), "o-9": (1, [9])}
    assert crowd.stored() == others | {f"o-{n}": (1, [n]) for n in range(5)}


def test_locked_row_holds_up_no_other(crowd: Crowd) -> None:
    """The others of its group are committed while it waits for the lock."""
    crowd.commit([commit_of(2), commit_of(9)])
    with crowd.plain.connect() as other:
        other.execute(text("SELECT FROM orders WHERE workflow_key = 'o-2' FOR UPDATE"))

        def unlock() -> None:
            deadline = time.monotonic() + 20
            while len(crowd.stored()) < 6 and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(len(crowd.stored()))
            other.rollback()

        seen: list[int] = []
        thread = threading.Thread(target=unlock)
        given = [commit_of(n, int(n == 2)) for n in range(5)]
        outcomes = crowd.commit(given, thread.start)
        thread.join()
    assert seen == [6]
    assert [each.version for each in outcomes] == [1, 1, 2, 1, 1]


def test_cancelled_leader_harms_no_other(crowd: Crowd) -> None:
    """The transaction of the group is its own: it ends, and the others commit alone."""
    if crowd.kind == "threads":
        pytest.skip("a thread is not cancelled")
    crowd.commit([commit_of(2), commit_of(9)])
    with crowd.plain.connect() as other:
        other.execute(text("SELECT FROM orders WHERE workflow_key = 'o-2' FOR UPDATE"))

        def unlock() -> None:
            time.sleep(0.3)
            other.rollback()

        thread = threading.Thread(target=unlock)
        given = [commit_of(n, int(n == 2)) for n in range(5)]
        outcomes = crowd.commit(given, thread.start, cancel=0)
        thread.join()
    assert isinstance(outcomes.pop(0), asyncio.CancelledError)
    assert [each.version for each in outcomes] == [1, 2, 1, 1]


def test_sessions_are_not_shared(
    database: URL, create_tables: Callable[[MetaData], None]
) -> None:
    """A sessionmaker may give each caller another engine: there are no groups."""
    create_tables(Base.metadata)
    engine = create_engine(database)
    store = CanonicalStore(sessionmaker(engine), Order, group=True)
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(
            threads.map(lambda n: store.try_commit(**commit_of(n)), range(8))
        )
    assert [each.version for each in outcomes] == [1] * 8
    engine.dispose()
