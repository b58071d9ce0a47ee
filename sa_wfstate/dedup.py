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
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Engine,
    Index,
    Integer,
    Interval,
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
from .errors import ActionIdReused
from .orm.routing import connection_for
from .payload.actions import digest, uuid_of
from .row.arrays import bound_table, of_keys
from .row.auxiliary import AuxiliaryTable
from .row.chunks import chunks
from .row.engine_profiles import profile_of, profile_on
from .row.keys import TEXT_KEY, KeyType, StoredKey, checked_type
from .store.connections import Connections
from .values.keys import Key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .row.engine_profiles import EngineProfile

__all__ = ["ActionDedupMixin", "cleanup_expired", "remember", "should_process"]


TTL = timedelta(hours=6)
"""How long a processed action is kept by default, at least."""


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


class Claim(NamedTuple):
    """The row to be written for one action."""

    workflow_key: Key
    action_id: UUID
    result_hash: str
    request_hash: str | None
    version: int | None


class Processed(NamedTuple):
    """The row of one processed action."""

    request_hash: str | None
    version: int | None
    processed_at: datetime


class DedupLog:
    """The statements of one log, built once."""

    def __init__(
        self,
        log: type[ActionDedupMixin],
        ttl: timedelta = TTL,
        key_type: KeyType = TEXT_KEY,
    ) -> None:
        table = inspect(log).local_table
        assert isinstance(table, Table)  # noqa: S101
        self.table = table
        self.ttl = ttl
        self.stored = StoredKey(key_type, table.c.workflow_key)
        self._inserts: dict[str, Any] = {}
        c = table.c
        self._found = (c.workflow_key, c.action_id, c.processed_at)
        # A default in Python would be called once for all rows of an array.
        self.takes_arrays = not any(getattr(x.default, "is_callable", 0) for x in c)
        lookup = select(*self._found[:2], c.request_hash, c.version, c.processed_at)
        self._lookup = lookup.where(
            tuple_(*self._found[:2]).in_(bindparam("pairs", expanding=True))
        )
        pairs = bound_table({"key": c.workflow_key.type, "id": c.action_id.type})
        self._lookup_many = lookup.join(
            pairs, of_keys((c.workflow_key, pairs.c.key)) & (c.action_id == pairs.c.id)
        )

    def lookup(
        self, connection: Connection, actions: Sequence[tuple[Key, UUID]]
    ) -> dict[tuple[Any, UUID], Processed]:
        """Return the rows of *actions*, given as workflow key and action id."""
        found: dict[tuple[Any, UUID], Processed] = {}
        load, store = self.stored.load, self.stored.store
        for chunk in chunks(actions):
            pairs = [(store(key), action_id) for key, action_id in chunk]
            if len(pairs) > 1 and profile_of(connection.dialect).is_postgresql:
                keys, ids = ([pair[n] for pair in pairs] for n in (0, 1))
                arrays = {"wfs_key": keys, "wfs_id": ids}
                rows = connection.execute(self._lookup_many, arrays)
            else:
                rows = connection.execute(self._lookup, {"pairs": pairs})
            found |= {(load(row[0]), row[1]): Processed(*row[2:]) for row in rows}
        return found

    def claim(
        self, connection: Connection, claims: Sequence[Claim]
    ) -> dict[tuple[str, UUID], datetime]:
        """Write those of *claims* that are new; return their times.

        By key and action id. If one is missing, the caller must roll back.
        """
        profile = profile_of(connection.dialect)
        name = profile.name
        until: dict[str, Any] = {"wfs_ttl": self.ttl}
        if not profile.is_postgresql:  # There is no clock of a server.
            until = {"expires_at": datetime.now(UTC) + self.ttl}
        store, load = self.stored.store, self.stored.load
        claims = [claim._replace(workflow_key=store(claim[0])) for claim in claims]
        parameters: Any = [claim._asdict() | until for claim in claims]
        # For a list of one SQLAlchemy would take the slower path of many rows.
        if len(claims) == 1:
            parameters = parameters[0]
        elif profile.is_postgresql and self.takes_arrays:
            name = "arrays"
            columns = zip(Claim._fields, zip(*claims, strict=True), strict=True)
            parameters = until | {f"wfs_{field}": list(each) for field, each in columns}
        if name not in self._inserts:
            self._inserts[name] = self._insert(profile, arrays=name == "arrays")
        written = connection.execute(self._inserts[name], parameters)
        return {(load(key), action_id): at for key, action_id, at in written}

    def _insert(self, profile: EngineProfile, *, arrays: bool) -> Any:
        insert = profile.insert(self.table)
        until = func.now() + bindparam("wfs_ttl", type_=Interval())
        if arrays:
            new = bound_table({f: self.table.c[f].type for f in Claim._fields})
            rows = select(*(new.c[field] for field in Claim._fields), until)
            insert = insert.from_select([*Claim._fields, "expires_at"], rows)
        elif profile.is_postgresql:
            insert = insert.values(expires_at=until)
        return insert.on_conflict_do_nothing().returning(*self._found)


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


def refuse_reuse(
    workflow_key: Key, action_id: UUID, processed: Processed, request_hash: str
) -> None:
    """Raise ActionIdReused if the action was *processed* with another payload."""
    if processed.request_hash not in {None, request_hash}:
        raise ActionIdReused(workflow_key, action_id)
