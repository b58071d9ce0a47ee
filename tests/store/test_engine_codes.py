"""Codes by which other engines than PostgreSQL say that a COMMIT is uncertain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg.errors
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from sa_wfstate import (
    Action,
    CanonicalStore,
    Provenance,
    ReducerService,
    StateCommitted,
    get_state,
    run_transaction,
)
from sa_wfstate.outbox import store_intents

from ..drives import Base, Job, Mail, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


class LosesCommit:
    """Makes the next COMMIT that writes end in an error, done or undone."""

    def __init__(self, engine: Engine, code: str, *, done: bool) -> None:
        self._error = psycopg.errors.lookup(code)
        dialect = engine.dialect
        self._end = dialect.do_commit if done else dialect.do_rollback
        self._commit = dialect.do_commit
        self.losses = 0
        dialect.do_commit = self  # type: ignore[method-assign]

    def __call__(self, connection: Any) -> None:
        if self.losses:
            self._commit(connection)
            return
        self.losses = 1
        self._end(connection)
        raise self._error("the answer is lost")


@pytest.fixture(params=["40003", "XX000"], ids=["cockroachdb", "citus"])
def code(request: pytest.FixtureRequest) -> str:
    """Choose a code that leaves the outcome unknown."""
    value: str = request.param
    return value


@pytest.fixture(params=[True, False], ids=["done", "undone"])
def done(request: pytest.FixtureRequest) -> bool:
    """Choose whether the COMMIT takes place."""
    value: bool = request.param
    return value


@pytest.fixture(autouse=True)
def workflow(engine: Engine, create_tables: Callable[..., None]) -> None:
    """Create a workflow."""
    create_tables(Base.metadata)
    CanonicalStore(engine, Job).try_commit(
        workflow_key="t-1",
        expected_version=0,
        state=State(),
        provenance=Provenance.now(),
    )


def version(engine: Engine) -> int:
    """Read the version of the workflow."""
    with Session(engine) as session:
        return get_state(session, Job, "t-1").version


def test_transaction_is_repeated_if_it_was_undone(
    engine: Engine, code: str, done: bool
) -> None:
    """run_transaction() finds out, and repeats what was not committed."""
    calls = []

    def change(session: Session) -> None:
        calls.append(1)
        session.get_one(Job, "t-1").state = State(count=len(calls))

    lost = LosesCommit(engine, code, done=done)
    run_transaction(sessionmaker(engine), change)
    assert lost.losses == 1
    assert len(calls) == (1 if done else 2)
    assert version(engine) == 2


def test_store_sends_the_commit_again(engine: Engine, code: str, done: bool) -> None:
    """The second time it wins, or it is a replay."""
    serializable = engine.execution_options(isolation_level="SERIALIZABLE")
    lost = LosesCommit(engine, code, done=done)
    outcome = CanonicalStore(serializable, Job).try_commit(
        workflow_key="t-1",
        expected_version=1,
        state=State(count=1),
        provenance=Provenance.now(),
    )
    assert isinstance(outcome, StateCommitted)
    assert outcome.replayed == (done and bool(lost.losses))
    assert version(engine) == 2


def test_service_processes_the_action_once(
    engine: Engine, code: str, done: bool
) -> None:
    """The action is committed once, whether its first COMMIT took place or not."""

    def rename(state: State, _: Action[Any]) -> State:
        return state.model_copy(update={"count": state.count + 1})

    lost = LosesCommit(engine, code, done=done)
    # With a writer it needs a transaction, and so a COMMIT.
    writers = [store_intents(Mail)]
    service = ReducerService(engine, Job, rename, writers=writers)
    service.handle(Action(workflow_key="t-1", action_id=uuid4(), payload=None))
    assert lost.losses == 1
    assert version(engine) == 2


def test_internal_error_of_a_statement_is_not_repeated(engine: Engine) -> None:
    """Only an internal error of COMMIT leaves the outcome unknown."""
    calls = []

    def fail(session: Session) -> None:
        calls.append(1)
        session.connection().exec_driver_sql(
            "DO $$ BEGIN RAISE EXCEPTION 'bad' USING ERRCODE = 'XX000'; END $$"
        )

    with pytest.raises(DBAPIError):
        run_transaction(sessionmaker(engine), fail)
    assert len(calls) == 1


def test_serialization_failure_without_its_code_is_repeated(engine: Engine) -> None:
    """Citus passes on the text alone where INSERT … SELECT fails on a worker."""
    calls = []

    def fail_once(session: Session) -> None:
        calls.append(1)
        if len(calls) == 1:
            session.connection().exec_driver_sql(
                "DO $$ BEGIN RAISE EXCEPTION 'could not serialize access'"
                " USING ERRCODE = 'XX000'; END $$"
            )

    run_transaction(sessionmaker(engine), fail_once)
    assert len(calls) == 2
