"""Every way to lose a race becomes a StateConflict.

Mapper events note what each flush is about to write: entity, key, and the version it is
based on. When the flush fails, SQLAlchemy has rolled back by the time
``after_soft_rollback`` is dispatched, the original error is still being handled, and the
session's own connection is still there. On that connection the rows are read again: the
ones whose version is not the expected one have lost. What concerns no workflow row
passes through untouched.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any, NamedTuple

from sqlalchemy import Connection, event, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import (
    InstanceState,
    Mapper,
    Session,
    SessionTransaction,
    SessionTransactionOrigin,
    object_session,
)
from sqlalchemy.orm.exc import StaleDataError

from .errors import ConflictReason, PayloadError, StateConflict, WriteSuppressed
from .mixin import WorkflowStateMixin
from .snapshots import WorkflowSnapshot
from .statements import Statements, statements_of

_KEY = "sa_wfstate.attempts"

SERIALIZATION_FAILURE = "40001"
UNIQUE_VIOLATION = "23505"


class _Attempt(NamedTuple):
    """One row that a flush is about to write; version 0 is an INSERT."""

    entity: type[WorkflowStateMixin[Any]]
    workflow_key: str
    expected_version: int
    connection: Connection


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a DBAPI error as SQLAlchemy wraps it, None without one."""
    state: str | None = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state


def conflict_of(
    statements: Statements[Any],
    workflow_key: str,
    expected_version: int,
    current: WorkflowSnapshot[Any] | None,
) -> StateConflict | None:
    """Judge a lost write by the row as it was read after the loss.

    None means that the row is at the expected version: nobody else wrote it.
    """
    actual_version = None if current is None else current.version
    if expected_version == (actual_version or 0):
        return None
    reason = ConflictReason.MOVED
    if expected_version == 0:
        reason = ConflictReason.EXISTS
    elif actual_version is None:
        reason = ConflictReason.MISSING
    return StateConflict(
        statements.entity,
        workflow_key,
        expected_version,
        actual_version,
        reason,
        current,
    )


def _note(connection: Connection, target: Any, expected_version: int | None) -> None:
    session = object_session(target)
    if session is not None and expected_version is not None:
        session.info.setdefault(_KEY, []).append(
            _Attempt(
                type(target),
                inspect(target).dict["workflow_key"],
                expected_version,
                connection,
            )
        )


@event.listens_for(WorkflowStateMixin, "before_insert", propagate=True)
def _before_insert(_: Mapper[Any], connection: Connection, target: Any) -> None:
    _note(connection, target, 0)


@event.listens_for(WorkflowStateMixin, "before_update", propagate=True)
def _before_update(_: Mapper[Any], connection: Connection, target: Any) -> None:
    state: InstanceState[Any] = inspect(target)
    if state.session is not None and state.session.is_modified(target):
        _note(connection, target, target.version)


@event.listens_for(WorkflowStateMixin, "before_delete", propagate=True)
def _before_delete(_: Mapper[Any], connection: Connection, target: Any) -> None:
    _note(connection, target, target.version)


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _: object) -> None:
    session.info.pop(_KEY, None)


@event.listens_for(Session, "after_soft_rollback")
def _translate(session: Session, transaction: SessionTransaction) -> None:
    if transaction.origin is not SessionTransactionOrigin.SUBTRANSACTION:
        return
    attempts: list[_Attempt] = session.info.pop(_KEY, [])
    error = sys.exc_info()[1]
    if not attempts or not isinstance(error, (StaleDataError, DBAPIError)):
        return
    lost = isinstance(error, StaleDataError)
    if lost or sqlstate(error) in {SERIALIZATION_FAILURE, UNIQUE_VIOLATION}:
        conflict = _find_conflict(attempts)
        if conflict is not None:
            raise conflict from error
        if lost and len(attempts) == 1:
            only = attempts[0]
            raise WriteSuppressed(
                only.entity.__name__, only.workflow_key, only.expected_version
            ) from error


def _find_conflict(attempts: list[_Attempt]) -> StateConflict | None:
    """Read the rows of *attempts* again and return the conflict of those that lost."""
    grouped = defaultdict(list)
    for attempt in attempts:
        grouped[attempt.connection, attempt.entity].append(attempt)
    lost = []
    for (connection, entity), group in grouped.items():
        statements = statements_of(entity)
        try:
            current = _read_again(
                connection, statements, [attempt.workflow_key for attempt in group]
            )
        except (SQLAlchemyError, PayloadError):
            continue  # The original error says more than a failed look at the row.
        for _, key, expected_version, _ in group:
            conflict = conflict_of(statements, key, expected_version, current.get(key))
            if conflict is not None:
                lost.append(conflict)
    if not lost:
        return None
    first, *others = lost
    return StateConflict(*first.args[:6], tuple(others))


def _read_again(
    connection: Connection, statements: Statements[Any], workflow_keys: list[str]
) -> dict[str, WorkflowSnapshot[Any]]:
    """Read on the session's own connection, and leave it as it was found.

    A fresh connection could wait for ever for a pool of one, and would not see the
    outer transaction that a test has put around everything.
    """
    joined = connection.in_transaction()
    try:
        return statements.read_many(connection, workflow_keys)
    finally:
        if not joined:
            connection.rollback()
