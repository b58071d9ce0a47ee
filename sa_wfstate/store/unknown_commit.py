"""Evidence of an uncertain commit: whether it was done although its answer was lost.

Each connection of a session has a transaction of its own, and its own evidence:

* the workflow rows that it has written. Each holds the effect of its last write. They
  are read with a lock, which waits for a COMMIT that is still in progress;
* their history, if one is kept, in case other commits have replaced the row;
* the id that the server gave the transaction, if any. With postgres_fdw and Citus it
  gives none, even if other servers were written to, so a missing id proves nothing;
* the statements that were sent. If none of them writes, there is nothing to find out.
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.sql import functions, visitors
from sqlalchemy.sql.elements import (
    ColumnClause,
    ReleaseSavepointClause,
    RollbackToSavepointClause,
    SavepointClause,
    TextClause,
)
from sqlalchemy.sql.expression import SelectBase, UpdateBase

from .._concurrency import raised_by_signal_handler
from ..commit_listeners import KeepsEffects, listeners_of
from ..orm.events import off_statement, on_statement
from ..orm.write_log import Operation, OperationType, written_on
from ..retry import ErrorKind, classify
from ..row.engine_profiles import profile_on
from ..values.row_version import RowVersion
from .connections import READ_COMMITTED, isolation, limit_lock_waits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..row.statements import Statements
    from ..values.keys import Key


_HAS_XACT_STATUS = (13,)

_SAVEPOINTS = (SavepointClause, RollbackToSavepointClause, ReleaseSavepointClause)


class Verdict(Enum):
    """The fate of a transaction."""

    COMMITTED = auto()
    UNDONE = auto()
    UNKNOWN = auto()
    NOTHING_WRITTEN = auto()


class StillRunning(TimeoutError):
    """The transaction whose answer was lost has not ended."""


def may_pass(error: BaseException) -> bool:
    """Return whether finding out may succeed when it is tried again after *error*."""
    kinds = {ErrorKind.TRANSIENT, ErrorKind.UNKNOWN}
    passing = classify(error, committing=True) in kinds
    return passing and not raised_by_signal_handler(error)


class _Row(NamedTuple):
    """A row that was written: its version *before*, and the effects in their order.

    *effect_id* is the last one; None if the row was deleted.
    """

    statements: Statements[Any]
    workflow_key: Key
    before: RowVersion
    effect_id: str | None
    effects: tuple[str, ...]


class Evidence:
    """Records the writes of a session on *connection*, and looks for them later."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent: dict[object, None] = {}
        self._rows: list[_Row] = []
        self._transaction_id: str | None = None
        self._read_only = False
        self._engine = connection.engine
        options = connection.get_execution_options()
        self._schemas = options.get("schema_translate_map")
        on_statement(connection, self._note)

    def _note(self, _: object, __: object, statement: str, *rest: Any) -> None:
        compiled = rest[1].compiled
        self._sent[statement if compiled is None else compiled] = None

    def stop(self) -> None:
        """Stop recording statements."""
        off_statement(self._connection, self._note)

    def take(self) -> bool:
        """Collect the evidence; return False if the connection has no transaction."""
        connection = self._connection
        self.stop()
        if connection.closed or not connection.in_transaction():
            return False
        self._rows = _rows(written_on(connection))
        # A missing row cannot be locked, so the server's transaction id is needed.
        if not any(row.before.version and row.effect_id for row in self._rows):
            self._ask(connection)
        return True

    def _ask(self, connection: Connection) -> None:
        dialect = connection.dialect
        version = dialect.server_version_info or ()
        if version >= _HAS_XACT_STATUS and profile_on(connection).transaction_ids:
            self._transaction_id, self._read_only = connection.execute(
                text(
                    "SELECT CAST(pg_current_xact_id_if_assigned() AS TEXT),"
                    " current_setting('transaction_read_only') = 'on'"
                )
            ).one()

    @property
    def workflows(self) -> list[tuple[str, Key]]:
        """Entity and key of each row that was written."""
        return [(row.statements.entity, row.workflow_key) for row in self._rows]

    @property
    def effect_ids(self) -> list[str]:
        """The effects that were written."""
        return [effect for row in self._rows for effect in row.effects]

    @property
    def wrote(self) -> bool:
        """Whether the transaction may have written rows."""
        if self._rows or self._transaction_id is not None:
            return True
        return not (self._read_only or all(map(_only_reads, self._sent)))

    def look(self) -> Verdict:
        """Return the fate of the transaction; raise StillRunning."""
        if not self.wrote:
            return Verdict.NOTHING_WRITTEN
        with self._reading() as connection:
            verdicts = {_verdict(connection, row) for row in self._rows}
            if self._transaction_id is not None:
                verdicts.add(_status(connection, self._transaction_id))
        verdicts.discard(Verdict.UNKNOWN)
        # With rows on several servers, only some of them may be committed.
        return verdicts.pop() if len(verdicts) == 1 else Verdict.UNKNOWN

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            connection.execution_options(
                schema_translate_map=self._schemas,
                **isolation(self._engine, READ_COMMITTED),
            )
            limit_lock_waits(connection)
            yield connection


def _rows(operations: list[Operation]) -> list[_Row]:
    """Merge the operations on each row."""
    rows: dict[tuple[Statements[Any], Key], _Row] = {}
    for operation in operations:
        place = operation.statements, operation.workflow_key
        earlier = rows.get(place)
        before = operation.base if earlier is None else earlier.before
        effects = () if earlier is None else earlier.effects
        effect_id = (
            None if operation.type is OperationType.DELETE else operation.effect_id
        )
        if effect_id is not None:
            effects = (*effects, effect_id)
        rows[place] = _Row(*place, before, effect_id, effects)
    # In one order, so that two readers cannot deadlock.
    return sorted(rows.values(), key=lambda row: (row.statements.entity, row[1]))


def verdict_of(
    connection: Connection,
    statements: Statements[Any],
    workflow_key: Key,
    before: RowVersion,
    effect_id: str,
) -> Verdict:
    """Return the fate of the transaction that wrote one row, over *before*."""
    row = _Row(statements, workflow_key, before, effect_id, (effect_id,))
    return _verdict(connection, row)


def _verdict(connection: Connection, row: _Row) -> Verdict:
    """Return the fate of the transaction that wrote *row*, by that row alone.

    A missing row proves nothing: its INSERT may not be visible yet, or another
    transaction has deleted it. Nor does one that was written since.
    """
    key = row.workflow_key
    found = row.statements.versions(connection, [key], lock=True).get(key)
    if found is not None:
        now = RowVersion(*found)
        if now.effect_id is not None and now.effect_id == row.effect_id:
            return Verdict.COMMITTED
        if row.before.version and row.before.matches(now):
            return Verdict.UNDONE
    return _verdict_of_history(connection, row)


def _verdict_of_history(connection: Connection, row: _Row) -> Verdict:
    for listener in listeners_of(row.statements.mapper):
        if isinstance(listener, KeepsEffects) and listener.keeps(
            connection, row.workflow_key, row.effects
        ):
            return Verdict.COMMITTED
    # A version that is missing may have been trimmed.
    return Verdict.UNKNOWN


def _status(connection: Connection, transaction_id: str) -> Verdict:
    status = connection.scalar(
        text("SELECT pg_xact_status(CAST(CAST(:id AS TEXT) AS xid8))"),
        {"id": transaction_id},
    )
    if status == "in progress":
        raise StillRunning
    if status is None:
        return Verdict.UNKNOWN
    return Verdict.COMMITTED if status == "committed" else Verdict.UNDONE


def _only_reads(sent: Any) -> bool:
    """Return whether a statement, compiled or its text, certainly writes nothing.

    Text may write, and so may a function that SQLAlchemy does not know.
    """
    statement = getattr(sent, "statement", None)
    if isinstance(statement, _SAVEPOINTS):
        return True
    return isinstance(statement, SelectBase) and not any(
        isinstance(part, UpdateBase)
        or type(part) is functions.Function
        or (_is_text(part) and "(" in str(part))
        for part in visitors.iterate(statement)
    )


def _is_text(part: object) -> bool:
    literal = isinstance(part, ColumnClause) and part.is_literal
    return literal or isinstance(part, TextClause)
