"""The account of a transaction: which workflow rows it has written.

There is an :class:`Entry` for each row: its key, the version that the write is based
on, the effect that writes it. In a flush, an entry is *won* when the database is known
to have written the row.

Entries are kept until the transaction ends. They are what a COMMIT loses, and a row in
them is locked by this transaction: nobody else can win it. The transaction may be an
outer one, which sessions join one after another. So it is the connection's, not a
session's, and it is the savepoints of the connection that undo it.

Nothing here keeps a connection alive: a session that is dropped gives back its own.
"""

from __future__ import annotations

from enum import Enum, auto
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, RootTransaction, Table, inspect
from sqlalchemy.orm.attributes import set_committed_value

from ..values.row_version import RowVersion
from .version_comparator import Expected
from .version_guard import expect_seen, saw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.orm import InstanceState, Session, SessionTransaction

    from ..row.statements import Statements
    from ..values.write import Batch


class Deed(Enum):
    """What is done to a row."""

    INSERT = auto()
    UPDATE = auto()
    DELETE = auto()


class Entry:
    """One row that a session writes, or has written; *account* is its transaction's.

    *likely*: a flush seems to write it. *sent*: it has sent the statement.
    """

    __slots__ = (
        "__weakref__",
        "account",
        "base",
        "deed",
        "effect_id",
        "likely",
        "sent",
        "state",
        "statements",
        "won",
        "workflow_key",
    )

    def __init__(
        self,
        deed: Deed,
        statements: Statements[Any],
        workflow_key: str,
        base: RowVersion,
        effect_id: str | None,
        account: Account,
        state: InstanceState[Any] | None,
    ) -> None:
        self.deed = deed
        self.statements = statements
        self.workflow_key = workflow_key
        self.base = base
        self.effect_id = effect_id
        self.account = account
        self.state = state
        self.likely = True
        self.sent = False
        self.won = False

    @property
    def connection(self) -> Connection:
        return self.account.connection

    @property
    def table(self) -> Table:
        return self.statements.table


class Page:
    """What was written at once; of a batch, entries are made when somebody looks.

    *made* are those that were made, which hold what they have to do with instances.
    """

    __slots__ = ("_make", "made")

    def __init__(
        self, made: list[Entry], make: Callable[[], list[Entry]] | None = None
    ) -> None:
        self.made = made
        self._make = make

    def __iter__(self) -> Iterator[Entry]:
        if self._make is not None:
            self.made, self._make = self._make(), None
        return iter(self.made)


class Account:
    """What one transaction of a connection has written, whichever sessions wrote it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = ref(connection)
        self.engine: Engine = connection.engine
        self._pages: list[Page] = []
        self._savepoints: dict[str, int] = {}

    @property
    def connection(self) -> Connection:
        """The connection; whoever asks has it, or a session that does."""
        connection = self._connection()
        assert connection is not None  # noqa: S101
        return connection

    @property
    def entries(self) -> list[Entry]:
        """What was written, in that order."""
        return list(chain.from_iterable(self._pages))

    def add(self, page: Page) -> None:
        """Add what was written, in whichever savepoints the connection is."""
        savepoint: Any = self.connection.get_nested_transaction()
        while savepoint is not None:
            # The event that tells of a rollback knows the name alone.
            name = savepoint._savepoint  # noqa: SLF001
            self._savepoints.setdefault(name, len(self._pages))
            savepoint = savepoint._previous_nested  # noqa: SLF001
        self._pages.append(page)

    def undo(self, savepoint: str) -> None:
        """Forget what was written in *savepoint*."""
        start = self._savepoints.pop(savepoint, len(self._pages))
        del self._pages[start:]


_accounts: WeakKeyDictionary[RootTransaction, Account] = WeakKeyDictionary()


def account_of(connection: Connection) -> Account:
    """Return the account of the transaction that *connection* is in."""
    transaction = connection.get_transaction()
    account = None if transaction is None else _accounts.get(transaction)
    if account is None:
        account = Account(connection)
        if transaction is not None:
            _accounts[transaction] = account
    return account


def written_on(connection: Connection) -> list[Entry]:
    """Return what the transaction of *connection* has written to workflow rows."""
    return account_of(connection).entries


def rollback_savepoint(connection: Connection, name: str, _: object) -> None:
    account_of(connection).undo(name)


_KEY = "sa_wfstate.ledger"


class Ledger:
    """What one session is writing (*pending*) and has *written* in its transaction.

    A flush may write one row twice, with ``post_update``: *passed* are the first ones.
    """

    def __init__(self) -> None:
        self.pending: dict[InstanceState[Any], Entry] = {}
        self.passed: list[Entry] = []
        self._checked: list[InstanceState[Any]] = []
        self._pages: list[Page] = []
        self._marks: WeakKeyDictionary[SessionTransaction, int] = WeakKeyDictionary()

    def check(self, state: InstanceState[Any]) -> RowVersion:
        """Make the flush check *state* against the version that the code has seen."""
        self._checked.append(state)
        return expect_seen(state)

    def _end_flush(self) -> None:
        """Leave plain numbers as the versions of what was checked."""
        for state in self._checked:
            version, instance = state.dict.get("version"), state.obj()
            if isinstance(version, Expected) and instance is not None:
                set_committed_value(instance, "version", int(version))
        self._checked.clear()
        self.pending.clear()
        self.passed.clear()

    def expect(self, state: InstanceState[Any], entry: Entry) -> None:
        """Note what a flush is about to do to the row of *state*."""
        self.pending[state] = entry

    def flushed(self) -> tuple[list[Entry], list[Entry]]:
        """Move what is pending to what is written: the flush has succeeded.

        Returns the writes that were passed, and the last ones.
        """
        pending = self.pending.values()
        sent = [e for e in pending if e.sent or e.deed is not Deed.UPDATE]
        passed = self.passed.copy()
        entries = [*passed, *sent]
        for account in dict.fromkeys(entry.account for entry in entries):
            own = [entry for entry in entries if entry.account is account]
            self.wrote(account, Page(own))
        self._end_flush()
        return passed, sent

    def passes(self, entry: Entry) -> RowVersion:
        """Note that a flush is going to write a row again, and return what it holds."""
        entry.won = True
        self.passed.append(entry)
        return RowVersion(entry.base.version + 1, entry.effect_id)

    @property
    def written(self) -> list[Entry]:
        """What was written in the transaction, in that order."""
        return list(chain.from_iterable(self._pages))

    def wrote(self, account: Account, page: Page) -> None:
        """Add *page* to what is written; the instances of its entries have seen it."""
        for entry in page.made:
            if entry.state is not None and entry.deed is not Deed.DELETE:
                saw(entry.state, RowVersion(entry.base.version + 1, entry.effect_id))
        self._pages.append(page)
        account.add(page)

    def fail(self, transaction: SessionTransaction) -> list[Entry]:
        """Return the entries that may have lost when *transaction* was rolled back.

        A row that this transaction had written before cannot have lost: it was locked.
        """
        accounts = {entry.account for entry in self.pending.values()}
        standing = [entry for account in accounts for entry in account.entries]
        own = set[str | None]()
        for entry in dict.fromkeys([*standing, *self.written, *self.passed]):
            # Another session in the same transaction may have written over it.
            own.discard(entry.base.effect_id)
            own.add(entry.effect_id)
        doubtful = [
            entry
            for entry in self.pending.values()
            if not entry.won
            and (entry.sent or entry.likely)
            and (entry.base.effect_id is None or entry.base.effect_id not in own)
        ]
        self._end_flush()
        while transaction.parent is not None and not transaction.nested:
            transaction = transaction.parent
        self.undo(transaction)
        return doubtful

    def mark(self, transaction: SessionTransaction) -> None:
        """Remember where the savepoint *transaction* begins."""
        self._marks[transaction] = len(self._pages)

    def undo(self, transaction: SessionTransaction) -> None:
        """Forget what was written since *transaction* began: it was rolled back."""
        start = self._marks.get(transaction, 0)
        for page in reversed(self._pages[start:]):
            for entry in reversed(page.made):
                if entry.state is not None:
                    saw(entry.state, entry.base if entry.base.version else None)
        del self._pages[start:]

    def forget(self) -> None:
        """Forget what was written: the transaction of the session is over."""
        for page in self._pages:
            for entry in page.made:
                entry.state = None  # Its account may stand for longer.
        self._pages.clear()


def record(
    session: Session,
    connection: Connection,
    statements: Statements[Any],
    batch: Batch,
    held: Mapping[str, object],
) -> None:
    """Note that *session* wrote *batch*, outside its unit of work.

    *held* are those instances of the rows that the session holds, by key.
    """
    ledger, account = ledger_of(session), account_of(connection)
    # Not the batch: a transaction may be long, and its states large.
    rows = (
        batch.workflow_keys,
        batch.versions,
        batch.base_effect_ids,
        [provenance.effect_id for provenance in batch.provenances],
    )

    def make() -> list[Entry]:
        return [
            Entry(
                Deed.UPDATE if version > 1 else Deed.INSERT,
                statements,
                key,
                RowVersion(version - 1, base_effect_id),
                effect_id,
                account,
                inspect(held[key]) if key in held else None,
            )
            for key, version, base_effect_id, effect_id in zip(*rows, strict=True)
        ]

    ledger.wrote(account, Page(make()) if held else Page([], make))


def ledger_of(session: Session) -> Ledger:
    """Return the ledger of *session*."""
    ledger = existing_ledger(session)
    if ledger is None:
        ledger = session.info[_KEY] = Ledger()
    return ledger


def existing_ledger(session: Session) -> Ledger | None:
    """Return the ledger of *session*, None if it never wrote a workflow row."""
    ledger: Ledger | None = session.info.get(_KEY)
    return ledger
