"""CanonicalStore: read and commit, each call in a transaction of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .._concurrency import Blocking, Waiting, raised_by_signal_handler
from ..errors import OutcomeUnknown, StateConflict
from ..orm.criteria import read_visible
from ..orm.entity import statements_of
from ..retry import ErrorKind, RetryPolicy, classify
from .compare_and_set import (
    compare_and_set,
    conflict_of_bases,
    conflict_of_write,
    named_by_client,
    prepare,
    refused,
    target_of,
)
from .connections import READ_COMMITTED, Connections, limit_lock_waits
from .freshness import read_at, required_of
from .rebasing import commit_on, rules_of
from .unknown_commit import may_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Engine
    from sqlalchemy.orm import sessionmaker

    from ..payload.rebase import Rebase
    from ..row.edits import Edit
    from ..values.keys import Key
    from ..values.provenance import Provenance
    from ..values.row_version import RowVersion
    from ..values.snapshot import StateCommitted, WorkflowSnapshot
    from ..values.write import Write
    from .api import Entity
    from .batch_checks import Commit
    from .patch_many import Patch
    from .patch_store import PatchTransaction


StateT = TypeVar("StateT")

NOT_GIVEN: Any = ...
"""The default of a parameter for a state, which may be None; no JSON is like it."""


class CanonicalStore(Generic[StateT]):
    """Read and commit workflows of one class, each call in a transaction of its own.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine. When the
    answer to a commit is lost, it is sent again by the policy *resolve*.

    With *group*, where *bind* is an Engine of PostgreSQL, try_commit() calls for
    different workflows that arrive while others commit are committed together.

    >>> store = CanonicalStore(engine, Order)  # doctest: +SKIP
    >>> store.get_state("order-42").version  # doctest: +SKIP
    7
    """

    _waiting: ClassVar[type[Waiting]] = Blocking

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        entity: Entity[StateT],
        *,
        resolve: RetryPolicy = RetryPolicy.for_lock_wait(),  # noqa: B008 - it is frozen
        group: bool = False,
    ) -> None:
        self._resolve = resolve
        self._wait = self._waiting()
        self._statements = statements_of(entity)
        self._connections = Connections(bind, self._statements.mapper)
        self._send_one: Callable[
            [Write], StateCommitted[StateT] | StateConflict[StateT]
        ] = self._send
        if group:
            from .grouped_commits import GroupedCommits

            self._send_one = GroupedCommits(
                self._statements,
                self._connections,
                self._wait,
                alone=self._send,
                again=self._commit_again,
            ).send

    def get_state(
        self,
        workflow_key: Key,
        *,
        min_version: int | RowVersion | None = None,
        max_wait: float = 0.1,
    ) -> WorkflowSnapshot[StateT]:
        """Read the workflow; raises WorkflowNotFound if there is no such row.

        *min_version* and *max_wait* are those of :func:`sa_wfstate.get_state`.
        """
        self._statements.check_key(workflow_key)
        required = required_of(min_version, max_wait)

        def look(*, reads: bool) -> WorkflowSnapshot[StateT] | None:
            keys = [workflow_key]
            with self._connections.autocommit(keys, reads=reads) as connection:
                session = self._connections.filtering(connection)
                found = read_visible(connection, self._statements, keys, session)
            return found.get(workflow_key)

        entity = self._statements.entity
        return read_at(entity, workflow_key, required, max_wait, look, self._wait)

    def try_commit(
        self,
        *,
        workflow_key: Key | None = None,
        expected_version: int | RowVersion | None = None,
        provenance: Provenance | Mapping[str, Any],
        state: StateT = NOT_GIVEN,
        state_prime: StateT = NOT_GIVEN,
        expected_effect_id: str | None = None,
        base: WorkflowSnapshot[StateT] | None = None,
        rebase: bool | Rebase = False,
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        """Write *state* and commit, if the workflow is at *expected_version*.

        *state_prime* is another name of *state*; give exactly one of the two.
        Behaves as :func:`try_commit`, but returns a loss at every isolation level, with
        the row as it is after the loss. If the connection is lost, the commit is
        uncertain and is sent again: either it wins, or the row has its effect id and
        the outcome is *replayed*.

        Raises OutcomeUnknown if the outcome cannot be known. An error that a signal
        handler raises is raised as it is.
        """
        statements = self._statements
        key, expected = target_of(workflow_key, expected_version, base)
        named = named_by_client(base, key, expected)
        write = prepare(
            statements,
            key,
            expected,
            _the_one(state, state_prime),
            provenance,
            expected_effect_id=expected_effect_id,
            base=base if named is None else None,
        )
        if base is not None and named is not None:
            with self._connections.autocommit([key]) as connection:
                session = self._connections.filtering(connection)
                return conflict_of_bases(connection, statements, base, named, session)
        rules = rules_of(statements, rebase, base)
        _, outcome = commit_on(statements, write, base, rules, self._send_one)
        return outcome

    def _send(self, write: Write) -> StateCommitted[StateT] | StateConflict[StateT]:
        """Send *write* in a transaction of its own, and again if its answer is lost."""
        statements, key, sent = self._statements, write.workflow_key, False
        try:
            with self._connections.commit([key]) as connection:
                sent = True
                session = self._connections.filtering(connection)
                return compare_and_set(connection, statements, write, session=session)
        except (DBAPIError, OSError) as error:
            if raised_by_signal_handler(error):
                raise
            conflict = refused(statements, {key: write.version - 1}, error)
            if conflict is None:
                if classify(error, committing=sent) is not ErrorKind.UNKNOWN:
                    raise
                return self._commit_again(write, error)
        # Refused by a statement or by COMMIT: read the row in a new transaction.
        with self._connections.autocommit([key]) as connection:
            session = self._connections.filtering(connection)
            found = read_visible(connection, statements, [key], session)
        current = found.get(key)
        if current is None and session is not None:
            return conflict  # A hidden row may exist.
        return conflict_of_write(statements, write, current) or conflict

    def try_commit_many(
        self, commits: Iterable[Commit[StateT]], *, rebase: bool | Rebase = False
    ) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
        """Commit each of *commits* whose workflow is at its expected version.

        Behaves as :func:`~sa_wfstate.try_commit_many`, in one transaction for each
        database that has some of the rows. If the answer to its COMMIT is lost, each
        commit is sent again by itself, as try_commit() does; so is each if the database
        refuses the transaction as a whole.

        Raises OutcomeUnknown if the outcome of one cannot be known.
        """
        from .batch_store import BatchTransaction

        batch = BatchTransaction(
            self._connections,
            self._statements,
            alone=self._send,
            again=self._commit_again,
        )
        return batch.commit(list(commits), rebase)

    def try_patch(
        self,
        *,
        workflow_key: Key,
        edits: Sequence[Edit],
        provenance: Provenance | Mapping[str, Any],
        when: ColumnElement[bool] | None = None,
        expected_version: int | RowVersion | None = None,
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        """Apply *edits* to the state in the database, and commit.

        Behaves as :func:`sa_wfstate.patching.try_patch`: one statement writes the row,
        and is rolled back if the result is refused. Edits that cannot make a state
        invalid are sent as one statement that commits by itself; their result is read
        when the outcome is asked for its snapshot. If the answer is lost, the row, or
        its history, shows whether the patch was committed, by the policy *resolve*; it
        is sent again only if it was not.

        Raises OutcomeUnknown if the outcome cannot be known.
        """
        return self._patching().commit(
            workflow_key, edits, provenance, when, expected_version
        )

    def try_patch_many(
        self, patches: Iterable[Patch], *, when: ColumnElement[bool] | None = None
    ) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
        """Apply each of *patches* whose row meets *when* and has its expected version.

        Behaves as :func:`sa_wfstate.patching.try_patch_many`, in one transaction for
        each database that has some of the rows. If the answer to its COMMIT is lost,
        the rows, or their history, show whether it was committed; it is sent again only
        if it was not. If the database refuses it as a whole, each patch is sent by
        itself.

        Raises OutcomeUnknown if the outcome cannot be known.
        """
        from .patch_batch_store import PatchBatchTransaction

        batch = PatchBatchTransaction(
            self._connections, self._statements, self._patching()
        )
        return batch.commit(list(patches), when)

    def _patching(self) -> PatchTransaction[StateT]:
        from .patch_store import PatchTransaction

        return PatchTransaction(
            self._connections, self._statements, self._resolve, self._wait
        )

    def _commit_again(
        self, write: Write, cause: BaseException
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        """Send *write* again, until its outcome is known.

        If the first one is still in progress, the second waits for its row lock, and
        the one that finishes first makes the other lose.
        """
        send = partial(self._send_again, write)
        try:
            outcome = self._resolve.call(
                send, retry_if=may_pass, sleep=self._wait.sleep
            )
        except (DBAPIError, OSError, PoolTimeoutError) as error:
            if raised_by_signal_handler(error):
                raise
            outcome = None
        if outcome is None or (
            isinstance(outcome, StateConflict)
            and outcome.actual_version not in {write.version - 1, write.version}
        ):
            # Other commits have replaced the version that would show it.
            raise OutcomeUnknown(
                self._statements.entity,
                write.workflow_key,
                (write.provenance.effect_id,),
            ) from cause
        return outcome

    def _send_again(
        self, write: Write
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        keys = [write.workflow_key]
        with self._connections.transaction(READ_COMMITTED, keys) as connection:
            limit_lock_waits(connection)
            session = self._connections.filtering(connection)
            return compare_and_set(
                connection, self._statements, write, again=True, session=session
            )


def _the_one(state: StateT, state_prime: StateT) -> StateT:
    if (state is NOT_GIVEN) is (state_prime is NOT_GIVEN):
        raise TypeError("try_commit() takes either state= or state_prime=")
    return state_prime if state is NOT_GIVEN else state
