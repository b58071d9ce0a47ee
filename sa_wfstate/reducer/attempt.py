"""One attempt: read, reduce, compare and set.

A decision on a stale state is discarded, an exception of the reducer too: it is raised
only if its state was read for this attempt or has been committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import Connection

from ..dedup import Claim, refuse_reuse
from ..errors import (
    ActionIdReused,
    PayloadError,
    SchemaVersionAhead,
    StateConflict,
    WorkflowNotFound,
)
from ..orm.criteria import read_visible
from ..payload.actions import Intent, digest
from ..store.bulk import commit_batch
from ..store.connections import READ_COMMITTED, limit_idle_time, limit_lock_waits
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from ..values.write import Batch
from .action_batch import ActionResult, replayed

if TYPE_CHECKING:
    from ..dedup import DedupLog, Processed
    from ..row.statements import Statements
    from ..store.connections import Connections
    from .action_batch import ActionBatch, Baseline
    from .reductions import Reductions


StateT = TypeVar("StateT")

Writer = Callable[[Connection, WorkflowSnapshot[Any], Sequence[Intent]], None]
"""Called in the transaction of each commit, with its snapshot and all its intents."""


class ClaimedBefore(Exception):
    """One of the actions was processed by another transaction meanwhile."""


class _Undo(Exception):
    """Roll back a transaction that only reads."""


class Attempts(Generic[StateT]):
    """Make attempts for the workflows of one class.

    *lock_limit* is the number of seconds for which the reducer or a writer may hold the
    lock of a row.
    """

    def __init__(
        self,
        statements: Statements[StateT],
        connections: Connections,
        reductions: Reductions[StateT],
        *,
        log: DedupLog | None,
        writers: tuple[Writer, ...],
        lock_limit: float,
    ) -> None:
        self._statements = statements
        self._connections = connections
        self._reductions = reductions
        self._log = log
        self._writers = writers
        self._lock_limit = lock_limit
        self._commits_apart = log is not None or bool(writers)

    def make(
        self, batch: ActionBatch, *, cached: Baseline | None = None, lock: bool = False
    ) -> StateConflict | None:
        """Make one attempt; return its conflict, None if *batch* is settled.

        Starts from *cached*, if given; with *lock*, locks the row before reading it.
        """
        batch.begin()
        if self._connections.filters():
            cached = None  # Its row may be hidden from the next session.
        if lock:
            # At a stricter level the lock would end in a serialization failure.
            with self._connections.transaction(READ_COMMITTED) as connection:
                limit_idle_time(connection, self._lock_limit)
                baseline = self._read(connection, batch, lock=True)
                self._reductions.reduce(batch, baseline)
                (outcome,) = self._write(connection, [batch])
                batch.committing = True
        else:
            self._reductions.reduce(batch, cached or self._read_alone(batch))
            if batch.baseline.cached and not batch.accepted:
                # An error counts only if its state is known to be current.
                self._reductions.reduce(batch, self._read_alone(batch))
            (outcome,) = self._commit([batch])
        if isinstance(outcome, StateConflict):
            return outcome
        batch.settle(outcome)
        return None

    def make_many(self, batches: list[ActionBatch]) -> list[StateConflict | None]:
        """Make one attempt for *batches* of different keys; return their conflicts.

        A batch that cannot be reduced is settled with its error.
        """
        with self._connections.autocommit() as connection:
            keys = [batch.key for batch in batches]
            session = self._connections.filtering(connection)
            rows = read_visible(connection, self._statements, keys, session)
            if self._log is not None:
                ids = [t.item.action_id for batch in batches for t in batch.requests]
                found = self._log.lookup(connection, keys, ids)
        for batch in batches:
            batch.begin()
            try:
                snapshot = rows.get(batch.key)
                if self._log is not None:
                    self._replay_found(batch, found, snapshot)
                baseline = self._reductions.baseline(batch, snapshot)
                self._reductions.reduce(batch, baseline)
            except (WorkflowNotFound, PayloadError, SchemaVersionAhead) as error:
                batch.fail(error)
        outcomes = self._commit(batches)
        conflicts: list[StateConflict | None] = []
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, StateConflict):
                conflicts.append(outcome)
            else:
                batch.settle(outcome)
                conflicts.append(None)
        return conflicts

    def was_committed(self, batch: ActionBatch) -> bool | None:
        """Return whether *batch*, whose COMMIT was not answered, is committed.

        If it is, settle it; return None if that can no longer be known. Locking the row
        waits for a COMMIT in progress. A row that does not exist cannot be locked: it
        is created, and that is rolled back.
        """
        assert batch.write is not None  # noqa: S101
        write, log = batch.write, self._log
        committed: bool | None = None
        snapshot: WorkflowSnapshot[StateT] | None = None
        transaction = self._connections.transaction(READ_COMMITTED)
        with suppress(_Undo), transaction as connection:
            limit_lock_waits(connection)
            look = partial(
                self._statements.versions, connection, [batch.key], lock=True
            )
            found = look().get(batch.key)
            creating = found is None and write.version == 1
            if creating and self._statements.create(connection, write) is None:
                found = look().get(batch.key)
            version, effect_id = found or (0, None)
            if effect_id == write.provenance.effect_id:
                committed = True
                snapshot = self._statements.read(connection, batch.key)
            elif log is not None:
                ids = [each.request.item.action_id for each in batch.accepted]
                claims = log.lookup(connection, [batch.key], ids)
                # The transaction's time tells it from another delivery's.
                committed = any(
                    processed.processed_at == batch.claimed.get(action)
                    for action, processed in claims.items()
                )
            elif (version, effect_id) == (write.version - 1, write.base_effect_id):
                committed = False
            raise _Undo
        if committed:
            if batch.answer is not None:
                snapshot = batch.answer.snapshot
            entity = self._statements.entity
            batch.settle(replayed(entity, batch.key, write.version, snapshot))
        return committed

    def _commit(
        self, batches: list[ActionBatch]
    ) -> list[StateCommitted[StateT] | StateConflict | None]:
        """Write the new states of *batches* in a transaction of its own."""
        apart, connections = self._commits_apart, self._connections
        with connections.transaction() if apart else connections.commit() as connection:
            if self._writers:
                limit_idle_time(connection, self._lock_limit)
            for batch in batches:
                batch.committing = not apart
            outcomes = self._write(connection, batches)
            for batch in batches:
                batch.committing = True
        return outcomes

    def _read_alone(self, batch: ActionBatch) -> Baseline:
        with self._connections.autocommit() as connection:
            return self._read(connection, batch)

    def _read(
        self, connection: Connection, batch: ActionBatch, *, lock: bool = False
    ) -> Baseline:
        """Read the row; settle the actions that are in the dedup log."""
        session = self._connections.filtering(connection)
        rows = read_visible(
            connection, self._statements, [batch.key], session, lock=lock
        )
        snapshot = rows.get(batch.key)
        if self._log is not None:
            ids = [request.item.action_id for request in batch.requests]
            found = self._log.lookup(connection, [batch.key], ids)
            self._replay_found(batch, found, snapshot)
        return self._reductions.baseline(batch, snapshot)

    def _replay_found(
        self,
        batch: ActionBatch,
        found: dict[tuple[str, Any], Processed],
        snapshot: WorkflowSnapshot[StateT] | None,
    ) -> None:
        entity = self._statements.entity
        for request in list(batch.requests):
            processed = found.get((batch.key, request.item.action_id))
            if processed is None:
                continue
            batch.requests.remove(request)
            try:
                request_hash = request.item.payload_hash()
                refuse_reuse(batch.key, request.item.action_id, processed, request_hash)
            except (ActionIdReused, PayloadError) as error:
                request.fail(error)
            else:
                outcome = replayed(entity, batch.key, processed.version, snapshot)
                request.settle(ActionResult(outcome, ()))

    def _write(
        self, connection: Connection, batches: list[ActionBatch]
    ) -> list[StateCommitted[StateT] | StateConflict | None]:
        """Write the new states; return outcomes, None where there is none to write."""
        writes = []
        for batch in batches:
            if batch.accepted:
                batch.write = self._reductions.write(batch)
                writes.append(batch.write)
        outcomes = {
            outcome.workflow_key: outcome
            for outcome in commit_batch(
                connection,
                self._statements,
                Batch.of(writes),
                session=self._connections.filtering(connection),
            )
        }
        committed = {
            key: outcome
            for key, outcome in outcomes.items()
            if isinstance(outcome, StateCommitted)
        }
        committing = [batch for batch in batches if batch.key in committed]
        for batch in committing:
            batch.answer = committed[batch.key]
        self._claim(connection, committing)
        for batch in committing if self._writers else ():
            intents = [intent for each in batch.accepted for intent in each.intents]
            for writer in self._writers:
                writer(connection, committed[batch.key].snapshot, intents)
        return [outcomes.get(batch.key) for batch in batches]

    def _claim(self, connection: Connection, batches: list[ActionBatch]) -> None:
        if self._log is None or not batches:
            return
        claims = [
            Claim(
                batch.key,
                each.request.item.action_id,
                digest(each.text),
                each.request.item.payload_hash(),
                batch.baseline.row.version + 1,
            )
            for batch in batches
            for each in batch.accepted
        ]
        claimed = self._log.claim(connection, claims)
        if claimed is None:
            raise ClaimedBefore
        for batch in batches:
            batch.claimed = claimed
