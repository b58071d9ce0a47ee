"""ProjectionWorker: follow the commits and keep a projection up to date.

A row is behind if the version of its projection is not that of the canonical row. Only
versions are compared, so no commit is missed: not one that becomes visible late, was
made by hand, or was made while no worker ran. A worker searches in two ways.

*Following*, at each poll: among the rows written since the watermark of a partition,
and shortly before it (*overlap*), because ``updated_at`` is when a transaction began,
not when it became visible. The rows are projected and the watermark moves on in one
transaction. ``updated_at`` only narrows the search: a transaction that stays open for
longer than the overlap delays its rows until the next sweep.

*Sweeping*, at the first start and every *sweep_every* seconds: through all keys, page
by page, with following in between. A sweep also removes rows without a workflow, and
finds re-created rows.

A partition is a share of the keys, by their hash. Any number of workers may run: each
takes a partition by locking the row of its watermark, so a killed worker leaves nothing
to clean up.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from random import randrange
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    func,
    select,
    true,
)

from .._concurrency import Blocking, Stop, Waiting, require_at_least
from ..hooks.application_errors import outline
from ..hooks.base import Hooks, notify
from ..store.connections import Connections
from ..store.polling import poll_until
from ..values.reports import ProjectionBatch
from .sweep import Swept, joined, log_failure, project, sweep, write
from .watermarks import WatermarkMixin, Watermarks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import sessionmaker

    from ..values.keys import Key
    from .definition import Projection


StateT = TypeVar("StateT")

_log = logging.getLogger(__name__)

_SWEEP = "sweep"
_SWEEP_PAGE = 2000
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class _Behind(NamedTuple):
    """A row that is behind; *projected* is None where the projection has no row."""

    workflow_key: Key
    version: int
    projected: int | None
    updated_at: datetime
    seconds: float


class ProjectionWorker(Generic[StateT]):
    """Keep *projection* up to date until told to stop.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine.
    *watermarks* is the mapped class of the watermarks, ``ProjectionWatermark`` or your
    own. All workers of a projection must agree on the number of *partitions*.

    *batch_size* is the maximum number of rows of a transaction. Times are in seconds:
    *poll* is the pause after a poll without work. *hooks* are called after each
    transaction that had work.

    >>> ProjectionWorker(engine, orders, Watermark).run(stop)  # doctest: +SKIP
    """

    _waiting: ClassVar[type[Waiting]] = Blocking

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        projection: Projection[StateT],
        watermarks: type[WatermarkMixin],
        *,
        partitions: int = 1,
        batch_size: int = 500,
        poll: float = 0.05,
        overlap: float = 5.0,
        sweep_every: float = 60.0,
        hooks: Hooks | None = None,
    ) -> None:
        require_at_least(1, partitions=partitions, batch_size=batch_size)
        require_at_least(0, poll=poll, overlap=overlap, sweep_every=sweep_every)
        self._bind = bind
        self._projection = projection
        self._connections = Connections(bind, projection.statements.mapper)
        self._watermarks = Watermarks(watermarks, projection.name)
        self._partitions = partitions
        self._batch_size = batch_size
        self._poll = poll
        self._overlap = timedelta(seconds=overlap)
        self._sweep_every = timedelta(seconds=sweep_every)
        self._next_look = 0.0
        self._sweeping: Iterator[Swept] | None = None
        self._hooks = hooks or Hooks()
        self._wait = self._waiting()
        # By partition: versions that failed and are still found.
        self._failed: dict[int, dict[Key, int]] = {}
        self._behind = self._build()

    def _build(self) -> Any:
        mine, columns = self._projection.table, self._projection.statements.columns
        keys = self._projection.statements.keys
        version, updated_at = columns.version, columns.updated_at
        age = func.clock_timestamp() - updated_at
        return (
            select(
                keys.value,
                version,
                mine.c.version,
                updated_at,
                func.extract("epoch", age),
            )
            .select_from(joined(self._projection))
            .where(
                self._projection.statements.own_rows,
                mine.c.version.is_(None) | (mine.c.version < version),
            )
            .order_by(updated_at, *keys.columns)
            .limit(self._batch_size)
        )

    def run(self, stop: Stop) -> None:
        """Work until *stop* is set; finish the transaction that is open then.

        While the database cannot be reached, the worker retries for ever.
        """

        def work() -> bool:
            followed = self.follow()
            return self._sweep_on() or followed > 0

        def failed(error: Exception) -> None:
            name = self._projection.name
            _log.warning("projecting %r failed: %s", name, outline(error))

        poll_until(stop, work, self._wait, pause=self._poll, failed=failed)

    def _sweep_on(self) -> bool:
        """Sweep a page, if a sweep is in progress or due; return whether it did."""
        if self._sweeping is None and self._sweep_is_due():
            self._sweeping = self._sweep()
        try:
            page = None if self._sweeping is None else next(self._sweeping, None)
        except BaseException:
            self._sweeping = None
            raise
        if page is None:
            self._sweeping = None
        return page is not None

    def follow(self) -> int:
        """Follow each free partition once; return the number of rows applied."""
        first = randrange(self._partitions)  # noqa: S311 (spreads the workers)
        return sum(
            self._follow((first + number) % self._partitions)
            for number in range(self._partitions)
        )

    def sweep(self) -> int:
        """Compare all rows now; return the number of rows repaired."""
        return sum(page.applied + page.removed for page in self._sweep())

    def _follow(self, partition: int) -> int:
        name = f"{partition}/{self._partitions}"
        with self._connections.transaction("READ COMMITTED") as connection:
            taken = self._watermarks.take(connection, name)
            if taken is None:
                return 0
            behind, end = self._find_behind(connection, partition, taken.watermark)
            batch = self._apply(connection, partition, behind)
            reached = end or taken.now
            # An idle worker moves it rarely: each move is a write.
            if behind or reached - taken.watermark > self._overlap:
                self._watermarks.advance(connection, name, reached)
        if batch.applied or batch.failed:
            notify(self._hooks.projected, batch)
        return batch.applied

    def _find_behind(
        self, connection: Connection, partition: int, watermark: datetime
    ) -> tuple[list[_Behind], datetime | None]:
        """Return rows to project, and the end of the search, None if it is now.

        Versions that have failed are skipped, however many they are.
        """
        share: ColumnElement[bool] = true()
        if self._partitions > 1:
            key = self._projection.statements.keys.text
            share = func.abs(func.hashtext(key) % self._partitions) == partition
        failed = self._failed.get(partition, {})
        seen: dict[Key, int] = {}
        columns = self._projection.statements.columns
        place = columns.updated_at > watermark - self._overlap
        while True:
            found = connection.execute(self._behind.where(share, place)).all()
            rows = [
                _Behind(row[0], row[1], row[2], row[3], float(row[4])) for row in found
            ]
            seen |= {row.workflow_key: row.version for row in rows}
            untried = [row for row in rows if failed.get(row[0]) != row.version]
            if len(rows) < self._batch_size:
                # Forget failures that were not found again.
                self._failed[partition] = dict(failed.items() & seen.items())
                return untried, None
            if untried:
                return untried, rows[-1].updated_at
            last = rows[-1]
            place = self._projection.statements.keys.after(
                last.workflow_key, {columns.updated_at: last.updated_at}
            )

    def _apply(
        self, connection: Connection, partition: int, behind: list[_Behind]
    ) -> ProjectionBatch:
        versions = {row.workflow_key: row.version for row in behind}
        failures = []
        failed = self._failed.setdefault(partition, {})
        log = log_failure(self._projection)

        def note(workflow_key: Key, error: BaseException) -> None:
            # Skipped until its next version, or the next sweep.
            failures.append(workflow_key)
            failed[workflow_key] = versions[workflow_key]
            log(workflow_key, error)

        rows = project(connection, self._projection, versions, note)
        written = write(connection, self._projection, rows, note)
        late = [row for row in behind if row.workflow_key in written]
        lags = [row.version - (row.projected or 0) for row in late]
        return ProjectionBatch(
            self._projection.name,
            applied=len(written),
            failed=len(failures),
            lag_seconds=max((row.seconds for row in late), default=0.0),
            lag_versions=max(lags, default=0),
        )

    def _sweep_is_due(self) -> bool:
        """Claim the next sweep if it is due and no other worker has claimed it."""
        if monotonic() < self._next_look:
            return False
        self._next_look = monotonic() + min(1.0, self._sweep_every.total_seconds())
        with self._connections.transaction("READ COMMITTED") as connection:
            taken = self._watermarks.take(connection, _SWEEP, initial=_NEVER)
            if taken is None or taken.now - taken.watermark < self._sweep_every:
                return False
            self._watermarks.advance(connection, _SWEEP, taken.now)
        return True

    def _sweep(self) -> Iterator[Swept]:
        self._failed.clear()
        yield from sweep(self._bind, self._projection, batch_size=_SWEEP_PAGE)
