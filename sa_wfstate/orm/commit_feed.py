"""Call the commit listeners with what the write log holds of a flush."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ..commit_listeners import listeners_of
from ..row.unread import Unread
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from .write_log import Operation, OperationType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Connection

    from ..commit_listeners import CommitListener
    from ..row.statements import Statements


def follow_flush(passed: list[Operation], sent: list[Operation]) -> None:
    """Call the listeners of what a flush has *sent*, and first *passed* by."""
    followed: dict[Statements[Any], tuple[CommitListener, ...]] = {}
    for operation in (*passed, *sent):
        statements = operation.statements
        if statements not in followed:
            followed[statements] = listeners_of(statements.mapper)
    if not any(followed.values()):
        return
    deleted = {
        operation.state: operation
        for operation in sent
        if operation.type is OperationType.DELETE
    }
    for listeners, connection, operations in _grouped(deleted.values(), followed):
        keys = [operation.workflow_key for operation in operations]
        for listener in listeners:
            listener.deleted(connection, keys)
    kept = [operation for operation in passed if operation.state not in deleted]
    for listeners, connection, operations in _grouped(kept, followed):
        commits = [_commit(operation) for operation in operations]
        for listener in listeners:
            listener.passed(connection, commits)
    kept = [operation for operation in sent if operation.state not in deleted]
    for listeners, connection, operations in _grouped(kept, followed):
        commits = [_commit(operation) for operation in operations]
        for listener in listeners:
            listener.written(connection, commits)


def _grouped(
    operations: Iterable[Operation],
    followed: Mapping[Statements[Any], tuple[CommitListener, ...]],
) -> Iterator[tuple[tuple[CommitListener, ...], Connection, list[Operation]]]:
    """Group *operations* by class and connection, with the listeners of the class."""
    groups: defaultdict[Any, list[Operation]] = defaultdict(list)
    for operation in operations:
        groups[operation.connection, operation.statements].append(operation)
    for (connection, statements), group in groups.items():
        if followed[statements]:
            yield followed[statements], connection, group


def _commit(operation: Operation) -> StateCommitted[Any]:
    version = operation.result.version
    return StateCommitted(
        operation.workflow_key, version, lambda: _snapshot(operation, version)
    )


def _snapshot(operation: Operation, version: int) -> WorkflowSnapshot[Any]:
    """Read the row from its instance; the state is a copy, as from the database."""
    state: Any = operation.state
    instance = state.obj()
    column_type: Any = operation.statements.mapper.columns["state"].type
    value = state.dict.get("state")
    if value is None:
        value = instance.state
    text = value.text if isinstance(value, Unread) else column_type.dump(value)
    return WorkflowSnapshot(
        workflow_key=operation.workflow_key,
        version=version,
        state=column_type.load(text),
        updated_at=instance.updated_at,
        schema_version=instance.schema_version,
        provenance=instance.provenance,
    )
