"""A patch that commits by itself, and what to do if the answer is lost.

It has a transaction, in which the result is validated, unless its edits cannot make a
state invalid. Sent twice, a patch would be applied twice. So the row is looked at
first: the effect that is found there, or in the history, shows whether the patch was
committed.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .._concurrency import raised_by_signal_handler
from ..errors import OutcomeUnknown, StateConflict
from ..retry import SERIALIZATION_FAILURE, leaves_unknown, sqlstate
from ..row.patch_statements import patch_statements_of
from ..row.safe_edits import are_safe
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted, replayed
from .compare_and_set import refused
from .connections import READ_COMMITTED, limit_lock_waits
from .patch_checks import check_condition, prepare_patch
from .patch_row import judge_row, patch_alone, patch_row, patched_to
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
        return self.send(patch, when)

    def send(
        self, patch: Prepared, when: ColumnElement[bool] | None
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        """Commit *patch*, which has been checked."""
        parts = patch_statements_of(self._statements).parts
        if self._connections.takes_one_statement() and are_safe(parts, patch.edits):
            outcome = self._by_one_statement(patch, when)
            if outcome is not None:
                return outcome
        return self._by_transaction(patch, when)

    def _by_one_statement(
        self, patch: Prepared, when: ColumnElement[bool] | None
    ) -> StateCommitted[StateT] | StateConflict[StateT] | None:
        """Send a patch that cannot make the state invalid, without a transaction.

        None if nothing was written, and it takes a transaction to say why.
        """
        sent, outcome = False, None
        try:
            with self._connections.autocommit([patch.workflow_key]) as connection:
                sent = True
                outcome = patch_alone(connection, self._statements, patch, when)
                if outcome is None:
                    sent = False
                    lost = judge_row(connection, self._statements, patch, when)
                    return None if isinstance(lost, int) else lost
        except (DBAPIError, OSError) as error:
            if raised_by_signal_handler(error):
                raise
            if sqlstate(error) == SERIALIZATION_FAILURE:
                return None  # The level of the server is a stricter one.
            if not sent or not leaves_unknown(error):
                raise
            return self.found(patch, outcome, error)
        return outcome

    def _by_transaction(
        self, patch: Prepared, when: ColumnElement[bool] | None
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        while True:
            outcome: StateCommitted[StateT] | StateConflict[StateT] | None = None
            try:
                # The statement itself checks; a stricter level would only refuse.
                with self._connections.transaction(
                    READ_COMMITTED, [patch.workflow_key]
                ) as connection:
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
                lost = {patch.workflow_key: patch.expected_version}
                conflict = refused(self._statements, lost, error)
                if conflict is not None:
                    return conflict
                if outcome is None or not leaves_unknown(error):
                    raise
                if isinstance(outcome, StateConflict):
                    return outcome  # There was nothing to commit.
                found = self.found(patch, outcome, error)
                if found is None:
                    continue
                return found
            return outcome

    def found(
        self,
        patch: Prepared,
        outcome: StateCommitted[StateT] | None,
        cause: BaseException,
    ) -> StateCommitted[StateT] | None:
        """Return the outcome of a patch that was committed; None if it was not.

        *outcome* is what the statement has returned, if the answer to it was not lost.
        Raises OutcomeUnknown.
        """
        look = partial(self._look, patch, outcome)
        try:
            verdict, found = self._resolve.call(
                look, retry_if=may_pass, sleep=self._wait.sleep
            )
        except (DBAPIError, OSError, PoolTimeoutError) as error:
            if raised_by_signal_handler(error):
                raise
            verdict, found = Verdict.UNKNOWN, None
        if verdict is Verdict.UNKNOWN:
            raise OutcomeUnknown(
                self._statements.entity,
                patch.workflow_key,
                (patch.provenance.effect_id,),
            ) from cause
        return found

    def _look(
        self, patch: Prepared, outcome: StateCommitted[StateT] | None
    ) -> tuple[Verdict, StateCommitted[StateT] | None]:
        statements, key = self._statements, patch.workflow_key
        # A row that is still this was not written, nor can it be by what was sent: that
        # has been answered, or expects this version. Without either, none proves it.
        before = patch.expected or RowVersion(0, None)
        if outcome is not None:
            before = RowVersion(outcome.version - 1, None)
        with self._connections.transaction(READ_COMMITTED, [key]) as connection:
            limit_lock_waits(connection)
            effect_id = patch.provenance.effect_id
            verdict = verdict_of(connection, statements, key, before, effect_id)
            if verdict is Verdict.COMMITTED and outcome is None:
                row = connection.execute(
                    statements.sql.read_one, statements.keys.parameters(key)
                ).first()
                if row is None:  # Hidden by row security, for example.
                    return Verdict.UNKNOWN, None
                _, version, text, updated_at, *_ = row
                outcome = patched_to(statements, patch, version, text, updated_at)
        if verdict is Verdict.COMMITTED and outcome is not None:
            return verdict, replayed(outcome)
        return verdict, None
