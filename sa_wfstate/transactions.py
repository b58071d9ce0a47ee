"""run_transaction: a transaction, and again after a conflict.

One attempt is a fresh Session, the function, and COMMIT. What is retried is decided by
:func:`~sa_wfstate.classify`: conflicts and transient errors. When the answer to COMMIT
is lost, the rows that the transaction has written tell what became of it: each carries
the effect id of the write. They are locked to be read, so that a COMMIT which is still
going on has come to its end by then.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception

from .accounts import Deed, Entry
from .connections import limit_lock_waits
from .errors import OutcomeUnknown
from .ledger import Ledger, existing_ledger
from .retry import RetryPolicy
from .sqlstates import READ_ONLY_TRANSACTION, ErrorKind, classify, sqlstate
from .twins import refuse_async
from .waiting import Blocking, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session, sessionmaker

T = TypeVar("T")

_HAS_XACT_STATUS = (13,)


def run_transaction(
    sessions: sessionmaker[Any],
    fn: Callable[[Session], T],
    *,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
    resolve: RetryPolicy = RetryPolicy.held(),  # noqa: B008 - it is frozen
) -> T:
    """Call ``fn(session)`` in a transaction, commit, and return what *fn* returned.

    Each attempt has a fresh Session and a transaction of its own. Attempts that end in
    a conflict or in a transient error are repeated as *retry* says; then the last error
    comes out, as any other error does at once. So *fn* may run several times, and what
    it does outside the database must bear that.

    When the answer to COMMIT is lost, what became of it is found out, for as long as
    *resolve* says: either the transaction is committed, and the result is returned, or
    it is not, and the next attempt is made. OutcomeUnknown is raised if neither can be
    known.
    """
    return run(sessions, fn, retry, resolve, Blocking())


def run(
    sessions: Callable[[], Session],
    fn: Callable[[Session], T],
    retry: RetryPolicy,
    resolve: RetryPolicy,
    waiting: Waiting,
) -> T:
    """Do what run_transaction does, waiting as *waiting* waits."""

    def attempt() -> T:
        session = sessions()
        refuse_async(session)
        return _Attempt(session, resolve, waiting).make(fn)

    retrying = Retrying(
        stop=retry.stop,
        wait=retry.wait,
        sleep=waiting.sleep,
        retry=retry_if_exception(_is_worth_another),
        reraise=True,
    )
    return retrying(attempt)


def _is_worth_another(error: BaseException) -> bool:
    return classify(error) in {ErrorKind.CONFLICT, ErrorKind.TRANSIENT}


class _Attempt:
    """One attempt, in one session."""

    def __init__(
        self, session: Session, resolve: RetryPolicy, waiting: Waiting
    ) -> None:
        self._session = session
        self._resolve = resolve
        self._waiting = waiting
        self._entries: list[Entry] = []
        self._engine: Engine | None = None
        self._transaction_id: str | None = None
        self._read_only = False
        self._committing = False

    def make(self, fn: Callable[[Session], T]) -> T:
        session = self._session
        try:
            with session:
                result: T = self._waiting.call(fn, session)
                # After the listeners that are there already, which may write.
                event.listen(session, "before_commit", self._prepare)
                session.commit()
        except Exception as error:
            self._leave_standby(error)
            kind = classify(error, committing=self._committing)
            if kind is not ErrorKind.UNKNOWN or not self._find_out(error):
                raise
        return result

    def _prepare(self, session: Session) -> None:
        """Flush, and note what to look for if the answer to COMMIT is lost."""
        session.flush()
        self._find_evidence(existing_ledger(session))
        self._committing = True

    def _find_evidence(self, ledger: Ledger | None) -> None:
        self._entries = [] if ledger is None else ledger.written
        if any(entry.deed is Deed.UPDATE for entry in self._entries):
            return
        # A row that is not there cannot be locked, so the server itself will be asked.
        connection = self._connection()
        self._read_only = connection is None
        if connection is not None and _knows_transactions(connection):
            self._engine = connection.engine
            self._transaction_id = connection.scalar(
                text("SELECT CAST(pg_current_xact_id_if_assigned() AS TEXT)")
            )
            self._read_only = self._transaction_id is None

    def _connection(self) -> Connection | None:
        if self._entries:
            return self._entries[0].connection
        return self._session.connection() if self._session.in_transaction() else None

    def _leave_standby(self, error: BaseException) -> None:
        """Drop connections to a server that has become a read-only standby."""
        if sqlstate(error) == READ_ONLY_TRANSACTION and isinstance(
            self._session.bind, Engine
        ):
            self._session.bind.dispose()

    def _find_out(self, error: BaseException) -> bool:
        """Say whether the transaction was committed; raise OutcomeUnknown."""
        if self._read_only:
            return False
        retrying = Retrying(
            stop=self._resolve.stop,
            wait=self._resolve.wait,
            sleep=self._waiting.sleep,
            retry=retry_if_exception(_is_worth_another),
            reraise=True,
        )
        try:
            committed = retrying(self._look)
        except (DBAPIError, OSError):
            committed = None
        if committed is None:
            effects = tuple({e.effect_id: None for e in self._entries if e.effect_id})
            raise OutcomeUnknown(*_first(self._entries), effects) from error
        return committed

    def _look(self) -> bool | None:
        for entry in self._entries:
            if entry.deed is Deed.UPDATE:
                with _reading(entry.account.engine) as connection:
                    verdict = _verdict(connection, entry)
                if verdict is not None:
                    return verdict
        if self._engine is not None and self._transaction_id is not None:
            with _reading(self._engine) as connection:
                return _status(connection, self._transaction_id)
        return None


def _first(entries: list[Entry]) -> tuple[str, str]:
    if not entries:
        return "a transaction without workflow rows", ""
    return entries[0].statements.entity, entries[0].workflow_key


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection.execution_options(isolation_level="READ COMMITTED")
        limit_lock_waits(connection)
        yield connection


class _StillRunning(TimeoutError):
    """The transaction whose answer was lost has not come to its end."""


def _knows_transactions(connection: Connection) -> bool:
    dialect = connection.dialect
    version = dialect.server_version_info
    return dialect.name == "postgresql" and (version or ()) >= _HAS_XACT_STATUS


def _verdict(connection: Connection, entry: Entry) -> bool | None:
    """Say whether *entry* is committed; None if its row has moved on since."""
    key = entry.workflow_key
    found = entry.statements.versions(connection, [key], lock=True).get(key)
    if found is None:
        return None
    version, effect_id = found
    if effect_id == entry.effect_id:
        return True
    if version <= entry.base.version + 1:
        return False
    return None


def _status(connection: Connection, transaction_id: str) -> bool | None:
    status = connection.scalar(
        text("SELECT pg_xact_status(CAST(CAST(:id AS TEXT) AS xid8))"),
        {"id": transaction_id},
    )
    if status == "in progress":
        raise _StillRunning
    return None if status is None else status == "committed"
