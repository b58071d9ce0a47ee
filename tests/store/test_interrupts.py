"""An error that a signal handler raises is no lost connection: it is not retried."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

from sa_wfstate import CanonicalStore, Provenance, field_of, run_transaction
from sa_wfstate.hooks.base import notify
from sa_wfstate.patching import set_to

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine, MetaData

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGALRM"), reason="needs a signal for timers"
)


def raise_timeout(*_: object) -> None:
    """Handle the signal with an error that the network could have raised."""
    raise TimeoutError


def interrupt(*_: object) -> None:
    """Let the signal come now."""
    signal.raise_signal(signal.SIGALRM)


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, raise_timeout)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def orders(engine: Engine, create_tables: Callable[[MetaData], None]) -> Engine:
    """Create the table of the orders."""
    create_tables(Base.metadata)
    return engine


def test_interrupted_function_is_not_run_again(orders: Engine) -> None:
    """The error ends run_transaction() at its first attempt, and nothing is written."""
    attempts = []

    def place(session: Session) -> None:
        attempts.append(session)
        session.add(Order(workflow_key="o-1", state=OrderState()))
        session.flush()
        interrupt()

    with pytest.raises(TimeoutError):
        run_transaction(sessionmaker(orders), place)
    assert len(attempts) == 1
    with Session(orders) as session:
        assert session.get(Order, "o-1") is None


def test_interrupted_commit_is_not_looked_up(orders: Engine) -> None:
    """The error reaches the caller of run_transaction() also out of its COMMIT."""
    event.listen(orders, "commit", interrupt)
    attempts = []

    def place(session: Session) -> None:
        attempts.append(session)
        session.add(Order(workflow_key="o-1", state=OrderState()))

    with pytest.raises(TimeoutError):
        run_transaction(sessionmaker(orders), place)
    assert len(attempts) == 1


@pytest.mark.parametrize("again", [False, True], ids=["first", "sent again"])
def test_interrupted_store_does_not_send_again(orders: Engine, again: bool) -> None:
    """The error ends try_commit() of a store, also while it sends a commit again."""
    statements: list[str] = []

    @event.listens_for(orders, "before_cursor_execute")
    def fail(_: object, __: object, statement: str, *___: Any) -> None:
        if statement.startswith("INSERT"):
            statements.append(statement)
            if again and len(statements) == 1:
                raise ConnectionResetError
            interrupt()

    store = CanonicalStore(orders, Order)
    with pytest.raises(TimeoutError):
        store.try_commit(
            workflow_key="o-1",
            expected_version=0,
            state=OrderState(),
            provenance=Provenance.now(),
        )
    assert len(statements) == 1 + again


def test_interrupted_hook_interrupts_its_caller() -> None:
    """A hook that fails is logged; one that a signal interrupts is not the culprit."""
    with pytest.raises(TimeoutError):
        notify(interrupt)


def test_interrupted_patch_is_not_looked_up(orders: Engine) -> None:
    """The error ends try_patch() of a store also out of its COMMIT."""
    store = CanonicalStore(orders, Order)
    store.try_commit(
        workflow_key="o-1",
        expected_version=0,
        state=OrderState(),
        provenance=Provenance.now(),
    )
    commits: list[object] = []

    @event.listens_for(orders, "commit")
    def fail(connection: object) -> None:
        commits.append(connection)
        interrupt()

    status = field_of(Order.state, lambda state: state.status)
    with pytest.raises(TimeoutError):
        store.try_patch(
            workflow_key="o-1",
            # Two of one path: the result is validated before COMMIT.
            edits=[set_to(status, "sent"), set_to(status, "paid")],
            provenance=Provenance.now(),
        )
    assert len(commits) == 1
    assert store.get_state("o-1").version == 1
