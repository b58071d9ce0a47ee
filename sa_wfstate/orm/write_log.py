"""The write log of a transaction: which workflow rows it has written.

There is an :class:`Operation` for each row: its key, the version that the write is
based on, and the effect that writes it. In a flush, an operation is *confirmed* when
the database is known to have written the row.

Operations are kept until the transaction ends. A COMMIT that fails loses them, and
their rows are locked: no other transaction can write them. The transaction may be an
outer one, which sessions join one after another. So the log is the connection's, not a
session's, and the savepoints of the connection undo it.

The log does not keep its connection alive: a session that is dropped returns it.
"""

from __future__ import annotations

from enum import Enum, auto
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakKeyDictionary, ref

from ..values.row_version import RowVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine, RootTransaction, Table
    from sqlalchemy.orm import InstanceState

    from ..row.statements import Statements


OPERATION: Final = "sa_wfstate.operation"
"""Where an instance has the operation of the flush under way."""


class OperationType(Enum):
    """What is done to a row."""

    INSERT = auto()
    UPDATE = auto()
    DELETE = auto()


class Operation:
    """One write of a row, planned or done; *log* is that of its transaction.

    It refers weakly to the log, which holds it: so the two need no garbage collector.

    *likely*: a flush seems to write it. *sent*: it has sent the statement. *attempt*:
    what a flush that failed was about to write, by attribute (``attempts.py``).
    """

    __slots__ = (
        "__weakref__",
        "attempt",
        "base",
        "confirmed",
        "effect_id",
        "likely",
        "sent",
        "state",
        "statements",
        "type",
        "weak_log",
        "workflow_key",
    )

    def __init__(
        self,
        type_: OperationType,
        statements: Statements[Any],
        workflow_key: Any,
        base: RowVersion,
        effect_id: str | None,
        log: WriteLog,
        state: InstanceState[Any] | None,
    ) -> None:
        self.type = type_
        self.statements = statements
        self.workflow_key = workflow_key
        self.base = base
        self.effect_id = effect_id
        self.weak_log = log.weakly
        self.state = state
        self.attempt: Any = None
        self.likely = True
        self.sent = False
        self.confirmed = False

    @property
    def result(self) -> RowVersion:
        """The version that the row has after an INSERT or UPDATE."""
        return RowVersion(self.base.version + 1, self.effect_id)

    @property
    def log(self) -> WriteLog:
        """The log, which the transaction holds."""
        log = self.weak_log()
        assert log is not None  # noqa: S101
        return log

    @property
    def connection(self) -> Connection:
        return self.log.connection

    @property
    def table(self) -> Table:
        return self.statements.table


class Operations:
    """The operations of one flush or batch; those of a batch are built when needed.

    *made* are the ones that exist, among them all that refer to an instance.
    """

    __slots__ = ("_make", "made")

    def __init__(
        self, made: list[Operation], make: Callable[[], list[Operation]] | None = None
    ) -> None:
        self.made = made
        self._make = make

    def __iter__(self) -> Iterator[Operation]:
        if self._make is not None:
            self.made, self._make = self._make(), None
        return iter(self.made)


class WriteLog:
    """What one transaction of a connection has written, in any session.

    Savepoints are followed from the first write in one on: until then, all that was
    written was written outside those that there are.
    """

    attend_savepoints: ClassVar[Callable[[Engine], None]]
    """Set by events.py: what there is listened to is registered there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = ref(connection)
        self.weakly = ref(self)
        self._groups: list[Operations] = []
        self._savepoints: list[int] = []
        self._followed = False
        self._outside = 0

    @property
    def connection(self) -> Connection:
        """The connection, which the caller or its session holds."""
        connection = self._connection()
        assert connection is not None  # noqa: S101
        return connection

    @property
    def operations(self) -> list[Operation]:
        """All operations, in the order of the writes."""
        return list(chain.from_iterable(self._groups))

    def add(self, group: Operations) -> None:
        """Add *group* to what the transaction has written."""
        if not self._followed:
            connection = self.connection
            if connection.in_nested_transaction():
                self._followed, self._outside = True, len(self._groups)
                type(self).attend_savepoints(connection.engine)
        self._groups.append(group)

    def begin_savepoint(self) -> None:
        self._savepoints.append(len(self._groups))

    def end_savepoint(self) -> int:
        """Leave the innermost savepoint; return where what it has written begins.

        One that was begun before it was listened to holds all that was added since.
        """
        return self._savepoints.pop() if self._savepoints else self._outside

    def undo_savepoint(self) -> None:
        """Leave the innermost savepoint, and forget what was written in it."""
        del self._groups[self.end_savepoint() :]


_logs: WeakKeyDictionary[RootTransaction, WriteLog] = WeakKeyDictionary()


def write_log_of(connection: Connection) -> WriteLog:
    """Return the log of the transaction that *connection* is in."""
    transaction = connection.get_transaction()
    log = None if transaction is None else _logs.get(transaction)
    if log is None:
        log = WriteLog(connection)
        if transaction is not None:
            _logs[transaction] = log
    return log


def written_on(connection: Connection) -> list[Operation]:
    """Return what the transaction of *connection* has written to workflow rows."""
    return write_log_of(connection).operations


# The event of a savepoint does not tell its name yet, so they are known by their order.
def savepoint(connection: Connection, _: str | None) -> None:
    write_log_of(connection).begin_savepoint()


def release_savepoint(connection: Connection, _: str, __: object) -> None:
    write_log_of(connection).end_savepoint()


def rollback_savepoint(connection: Connection, _: str, __: object) -> None:
    write_log_of(connection).undo_savepoint()
