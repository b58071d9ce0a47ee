"""ProjectionWorker: follow the commits and keep a projection up to date.

A row is behind if the version of its projection is not that of the canonical row. Only
versions are compared, so no commit is missed: not one that becomes visible late, was
made by hand, or was made while no worker ran. A worker searches in two ways.

*Following*, at each poll: one search for all partitions, among the rows written since
the last one, and since the beginning of any transaction that has ended meanwhile. The
rows are projected and the watermark of their partition moves on in one transaction.
``updated_at`` only narrows the search. It is when a transaction began, so the worker
asks the server which transactions are open (``pg_stat_activity``). A session of another
role is hidden from it without ``pg_read_all_stats``: a transaction of such a session
that is open for longer than the *overlap* delays its rows until the next sweep.

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
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .._concurrency import Blocking, Stop, Waiting, require_at_least
from ..hooks.application_errors import outline
from ..hooks.base import Hooks, notify
from ..store.connections import Connections
from ..store.polling import poll_until
from ..values.reports import ProjectionBatch
from .feed import Behind, Feed, Share
from .sweep import Swept, log_failure, project, sweep, write
from .watermarks import WatermarkMixin, Watermarks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import sessionmaker

    from ..values.keys import Key
    from .definition import Projection


StateT = TypeVar("StateT")

_log = logging.getLogger(__name__)

_SWEEP = "sweep"
_SWEEP_PAGE = 2000
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


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
        self._feed = Feed(
            projection,
            self._watermarks,
            partitions=partitions,
            batch_size=batch_size,
            overlap=timedelta(seconds=overlap),
        )
        self._poll = poll
        self._sweep_every = timedelta(seconds=sweep_every)
        self._next_look = 0.0
        self._sweeping: Iterator[Swept] | None = None
        self._hooks = hooks or Hooks()
        self._wait = self._waiting()

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
        """Search once for rows that are behind; return the number of rows applied.

        Rows of a partition that another worker has taken are left to it.
        """
        with self._connections.autocommit() as connection:
            shares = self._feed.look(connection)
        first = randrange(self._partitions)  # noqa: S311 (spreads the workers)
        shares.sort(key=lambda share: (share.partition - first) % self._partitions)
        return sum(map(self._follow, shares))

    def sweep(self) -> int:
        """Compare all rows now; return the number of rows repaired."""
        return sum(page.applied + page.removed for page in self._sweep())

    def _follow(self, share: Share) -> int:
        name = self._feed.name_of(share.partition)
        with self._connections.transaction("READ COMMITTED") as connection:
            taken = self._watermarks.take(connection, name, initial=share.watermark)
            if taken is None:
                return 0
            behind = self._feed.still_behind(connection, share.rows)
            batch = self._apply(connection, behind)
            self._watermarks.advance(connection, name, share.watermark)
        self._feed.done(share)
        if batch.applied or batch.failed:
            notify(self._hooks.projected, batch)
        return batch.applied

    def _apply(self, connection: Connection, behind: list[Behind]) -> ProjectionBatch:
        by_key = {row.workflow_key: row for row in behind}
        failures = []
        log = log_failure(self._projection)

        def note(workflow_key: Key, error: BaseException) -> None:
            # Skipped until its next version, or the next sweep.
            failures.append(workflow_key)
            self._feed.failed[workflow_key] = by_key[workflow_key]
            log(workflow_key, error)

        rows = project(connection, self._projection, by_key, note)
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
        self._feed.failed.clear()
        yield from sweep(self._bind, self._projection, batch_size=_SWEEP_PAGE)
