"""Commit to many workflows at once: one statement and one round trip for each chunk.

What a statement returns has won. Keys are sent in order, so that two batches lock their
rows in one order, and may still deadlock (SQLSTATE 40P01) where the planner chooses
another. A database without unnest, as SQLite, gets the statements one by one.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError

from . import side_writes
from .arrays import arrays_of
from .commits import lost, prepare, refused
from .errors import PayloadError
from .ledger import record
from .races import StateConflict
from .snapshots import StateCommitted
from .statements import Statements, Write, statements_of
from .store import Entity, connection_of, held_instance, update_instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from .provenance import Provenance
    from .snapshots import WorkflowSnapshot

StateT = TypeVar("StateT")

CHUNK = 1_000
"""How many rows one statement writes at most."""


@dataclass(slots=True)
class Commit(Generic[StateT]):
    """One commit of a batch; see :func:`~sa_wfstate.try_commit` for what it holds."""

    workflow_key: str
    _: KW_ONLY
    expected_version: int
    state: StateT
    provenance: Provenance | Mapping[str, Any]
    base: WorkflowSnapshot[StateT] | None = None


def try_commit_many(
    session: Session, entity: Entity[StateT], commits: Iterable[Commit[StateT]]
) -> list[StateCommitted[StateT] | StateConflict]:
    """Commit each of *commits* whose workflow is at its expected version.

    Returns one outcome per commit, in the order given; one that lost does not keep the
    others from winning. For each :data:`CHUNK` of rows one statement is sent, one more
    if there are workflows to create, and one to read the rows of those that lost.
    Otherwise it behaves as :func:`~sa_wfstate.try_commit`, also in what it raises.

    A key that is given twice raises PayloadError before any SQL is sent.
    """
    statements = statements_of(entity)
    writes = [
        prepare(
            statements,
            commit.workflow_key,
            commit.expected_version,
            commit.state,
            commit.provenance,
            base=commit.base,
        )
        for commit in commits
    ]
    if len({write.workflow_key for write in writes}) < len(writes):
        _refuse_duplicate(statements, writes)
    if not writes:
        return []
    held = {}
    # Looking each key up costs more than the session that holds none of the class.
    if len(session.identity_map):
        for write in writes:
            key = write.workflow_key
            instance = held_instance(session, statements.mapper, key)
            if instance is not None:
                held[key] = instance
    connection = connection_of(session, statements)
    outcomes = commit_writes(connection, statements, writes)
    won = []
    for write, outcome in zip(writes, outcomes, strict=True):
        if isinstance(outcome, StateCommitted):
            instance = held.get(write.workflow_key)
            if instance is not None:
                update_instance(instance, write, outcome.snapshot)
            won.append((write, instance))
    if won:
        record(session, connection, statements, won)
    return outcomes


def commit_writes(
    connection: Connection, statements: Statements[StateT], writes: list[Write]
) -> list[StateCommitted[StateT] | StateConflict]:
    """Send *writes*, of different keys, and return the outcome of each."""
    by_key = {write.workflow_key: write for write in writes}
    ordered = [by_key[key] for key in sorted(by_key)]
    written: dict[str, datetime] = {}
    for start in range(0, len(ordered), CHUNK):
        chunk = ordered[start : start + CHUNK]
        try:
            written |= _send(connection, statements, chunk)
        except DBAPIError as error:
            # The database has refused the transaction: each of them is lost.
            refusals = [refused(statements, write, error) for write in chunk]
            conflicts = [each for each in refusals if each is not None]
            if not conflicts:
                raise
            first, *others = conflicts
            raise StateConflict(
                first.entity,
                first.workflow_key,
                first.expected_version,
                None,
                first.reason,
                others=tuple(others),
            ) from error
    losers = [key for key in by_key if key not in written]
    current = statements.read_many(connection, losers) if losers else {}
    return [
        statements.committed(write, written[key])
        if key in written
        else lost(statements, write, current.get(key))
        for key, write in by_key.items()
    ]


def _refuse_duplicate(statements: Statements[Any], writes: list[Write]) -> None:
    seen = set()
    for write in writes:
        if write.workflow_key in seen:
            where = f"{statements.entity} {write.workflow_key!r}"
            problem = "is given twice; commit to a workflow once in a batch"
            raise PayloadError(where, "workflow_key", problem)
        seen.add(write.workflow_key)


def _send(
    connection: Connection, statements: Statements[Any], writes: list[Write]
) -> dict[str, datetime]:
    """Write what can be written; return updated_at by key."""
    if len(writes) == 1 or not isinstance(connection.dialect, PGDialect):
        return _send_singly(connection, statements, writes)
    arrays = arrays_of(statements)
    written: dict[str, datetime] = {}
    swaps = [write for write in writes if write.version > 1]
    if swaps:
        written.update(arrays.execute(connection, arrays.swap, swaps))
    # As in Statements.swap: their rows may have been upcast since.
    again = [w for w in swaps if w.unchanged and w.workflow_key not in written]
    if again:
        again = [write._replace(unchanged=False) for write in again]
        written.update(arrays.execute(connection, arrays.swap, again))
    if len(swaps) < len(writes):
        creations = [write for write in writes if write.version == 1]
        written.update(arrays.execute(connection, arrays.create, creations))
    if side_writes.writers_of(statements.mapper):
        commits = [
            statements.committed(write._replace(copy=None), written[write.workflow_key])
            for write in writes
            if write.workflow_key in written
        ]
        side_writes.write(connection, statements.mapper, commits)
    return written


def _send_singly(
    connection: Connection, statements: Statements[Any], writes: list[Write]
) -> dict[str, datetime]:
    written = {}
    for write in writes:
        send = statements.create if write.version == 1 else statements.swap
        updated_at = send(connection, write)
        if updated_at is not None:
            written[write.workflow_key] = updated_at
    return written
