"""run_transaction: a transaction that is retried after a conflict.

One attempt is a fresh Session, the function, and COMMIT. Conflicts and transient
errors, by :func:`~sa_wfstate.classify`, are retried. When the answer to COMMIT is lost,
the rows that the transaction wrote show whether it was done (:mod:`.unknown_commit`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from .._concurrency import (
    Blocking,
    Waiting,
    raised_by_signal_handler,
    refuse_async,
)
from ..errors import OutcomeUnknown
from ..orm.events import on_begin, on_commit
from ..orm.routing import read_from_primary
from ..orm.session_state import state_of
from ..retry import (
    READ_ONLY_TRANSACTION,
    ErrorKind,
    RetryPolicy,
    classify,
    is_undone_by_now,
    leaves_unknown,
    require_policies,
    sqlstate,
)
from .arguments import require_sessions
from .unknown_commit import Evidence, Verdict

T = TypeVar("T")


def run_transaction(
    sessions: sessionmaker[Any],
    fn: Callable[[Session], T],
    *,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
    resolve: RetryPolicy = RetryPolicy.for_lock_wait(),  # noqa: B008 - it is frozen
    rebase: bool = False,
) -> T:
    """Call ``fn(session)`` in a transaction, commit, and return what *fn* returned.

    Each attempt has a fresh Session and a transaction of its own. An attempt that ends
    in a conflict or in a transient error is retried by the policy *retry*; then the
    last error is raised, as any other error is at once. So *fn* may run several times,
    and its effects outside the database must be idempotent. A retry reads from the
    primary, where the ``get_bind()`` of the sessions has replicas for reads: a replica
    that lags behind would lead it into the same conflict.

    With *rebase*, a flush merges rows that have moved on, if their classes declare
    ``__rebase__`` (:mod:`sa_wfstate.merging`), and the attempt goes on.

    When the answer to COMMIT is lost, the database is asked whether it was done, by the
    policy *resolve*: if so, the result is returned; if not, the next attempt is made.
    Raises OutcomeUnknown if neither can be known. An error that a signal handler raises
    interrupts all of that, and is raised as it is.
    """
    require_sessions(sessions)
    return run(sessions, fn, retry, resolve, Blocking(), rebase=rebase)


def run(
    sessions: Callable[[], Session],
    fn: Callable[[Session], T],
    retry: RetryPolicy,
    resolve: RetryPolicy,
    waiting: Waiting,
    *,
    rebase: bool = False,
) -> T:
    """Implement run_transaction for *waiting*, blocking or awaiting."""
    require_policies(retry=retry, resolve=resolve)
    attempts = count()

    def attempt() -> T:
        session = sessions()
        refuse_async(session)
        if next(attempts):
            read_from_primary(session)
        if rebase:
            state_of(session).rebases = True
        return _Attempt(session, resolve, waiting).make(fn)

    return retry.call(attempt, retry_if=_is_worth_another, sleep=waiting.sleep)


def _is_worth_another(error: BaseException) -> bool:
    worth = classify(error) in {ErrorKind.CONFLICT, ErrorKind.TRANSIENT}
    worth = worth or is_undone_by_now(error)
    return worth and not raised_by_signal_handler(error)


class _Attempt:
    """One attempt, in one session."""

    def __init__(
        self, session: Session, resolve: RetryPolicy, waiting: Waiting
    ) -> None:
        self._session = session
        self._resolve = resolve
        self._waiting = waiting
        self._evidence: dict[Connection, Evidence] = {}
        self._committing = False

    def make(self, fn: Callable[[Session], T]) -> T:
        session = self._session
        on_begin(session, self._begun)
        try:
            with session:
                result: T = self._waiting.call(fn, session)
                # After the application's listeners, which may write.
                on_commit(session, self._prepare)
                session.commit()
        except Exception as error:
            self._leave_standby(error)
            if not self._is_uncertain(error) or not self._find_out(error):
                raise
        finally:
            for evidence in self._evidence.values():
                evidence.stop()
        return result

    def _begun(self, _: object, __: object, connection: Connection) -> None:
        if connection not in self._evidence:
            self._evidence[connection] = Evidence(connection)

    def _prepare(self, session: Session) -> None:
        """Flush, and collect the evidence in case the answer to COMMIT is lost."""
        session.flush()
        evidence = self._evidence.items()
        self._evidence = {each: found for each, found in evidence if found.take()}
        self._committing = True

    def _leave_standby(self, error: BaseException) -> None:
        """Drop connections to a server that has become a read-only standby."""
        if sqlstate(error) == READ_ONLY_TRANSACTION and isinstance(
            self._session.bind, Engine
        ):
            self._session.bind.dispose()

    def _is_uncertain(self, error: BaseException) -> bool:
        """Return whether rows may be committed although *error* was raised."""
        if not self._committing or raised_by_signal_handler(error):
            return False
        if leaves_unknown(error):
            return True
        # Of several databases, some may have committed before one refused.
        wrote = [each for each in self._evidence.values() if each.wrote]
        return len(wrote) > 1 and _is_worth_another(error)

    def _find_out(self, error: BaseException) -> bool:
        """Return whether the transaction was committed; raise OutcomeUnknown.

        With several databases it is known if all or none committed.
        """
        find_out = partial(
            self._resolve.call, retry_if=_is_worth_another, sleep=self._waiting.sleep
        )
        evidence = list(self._evidence.values())
        try:
            verdicts = {find_out(each.look) for each in evidence}
        except (DBAPIError, OSError) as failed:
            if raised_by_signal_handler(failed):
                raise
            verdicts = {Verdict.UNKNOWN}
        verdicts.discard(Verdict.NOTHING_WRITTEN)
        if not verdicts or verdicts == {Verdict.UNDONE}:
            return False
        if verdicts == {Verdict.COMMITTED}:
            return True
        rows = [row for each in evidence for row in each.workflows]
        first = rows[0] if rows else ("a transaction without workflow rows", "")
        effects = dict.fromkeys(id_ for each in evidence for id_ in each.effect_ids)
        raise OutcomeUnknown(*first, tuple(effects)) from error
