"""Commit to many workflows at once: one statement and one round trip for each chunk.

A row that the statement returns has won. Keys are sent in order, so that two batches
lock their rows in one order; they may still deadlock (SQLSTATE 40P01) if the planner
chooses another. A database without unnest, as SQLite, gets one statement per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..commit_listeners import follow, listeners_of
from ..errors import StateConflict
from ..orm.criteria import filtering, hide, visible
from ..orm.entity import statements_of
from ..orm.routing import by_shard
from ..payload.rebase import Rebase
from ..row.batch import arrays_of
from ..row.chunks import chunks
from ..row.columns import evaluates
from ..row.engine_profiles import profile_of
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted
from ..values.write import Batch, Written
from .api import Entity, connection_of
from .batch_checks import Commit, prepare_all
from .compare_and_set import refused, unwritten
from .instances import adopt, held_instances
from .rebasing import commit_all_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.snapshot import WorkflowSnapshot


StateT = TypeVar("StateT")


def try_commit_many(
    session: Session,
    entity: Entity[StateT],
    commits: Iterable[Commit[StateT]],
    *,
    rebase: bool | Rebase = False,
) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
    """Commit each of *commits* whose workflow is at its expected version.

    Returns one outcome per commit, in the order given; each wins or loses by itself.
    For each 1,000 rows one statement is sent, one more if there
    are workflows to create, and one to read the rows of those that lost. Otherwise it
    behaves as :func:`~sa_wfstate.try_commit`, also in what it raises.

    With *rebase*, those whose rows have moved on are merged with them and sent again,
    together. Each commit needs its *base* then, unless it creates a workflow. The rows
    are locked first, in the order of the keys, by one statement more.

    A key that is given twice raises PayloadError before any SQL is sent.
    """
    statements = statements_of(entity)
    commits = list(commits)
    if not commits:
        return []
    batch, bases, rules = prepare_all(statements, commits, rebase)
    held = held_instances(session, statements.mapper, batch.workflow_keys)
    outcomes: dict[int, StateCommitted[StateT] | StateConflict[StateT]] = {}
    for indices in by_shard(session, statements.mapper, batch.workflow_keys):
        own, of_own = batch.take(indices), [bases[index] for index in indices]
        connection = connection_of(session, statements, own.workflow_keys)
        own, made = send_all(
            connection, statements, own, of_own, rules, filtering(session)
        )
        adopt(session, connection, statements, own, made, held)
        outcomes.update(zip(indices, made, strict=True))
    return [outcomes[index] for index in range(len(batch))]


def send_all(
    connection: Connection,
    statements: Statements[StateT],
    batch: Batch,
    bases: Sequence[WorkflowSnapshot[StateT] | None],
    rules: Rebase | None,
    session: Session | None,
) -> tuple[Batch, list[StateCommitted[StateT] | StateConflict[StateT]]]:
    """Send *batch*, rebased by *rules* where rows have moved on.

    Returns what was sent last for each row, and its outcome.
    """
    send = partial(commit_batch, connection, statements, session=session)
    if rules is not None:
        _lock(connection, statements, batch)
    return commit_all_on(statements, batch, bases, rules, send)


def commit_batch(
    connection: Connection,
    statements: Statements[StateT],
    batch: Batch,
    *,
    session: Session | None = None,
    send: Callable[[Connection, Statements[StateT], Batch], dict[Key, Written]]
    | None = None,
) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
    """Send *batch*, of different keys, and return the outcome of each write.

    The criteria of *session*, if given, filter the rows that may be written. *send*
    sends a batch, and returns the writes that won, by key.
    """
    send = send or _send
    keys = batch.workflow_keys
    in_order = sorted(range(len(batch)), key=keys.__getitem__)
    written: dict[Key, Written] = {}
    for indices in chunks(in_order):
        chunk = batch.take(indices)
        with _refusing(statements, chunk):
            own = chunk if session is None else _visible(session, statements, chunk)
            written |= send(connection, statements, own)
    if len(written) == len(batch):
        return statements.all_committed(batch, written)
    losers = {
        key: version - 1
        for key, version in zip(keys, batch.versions, strict=True)
        if key not in written
    }
    found = hide(session, statements, statements.found(connection, losers), losers)
    for key, seen in found.items():
        if isinstance(seen, RowVersion) and seen.version == losers[key]:
            # No other writer won: reading the row raises what is wrong with it.
            statements.read(connection, key)
    return [
        statements.committed(write, written[write.workflow_key])
        if write.workflow_key in written
        else unwritten(statements, write, found.get(write.workflow_key))
        for write in batch
    ]


@contextmanager
def _refusing(statements: Statements[Any], batch: Batch) -> Iterator[None]:
    """Raise a conflict of all writes if the database has refused the transaction."""
    try:
        yield
    except DBAPIError as error:
        lost = {write.workflow_key: write.version - 1 for write in batch}
        conflict = refused(statements, lost, error)
        if conflict is None:
            raise
        raise conflict from error


def _lock(connection: Connection, statements: Statements[Any], batch: Batch) -> None:
    """Lock the rows that *batch* may have to write twice, in the order of the keys.

    What has won at first holds its row while the rest is sent again: two batches would
    wait for each other.
    """
    keys = [write.workflow_key for write in batch if write.version > 1]
    if len(keys) > 1:
        with _refusing(statements, batch):
            statements.versions(connection, keys, lock="no key")


def _visible(session: Session, statements: Statements[Any], batch: Batch) -> Batch:
    """Return the writes of *batch* that *session* may do, with their rows locked."""
    swapped = [write.workflow_key for write in batch if write.version > 1]
    seen = visible(session, statements, swapped, lock=True)
    return batch.take(
        [
            index
            for index, write in enumerate(batch)
            if write.version == 1 or write.workflow_key in seen
        ]
    )


def _send(
    connection: Connection, statements: Statements[Any], batch: Batch
) -> dict[Key, Written]:
    """Send *batch*; return the writes that won, by key."""
    swaps = batch.take([i for i, version in enumerate(batch.versions) if version > 1])
    if (
        len(batch) <= 1
        or not profile_of(connection.dialect).is_postgresql
        # An onupdate that Python calls would be called once for all rows.
        or (swaps and evaluates(statements.table, inserting=False))
    ):
        return _send_singly(connection, statements, batch)
    arrays = arrays_of(statements)
    written: dict[Key, Written] = {}
    if swaps:
        written |= arrays.write(connection, swaps)
    if any(batch.unchanged):
        # As in Statements.swap: their rows may have been upcast since.
        again = [
            write._replace(unchanged=False)
            for write in swaps
            if write.unchanged and write.workflow_key not in written
        ]
        if again:
            written |= arrays.write(connection, Batch.of(again))
    if len(swaps) < len(batch):
        creations = [i for i, version in enumerate(batch.versions) if version == 1]
        new = batch.take(creations)
        if evaluates(statements.table, inserting=True):
            # So would a default in an INSERT … FROM SELECT.
            inserted = statements.inserted(connection, new)
            written |= {key: Written(*row) for *row, key in inserted}
        else:
            written |= arrays.write(connection, new)
    if listeners_of(statements.mapper):
        commits = [
            statements.committed(write._replace(copy=None), written[write.workflow_key])
            for write in batch
            if write.workflow_key in written
        ]
        follow(connection, statements.mapper, commits)
    return written


def _send_singly(
    connection: Connection, statements: Statements[Any], batch: Batch
) -> dict[Key, Written]:
    written = {}
    for write in batch:
        send = statements.create if write.version == 1 else statements.swap
        each = send(connection, write)
        if each is not None:
            written[write.workflow_key] = each
    return written
