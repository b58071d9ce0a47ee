"""One attempt: read, reduce, compare and set.

What was decided on a state that then turns out to be old counts for nothing, an
exception of the reducer included: it comes out when the state that it is based on has
been read or committed.
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
from .run import Handled, replayed

if TYPE_CHECKING:
    from ..dedup import DedupLog, Processed
    from ..row.statements import Statements
    from ..store.connections import Connections
    from .reductions import Reductions
    from .run import Base, Run


StateT = TypeVar("StateT")

Writer = Callable[[Connection, WorkflowSnapshot[Any], Sequence[Intent]], None]
"""Called in the transaction of each commit, with its snapshot and all its intents."""


class ClaimedBefore(Exception):
    """One of the actions was processed by somebody else meanwhile."""


class _Undo(Exception):
    """Rolls a transaction back that was only to look."""


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
        self, run: Run, *, kept: Base | None = None, lock: bool = False
    ) -> StateConflict | None:
        """Make one attempt; None if each action of *run* is settled.

        Starts from *kept*, if that is given, or locks the row before it is read.
        """
        run.begin()
        if self._connections.filters():
            kept = None  # Its row may be hidden from the next session.
        if lock:
            # At a stricter level the lock would end in a serialization failure.
            with self._connections.transaction(READ_COMMITTED) as connection:
                limit_idle_time(connection, self._lock_limit)
                base = self._read(connection, run, lock=True)
                self._reductions.reduce(run, base)
                (outcome,) = self._write(connection, [run])
                run.committing = True
        else:
            self._reductions.reduce(run, kept or self._read_alone(run))
            if run.base.kept and not run.done:
                # An error is no answer before its state is known to be the newest.
                self._reductions.reduce(run, self._read_alone(run))
            (outcome,) = self._commit([run])
        if isinstance(outcome, StateConflict):
            return outcome
        run.settle(outcome)
        return None

    def make_many(self, runs: list[Run]) -> list[StateConflict | None]:
        """Make one attempt for *runs*, of different keys; return the conflict of each.

        A run that cannot be reduced is settled with its error.
        """
        with self._connections.autocommit() as connection:
            keys = [run.key for run in runs]
            session = self._connections.filtering(connection)
            rows = read_visible(connection, self._statements, keys, session)
            if self._log is not None:
                ids = [t.item.action_id for run in runs for t in run.tickets]
                found = self._log.lookup(connection, keys, ids)
        for run in runs:
            run.begin()
            try:
                snapshot = rows.get(run.key)
                if self._log is not None:
                    self._replay_found(run, found, snapshot)
                base = self._reductions.base(run, snapshot)
                self._reductions.reduce(run, base)
            except (WorkflowNotFound, PayloadError, SchemaVersionAhead) as error:
                run.fail(error)
        outcomes = self._commit(runs)
        conflicts: list[StateConflict | None] = []
        for run, outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, StateConflict):
                conflicts.append(outcome)
            else:
                run.settle(outcome)
                conflicts.append(None)
        return conflicts

    def find_out(self, run: Run) -> bool | None:
        """Return whether *run*, whose COMMIT was not answered, is committed.

        If it is, its actions are settled; None if that cannot be known any more. Waits
        for a COMMIT that is still going on, by locking the row. A row that does not
        exist cannot be locked: it is created instead, and that is rolled back.
        """
        assert run.write is not None  # noqa: S101
        write, log = run.write, self._log
        committed: bool | None = None
        snapshot: WorkflowSnapshot[StateT] | None = None
        transaction = self._connections.transaction(READ_COMMITTED)
        with suppress(_Undo), transaction as connection:
            limit_lock_waits(connection)
            look = partial(self._statements.versions, connection, [run.key], lock=True)
            found = look().get(run.key)
            creating = found is None and write.version == 1
            if creating and self._statements.create(connection, write) is None:
                found = look().get(run.key)
            version, effect_id = found or (0, None)
            if effect_id == write.provenance.effect_id:
                committed = True
                snapshot = self._statements.read(connection, run.key)
            elif log is not None:
                ids = [step.ticket.item.action_id for step in run.done]
                claims = log.lookup(connection, [run.key], ids)
                # The time of a transaction tells it from another delivery's.
                committed = any(
                    processed.processed_at == run.claimed.get(action)
                    for action, processed in claims.items()
                )
            elif (version, effect_id) == (write.version - 1, write.base_effect_id):
                committed = False
            raise _Undo
        if committed:
            if run.answer is not None:
                snapshot = run.answer.snapshot
            entity = self._statements.entity
            run.settle(replayed(entity, run.key, write.version, snapshot))
        return committed

    def _commit(
        self, runs: list[Run]
    ) -> list[StateCommitted[StateT] | StateConflict | None]:
        """Write what *runs* have led to in a transaction of its own."""
        apart, connections = self._commits_apart, self._connections
        with connections.transaction() if apart else connections.commit() as connection:
            if self._writers:
                limit_idle_time(connection, self._lock_limit)
            for run in runs:
                run.committing = not apart
            outcomes = self._write(connection, runs)
            for run in runs:
                run.committing = True
        return outcomes

    def _read_alone(self, run: Run) -> Base:
        with self._connections.autocommit() as connection:
            return self._read(connection, run)

    def _read(self, connection: Connection, run: Run, *, lock: bool = False) -> Base:
        """Read the row, and settle the actions that are in the dedup log."""
        session = self._connections.filtering(connection)
        rows = read_visible(connection, self._statements, [run.key], session, lock=lock)
        snapshot = rows.get(run.key)
        if self._log is not None:
            ids = [ticket.item.action_id for ticket in run.tickets]
            found = self._log.lookup(connection, [run.key], ids)
            self._replay_found(run, found, snapshot)
        return self._reductions.base(run, snapshot)

    def _replay_found(
        self,
        run: Run,
        found: dict[tuple[str, Any], Processed],
        snapshot: WorkflowSnapshot[StateT] | None,
    ) -> None:
        entity = self._statements.entity
        for ticket in list(run.tickets):
            processed = found.get((run.key, ticket.item.action_id))
            if processed is None:
                continue
            run.tickets.remove(ticket)
            try:
                request_hash = ticket.item.payload_hash()
                refuse_reuse(run.key, ticket.item.action_id, processed, request_hash)
            except (ActionIdReused, PayloadError) as error:
                ticket.fail(error)
            else:
                outcome = replayed(entity, run.key, processed.version, snapshot)
                ticket.settle(Handled(outcome, ()))

    def _write(
        self, connection: Connection, runs: list[Run]
    ) -> list[StateCommitted[StateT] | StateConflict | None]:
        """Write what the actions have led to; None for those that led to nothing."""
        writes = []
        for run in runs:
            if run.done:
                run.write = self._reductions.write(run)
                writes.append(run.write)
        outcomes = {
            outcome.workflow_key: outcome
            for outcome in commit_batch(
                connection,
                self._statements,
                Batch.of(writes),
                session=self._connections.filtering(connection),
            )
        }
        won = {
            key: outcome
            for key, outcome in outcomes.items()
            if isinstance(outcome, StateCommitted)
        }
        winners = [run for run in runs if run.key in won]
        for run in winners:
            run.answer = won[run.key]
        self._claim(connection, winners)
        for run in winners if self._writers else ():
            intents = [intent for step in run.done for intent in step.intents]
            for writer in self._writers:
                writer(connection, won[run.key].snapshot, intents)
        return [outcomes.get(run.key) for run in runs]

    def _claim(self, connection: Connection, runs: list[Run]) -> None:
        if self._log is None or not runs:
            return
        claims = [
            Claim(
                run.key,
                step.ticket.item.action_id,
                digest(step.text),
                step.ticket.item.payload_hash(),
                run.base.version + 1,
            )
            for run in runs
            for step in run.done
        ]
        claimed = self._log.claim(connection, claims)
        if claimed is None:
            raise ClaimedBefore
        for run in runs:
            run.claimed = claimed
