"""Sweeps over a whole projection: repair it, or rebuild it.

A sweep reads the keys in pages, each in its own transaction, while commits and workers
continue. It compares versions, so it finds every row that was missed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Engine, bindparam, delete, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from .._concurrency import require_at_least
from ..hooks.application_errors import stops, trace
from ..retry import ErrorKind, RetryPolicy, classify
from ..row.columns import columns_of
from ..row.engine_profiles import profile_of
from ..store.connections import Connections
from .definition import Projection
from .lag import joined

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ..values.keys import Key
    from ..values.snapshot import WorkflowSnapshot


_log = logging.getLogger(__name__)

_RETRY = RetryPolicy.for_lock_wait()


class Swept(NamedTuple):
    """The counts of a page: keys *seen*, rows *applied*, *failed* and *removed*."""

    seen: int
    applied: int
    failed: int
    removed: int


def rebuild(
    bind: Engine | sessionmaker[Any],
    projection: Projection[Any],
    *,
    batch_size: int = 1000,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Rewrite every row of *projection*, and return the number of workflows seen.

    Use it for a new table or a changed function. Commits and workers continue
    meanwhile; a row that is newer by then is kept. *progress* is called with the number
    of workflows seen so far. A page is retried after a transient error, such as a
    deadlock with a commit, for 30 seconds at most. An error of the function is raised.
    """
    seen = 0
    for page in sweep(bind, projection, batch_size=batch_size, everything=True):
        seen += page.seen
        if progress is not None:
            progress(seen)
    return seen


def sweep(
    bind: Engine | sessionmaker[Any],
    projection: Projection[Any],
    *,
    batch_size: int,
    everything: bool = False,
) -> Iterator[Swept]:
    """Repair rows of *projection* that differ, in pages of *batch_size* keys.

    With *everything* every row is rewritten, a page is retried after a transient error,
    and any other error is raised.
    """
    require_at_least(1, batch_size=batch_size)
    connections = Connections(bind, projection.statements.mapper)
    pages = _Pages(projection, batch_size)

    def repair(after: Any) -> tuple[Swept, Any]:
        with connections.transaction("READ COMMITTED") as connection:
            return pages.sweep(connection, after, everything=everything)

    first, after = True, None
    while first or after is not None:
        first, page = False, partial(repair, after)
        # A worker retries by itself: it must not block while it waits.
        swept, after = (
            _RETRY.call(page, retry_if=_is_transient) if everything else page()
        )
        yield swept


def project(
    connection: Connection,
    projection: Projection[Any],
    workflow_keys: Collection[Key],
    failed: Callable[[Key, BaseException], object],
) -> list[dict[str, Any]]:
    """Make the rows of *workflow_keys* from their current versions.

    A row that cannot be read or projected goes to *failed*; the others are made.
    """
    rows = []
    for key, snapshot in _read(connection, projection, workflow_keys, failed).items():
        try:
            rows.append(projection.row(snapshot))
        except BaseException as error:
            if stops(error):
                raise
            failed(key, error)
    return rows


def write(
    connection: Connection,
    projection: Projection[Any],
    rows: list[dict[str, Any]],
    failed: Callable[[Key, BaseException], object],
) -> set[Key]:
    """Write *rows* over older ones; call *failed* for those that are refused."""
    if not profile_of(connection.dialect).savepoints:
        return projection.write(connection, rows, over="older")
    try:
        with connection.begin_nested():
            return projection.write(connection, rows, over="older")
    except Exception as error:  # also a driver's own, for a value
        if stops(error) or classify(error) is not ErrorKind.FATAL:
            raise
        if len(rows) == 1:
            failed(projection.stored_key.load(rows[0]["workflow_key"]), error)
            return set()
    written: set[Key] = set()
    for row in rows:
        written |= write(connection, projection, [row], failed)
    return written


def log_failure(projection: Projection[Any]) -> Callable[[Key, BaseException], None]:
    """Return a function that logs a row that could not be projected."""

    def log(workflow_key: Key, error: BaseException) -> None:
        entity = projection.statements.entity
        text = "%s %r cannot be projected: %s"
        _log.error(text, entity, workflow_key, trace(error))

    return log


def _read(
    connection: Connection,
    projection: Projection[Any],
    workflow_keys: Collection[Key],
    failed: Callable[[Key, BaseException], object],
) -> dict[Key, WorkflowSnapshot[Any]]:
    read_many = projection.statements.read_many
    if not workflow_keys:
        return {}
    try:
        return read_many(connection, workflow_keys)
    except Exception as error:
        if not _is_of_a_row(error):
            raise
    found: dict[Key, WorkflowSnapshot[Any]] = {}
    for key in workflow_keys:
        try:
            found |= read_many(connection, [key])
        except Exception as error:
            if not _is_of_a_row(error):
                raise
            failed(key, error)
    return found


def _is_of_a_row(error: Exception) -> bool:
    """Return whether reading a row raised *error*; a validator may raise anything."""
    of_database = isinstance(error, DBAPIError)
    return not of_database and not stops(error) and classify(error) is ErrorKind.FATAL


def _is_transient(error: BaseException) -> bool:
    # Other classes, such as OSError, may come from the projection's function.
    return isinstance(error, SQLAlchemyError) and classify(error) is ErrorKind.TRANSIENT


def _raise(_: Key, error: BaseException) -> None:
    raise error


class _Pages:
    """The statements of a sweep."""

    def __init__(self, projection: Projection[Any], size: int) -> None:
        self._projection = projection
        self._size = size
        canonical, mine = columns_of(projection.statements.table), projection.table
        self._keys = keys = projection.statements.keys
        # One statement, so one snapshot: a projection that is ahead of its workflow
        # belongs to the row before it was re-created.
        self._page = (
            select(keys.value, canonical.version, mine.c.version)
            .select_from(joined(projection))
            .where(projection.statements.own_rows)
            .order_by(*keys.columns)
            .limit(size)
        )
        self._remove_ahead = delete(mine).where(
            mine.c.workflow_key == bindparam("key"),
            mine.c.version == bindparam("projected"),
        )
        stored = keys.stored(projection.stored_key)
        present = (
            select(keys.value)
            .where(projection.statements.own_rows, stored == mine.c.workflow_key)
            .exists()
        )
        self._remove_orphans = delete(mine).where(~present)

    def sweep(
        self, connection: Connection, after: Any, *, everything: bool
    ) -> tuple[Swept, Any]:
        """Repair the page after the key *after*; return its last key, if it is full."""
        page = connection.execute(self._page.where(self._keys.after(after))).all()
        last = page[-1][0] if len(page) == self._size else None
        wrong = [row for row in page if everything or row[1] != row[2]]
        for key, version, projected in wrong:
            if projected is not None and projected > version:
                stored = self._projection.stored_key.store(key)
                parameters = {"key": stored, "projected": projected}
                connection.execute(self._remove_ahead, parameters)
        failures: list[Key] = []

        def note(workflow_key: Key, error: BaseException) -> None:
            failures.append(workflow_key)
            log_failure(self._projection)(workflow_key, error)

        rows = project(
            connection,
            self._projection,
            [row[0] for row in wrong],
            _raise if everything else note,
        )
        if everything:
            written = self._projection.write(connection, rows, over="same")
        else:
            written = write(connection, self._projection, rows, note)
        removed = self._remove(connection, after, last)
        return Swept(len(page), len(written), len(failures), removed), last

    def _remove(self, connection: Connection, after: Any, last: Any) -> int:
        """Remove rows without a workflow; return their number.

        Those of the page, if keys and stored keys have one order, else in the last page
        those of all.
        """
        orphans, stored = self._remove_orphans, self._projection.table.c.workflow_key
        if self._projection.stored_key.same:
            if after is not None:
                orphans = orphans.where(stored > after)
            if last is not None:
                orphans = orphans.where(stored <= last)
        elif last is not None:
            return 0
        return connection.execute(orphans).rowcount
