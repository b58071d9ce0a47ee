"""Claimed commits: what needs no transaction is committed by one statement.

That is the new state of a batch, or of several, with the claims of their actions, and
nothing beside them. If a claim is in the log already, nothing was committed, and the
transaction of :mod:`sa_wfstate.reducer.commits` finds out whose it is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import IntegrityError

from ..commit_listeners import listeners_of
from ..errors import StateConflict
from ..payload.actions import digest
from ..retry import UNIQUE_VIOLATION, sqlstate
from ..row.claims import Claim
from ..store.bulk import commit_batch
from ..values.snapshot import StateCommitted
from ..values.write import Batch
from .claimed_writes import ClaimedWrites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from ..row.claims import DedupLog
    from ..row.statements import Statements
    from ..store.connections import Connections
    from ..values.keys import Key
    from ..values.write import Written
    from .action_batch import ActionBatch
    from .reductions import Reductions


StateT = TypeVar("StateT")
Outcome = StateCommitted[Any] | StateConflict | None


class ClaimedBefore(Exception):
    """Some of the actions were processed by another transaction meanwhile."""


class NotChained(Exception):
    """The actions of a chain are to be committed one by one."""


class _Refused(Exception):
    """Nothing was written: a trigger is to see each version of a chain."""


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
        self._may_chain = self._writes.takes_many and not reductions.takes_intents
        self._plain = False  # As far as is known.

    @property
    def chains(self) -> bool:
        """Whether one statement may commit several actions of a key as a chain."""
        return (
            self._plain
            and self._may_chain
            # They follow each version.
            and not listeners_of(self._statements.mapper)
        )

    def commit(
        self, batches: Sequence[ActionBatch], lock_wait: float | None
    ) -> list[Outcome] | None:
        """Commit *batches* and return their outcomes; None if that is not done."""
        accepted = [batch for batch in batches if batch.accepted]
        given = self._given(accepted)
        if given is None:
            return None
        writes, claims = given
        send = partial(self._send, claims, lock_wait, _steps_of(accepted))
        try:
            with self._connections.autocommit(writes.workflow_keys) as connection:
                for batch in accepted:
                    batch.committing = batch.one_statement = True
                made = commit_batch(connection, self._statements, writes, send=send)
        except _Refused:
            return None
        except IntegrityError as error:
            if sqlstate(error) != UNIQUE_VIOLATION:
                raise
            return None
        outcomes = dict(zip(writes.workflow_keys, made, strict=True))
        for batch in accepted:
            _note(batch, outcomes[batch.key])
        return [outcomes.get(batch.key) for batch in batches]

    def write(self, connection: Connection, batch: ActionBatch) -> list[Outcome] | None:
        """Write *batch* in the transaction that has locked its row; None as above."""
        given = self._given([batch])
        if given is None:
            return None
        writes, claims = given
        send = partial(self._send, claims, None, _steps_of([batch]))
        batch.one_statement = True
        try:
            (outcome,) = commit_batch(connection, self._statements, writes, send=send)
        except _Refused:
            return None
        except IntegrityError as error:
            if sqlstate(error) != UNIQUE_VIOLATION:
                raise
            batch.apart = True  # To learn whether it was a claim.
            raise ClaimedBefore from error
        _note(batch, outcome)
        return [outcome]

    def _given(
        self, batches: Sequence[ActionBatch]
    ) -> tuple[Batch, list[Claim]] | None:
        """Return what *batches* write, None if one statement cannot do all of it."""
        if (
            # Whose claim it is, whose answer was lost, is not known: see
            # Commits.was_committed(). Both may deliver the intents.
            self._reductions.takes_intents
            or any(batch.guards for batch in batches)
            or not self._connections.plain()
        ):
            return None
        self._plain = True
        claims: list[Claim] = []
        writes = []
        for batch in batches:
            batch.write = self._reductions.write(batch)
            writes.append(batch.write)
            claims += claims_of(batch, batch.write.version)
        given = Batch.of(writes)
        return (given, claims) if self._writes.take(given, claims) else None

    def _send(
        self,
        claims: Sequence[Claim],
        lock_wait: float | None,
        steps: dict[Key, int],
        connection: Connection,
        _: Any,
        batch: Batch,
    ) -> dict[Key, Written]:
        written = self._writes.send(connection, batch, claims, lock_wait, steps)
        if steps and not written and self._writes.refuses_chains(connection):
            self._may_chain = False
            raise _Refused
        if not written and len(claims) == 1:
            (claim,) = claims
            if self._log.lookup(connection, [claim[:2]]):
                raise ClaimedBefore
        return written


def _steps_of(batches: Sequence[ActionBatch]) -> dict[Key, int]:
    """Return by how many versions each chain of *batches* moves its row on."""
    return {batch.key: len(batch.steps) for batch in batches if batch.steps}


def _note(batch: ActionBatch, outcome: Outcome) -> None:
    if isinstance(outcome, StateCommitted):
        batch.answer = outcome


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


def claimed_version(
    connection: Connection, batch: ActionBatch, log: DedupLog
) -> int | None:
    """Return the version of the claims of *batch*, None if it has not claimed."""
    actions = [each.request.item.action_id for each in batch.accepted]
    found = log.lookup(connection, [(batch.key, action) for action in actions])
    versions = {claim.version for claim in found.values()}
    if batch.steps:
        # Of the last one, by each claim.
        left = dict(zip(actions, reversed(range(len(actions))), strict=True))
        versions = {(each.version or 0) + left[at[1]] for at, each in found.items()}
    if batch.one_statement:
        # They may be another delivery's; there are no intents that both may deliver.
        own = len(found) == len(actions) and len(versions) == 1
    else:
        # The transaction's time tells them from another delivery's.
        times = batch.claimed
        own = any(each.processed_at == times.get(at) for at, each in found.items())
    return next(iter(versions)) if own else None
