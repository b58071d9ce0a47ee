"""ProjectionStore: read a projection at a required version.

A projection that a worker keeps lags behind the commits. For read-your-writes, require
the version that a commit returned.
"""

from __future__ import annotations

from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from sqlalchemy import Engine, bindparam, select

from .._concurrency import Blocking, Waiting
from ..errors import ProjectionBehind, WorkflowNotFound
from ..store.connections import Connections
from ..values.row_version import RowVersion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import sessionmaker

    from ..values.keys import Key
    from .definition import Projection


StateT = TypeVar("StateT")

Fallback = Literal["canonical", "raise", "stale"]
"""What to do when the projection is behind."""

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.025


class ProjectionSource(StrEnum):
    """Where a row came from."""

    PROJECTION = "projection"
    """The projection, at the required version or a newer one."""

    CANONICAL = "canonical"
    """The canonical row: the projection was behind, its function was called instead."""

    STALE = "stale"
    """The projection, at an older version than was required."""


class ProjectionRead(NamedTuple):
    """A row that was read: *values* are its columns by name."""

    workflow_key: Key
    version: int
    source: ProjectionSource
    values: Mapping[str, Any]


class ProjectionStore(Generic[StateT]):
    """Read the rows of *projection*, each at a required version.

    *bind* is an Engine, or a sessionmaker where sessions choose their engine.

    >>> store = ProjectionStore(engine, orders)  # doctest: +SKIP
    >>> store.get("order-42", required_version=7).source  # doctest: +SKIP
    <ProjectionSource.PROJECTION: 'projection'>
    """

    _waiting: ClassVar[type[Waiting]] = Blocking

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        projection: Projection[StateT],
    ) -> None:
        self._projection = projection
        self._connections = Connections(bind, projection.statements.mapper)
        self._wait = self._waiting()
        table = projection.table
        mine = table.c.workflow_key == bindparam("key")
        self._row = select(table).where(mine)
        self._version = select(table.c.version).where(mine)

    def get(
        self,
        workflow_key: Key,
        required_version: int | RowVersion | None = None,
        max_wait: float = 0.1,
        *,
        fallback: Fallback = "canonical",
    ) -> ProjectionRead:
        """Read the row of *workflow_key*, of *required_version* or a newer one.

        With the version, or the token, that a commit returned, a writer reads its own
        write. If the projection is behind, this waits at most *max_wait* seconds. Then
        *fallback* decides: read the canonical row and make the row from it, raise
        ProjectionBehind, or return the row as it is.

        Raises WorkflowNotFound if there is no such workflow, or, with "stale", no row
        for it yet; ProjectionBehind, too, if the canonical row itself is behind, as it
        can be on a standby.
        """
        entity = self._projection.statements.entity
        self._projection.statements.check_key(workflow_key)
        if not max_wait >= 0:
            raise ValueError(f"max_wait must be 0 or more, got {max_wait}")
        required = RowVersion.of(required_version or 1).version
        row = self._wait_for(workflow_key, required, max_wait)
        found = 0 if row is None else row["version"]
        if row is not None and found >= required:
            return self._read(row, ProjectionSource.PROJECTION)
        if fallback == "canonical":
            return self._canonical(workflow_key, required)
        if fallback == "raise":
            raise ProjectionBehind(entity, workflow_key, required, found)
        if row is None:
            raise WorkflowNotFound(entity, workflow_key)
        return self._read(row, ProjectionSource.STALE)

    def get_version(self, workflow_key: Key) -> int | None:
        """Return the version of the row of *workflow_key*, None without a row."""
        self._projection.statements.check_key(workflow_key)
        key = self._projection.stored_key.store(workflow_key)
        keys = [workflow_key]
        with self._connections.autocommit(keys, reads=True) as connection:
            found = connection.execute(self._version, {"key": key})
            version: int | None = found.scalar()
        return version

    def _wait_for(
        self, workflow_key: Key, version: int, max_wait: float
    ) -> Mapping[str, Any] | None:
        key = self._projection.stored_key.store(workflow_key)
        deadline, pause = monotonic() + max_wait, _FIRST_PAUSE
        while True:
            # No connection is held while waiting.
            keys = [workflow_key]
            with self._connections.autocommit(keys, reads=True) as connection:
                found = connection.execute(self._row, {"key": key}).mappings()
                row = found.first()
            left = deadline - monotonic()
            if left <= 0 or (row is not None and row["version"] >= version):
                return None if row is None else dict(row)
            self._wait.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _canonical(self, workflow_key: Key, version: int) -> ProjectionRead:
        statements = self._projection.statements
        with self._connections.autocommit([workflow_key]) as connection:
            snapshot = statements.read(connection, workflow_key)
        if snapshot is None:
            raise WorkflowNotFound(statements.entity, workflow_key)
        if snapshot.version < version:
            raise ProjectionBehind(
                statements.entity, workflow_key, version, snapshot.version
            )
        return self._read(self._projection.row(snapshot), ProjectionSource.CANONICAL)

    def _read(self, row: Mapping[str, Any], source: ProjectionSource) -> ProjectionRead:
        key = self._projection.stored_key.load(row["workflow_key"])
        return ProjectionRead(key, row["version"], source, dict(row))
