"""The ledger of a session: which workflow rows it is writing, and which it has written.

There is an :class:`Entry` for each row: its key, the version that the write is based
on, the effect that writes it. An entry is *won* when the database is known to have
written the row. So when an error comes out of a flush, the entries that are not won are
those of the very statements that failed.

Entries of a flush that succeeded are kept until the transaction ends. They are what a
COMMIT loses, and a row in them is locked by this transaction: nobody else can win it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Table, inspect

from .guards import Seen, saw

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import InstanceState, Session, SessionTransaction

    from .statements import Statements, Write

_KEY = "sa_wfstate.ledger"


class Deed(Enum):
    """What is done to a row."""

    INSERT = auto()
    UPDATE = auto()
    DELETE = auto()


class Entry:
    """One row that a session writes, or has written."""

    __slots__ = (
        "base",
        "connection",
        "deed",
        "effect_id",
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
        connection: Connection,
        state: InstanceState[Any] | None,
    ) -> None:
        self.deed = deed
        self.statements = statements
        self.workflow_key = workflow_key
        self.base = base
        self.effect_id = effect_id
        self.connection = connection
        self.state = state
        self.won = False

    @property
    def table(self) -> Table:
        return self.statements.table


class Ledger:
    """What one session is writing (*pending*) and has *written* in its transaction."""

    def __init__(self) -> None:
        self.pending: dict[InstanceState[Any], Entry] = {}
        self.written: list[Entry] = []
        self._marks: WeakKeyDictionary[SessionTransaction, int] = WeakKeyDictionary()

    def wrote(self, entry: Entry) -> None:
        """Move *entry* to what is written; its instance has seen the new version."""
        entry.won = True
        self.written.append(entry)
        if entry.state is not None and entry.deed is not Deed.DELETE:
            saw(entry.state, Seen(entry.base.version + 1, entry.effect_id))

    def fail(self, transaction: SessionTransaction) -> list[Entry]:
        """Return the entries that may have lost when *transaction* was rolled back.

        A row that this transaction had written before cannot have lost: it was locked.
        """
        own = {entry.effect_id for entry in self.written}
        doubtful = [
            entry
            for entry in self.pending.values()
            if not entry.won
            and (entry.base.effect_id is None or entry.base.effect_id not in own)
        ]
        self.pending.clear()
        while transaction.parent is not None and not transaction.nested:
            transaction = transaction.parent
        self.undo(transaction)
        return doubtful

    def mark(self, transaction: SessionTransaction) -> None:
        """Remember where the savepoint *transaction* begins."""
        self._marks[transaction] = len(self.written)

    def undo(self, transaction: SessionTransaction) -> None:
        """Forget what was written since *transaction* began: it was rolled back."""
        start = self._marks.get(transaction, 0)
        for entry in reversed(self.written[start:]):
            if entry.state is not None:
                saw(entry.state, entry.base if entry.base.version else None)
        del self.written[start:]

    def forget(self) -> None:
        """Forget what was written: the transaction is over."""
        for entry in self.written:
            _ledgers.pop(entry.connection, None)
        self.written.clear()


def record(
    session: Session,
    connection: Connection,
    statements: Statements[Any],
    write: Write,
    instance: object | None,
) -> None:
    """Note that *write* was done in *session* outside its unit of work.

    *instance* is the session's instance of the row, if it holds one.
    """
    ledger = ledger_of(session)
    base = Seen(write.version - 1, write.base_effect_id)
    deed = Deed.UPDATE if base.version else Deed.INSERT
    state: InstanceState[Any] | None = None if instance is None else inspect(instance)
    ledger.wrote(
        Entry(
            deed,
            statements,
            write.workflow_key,
            base,
            write.provenance.effect_id,
            connection,
            state,
        )
    )
    attend(connection, ledger)


_ledgers: WeakKeyDictionary[Connection, Ledger] = WeakKeyDictionary()

_attended: WeakSet[Connection] = WeakSet()

on_first_write: list[Callable[[Connection], None]] = []
"""Called when a connection is about to write its first workflow row."""


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


def pending_on(connection: Connection) -> list[Entry]:
    """Return what is being written on *connection* to workflow rows."""
    ledger = _ledgers.get(connection)
    pending = ledger.pending.values() if ledger is not None else ()
    return [entry for entry in pending if entry.connection is connection]


def written_on(connection: Connection) -> list[Entry]:
    """Return what the transaction of *connection* has written to workflow rows."""
    ledger = _ledgers.get(connection)
    written = ledger.written if ledger is not None else []
    return [entry for entry in written if entry.connection is connection]


def attend(connection: Connection, ledger: Ledger) -> None:
    """Let *connection*, which writes workflow rows, be known by its *ledger*."""
    _ledgers[connection] = ledger
    if connection not in _attended:
        _attended.add(connection)
        for listen in on_first_write:
            listen(connection)
