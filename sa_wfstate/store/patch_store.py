"""A patch in a transaction of its own, and what to do if the answer to COMMIT is lost.

Sent twice, a patch would be applied twice. So the row is looked at first: the effect
that is found there, or in the history, shows whether the patch was committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .._concurrency import raised_by_signal_handler
from ..errors import OutcomeUnknown, StateConflict
from ..retry import ErrorKind, classify
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted
from .compare_and_set import refused
from .connections import READ_COMMITTED, limit_lock_waits
from .patch_checks import check_condition, prepare_patch
from .patch_row import patch_row
from .unknown_commit import Verdict, may_pass, verdict_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement

    from .._concurrency import Waiting
    from ..retry import RetryPolicy
    from ..row.edits import Edit
    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.provenance import Provenance
    from .connections import Connections
    from .patch_checks import Prepared


StateT = TypeVar("StateT")


class PatchTransaction(Generic[StateT]):
    """Commit a patch by itself."""

    def __init__(
        self,
        connections: Connections,
        statements: Statements[StateT],
        resolve: RetryPolicy,
        waiting: Waiting,
    ) -> None:
        self._connections = connections
        self._statements = statements
        self._resolve = resolve
        self._wait = waiting

    def commit(
        self,
        workflow_key: Key,
        edits: Sequence[Edit],
        provenance: Provenance | Mapping[str, Any],
        when: ColumnElement[bool] | None,
        expected_version: int | RowVersion | None,
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        """Implement ``CanonicalStore.try_patch``."""
        patch = prepare_patch(
            self._statements, workflow_key, edits, provenance, expected_version
        )
        check_condition(self._statements, when)
        keys = [workflow_key]
        while True:
            outcome: StateCommitted[StateT] | StateConflict[StateT] | None = None
            try:
                # The statement itself checks; a stricter level would only refuse.
                with self._connections.transaction(READ_COMMITTED, keys) as connection:
                    _, outcome = patch_row(
                        connection,
                        self._statements,
                        patch,
                        when,
                        session=self._connections.filtering(connection),
                        own=True,
                    )
            except (DBAPIError, OSError) as error:
                if raised_by_signal_handler(error):
                    raise
                lost = {workflow_key: patch.expected_version}
                conflict = refused(self._statements, lost, error)
                if conflict is not None:
                    return conflict
                if outcome is None or not _is_uncertain(error):
                    raise
                if isinstance(outcome, StateCommitted) and not self._was_done(
                    patch, outcome, error
                ):
                    continue
                return _replayed(outcome)
            return outcome

    def _was_done(
        self, patch: Prepared, outcome: StateCommitted[StateT], cause: BaseException
    ) -> bool:
        """Return whether *patch* was committed; raise OutcomeUnknown."""

        def look() -> Verdict:
            keys = [patch.workflow_key]
            with self._connections.transaction(READ_COMMITTED, keys) as connection:
                limit_lock_waits(connection)
                return verdict_of(
                    connection,
                    self._statements,
                    patch.workflow_key,
                    RowVersion(outcome.version - 1, None),
                    patch.provenance.effect_id,
                )

        try:
            verdict = self._resolve.call(
                look, retry_if=may_pass, sleep=self._wait.sleep
            )
        except (DBAPIError, OSError, PoolTimeoutError) as error:
            if raised_by_signal_handler(error):
                raise
            verdict = Verdict.UNKNOWN
        if verdict is Verdict.UNKNOWN:
            raise OutcomeUnknown(
                self._statements.entity,
                patch.workflow_key,
                (patch.provenance.effect_id,),
            ) from cause
        return verdict is Verdict.COMMITTED


def _replayed(
    outcome: StateCommitted[StateT] | StateConflict[StateT],
) -> StateCommitted[StateT] | StateConflict[StateT]:
    if isinstance(outcome, StateConflict):
        return outcome  # There was nothing to commit.
    return StateCommitted(
        outcome.workflow_key, outcome.version, outcome.snapshot, replayed=True
    )


def _is_uncertain(error: BaseException) -> bool:
    return classify(error, committing=True) is ErrorKind.UNKNOWN
