"""Commits: compare and set, claim and write in one transaction, for one key or many.

What a group of several does must not depend on who is in it. So it waits for locks for
:data:`~sa_wfstate.store.groups.LOCK_WAIT` seconds only, and if it fails, the
transaction is rolled back, and each member commits alone. If it is known which members
made it fail (their action is in the dedup log already, or their writer raised), the
others try once more together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import Connection, select, true

from .._concurrency import raised_by_signal_handler
from ..payload.actions import Intent
from ..retry import leaves_unknown
from ..store.bulk import commit_batch
from ..store.connections import READ_COMMITTED, limit_idle_time, limit_lock_waits
from ..store.groups import LOCK_WAIT
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from ..values.write import Batch
from .action_batch import replayed
from .claimed_commits import (
    ClaimedBefore,
    ClaimedCommits,
    NotChained,
    Outcome,
    claimed_version,
    claims_of,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..errors import StateConflict
    from ..row.claims import DedupLog
    from ..row.statements import Statements
    from ..store.connections import Connections
    from ..store.groups import Member
    from ..values.keys import Key
    from ..values.write import Write
    from .action_batch import ActionBatch
    from .dependencies import Dependencies
    from .reductions import Reductions


StateT = TypeVar("StateT")
Writer = Callable[[Connection, WorkflowSnapshot[Any], Sequence[Intent]], None]
"""Called in the transaction of each commit, with its snapshot and all its intents."""


class _Undo(Exception):
    """Roll back a transaction that only reads."""


class Commits(Generic[StateT]):
    """Commit batches of the workflows of one class."""

    def __init__(
        self,
        statements: Statements[StateT],
        connections: Connections,
        reductions: Reductions[StateT],
        *,
        dependencies: Dependencies,
        log: DedupLog | None,
        writers: tuple[Writer, ...],
        lock_limit: float,
    ) -> None:
        self._statements = statements
        self._connections = connections
        self._reductions = reductions
        self._dependencies = dependencies
        self._log = log
        self._writers = writers
        self._lock_limit = lock_limit
        self._claimed: ClaimedCommits[StateT] | None = None
        if log is not None and not writers:
            self._claimed = ClaimedCommits(statements, connections, reductions, log)

    @property
    def chains(self) -> bool:
        """Whether several actions of a key may be committed as a chain."""
        return self._claimed is not None and self._claimed.chains

    def commit_group(self, members: list[Member[ActionBatch, Outcome]]) -> None:
        """Commit the batches of *members*, or leave those that are to commit alone."""
        try:
            self._commit_members(members)
        except Exception as error:
            rest = [member for member in members if not member.item.spoils]
            if raised_by_signal_handler(error) or len(rest) in {0, len(members)}:
                raise
            if isinstance(error, ClaimedBefore):
                for member in set(members).difference(rest):
                    member.fail(error)
            self._commit_members(rest)

    def commit(
        self, batches: Sequence[ActionBatch], *, lock_wait: float | None = None
    ) -> list[Outcome]:
        """Commit the new states of *batches*, of one shard.

        If one statement does that, it commits by itself.
        """
        for batch in batches:
            batch.begin()
        if not any(batch.accepted for batch in batches):
            return [None] * len(batches)
        if self._claimed is not None:
            outcomes = self._claimed.commit(batches, lock_wait)
            if outcomes is not None:
                return outcomes
            chains = [batch for batch in batches if batch.is_chain]
            for batch in batches:
                batch.begin()
                batch.spoils = batch in chains
            if chains:
                raise NotChained
        return self._commit_in_transaction(batches, lock_wait)

    def _commit_in_transaction(
        self, batches: Sequence[ActionBatch], lock_wait: float | None
    ) -> list[Outcome]:
        several = self._log is not None or bool(self._writers)
        keys = [batch.key for batch in batches]
        lent: AbstractContextManager[Connection]
        if several:
            lent = self._connections.transaction(None, keys)
        elif len(batches) > 1 or batches[0].guards:
            lent = self._connections.transaction(READ_COMMITTED, keys)
        else:
            lent = self._connections.commit(keys)
        with lent as connection:
            if self._writers:
                limit_idle_time(connection, self._lock_limit)
            if lock_wait is not None:
                limit_lock_waits(connection, lock_wait)
            for batch in batches:
                alone = not several and len(batches) == 1
                batch.committing = alone and not batch.guards
            outcomes = self.write(connection, batches)
            for batch in batches:
                batch.committing = True
        return outcomes

    def write(
        self, connection: Connection, batches: Sequence[ActionBatch]
    ) -> list[Outcome]:
        """Write the new states; return outcomes, None where there is none to write."""
        writes: list[Write] = []
        outcomes: dict[Key, StateCommitted[Any] | StateConflict] = {}
        for batch in batches:
            if batch.accepted:
                batch.write = self._reductions.write(batch)
                moved = self._dependencies.check(connection, batch)
                if moved is None:
                    writes.append(batch.write)
                else:
                    outcomes[batch.key] = moved
        outcomes |= {
            outcome.workflow_key: outcome
            for outcome in commit_batch(
                connection,
                self._statements,
                Batch.of(writes),
                session=self._connections.filtering(connection),
            )
        }
        committing = []
        for batch in batches:
            outcome = outcomes.get(batch.key)
            if isinstance(outcome, StateCommitted):
                batch.answer = outcome
                committing.append(batch)
        if committing:
            self._claim(connection, committing)
            self._call_writers(connection, committing)
        return [outcomes.get(batch.key) for batch in batches]

    def write_locked(self, connection: Connection, batch: ActionBatch) -> Outcome:
        """Write the new state of *batch*, whose row is locked."""
        if self._claimed is not None and batch.accepted and not batch.apart:
            outcomes = self._claimed.write(connection, batch)
            if outcomes is not None:
                return outcomes[0]
        if batch.is_chain:
            raise NotChained
        (outcome,) = self.write(connection, [batch])
        return outcome

    def was_committed(self, batch: ActionBatch) -> bool | None:
        """Return whether *batch*, whose COMMIT was not answered, is committed.

        If it is, settle it; return None if that can no longer be known. Locking the row
        waits for a COMMIT in progress. A row that does not exist cannot be locked: it
        is created, and that is rolled back.
        """
        assert batch.write is not None  # noqa: S101
        write, log = batch.write, self._log
        committed: bool | None = None
        claimed: int | None = None
        snapshot: WorkflowSnapshot[StateT] | None = None
        transaction = self._connections.transaction(READ_COMMITTED, [batch.key])
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
                claimed = claimed_version(connection, batch, log)
                committed = claimed is not None
            elif (version, effect_id) == (write.version - 1, write.base_effect_id):
                committed = False
            raise _Undo
        if committed:
            now = write.version if snapshot is None else snapshot.version
            version = now if claimed is None else claimed
            if batch.answer is not None:
                version, snapshot = batch.answer.version, batch.answer.snapshot
            entity = self._statements.entity
            batch.settle(replayed(entity, batch.key, version, snapshot))
        return committed

    def _commit_members(self, members: list[Member[ActionBatch, Outcome]]) -> None:
        batches = [member.item for member in members]
        try:
            together = len(batches) > 1
            outcomes = self.commit(batches, lock_wait=LOCK_WAIT if together else None)
        except BaseException as error:
            # Whether it is committed must be found out, by each member for itself.
            stopped = not isinstance(error, Exception) or raised_by_signal_handler(
                error
            )
            lost = leaves_unknown(error)
            for member in members:
                if member.item.committing and (stopped or lost):
                    entity = self._statements.entity
                    own = member.item.unknown(entity, error) if stopped else error
                    member.fail(own)
            raise
        for member, outcome in zip(members, outcomes, strict=True):
            member.settle(outcome)

    def _claim(self, connection: Connection, batches: list[ActionBatch]) -> None:
        if self._log is None:
            return
        claims = [
            claim
            for batch in batches
            if batch.answer is not None
            for claim in claims_of(batch, batch.answer.version)
        ]
        claimed = self._log.claim(connection, claims)
        if len(claimed) < len(claims):
            keys = {claim[0] for claim in claims if claim[:2] not in claimed}
            for batch in batches:
                batch.spoils = batch.key in keys
            raise ClaimedBefore
        for batch in batches:
            batch.claimed = claimed

    def _call_writers(self, connection: Connection, batches: list[ActionBatch]) -> None:
        if not self._writers:
            return
        for batch in batches:
            assert batch.answer is not None  # noqa: S101
            intents = [intent for each in batch.accepted for intent in each.intents]
            batch.spoils = True
            for writer in self._writers:
                writer(connection, batch.answer.snapshot, intents)
            batch.spoils = False
        # Fails if a writer has caught an error of the database: then COMMIT would roll
        # back, and say nothing.
        connection.execute(select(true()))
