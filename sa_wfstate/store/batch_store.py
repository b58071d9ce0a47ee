"""Many commits in a transaction of their own, and what to do if its answer is lost.

Each is sent again by itself then, as a single commit is. They share their fate: where
one of them has been committed, all of them have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError

from .._concurrency import raised_by_signal_handler
from ..errors import OutcomeUnknown, StateConflict
from ..retry import SERIALIZATION_FAILURE, leaves_unknown, sqlstate
from ..values.snapshot import StateCommitted, replayed
from .batch_checks import prepare_all
from .bulk import send_all
from .connections import READ_COMMITTED
from .rebasing import commit_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..payload.rebase import Rebase
    from ..row.statements import Statements
    from ..values.snapshot import WorkflowSnapshot
    from ..values.write import Batch, Write
    from .batch_checks import Commit
    from .connections import Connections


StateT = TypeVar("StateT")
Outcome = StateCommitted[Any] | StateConflict[Any]


class BatchTransaction(Generic[StateT]):
    """Commit many writes of one class.

    *alone* commits one write by itself, *again* one whose answer was lost.
    """

    def __init__(
        self,
        connections: Connections,
        statements: Statements[StateT],
        *,
        alone: Callable[[Write], Outcome],
        again: Callable[[Write, BaseException], Outcome],
    ) -> None:
        self._connections = connections
        self._statements = statements
        self._alone = alone
        self._again = again

    def commit(
        self,
        commits: Sequence[Commit[StateT]],
        rebase: bool | Rebase,  # noqa: FBT001
    ) -> list[Outcome]:
        """Implement ``CanonicalStore.try_commit_many``."""
        if not commits:
            return []
        batch, bases, rules = prepare_all(self._statements, commits, rebase)
        outcomes: dict[int, Outcome] = {}
        for indices in self._connections.by_shard(batch.workflow_keys):
            own, of_own = batch.take(indices), [bases[index] for index in indices]
            made = self._send(own, of_own, rules)
            outcomes.update(zip(indices, made, strict=True))
        return [outcomes[index] for index in range(len(batch))]

    def _send(
        self,
        batch: Batch,
        bases: Sequence[WorkflowSnapshot[StateT] | None],
        rules: Rebase | None,
    ) -> list[Outcome]:
        statements, sent = self._statements, batch
        outcomes: list[Outcome] = []
        try:
            # The statements themselves check; a stricter level would only refuse.
            with self._connections.transaction(
                READ_COMMITTED, list(batch.workflow_keys)
            ) as connection:
                session = self._connections.filtering(connection)
                sent, outcomes = send_all(
                    connection, statements, batch, bases, rules, session
                )
        except StateConflict:  # The database has refused the whole transaction.
            return self._one_by_one(batch, bases, rules)
        except (DBAPIError, OSError) as error:
            if raised_by_signal_handler(error):
                raise
            if sqlstate(error) == SERIALIZATION_FAILURE:
                return self._one_by_one(batch, bases, rules)
            if not outcomes or not leaves_unknown(error):
                raise
            return self._all_again(sent, outcomes, error)
        return outcomes

    def _one_by_one(
        self,
        batch: Batch,
        bases: Sequence[WorkflowSnapshot[StateT] | None],
        rules: Rebase | None,
    ) -> list[Outcome]:
        return [
            commit_on(self._statements, write, base, rules, self._alone)[1]
            for write, base in zip(batch, bases, strict=True)
        ]

    def _all_again(
        self, sent: Batch, outcomes: Sequence[Outcome], cause: BaseException
    ) -> list[Outcome]:
        found: list[Outcome | OutcomeUnknown] = []
        for write, outcome in zip(sent, outcomes, strict=True):
            if isinstance(outcome, StateConflict) or outcome.replayed:
                found.append(outcome)  # It has written nothing.
                continue
            try:
                found.append(self._again(write, cause))
            except OutcomeUnknown as unknown:
                found.append(unknown)
        done = any(
            isinstance(each, StateCommitted) and each.replayed and each is not outcome
            for each, outcome in zip(found, outcomes, strict=True)
        )
        known: list[Outcome] = []
        for each, outcome in zip(found, outcomes, strict=True):
            if not isinstance(each, OutcomeUnknown):
                known.append(each)
            elif done and isinstance(outcome, StateCommitted):
                known.append(replayed(outcome))
            else:
                raise each
        return known
