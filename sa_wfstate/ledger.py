"""The ledger of a session: which workflow rows it is writing, and which it has written.

When an error comes out of a flush, the entries that are not won are those of the very
statements that failed. Those of a flush that succeeded are kept until the transaction
ends; what its COMMIT loses is in the account of the connection's transaction.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, inspect
from sqlalchemy.orm.attributes import set_committed_value

from .accounts import Account, Deed, Entry, Page, account_of, on_first_write
from .expectations import Expected
from .guards import Seen, expect_seen, saw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import InstanceState, Session, SessionTransaction

    from .statements import Statements
    from .writes import Batch

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

    def check(self, state: InstanceState[Any]) -> Seen:
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

    def flushed(self) -> None:
        """Move what is pending to what is written: the flush has succeeded."""
        pending = self.pending.values()
        sent = [e for e in pending if e.sent or e.deed is not Deed.UPDATE]
        entries = [*self.passed, *sent]
        for account in dict.fromkeys(entry.account for entry in entries):
            own = [entry for entry in entries if entry.account is account]
            self.wrote(account, Page(own))
        self._end_flush()

    def passes(self, entry: Entry) -> Seen:
        """Note that a flush is going to write a row again, and return what it holds."""
        entry.won = True
        self.passed.append(entry)
        return Seen(entry.base.version + 1, entry.effect_id)

    @property
    def written(self) -> list[Entry]:
        """What was written in the transaction, in that order."""
        return list(chain.from_iterable(self._pages))

    def wrote(self, account: Account, page: Page) -> None:
        """Add *page* to what is written; the instances of its entries have seen it."""
        for entry in page.made:
            if entry.state is not None and entry.deed is not Deed.DELETE:
                saw(entry.state, Seen(entry.base.version + 1, entry.effect_id))
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
                Seen(version - 1, base_effect_id),
                effect_id,
                account,
                inspect(held[key]) if key in held else None,
            )
            for key, version, base_effect_id, effect_id in zip(*rows, strict=True)
        ]

    ledger.wrote(account, Page(make()) if held else Page([], make))
    attend(connection)


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


def attend(connection: Connection) -> None:
    """Listen to what happens to *connection*, which writes workflow rows."""
    for listen in on_first_write:
        listen(connection)
