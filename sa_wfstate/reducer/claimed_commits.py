"""Claimed commits: what needs no transaction is committed by one statement.

That is the new state of a batch, or of several, with the claims of their actions, and
nothing beside them. If a claim is in the log already, nothing was committed, and the
transaction of :mod:`sa_wfstate.reducer.commits` finds out whose it is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import IntegrityError

from ..dedup import Claim
from ..payload.actions import digest
from ..retry import UNIQUE_VIOLATION, sqlstate
from ..store.bulk import commit_batch
from ..values.snapshot import StateCommitted
from ..values.write import Batch
from .claimed_writes import ClaimedWrites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from ..dedup import DedupLog
    from ..errors import StateConflict
    from ..row.statements import Statements
    from ..store.connections import Connections
    from ..values.keys import Key
    from ..values.write import Written
    from .action_batch import ActionBatch
    from .reductions import Reductions


StateT = TypeVar("StateT")


class ClaimedBefore(Exception):
    """Some of the actions were processed by another transaction meanwhile."""


class ClaimedCommits(Generic[StateT]):
    """Commit batches of the workflows of one class with their claims in *log*."""

    def __init__(
        self,
        statements: Statements[StateT],
        connections: Connections,
        reductions: Reductions[StateT],
        log: DedupLog,
    ) -> None:
        self._statements = statements
        self._connections = connections
        self._reductions = reductions
        self._log = log
        self._writes = ClaimedWrites(statements, log)

    def commit(
        self, batches: Sequence[ActionBatch], lock_wait: float | None
    ) -> list[StateCommitted[Any] | StateConflict | None] | None:
        """Commit *batches* and return their outcomes; None if that is not done."""
        if (
            # Whose claim it is, whose answer was lost, is not known: see
            # Commits.was_committed(). Both may deliver the intents.
            self._reductions.takes_intents
            or any(batch.guards for batch in batches)
            or not self._connections.plain()
        ):
            return None
        accepted = [batch for batch in batches if batch.accepted]
        claims: list[Claim] = []
        writes = []
        for batch in accepted:
            batch.write = self._reductions.write(batch)
            writes.append(batch.write)
            claims += claims_of(batch, batch.write.version)
        given = Batch.of(writes)
        if not self._writes.take(given, claims):
            return None
        try:
            with self._connections.autocommit(given.workflow_keys) as connection:
                for batch in accepted:
                    batch.committing = batch.one_statement = True
                send = partial(self._send, claims, lock_wait)
                made = commit_batch(connection, self._statements, given, send=send)
        except IntegrityError as error:
            if sqlstate(error) != UNIQUE_VIOLATION:
                raise
            return None
        outcomes = dict(zip(given.workflow_keys, made, strict=True))
        for batch in accepted:
            outcome = outcomes[batch.key]
            if isinstance(outcome, StateCommitted):
                batch.answer = outcome
        return [outcomes.get(batch.key) for batch in batches]

    def _send(
        self,
        claims: Sequence[Claim],
        lock_wait: float | None,
        connection: Connection,
        _: Any,
        batch: Batch,
    ) -> dict[Key, Written]:
        written = self._writes.send(connection, batch, claims, lock_wait)
        if not written and len(claims) == 1:
            (claim,) = claims
            if self._log.lookup(connection, [claim[:2]]):
                raise ClaimedBefore
        return written


def claims_of(batch: ActionBatch, version: int) -> list[Claim]:
    """Return the claims of the accepted actions of *batch*, which led to *version*."""
    return [
        Claim(
            batch.key,
            each.request.item.action_id,
            digest(each.text),
            each.request.item.payload_hash(),
            version,
        )
        for each in batch.accepted
    ]
