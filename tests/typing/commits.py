"""What a type checker knows of reads, commits and their outcomes."""

from __future__ import annotations

from typing import Any, assert_type

from mapped_classes import Order, OrderState
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

import sa_wfstate.asyncio
from sa_wfstate import (
    CanonicalStore,
    Commit,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowSnapshot,
    get_state,
    try_commit,
    try_commit_many,
)

PROVENANCE = Provenance.now("effect-1")


def reads_are_typed(session: Session, engine: Engine) -> None:
    assert_type(get_state(session, Order, "order-42"), WorkflowSnapshot[OrderState])
    assert_type(get_state(session, Order, "order-42").state, OrderState)
    assert_type(CanonicalStore(engine, Order), CanonicalStore[OrderState])


def an_outcome_is_one_of_two(session: Session) -> None:
    outcome = try_commit(
        session,
        Order,
        "order-42",
        expected_version=7,
        state=OrderState(),
        provenance={"effect_id": "effect-1", "timestamp": "2026-01-01T00:00:00Z"},
    )
    if isinstance(outcome, StateConflict):
        assert_type(outcome.actual_version, int | None)
        assert_type(outcome.current, WorkflowSnapshot[OrderState] | None)
    else:
        assert_type(outcome, StateCommitted[OrderState])
        assert_type(outcome.snapshot.state, OrderState)


def the_expected_version_must_be_given(session: Session) -> None:
    try_commit(session, Order, "k", state=OrderState(), provenance=PROVENANCE)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def a_base_has_key_and_version(
    session: Session, base: WorkflowSnapshot[OrderState]
) -> None:
    outcome = try_commit(
        session, Order, base=base, state=base.state, provenance=PROVENANCE
    )
    assert_type(outcome, StateCommitted[OrderState] | StateConflict[OrderState])
    if isinstance(outcome, StateConflict) and outcome.changes is not None:
        assert_type(outcome.changes.overlapping, tuple[str, ...])


def a_state_of_another_type_is_refused(store: CanonicalStore[OrderState]) -> None:
    store.try_commit(
        workflow_key="order-42",
        expected_version=7,
        state={"status": "paid"},  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        provenance=PROVENANCE,
    )


def only_workflow_classes_have_a_state(session: Session) -> None:
    get_state(session, OrderState, "order-42")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_conflict_that_is_raised_may_be_of_any_class(session: Session) -> None:
    try:
        session.commit()
    except StateConflict as conflict:
        assert_type(conflict.current, WorkflowSnapshot[Any] | None)
        assert_type(conflict.conflicts[0].current, WorkflowSnapshot[Any] | None)


def an_annotation_need_not_name_the_state(
    session: Session, base: WorkflowSnapshot[OrderState]
) -> StateCommitted[OrderState] | StateConflict:
    outcomes = try_commit_many(
        session, Order, [Commit(base=base, state=base.state, provenance=PROVENANCE)]
    )
    assert_type(outcomes, list[StateCommitted[OrderState] | StateConflict[OrderState]])
    return outcomes[0]


async def async_twins_are_typed(session: AsyncSession, engine: AsyncEngine) -> None:
    snapshot = await sa_wfstate.asyncio.get_state(session, Order, "order-42")
    assert_type(snapshot, WorkflowSnapshot[OrderState])
    store = sa_wfstate.asyncio.CanonicalStore(engine, Order)
    outcome = await store.try_commit(
        workflow_key="order-42",
        expected_version=snapshot.version,
        state=snapshot.state,
        provenance=PROVENANCE,
    )
    assert_type(outcome, StateCommitted[OrderState] | StateConflict[OrderState])
