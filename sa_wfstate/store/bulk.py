"""Commit to many workflows at once: one statement and one round trip for each chunk.

A row that the statement returns has won. Keys are sent in order, so that two batches
lock their rows in one order; they may still deadlock (SQLSTATE 40P01) if the planner
chooses another. A database without unnest, as SQLite, gets one statement per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..commit_listeners import follow, listeners_of
from ..errors import PayloadError, StateConflict
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
from .compare_and_set import check_target, prepare, refused, target_of, unwritten
from .instances import adopt, held_instances
from .rebasing import commit_all_on, rules_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection

    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.provenance import Provenance
    from ..values.snapshot import WorkflowSnapshot


StateT = TypeVar("StateT")


@dataclass(slots=True)
class Commit(Generic[StateT]):
    """One commit of a batch; see :func:`~sa_wfstate.try_commit` for its fields.

    With *base*, key and version need not be given.
    """

    workflow_key: Key | None = None
    _: KW_ONLY
    expected_version: int | RowVersion | None = None
    state: StateT
    provenance: Provenance | Mapping[str, Any]
    base: WorkflowSnapshot[StateT] | None = None


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
    batch = _prepare(statements, commits)
    if len(set(batch.workflow_keys)) < len(batch):
        _refuse_duplicate(statements, batch)
    if not batch:
        return []
    bases = [commit.base for commit in commits]
    rules: Rebase | None = None
    if rebase is not False:
        for version, base in zip(batch.versions, bases, strict=True):
            if base is not None or version > 1:
                rules = rules_of(statements, rebase, base)
    held = held_instances(session, statements.mapper, batch.workflow_keys)
    outcomes: dict[int, StateCommitted[StateT] | StateConflict[StateT]] = {}
    for indices in by_shard(session, statements.mapper, batch.workflow_keys):
        own, of_own = batch.take(indices), [bases[index] for index in indices]
        connection = connection_of(session, statements, own.workflow_keys)
        send = partial(commit_batch, connection, statements, session=filtering(session))
        if rules is not None:
            _lock(connection, statements, own)
        own, made = commit_all_on(statements, own, of_own, rules, send)
        adopt(session, connection, statements, own, made, held)
        outcomes.update(zip(indices, made, strict=True))
    return [outcomes[index] for index in range(len(batch))]


def _prepare(
    statements: Statements[StateT], commits: Sequence[Commit[StateT]]
) -> Batch:
    """Check everything that can be checked before any SQL is sent."""
    if all(commit.base is None for commit in commits):
        encoded = statements.batch_codec.encode([commit.state for commit in commits])
        if encoded is not None:
            texts, copies = encoded
            targets = [
                target_of(commit.workflow_key, commit.expected_version, None)
                for commit in commits
            ]
            provenances = [
                check_target(statements, *target, commit.provenance)
                for target, commit in zip(targets, commits, strict=True)
            ]
            rows = len(commits)
            bases = [RowVersion.of(version) for _, version in targets]
            return Batch(
                [key for key, _ in targets],
                [base.version + 1 for base in bases],
                texts,
                provenances,
                [statements.schema.write_version] * rows,
                [base.effect_id for base in bases],
                [False] * rows,
                copies,
            )
    return Batch.of(
        [
            prepare(
                statements,
                *target_of(commit.workflow_key, commit.expected_version, commit.base),
                commit.state,
                commit.provenance,
                base=commit.base,
            )
            for commit in commits
        ]
    )


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


def _refuse_duplicate(statements: Statements[Any], batch: Batch) -> None:
    seen = set()
    for key in batch.workflow_keys:
        if key in seen:
            where = f"{statements.entity} {key!r}"
            problem = "is given twice; commit to a workflow once in a batch"
            raise PayloadError(where, "workflow_key", problem)
        seen.add(key)


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
