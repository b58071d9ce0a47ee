"""One attempt: read, reduce, compare and set.

What was decided on a state that then turns out to be old counts for nothing, an
exception of the reducer included: it comes out when the state that it is based on has
been read or committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import Connection

from .actions import Intent, digest
from .bulk import commit_batch
from .dedup import Claim, refuse_reuse
from .errors import (
    ActionIdReused,
    OutcomeUnknown,
    PayloadError,
    SchemaVersionAhead,
    WorkflowNotFound,
)
from .races import StateConflict
from .runs import Handled, replayed
from .snapshots import StateCommitted, WorkflowSnapshot
from .writes import Batch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .connections import Connections
    from .dedup import DedupLog, Processed
    from .reductions import Reductions
    from .runs import Base, Doubt, Run
    from .statements import Statements

StateT = TypeVar("StateT")

Writer = Callable[[Connection, WorkflowSnapshot[Any], Sequence[Intent]], None]
"""Called in the transaction of each commit, with its snapshot and all its intents."""


class ClaimedBefore(Exception):
    """One of the actions was processed by somebody else meanwhile."""


class Attempts(Generic[StateT]):
    """Make attempts for the workflows of one class."""

    def __init__(
        self,
        statements: Statements[StateT],
        connections: Connections,
        reductions: Reductions[StateT],
        *,
        log: DedupLog | None,
        writers: tuple[Writer, ...],
    ) -> None:
        self._statements = statements
        self._connections = connections
        self._reductions = reductions
        self._log = log
        self._writers = writers

    def make(
        self, run: Run, *, kept: Base | None = None, lock: bool = False
    ) -> StateConflict | None:
        """Make one attempt; None if each action of *run* is settled.

        Starts from *kept*, if that is given, or locks the row before it is read. That
        is also what settles a doubt: under the lock no commit is still under way.
        """
        run.write = None
        if lock or run.doubt is not None:
            # At a stricter level the lock would end in a serialization failure.
            with self._connections.transaction("READ COMMITTED") as connection:
                base = self._read(connection, run, lock=True)
                self._reductions.reduce(run, base)
                (outcome,) = self._write(connection, [run])
        else:
            self._reductions.reduce(run, kept or self._read_alone(run))
            if run.base.kept and not run.done:
                # An error is no answer before its state is known to be the newest.
                self._reductions.reduce(run, self._read_alone(run))
            with self._transaction() as connection:
                (outcome,) = self._write(connection, [run])
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
            rows = self._statements.read_many(connection, keys)
            if self._log is not None:
                ids = [t.item.action_id for run in runs for t in run.tickets]
                found = self._log.lookup(connection, keys, ids)
        for run in runs:
            run.write = None
            try:
                snapshot = rows.get(run.key)
                if self._log is not None:
                    self._replay_found(run, found, snapshot)
                base = self._reductions.base(run, snapshot)
                self._reductions.reduce(run, base)
            except (WorkflowNotFound, PayloadError, SchemaVersionAhead) as error:
                run.fail(error)
        with self._transaction() as connection:
            outcomes = self._write(connection, runs)
        conflicts: list[StateConflict | None] = []
        for run, outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, StateConflict):
                conflicts.append(outcome)
            else:
                run.settle(outcome)
                conflicts.append(None)
        return conflicts

    def _transaction(self) -> AbstractContextManager[Connection]:
        if self._log is None and not self._writers:
            return self._connections.commit()
        return self._connections.transaction()

    def _read_alone(self, run: Run) -> Base:
        with self._connections.autocommit() as connection:
            return self._read(connection, run)

    def _read(self, connection: Connection, run: Run, *, lock: bool = False) -> Base:
        """Read the row, and settle the actions that are in the dedup log."""
        snapshot = self._statements.read(connection, run.key, lock=lock)
        if run.doubt is not None:
            self._settle_doubt(run, run.doubt, snapshot)
        if self._log is not None:
            ids = [ticket.item.action_id for ticket in run.tickets]
            found = self._log.lookup(connection, [run.key], ids)
            self._replay_found(run, found, snapshot)
        return self._reductions.base(run, snapshot)

    def _settle_doubt(
        self, run: Run, doubt: Doubt, snapshot: WorkflowSnapshot[StateT] | None
    ) -> None:
        """Find out whether *doubt* was committed; if it was, settle its actions."""
        version, effect_id = doubt.write.version, doubt.write.provenance.effect_id
        if snapshot is not None and snapshot.provenance.effect_id == effect_id:
            run.steps, run.tickets = doubt.steps, []
            run.settle(StateCommitted(run.key, version, snapshot, replayed=True))
        elif (snapshot.version if snapshot else 0) != version - 1:
            raise OutcomeUnknown(self._statements.entity, run.key, (effect_id,))

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
            for outcome in commit_batch(connection, self._statements, Batch.of(writes))
        }
        won = {
            key: outcome
            for key, outcome in outcomes.items()
            if isinstance(outcome, StateCommitted)
        }
        winners = [run for run in runs if run.key in won]
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
        if not self._log.claim(connection, claims):
            raise ClaimedBefore
