"""What one session writes: its part of the write logs of its transactions."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.orm.attributes import set_committed_value

from ..errors import VersionNotSeen
from ..values.row_version import RowVersion
from .row_keys import give_key, key_of, set_read
from .version_comparator import Expected
from .version_guard import EXPECTED, saw, saw_write, seen_of
from .write_log import (
    OPERATION,
    Operation,
    Operations,
    OperationType,
    WriteLog,
    write_log_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, SessionTransaction

    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.write import Batch


class SessionLog:
    """What one session is writing (*pending*) and has *written* in its transaction.

    A flush may write a row twice, with ``post_update``: the first write is in *passed*.
    """

    def __init__(self) -> None:
        self.pending: dict[InstanceState[Any], Operation] = {}
        self.passed: list[Operation] = []
        self._checked: list[InstanceState[Any]] = []
        self._logs: set[WriteLog] = set()
        self._groups: list[Operations] = []
        self._marks: dict[SessionTransaction, int] = {}

    def hold(self, log: WriteLog) -> None:
        """Keep *log*, in which the flush writes, also when its transaction is lost."""
        self._logs.add(log)

    def check(
        self, state: InstanceState[Any], values: dict[str, Any] | None = None
    ) -> RowVersion:
        """Make the flush check *state* against the version that the code has seen.

        Or against the one that it has named. *values* are those of the instance.
        """
        self._checked.append(state)
        seen: RowVersion | None = state.info.get(EXPECTED) or seen_of(state)
        if seen is None:
            raise VersionNotSeen(state.class_.__name__, key_of(state))
        values = state.dict if values is None else values
        if values:  # Or the instance is gone.
            # Loaded in the middle of the flush, they would be those of another version.
            version = seen.version
            if seen.effect_id is not None:
                version = Expected(version)
                version.effect_id = seen.effect_id
            set_read(state, values, "version", version)
            give_key(state, values)
        return seen

    def _end_flush(self) -> None:
        """Leave plain numbers as the versions of what was checked."""
        for state in self._checked:
            version = state.dict.get("version")
            if isinstance(version, Expected):
                instance = state.obj()
                if instance is not None:
                    set_committed_value(instance, "version", int(version))
        for state in self.pending:
            state.info.pop(OPERATION, None)
        self._checked.clear()
        self.pending.clear()
        self.passed.clear()

    def flushed(self) -> tuple[list[Operation], list[Operation]]:
        """Move what is pending to what is written: the flush has succeeded.

        Returns the first writes of rows that were written twice, and the last writes.
        """
        passed = self.passed.copy()
        sent: list[Operation] = []
        for state, each in self.pending.items():
            if each.sent or each.type is not OperationType.UPDATE:
                sent.append(each)
                state.info.pop(EXPECTED, None)
        groups: dict[Any, list[Operation]] = {}
        for each in passed + sent:
            groups.setdefault(each.weak_log, []).append(each)
        for group in groups.values():
            self._add(group[0].log, Operations(group))
        self._end_flush()
        return passed, sent

    def passes(self, operation: Operation) -> RowVersion:
        """Note that a flush will write the row again; return its version now."""
        operation.confirmed = True
        self.passed.append(operation)
        return operation.result

    @property
    def written(self) -> list[Operation]:
        """What was written in the transaction, in the order of the writes."""
        return list(chain.from_iterable(self._groups))

    def record(
        self,
        connection: Connection,
        statements: Statements[Any],
        batch: Batch,
        held: Mapping[Key, object],
    ) -> None:
        """Note that the session wrote *batch*, outside its unit of work.

        *held* are those instances of the rows that the session holds, by key.
        """
        log = write_log_of(connection)
        # Not the batch: a transaction may be long, and its states large.
        rows = (
            batch.workflow_keys,
            batch.versions,
            batch.base_effect_ids,
            [provenance.effect_id for provenance in batch.provenances],
        )

        def make() -> list[Operation]:
            return [
                Operation(
                    OperationType.UPDATE if version > 1 else OperationType.INSERT,
                    statements,
                    key,
                    RowVersion(version - 1, base_effect_id),
                    effect_id,
                    log,
                    inspect(held[key]) if key in held else None,
                )
                for key, version, base_effect_id, effect_id in zip(*rows, strict=True)
            ]

        self._add(log, Operations(make()) if held else Operations([], make))

    def record_deletes(
        self,
        connection: Connection,
        statements: Statements[Any],
        deleted: Mapping[Any, RowVersion],
    ) -> None:
        """Note that the session deleted rows, by key, outside its unit of work."""
        log, delete = write_log_of(connection), OperationType.DELETE
        operations = [
            Operation(delete, statements, key, base, None, log, None)
            for key, base in deleted.items()
        ]
        self._add(log, Operations(operations))

    def _add(self, log: WriteLog, group: Operations) -> None:
        """Add *group* to what is written, and to what its instances have seen."""
        for each in group.made:
            if each.state is not None and each.type is not OperationType.DELETE:
                saw_write(each.state, each.base.version + 1, each.effect_id)
        self._groups.append(group)
        log.add(group)

    def fail(self, transaction: SessionTransaction) -> list[Operation]:
        """Return the operations that may have lost when *transaction* was rolled back.

        A row that this transaction had written before cannot have lost: it was locked.
        """
        logs = {each.log for each in self.pending.values()}
        standing = [each for log in logs for each in log.operations]
        own = set[str | None]()
        for each in dict.fromkeys([*standing, *self.written, *self.passed]):
            # Another session in the same transaction may have written over it.
            own.discard(each.base.effect_id)
            own.add(each.effect_id)
        doubtful = [
            each
            for each in self.pending.values()
            if not each.confirmed
            and (each.sent or each.likely)
            and (each.base.effect_id is None or each.base.effect_id not in own)
        ]
        self._end_flush()
        while transaction.parent is not None and not transaction.nested:
            transaction = transaction.parent
        self.undo(transaction)
        return doubtful

    def mark(self, transaction: SessionTransaction) -> None:
        """Remember where the savepoint *transaction* begins."""
        self._marks[transaction] = len(self._groups)

    def undo(self, transaction: SessionTransaction) -> None:
        """Forget what was written since *transaction* began: it was rolled back."""
        start = self._marks.get(transaction, 0)
        for group in reversed(self._groups[start:]):
            for each in reversed(group.made):
                if each.state is not None:
                    saw(each.state, each.base if each.base.version else None)
        del self._groups[start:]

    def forget(self) -> None:
        """Forget what was written: the transaction of the session is over."""
        self._logs.clear()
        if not self._groups and not self._marks:
            return
        for group in self._groups:
            for each in group.made:
                each.state = None  # The connection's log may live longer.
        self._groups.clear()
        self._marks.clear()
