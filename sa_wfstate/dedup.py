"""Deduplication log: makes actions idempotent, by their id as idempotency key.

A row of the log is the *claim* of an action: its primary key ``(workflow_key,
action_id)`` can be written once. ReducerService writes it in the transaction of the
commit, right after the compare-and-set: by then it holds the lock of the row, so claims
do not wait for each other and cannot deadlock.

A loop of the application calls :func:`should_process` and :func:`remember`. The
guarantee depends on the place:

* in one transaction with the effect, rolled back if remember() returns False: an action
  takes effect exactly once;
* remember() after the effect is committed: a crash in between, or a concurrent second
  delivery, lets it take effect twice;
* remember() committed before the effect: a crash in between loses the action.

A row may be deleted once it has expired, see :func:`cleanup_expired`; until then it
counts. An action delivered after that is a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    Engine,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    inspect,
    select,
    tuple_,
)
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.sql.elements import conv

from ._concurrency import require_at_least
from .orm.routing import connection_for
from .payload.actions import digest, uuid_of
from .row.auxiliary import AuxiliaryTable
from .row.chunks import chunks
from .row.claims import TTL, Claim, DedupLog, refuse_reuse
from .row.engine_profiles import profile_on
from .row.keys import checked_type
from .store.connections import Connections
from .values.keys import Key

__all__ = ["ActionDedupMixin", "cleanup_expired", "remember", "should_process"]


class ActionDedupMixin(AuxiliaryTable):
    """The columns of a deduplication log, for a mapped class of the application.

    >>> class OrderActions(ActionDedupMixin, Base):  # doctest: +SKIP
    ...     __tablename__ = "order_actions"

    It adds the index on ``expires_at`` that cleanup_expired() needs.
    """

    workflow_key: Mapped[str] = mapped_column(Text, primary_key=True, sort_order=-70)
    action_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, sort_order=-60)

    result_hash: Mapped[str] = mapped_column(Text, sort_order=-50)
    """SHA-256 of the state that the action led to."""

    processed_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), sort_order=-40
    )
    expires_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), sort_order=-30
    )

    request_hash: Mapped[str | None] = mapped_column(Text, sort_order=-20)
    """SHA-256 of the action's payload; if NULL, any payload is accepted."""

    version: Mapped[int | None] = mapped_column(BigInteger, sort_order=-10)
    """The version that the action's commit wrote."""

    @classmethod
    def _complete_table(cls, table: Table) -> None:
        name = conv(f"idx_{table.name}_expires")
        if name not in {index.name for index in table.indexes}:
            Index(name, table.c.expires_at)


def should_process(
    session: Session,
    log: type[ActionDedupMixin],
    workflow_key: Key,
    action_id: UUID | str | int,
    *,
    payload: str | None = None,
) -> bool:
    """Return whether the action is not in *log* yet.

    Another delivery may be processed at the same time; only :func:`remember` decides.
    *action_id* is as in an :class:`~sa_wfstate.Action`: any UUID, text or number.
    *payload* is the action's payload as JSON; a different one under the same id raises
    ActionIdReused.
    """
    key_type = checked_type(log.__name__, workflow_key)
    connection = connection_for(session, inspect(log), [workflow_key])
    id_ = uuid_of(action_id)
    own = DedupLog(log, key_type=key_type)
    found = own.lookup(connection, [(workflow_key, id_)])
    if payload is not None:
        for processed in found.values():
            refuse_reuse(workflow_key, id_, processed, digest(payload))
    return not found


def remember(
    session: Session,
    log: type[ActionDedupMixin],
    workflow_key: Key,
    action_id: UUID | str | int,
    *,
    result: str,
    version: int | None = None,
    payload: str | None = None,
    ttl: timedelta = TTL,
) -> bool:
    """Record in *log* that the action was processed; return False if it was before.

    It waits for a concurrent transaction that records the same action. If it returns
    False, roll back the effect of the action. *result* and *payload* are JSON, of which
    digests are stored.
    """
    key_type = checked_type(log.__name__, workflow_key)
    connection = connection_for(session, inspect(log), [workflow_key])
    request_hash = None if payload is None else digest(payload)
    id_ = uuid_of(action_id)
    claim = Claim(workflow_key, id_, digest(result), request_hash, version)
    return bool(DedupLog(log, ttl, key_type).claim(connection, [claim]))


def cleanup_expired(
    bind: Engine | sessionmaker[Any],
    log: type[ActionDedupMixin],
    *,
    batch: int = 5_000,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Delete the rows of *log* that have expired; return how many.

    They are deleted in batches of *batch* rows, each in a transaction of its own, which
    skips locked rows; so several calls can run at once. After each batch *progress* is
    called with the number of rows deleted so far. The clock of the server decides which
    rows have expired.
    """
    require_at_least(1, batch=batch)
    table: Any = inspect(log).local_table
    key = (table.c.workflow_key, table.c.action_id)
    expired = (
        select(*key)
        .where(table.c.expires_at < bindparam("now"))
        .limit(bindparam("batch", type_=Integer()))
    )
    # A CTE is evaluated once. A subquery may be again, and skips then what is deleted.
    of_batch = expired.with_for_update(skip_locked=True).cte("wfs_batch")
    statement = delete(table).where(*(each == of_batch.c[each.name] for each in key))
    connections = Connections(bind, inspect(log))
    with connections.transaction() as connection:
        now = connection.scalar(select(func.now()))
    deleted = 0
    while True:
        with connections.transaction() as connection:
            profile = profile_on(connection)
            size = min(batch, profile.rows or batch)
            given = {"now": now, "batch": size}
            if not profile.locks_many:
                # No locks: another call may delete some of them first.
                found = connection.execute(expired, given).all()
                due = table.c.expires_at < now
                for rows in chunks([tuple(row) for row in found]):
                    mine = delete(table).where(tuple_(*key).in_(rows), due)
                    connection.execute(mine)
                count = len(found)
            else:
                count = connection.execute(statement, given).rowcount
        deleted += count
        if progress is not None:
            progress(deleted)
        if count < size:
            return deleted
