"""Readings: read the rows of batches and the dedup log, in few statements."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Text, bindparam, func, select, true

from ..errors import ActionIdReused, PayloadError
from ..orm.criteria import read_visible
from ..row.claims import refuse_reuse
from ..store.connections import IDLE_LIMIT
from .action_batch import ActionResult, replayed
from .logged_reads import LoggedReads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from ..row.claims import DedupLog, Processed
    from ..row.statements import Statements
    from ..store.connections import Connections
    from ..store.groups import Member
    from ..values.keys import Key
    from ..values.snapshot import WorkflowSnapshot
    from .action_batch import ActionBatch, Baseline
    from .reductions import Reductions


StateT = TypeVar("StateT")


class Reading(NamedTuple):
    """The row of a batch, and which actions of its group were processed before."""

    snapshot: WorkflowSnapshot[Any] | None
    processed: Mapping[tuple[str, Any], Processed]


class Readings(Generic[StateT]):
    """Read the workflows of one class, and *log*."""

    def __init__(
        self,
        statements: Statements[StateT],
        connections: Connections,
        reductions: Reductions[StateT],
        log: DedupLog | None,
    ) -> None:
        self._statements = statements
        self._connections = connections
        self._reductions = reductions
        self._log = log
        self._logged = None if log is None else LoggedReads(statements, log)
        limit = bindparam("wfs_idle_limit", type_=Text())
        setting = func.set_config(IDLE_LIMIT, limit, true())
        # A subquery runs first: so the limit holds as soon as the row is locked.
        limited = select(setting).scalar_subquery().is_not(None)
        self._lock_one = statements.sql.lock_one.where(limited)

    def read_group(self, members: list[Member[ActionBatch, Reading]]) -> None:
        """Read what the batches of *members* need."""
        readings = self.read_all([member.item for member in members])
        for member, reading in zip(members, readings, strict=True):
            member.settle(reading)

    def read_all(self, batches: Sequence[ActionBatch]) -> list[Reading]:
        """Read what *batches*, all of one shard, need, without a transaction."""
        keys = [batch.key for batch in batches]
        actions = _actions_of(batches)
        logged = self._logged
        if logged and not (logged.take(keys, actions) and self._connections.plain()):
            logged = None
        with self._connections.autocommit(keys) as connection:
            if logged is None:
                return self.read(connection, batches)
            rows, processed = logged.read(connection, keys, actions)
        return [Reading(rows.get(key), processed) for key in keys]

    def read(
        self,
        connection: Connection,
        batches: Sequence[ActionBatch],
        *,
        lock: bool = False,
    ) -> list[Reading]:
        """Read what *batches* need; with *lock*, lock the row of the only one."""
        keys = [batch.key for batch in batches]
        session = self._connections.filtering(connection)
        rows = read_visible(connection, self._statements, keys, session, lock=lock)
        processed: Mapping[tuple[str, Any], Processed] = {}
        if self._log is not None:
            processed = self._log.lookup(connection, _actions_of(batches))
        return [Reading(rows.get(key), processed) for key in keys]

    def read_locked(
        self, connection: Connection, batches: Sequence[ActionBatch], limit: float
    ) -> Reading:
        """Lock the row of *batches*, for *limit* idle seconds at most, and read it."""
        parameters = self._statements.keys.parameters(batches[0].key)
        parameters["wfs_idle_limit"] = f"{ceil(limit * 1e3)}"
        row = connection.execute(self._lock_one, parameters).first()
        snapshot = None if row is None else self._statements.snapshot_of(row)
        processed: Mapping[tuple[str, Any], Processed] = {}
        if self._log is not None:
            # By a statement of its own: the first may have waited for the lock.
            processed = self._log.lookup(connection, _actions_of(batches))
        return Reading(snapshot, processed)

    def baseline(self, batch: ActionBatch, reading: Reading) -> Baseline:
        """Settle the actions of *batch* that were processed; return its baseline."""
        self.replay(batch, reading)
        return self._reductions.baseline(batch, reading.snapshot)

    def replay(self, batch: ActionBatch, reading: Reading) -> None:
        """Settle the actions of *batch* that were processed."""
        if not reading.processed:
            return
        entity = self._statements.entity
        for request in list(batch.requests):
            processed = reading.processed.get((batch.key, request.item.action_id))
            if processed is None:
                continue
            batch.requests.remove(request)
            try:
                request_hash = request.item.payload_hash()
                refuse_reuse(batch.key, request.item.action_id, processed, request_hash)
            except (ActionIdReused, PayloadError) as error:
                request.fail(error)
            else:
                version = processed.version
                outcome = replayed(entity, batch.key, version, reading.snapshot)
                request.settle(ActionResult(outcome, ()))


def _actions_of(batches: Sequence[ActionBatch]) -> list[tuple[Key, UUID]]:
    return [
        (batch.key, request.item.action_id)
        for batch in batches
        for request in batch.requests
    ]
