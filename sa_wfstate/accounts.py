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
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, Engine, RootTransaction, Table, event

from .details import hide_details

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import InstanceState

    from .guards import Seen
    from .statements import Statements


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
        base: Seen,
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


on_first_write: list[Callable[[Connection], None]] = []
"""Called when a session is about to write its first workflow row on a connection."""

_attended: WeakSet[Engine] = WeakSet()


def _listen(connection: Connection) -> None:
    if connection.engine not in _attended:
        _attended.add(connection.engine)
        event.listen(connection.engine, "rollback_savepoint", _rolled_back)


on_first_write.append(_listen)
on_first_write.append(lambda connection: hide_details(connection.engine))


def _rolled_back(connection: Connection, name: str, _: object) -> None:
    account_of(connection).undo(name)
