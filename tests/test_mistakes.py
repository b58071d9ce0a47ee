"""A mistake in a call is answered with what to write instead, not with internals."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, delete, select
from sqlalchemy.orm import Session, sessionmaker

import sa_wfstate.alembic
from sa_wfstate import (
    Action,
    CanonicalStore,
    PayloadError,
    Provenance,
    ReducerService,
    StateConflict,
    WorkflowNotFound,
    get_state,
    run_transaction,
    try_commit,
)
from sa_wfstate.errors import MappingError, UnversionedWrite
from sa_wfstate.hooks import OpenTelemetryHooks, PrometheusHooks
from sa_wfstate.payload.actions import ACTION_IDS

from .orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


ACTION = Action(workflow_key="o-1", action_id=uuid4(), payload=None)


def keep(state: OrderState, _: Action[Any]) -> OrderState:
    """Change nothing."""
    return state


@pytest.fixture
def sqlite() -> Iterator[Engine]:
    """Make an order o-1 in memory: these mistakes need no other database."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))
        session.commit()
    yield engine
    engine.dispose()


def service(engine: Any, reducer: Any = keep, **options: Any) -> ReducerService[Any]:
    """Make a service."""
    return ReducerService(engine, Order, reducer, **options)


def commit(engine: Engine, **values: Any) -> None:
    """Add an order by the unit of work."""
    with Session(engine) as session:
        session.add(Order(**values))
        session.commit()


def try_dict(engine: Engine) -> None:
    """Give try_commit a dict."""
    with Session(engine) as session:
        try_commit(
            session,
            Order,
            "o-2",
            expected_version=0,
            state={"status": "new"},  # type: ignore[arg-type]
            provenance=Provenance.now(),
        )


def in_session(call: Callable[[Session], Any]) -> Callable[[Engine], Any]:
    """Call it with a session."""

    def run(engine: Engine) -> None:
        with Session(engine) as session:
            call(session)

    return run


MISTAKES: dict[str, tuple[Callable[[Engine], Any], type[Exception], str]] = {
    "dict_as_state": (
        lambda engine: commit(engine, workflow_key="o-2", state={"status": "new"}),
        PayloadError,
        "Order 'o-2' state: is a dict, not OrderState; make it one: OrderState(**…)",
    ),
    "dict_as_state_of_try_commit": (
        try_dict,
        PayloadError,
        "is a dict, not OrderState; make it one: OrderState(**…)",
    ),
    "no_key": (
        lambda engine: commit(engine, state=OrderState()),
        PayloadError,
        "Order, at 'workflow_key': is missing; set it",
    ),
    "no_state": (
        lambda engine: commit(engine, workflow_key="o-2"),
        PayloadError,
        "Order 'o-2' state: must not be None; assign a value",
    ),
    "tuple_from_reducer": (
        lambda engine: service(engine, lambda state, _: (state, [])).handle(ACTION),
        PayloadError,
        "is a tuple; a reducer returns the next state, or Reduction(state, intents)",
    ),
    "service_without_initial": (
        lambda engine: service(engine).handle(
            ACTION.model_copy(update={"workflow_key": "o-9"})
        ),
        WorkflowNotFound,
        "Order 'o-9' does not exist; give the ReducerService initial=",
    ),
    "url_as_engine": (
        lambda _: service("postgresql://kim:secret@localhost"),
        TypeError,
        "since each call has its own transaction; give it create_engine(url)",
    ),
    "session_as_engine": (
        lambda engine: CanonicalStore(Session(engine), Order),  # type: ignore[arg-type]
        TypeError,
        "got a Session where an Engine or a sessionmaker belongs",
    ),
    "connection_as_engine": (
        lambda engine: CanonicalStore(engine.connect(), Order),  # type: ignore[arg-type]
        TypeError,
        "give it its engine, or sessionmaker(connection)",
    ),
    "engine_as_session": (
        lambda engine: get_state(engine, Order, "o-1"),  # type: ignore[arg-type]
        TypeError,
        "got an Engine where a Session belongs; open one: with Session(engine)",
    ),
    "sessionmaker_as_session": (
        lambda engine: get_state(sessionmaker(engine), Order, "o-1"),  # type: ignore[arg-type]
        TypeError,
        "got a sessionmaker where a Session belongs; open one: with sessions()",
    ),
    "engine_in_run_transaction": (
        lambda engine: run_transaction(engine, len),  # type: ignore[arg-type]
        TypeError,
        "got an Engine where a sessionmaker belongs; give it sessionmaker(engine)",
    ),
    "session_in_run_transaction": (
        lambda engine: run_transaction(Session(engine), len),  # type: ignore[arg-type]
        TypeError,
        "the sessionmaker that makes such sessions",
    ),
    "instance_as_class": (
        in_session(lambda session: get_state(session, Order(), "o-1")),  # type: ignore[arg-type]
        MappingError,
        "Order: got an instance where the mapped class belongs; give it Order",
    ),
    "number_as_policy": (
        lambda engine: service(engine, retry=3),
        TypeError,
        "got int; write retry=RetryPolicy(max_attempts=3)",
    ),
    "number_as_policy_of_run_transaction": (
        lambda engine: run_transaction(sessionmaker(engine), len, retry=3),  # type: ignore[arg-type]
        TypeError,
        "got int; write retry=RetryPolicy(max_attempts=3)",
    ),
    "dict_as_action": (
        lambda engine: service(engine).handle({"workflow_key": "o-1"}),  # type: ignore[arg-type]
        TypeError,
        "a service handles an Action, got dict; make it by Action(**message)",
    ),
    "dicts_as_actions": (
        lambda engine: service(engine).handle_many([{"workflow_key": "o-1"}]),  # type: ignore[list-item]
        TypeError,
        "a service handles an Action, got dict; make it by Action(**message)",
    ),
    "no_reducer": (
        lambda engine: service(engine, None),
        TypeError,
        "the reducer must be a function of a state and an action, got NoneType",
    ),
    "switch_as_dedup_log": (
        lambda engine: service(engine, dedup=True),
        TypeError,
        "such as ActionDedupLog of sa_wfstate.canonical, got bool",
    ),
    "field_of_a_column": (
        lambda _: select(Order).where(Order.state.status == "new"),  # type: ignore[attr-defined]
        AttributeError,
        "for a field in its JSON write field_of(Order.state).status",
    ),
    "bulk_delete": (
        in_session(lambda session: session.execute(delete(Order))),
        UnversionedWrite,
        "use session.delete(), which checks each row",
    ),
    "action_id_of_another_type": (
        lambda _: Action(workflow_key="o-1", action_id=1.5, payload=None),  # type: ignore[arg-type]
        PayloadError,
        "action, at 'action_id'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_answered_with_what_to_write(sqlite: Engine, name: str) -> None:
    """The message says what was given, and what belongs there."""
    call, kind, text = MISTAKES[name]
    with pytest.raises(kind) as refused:
        call(sqlite)
    assert text in str(refused.value)
    assert "secret" not in str(refused.value)


def test_path_of_a_column_is_still_found() -> None:
    """What the attribute of a column has, it still has."""
    assert Order.state.key == "state"
    assert not hasattr(Order.state, "status")


def test_conflict_says_to_roll_back(sqlite: Engine) -> None:
    """A session is not usable after a flush that has lost, before its rollback."""
    with Session(sqlite) as one, Session(sqlite) as two:
        one.get_one(Order, "o-1").state.status = "paid"
        lost = two.get_one(Order, "o-1")
        lost.state.status = "sent"
        one.commit()
        with pytest.raises(StateConflict, match=r"rollback\(\).* run_transaction\(\)"):
            two.flush()
        two.rollback()
        lost.state.status = "sent"
        two.commit()


def test_flush_that_lost_prints_its_public_name_last(sqlite: Engine) -> None:
    """After the cause, which is one line, and the frames from the caller to here."""
    with Session(sqlite) as one, Session(sqlite) as two:
        orders = [session.get_one(Order, "o-1") for session in (one, two)]
        for order in orders:
            order.state.status = "paid"
        one.commit()
        with pytest.raises(StateConflict) as lost:
            two.commit()
    cause, frames = "".join(traceback.format_exception(lost.value)).split("\n\n", 1)
    assert cause.startswith("sqlalchemy.orm.exc.StaleDataError: UPDATE statement on")
    assert "\n" not in cause
    assert frames.count(f"sa_wfstate{os.sep}orm{os.sep}") == 1
    *_, last = frames.splitlines()
    assert last.startswith("sa_wfstate.StateConflict: Order 'o-1': expected version 1")


@pytest.mark.parametrize(
    ("library", "make", "command"),
    [
        ("prometheus_client", PrometheusHooks, "sa-wfstate[prometheus]"),
        ("opentelemetry.metrics", OpenTelemetryHooks, "sa-wfstate[opentelemetry]"),
        (
            "alembic",
            lambda: sa_wfstate.alembic.create_version_trigger,
            "sa-wfstate[alembic]",
        ),
    ],
)
def test_missing_library_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, library: str, make: Any, command: str
) -> None:
    """The error has the pip command."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "sa_wfstate.alembic.operations", raising=False)
    with pytest.raises(ImportError) as missing:
        make()
    assert f"pip install '{command}'" in str(missing.value)


def test_action_id_is_any_text_number_or_uuid() -> None:
    """A UUID is kept; the others are UUIDs of one namespace, always the same."""

    def id_of(action_id: UUID | str | int) -> UUID:
        return Action(workflow_key="o-1", action_id=action_id, payload=None).action_id

    given = UUID("4f0e3d0a-6f4e-4f39-9f2c-2b8a3a4b5c6d")
    assert id_of(given) == id_of(str(given)) == id_of(given.hex) == given
    assert id_of(1) != id_of("1")
    # Deployed systems have stored them: these never change.
    assert str(ACTION_IDS) == "8f2a5d0e-6c0b-5e57-9a3e-3f0b7b0f6d51"
    assert str(id_of(1)) == "43523010-7f21-504e-bee8-93da71fb8341"
    assert str(id_of("order-1")) == "89ffcb11-c993-5b96-bff9-259fcf3525d8"
    with pytest.raises(PayloadError):
        id_of(True)
    with pytest.raises(PayloadError):
        id_of("")
