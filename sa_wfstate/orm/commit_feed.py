"""Call the commit listeners with what the write log holds of a flush."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ..commit_listeners import listeners_of
from ..row.types import Unread
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from .write_log import Deed, Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from ..commit_listeners import CommitListener


def follow_flush(passed: list[Entry], sent: list[Entry]) -> None:
    """Call the listeners of what a flush has *sent*, and first *passed* by."""
    deleted = {entry.state: entry for entry in sent if entry.deed is Deed.DELETE}
    for listeners, connection, entries in _grouped(deleted.values()):
        keys = [entry.workflow_key for entry in entries]
        for listener in listeners:
            listener.deleted(connection, keys)
    kept = [entry for entry in passed if entry.state not in deleted]
    for listeners, connection, entries in _grouped(kept):
        commits = [_commit(entry) for entry in entries]
        for listener in listeners:
            listener.passed(connection, commits)
    kept = [entry for entry in sent if entry.state not in deleted]
    for listeners, connection, entries in _grouped(kept):
        commits = [_commit(entry) for entry in entries]
        for listener in listeners:
            listener.written(connection, commits)


def _grouped(
    entries: Iterable[Entry],
) -> Iterator[tuple[tuple[CommitListener, ...], Connection, list[Entry]]]:
    """Group *entries* by class and connection, with the listeners of the class."""
    groups: defaultdict[Any, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.connection, entry.statements.mapper].append(entry)
    for (connection, mapper), group in groups.items():
        listeners = listeners_of(mapper)
        if listeners:
            yield listeners, connection, group


def _commit(entry: Entry) -> StateCommitted[Any]:
    version = entry.base.version + 1
    return StateCommitted(
        entry.workflow_key, version, lambda: _snapshot(entry, version)
    )


def _snapshot(entry: Entry, version: int) -> WorkflowSnapshot[Any]:
    """Read the row from its instance; the state is a copy, as from the database."""
    state: Any = entry.state
    instance = state.obj()
    column_type: Any = entry.statements.mapper.columns["state"].type
    value = state.dict.get("state")
    if value is None:
        value = instance.state
    text = value.text if isinstance(value, Unread) else column_type.dump(value)
    return WorkflowSnapshot(
        workflow_key=instance.workflow_key,
        version=version,
        state=column_type.load(text),
        updated_at=instance.updated_at,
        schema_version=instance.schema_version,
        provenance=instance.provenance,
    )
