"""The feed of a worker: which rows are behind, in one search for all partitions.

A row is behind if the version of its projection is not that of the canonical row. Rows
are searched that were written since the last complete search, or since the beginning of
the earliest transaction that has ended meanwhile. So a row is found at the first search
after it became visible, however long its transaction was open.

A watermark only moves up to the beginning of the oldest open transaction. From there
another worker starts, which does not know what this one has seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    func,
    literal_column,
    select,
)

from .lag import joined
from .open_transactions import OpenTransactions

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime, timedelta

    from ..values.keys import Key
    from .definition import Projection
    from .watermarks import Watermarks


class Behind(NamedTuple):
    """A row that is behind; *projected* is None where the projection has no row."""

    workflow_key: Key
    version: int
    projected: int | None
    updated_at: datetime
    seconds: float
    partition: int


class Share(NamedTuple):
    """What is to be done in a partition: its *rows*, then its watermark moves.

    All rows up to *reached* that are visible have been found.
    """

    partition: int
    rows: list[Behind]
    reached: datetime
    watermark: datetime


class Feed:
    """Finds the rows of *projection* that are behind.

    *failed* are the rows that could not be projected: they are passed over until their
    next version.
    """

    def __init__(
        self,
        projection: Projection[Any],
        watermarks: Watermarks,
        *,
        partitions: int,
        batch_size: int,
        overlap: timedelta,
    ) -> None:
        self.failed: dict[Key, Behind] = {}
        self._keys = projection.statements.keys
        self._updated_at = projection.statements.columns.updated_at
        self._watermarks = watermarks
        self._partitions = partitions
        self._batch_size = batch_size
        self._limit = batch_size * partitions
        self._overlap = overlap
        self._open = OpenTransactions()
        # By partition: when to search from.
        self._from: dict[int, datetime] = {}
        self._behind = self._build(projection)
        # Built once, for it is executed at every poll.
        recent = self._updated_at >= bindparam("since", type_=self._updated_at.type)
        self._recent = self._behind.where(recent)

    def _build(self, projection: Projection[Any]) -> Any:
        mine, columns = projection.table, projection.statements.columns
        keys, version = self._keys, columns.version
        age = func.clock_timestamp() - columns.updated_at
        partition: ColumnElement[Any] = literal_column("0")
        if self._partitions > 1:
            partition = func.abs(func.hashtext(keys.text) % self._partitions)
        return (
            select(
                keys.value,
                version,
                mine.c.version,
                columns.updated_at,
                func.extract("epoch", age),
                partition,
            )
            .select_from(joined(projection))
            .where(
                projection.statements.own_rows,
                mine.c.version.is_(None) | (mine.c.version < version),
            )
            .order_by(columns.updated_at, *keys.columns)
            .limit(self._limit)
        )

    def name_of(self, partition: int) -> str:
        """Return the name of the watermark of *partition*."""
        return f"{partition}/{self._partitions}"

    def look(self, connection: Connection) -> list[Share]:
        """Search once, and return the partitions where something is to be done.

        An idle worker moves a watermark rarely: each move is a write.
        """
        names = [self.name_of(partition) for partition in range(self._partitions)]
        marks = self._watermarks.read(connection, names)
        floor = min(marks.values(), default=None)
        now, horizon, ended = self._open.observe(connection, floor=floor)
        for partition, name in enumerate(names):
            known = marks.get(name, horizon)
            start = min(self._from.get(partition, known), ended)
            self._from[partition] = max(start, known)
        since = min(self._from.values()) - self._overlap
        earliest = (floor or horizon) - self._overlap
        rows, end = self._search(connection, since, earliest)
        shares = []
        for partition, name in enumerate(names):
            mine = [row for row in rows if row.partition == partition]
            reached = end or now
            if len(mine) > self._batch_size:
                mine = mine[: self._batch_size]
                reached = mine[-1].updated_at
            mark, target = marks.get(name), min(reached, horizon)
            if mine or mark is None or target - mark > self._overlap:
                shares.append(Share(partition, mine, reached, target))
            else:
                self._from[partition] = reached
        return shares

    def _search(
        self, connection: Connection, since: datetime, earliest: datetime
    ) -> tuple[list[Behind], datetime | None]:
        """Return rows to project, and the end of the search, None if it is now.

        Versions that have failed are skipped, however many they are. No later search
        is for rows from before *earliest*.
        """
        failed, seen = self.failed, dict[Any, int]()
        rows = self._read(connection, self._recent, {"since": since})
        while True:
            seen |= {row.workflow_key: row.version for row in rows}
            untried = [row for row in rows if not self._has_failed(row)]
            if len(rows) < self._limit:
                # Forget failures that will not be found again.
                self.failed = {
                    key: row
                    for key, row in failed.items()
                    if seen.get(key) == row.version
                    or earliest <= row.updated_at < since
                }
                return untried, None
            if untried:
                return untried, rows[-1].updated_at
            last = rows[-1]
            place = self._keys.after(
                last.workflow_key, {self._updated_at: last.updated_at}
            )
            rows = self._read(connection, self._behind.where(place))

    def _has_failed(self, row: Behind) -> bool:
        failure = self.failed.get(row.workflow_key)
        return failure is not None and failure.version == row.version

    @staticmethod
    def _read(
        connection: Connection, statement: Any, parameters: Any = None
    ) -> list[Behind]:
        found = connection.execute(statement, parameters)
        return [
            Behind(key, version, projected, updated_at, float(seconds), partition)
            for key, version, projected, updated_at, seconds, partition in found
        ]

    def still_behind(
        self, connection: Connection, rows: Collection[Behind]
    ) -> list[Behind]:
        """Return those of *rows* that no other worker has projected meanwhile."""
        if not rows:
            return []
        place = self._keys.among([row.workflow_key for row in rows])
        found = self._read(connection, self._behind.where(place))
        return [row for row in found if not self._has_failed(row)]

    def done(self, share: Share) -> None:
        """Search for later rows of the partition of *share* from now on."""
        self._from[share.partition] = share.reached
