"""History: read, compare, restore and trim the versions of a workflow.

::

    class OrderHistory(HistoryMixin, Base):
        __tablename__ = "order_history"


    keep_history(Order, OrderHistory)

From then on each commit of an Order, by a flush or by ``try_commit``, adds a row to
``order_history`` in its own transaction (:mod:`.table`).

Rows are added, and deleted only by :func:`trim_history`. A deleted workflow keeps its
history. A re-created one starts at version 1 again; a version number then means the
latest row of that number. SQL by hand and bulk inserts of the ORM write no history.

A session whose listeners may add criteria (``with_loader_criteria``) reads the history
of the rows that it may see. That of a deleted workflow, which no criteria can judge, is
read by a session without such a listener. :func:`trim_history` trims all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine, delete, func, select, tuple_, type_coerce
from sqlalchemy.orm import Session, sessionmaker

from .._concurrency import require_at_least
from ..errors import StateConflict, VersionNotInHistory
from ..orm.criteria import filtering, visible
from ..orm.entity import statements_of
from ..row.columns import columns_of
from ..row.engine_profiles import profile_on
from ..row.keys import StoredKey
from ..row.reads import snapshot_of
from ..row.sql import CANONICAL_COLUMNS
from ..store.api import Entity, connection_of, try_commit
from ..store.connections import Connections
from ..values.keys import Key
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from .diff import diff_json
from .table import history_of

if TYPE_CHECKING:
    from sqlalchemy import Select


StateT = TypeVar("StateT")


def get_version(
    session: Session, entity: Entity[StateT], workflow_key: Key, version: int
) -> WorkflowSnapshot[StateT]:
    """Read *version* of a workflow as it was committed.

    The snapshot's ``updated_at`` is the time at which it was written. Raises
    VersionNotInHistory if the version is not in the history.
    """
    query = _Query(entity, workflow_key)
    wanted = query.rows.where(query.table.c.version == version)
    found = query.read(session, wanted.limit(1))
    if not found:
        raise VersionNotInHistory(query.entity, workflow_key, version)
    return found[0]


def get_state_as_of(
    session: Session, entity: Entity[StateT], workflow_key: Key, time: datetime
) -> WorkflowSnapshot[StateT]:
    """Read the version of a workflow that was current at *time*.

    *time* must have a time zone. A version has the time of its write, shortly before
    its COMMIT. Raises VersionNotInHistory if the history has none that old.
    """
    if time.tzinfo is None:
        raise ValueError("time must have a time zone")
    query = _Query(entity, workflow_key)
    wanted = query.rows.where(query.table.c.committed_at <= time)
    found = query.read(session, wanted.limit(1))
    if not found:
        raise VersionNotInHistory(query.entity, workflow_key, None)
    return found[0]


def list_versions(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key,
    *,
    limit: int | None = None,
) -> list[WorkflowSnapshot[StateT]]:
    """Read the versions of a workflow in its history, the newest first."""
    query = _Query(entity, workflow_key)
    if limit is not None:
        require_at_least(0, limit=limit)
    return query.read(session, query.rows.limit(limit))


def diff_versions(
    session: Session,
    entity: Entity[Any],
    workflow_key: Key,
    from_version: int,
    to_version: int,
) -> list[dict[str, Any]]:
    """Return the JSON Patch (RFC 6902) that leads from one version to another.

    Their states are compared in the current shape, whatever the schema version they
    were written with. Needs the extra ``history``.
    """
    before, after = (
        get_version(session, entity, workflow_key, version).state
        for version in (from_version, to_version)
    )
    dump = statements_of(entity).state_type.dump
    return diff_json(dump(before), dump(after))


def restore_version(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key,
    version: int,
    *,
    expected_version: int | RowVersion,
    provenance: Provenance | Mapping[str, Any],
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Commit the state of *version* again, as a new version.

    It is a :func:`~sa_wfstate.try_commit` like any other: checked against
    *expected_version*, counted, and part of the history. With *expected_version* 0 a
    deleted workflow comes back.
    """
    return try_commit(
        session,
        entity,
        workflow_key,
        expected_version=expected_version,
        state=get_version(session, entity, workflow_key, version).state,
        provenance=provenance,
    )


def trim_history(
    bind: Engine | sessionmaker[Any],
    entity: Entity[Any],
    *,
    before: datetime | timedelta,
    batch_size: int = 1000,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Delete the versions committed before *before*, and return how many there were.

    A timedelta is the minimum age, by the server's clock, which also dates the
    versions.

    The newest version of each workflow stays, so that its state at any later time is
    known. Each batch of *batch_size* rows is a transaction of its own and skips locked
    rows; *progress* is called with the number of rows deleted so far.
    """
    require_at_least(1, batch_size=batch_size)
    if isinstance(before, datetime) and before.tzinfo is None:
        raise ValueError("before must have a time zone")
    statements = statements_of(entity)
    table = history_of(statements)
    newer = table.alias()
    superseded = (
        select(newer.c.version)
        .where(
            newer.c.workflow_key == table.c.workflow_key,
            newer.c.committed_at > table.c.committed_at,
        )
        .exists()
    )
    connections = Connections(bind, statements.mapper)
    if isinstance(before, timedelta):
        with connections.transaction() as connection:
            before = connection.scalars(select(func.now())).one() - before
    identity = tuple_(*table.primary_key)
    page = (
        select(*table.primary_key, (table.c.committed_at < before) & superseded)
        .order_by(*table.primary_key)
        .limit(batch_size)
    )
    deleted, rows = 0, None
    while rows is None or len(rows) == batch_size:
        with connections.transaction("READ COMMITTED") as connection:
            after = page if rows is None else page.where(identity > tuple(rows[-1][:3]))
            if profile_on(connection).locks_many:
                after = after.with_for_update(skip_locked=True, of=table)
            rows = connection.execute(after).all()
            old = [tuple(row[:3]) for row in rows if row[3]]
            connection.execute(delete(table).where(identity.in_(old)))
        deleted += len(old)
        if progress is not None:
            progress(deleted)
    return deleted


class _Query:
    """The history of one workflow, newest first, read as snapshots."""

    def __init__(self, entity: Entity[Any], workflow_key: Key) -> None:
        self._statements = statements_of(entity)
        self.entity = self._statements.entity
        self._statements.check_key(workflow_key)
        self._key = workflow_key
        self.table = table = history_of(self._statements)
        self._stored = StoredKey(self._statements.key_type, table.c.workflow_key)
        columns = [
            table.c.workflow_key
            if name == "workflow_key"
            else type_coerce(
                table.c.committed_at if name == "updated_at" else table.c[name],
                getattr(columns_of(self._statements.table), name).type,
            ).label(name)
            for name in CANONICAL_COLUMNS
        ]
        self.rows: Select[Any] = (
            select(*columns)
            .where(table.c.workflow_key == self._stored.store(workflow_key))
            .order_by(table.c.committed_at.desc(), table.c.version.desc())
        )

    def read(self, session: Session, rows: Select[Any]) -> list[WorkflowSnapshot[Any]]:
        connection = connection_of(session, self._statements, [self._key], reads=True)
        if session.autoflush:
            session.flush()
        if filtering(session) and not visible(session, self._statements, [self._key]):
            return []
        load = self._stored.load
        return [
            snapshot_of((load(key), *row)) for key, *row in connection.execute(rows)
        ]
