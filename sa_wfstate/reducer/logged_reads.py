"""Logged reads: rows, and what the dedup log has of their actions, by one statement.

::

    SELECT workflow_key, version, state, …, NULL, … FROM orders WHERE …
    UNION ALL
    SELECT NULL, …, action_id, processed_at, … FROM order_actions WHERE …
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import bindparam, cast, func, null, select, union_all

from ..row.arrays import BoundArray, among, bound_table, of_keys
from ..row.chunks import CHUNK
from ..row.claims import Processed
from ..row.sql import CANONICAL_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from ..row.claims import DedupLog
    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.snapshot import WorkflowSnapshot


StateT = TypeVar("StateT")

_OF_ROW = len(CANONICAL_COLUMNS)


class LoggedReads(Generic[StateT]):
    """The statements that read workflows of one class together with *log*."""

    def __init__(self, statements: Statements[StateT], log: DedupLog) -> None:
        self._statements = statements
        self._log = log
        self._built: dict[bool, Any] = {}
        columns = statements.keys.columns
        # Then one array has both.
        self._alike = len(columns) == 1 and log.stored.binds_as(*columns)

    def take(self, keys: Sequence[Key], actions: Sequence[tuple[Key, UUID]]) -> bool:
        """Return whether one statement reads *keys* and *actions*."""
        # Pairs of tenant and key are no arrays.
        alone = len(keys) == 1 or not self._statements.key_type.parts
        return alone and max(len(keys), len(actions)) <= CHUNK

    def read(
        self,
        connection: Connection,
        keys: Sequence[Key],
        actions: Sequence[tuple[Key, UUID]],
    ) -> tuple[
        dict[Key, WorkflowSnapshot[StateT]], Mapping[tuple[Any, UUID], Processed]
    ]:
        """Return the rows of *keys*, and those of the log, by key and action id."""
        alone = len(keys) == 1
        if alone not in self._built:
            self._built[alone] = self._build(alone=alone)
        store, load = self._log.stored.store, self._log.stored.load
        ids = [action_id for _, action_id in actions]
        if alone:
            parameters = self._statements.keys.parameters(keys[0])
            parameters |= {"wfs_stored": store(keys[0]), "wfs_id": ids}
        else:
            # A key without an action has nothing to be read for.
            of_actions = [key for key, _ in actions]
            parameters = {"wfs_key": of_actions, "wfs_id": ids}
            if not self._alike:
                parameters["wfs_stored"] = list(map(store, of_actions))
        rows, processed = {}, {}
        for row in connection.execute(self._built[alone], parameters):
            if row[_OF_ROW] is None:
                rows[row[0]] = self._statements.snapshot_of(row[:_OF_ROW])
            else:
                key, action_id, *rest = row[_OF_ROW:]
                processed[load(key), action_id] = Processed(*rest)
        return rows, processed

    def _build(self, *, alone: bool) -> Any:
        keys, c = self._statements.keys, self._log.table.c
        found = (c.workflow_key, c.action_id, c.request_hash, c.version, c.processed_at)
        nothing = (cast(null(), x.type).label(f"wfs_{x.name}") for x in found)
        rows = self._statements.sql.read.add_columns(*nothing)
        log: Any = select(*[null()] * _OF_ROW, *found)
        if alone:
            rows = rows.where(keys.equal)
            of_key = c.workflow_key == bindparam(
                "wfs_stored", type_=c.workflow_key.type
            )
            ids = func.any(BoundArray("wfs_id", c.action_id.type))
            log = log.where(of_key, c.action_id == ids)
        else:
            rows = rows.where(among(*keys.columns))
            stored = "key" if self._alike else "stored"
            pairs = bound_table({stored: c.workflow_key.type, "id": c.action_id.type})
            of_pair = of_keys((c.workflow_key, pairs.c[stored]))
            log = log.join(pairs, of_pair & (c.action_id == pairs.c.id))
        return union_all(rows, log)
