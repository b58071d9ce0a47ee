"""Claimed writes: compare and set, and claim, in one statement that commits by itself.

::

    WITH wfs_written AS (
        UPDATE orders SET version = version + 1, … WHERE workflow_key = $1 …
        RETURNING updated_at, version
    ), wfs_claimed AS (
        INSERT INTO order_actions (workflow_key, action_id, version, …)
        SELECT $1, $2, wfs_written.version, … FROM wfs_written
    )
    SELECT updated_at, version FROM wfs_written

BEGIN, COMMIT and a statement for each table are four round trips; this is one. A row
that is not written claims nothing. A claim is written when its row is locked, so that
claims do not wait for each other. One that is in the log already fails (SQLSTATE 23505)
and undoes the whole statement.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sqlalchemy import (
    BigInteger,
    Interval,
    Text,
    bindparam,
    exists,
    func,
    not_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert

from ..commit_listeners import listeners_of
from ..row.arrays import bound_table
from ..row.batch import Shape, answer_of, arrays_of, written_of
from ..row.chunks import CHUNK
from ..row.columns import evaluates
from ..row.direct import first_row
from ..row.engine_profiles import PROFILES
from ..row.triggers import HasTriggers
from ..values.write import Written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import CTE, Connection

    from ..row.claims import Claim, DedupLog
    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.write import Batch, Write


StateT = TypeVar("StateT")

_HASHES: Final = ("result", "request")
_COLUMNS: Final = ("result_hash", "request_hash")


class ClaimedWrites(Generic[StateT]):
    """The statements that write workflows of one class and their claims in *log*."""

    def __init__(self, statements: Statements[StateT], log: DedupLog) -> None:
        self._statements = statements
        self._log = log
        self._single: dict[tuple[bool, bool], Any] = {}
        self._many: dict[tuple[Shape, bool, bool], Any] = {}
        table, columns = statements.table, statements.keys.columns
        # Then one array has the keys of both tables.
        self._alike = len(columns) == 1 and log.stored.binds_as(*columns)
        self.takes_many = not (
            statements.key_type.parts
            # What Python computes would be computed once for all rows.
            or not log.takes_arrays
            or evaluates(table, inserting=True)
            or evaluates(table, inserting=False)
        )

    def take(self, batch: Batch, claims: Sequence[Claim]) -> bool:
        """Return whether one statement does all that a commit of these does."""
        if listeners_of(self._statements.mapper) or any(batch.unchanged):
            return False
        return len(claims) == 1 or (self.takes_many and len(claims) <= CHUNK)

    def send(
        self,
        connection: Connection,
        batch: Batch,
        claims: Sequence[Claim],
        lock_wait: float | None,
        steps: Mapping[Key, int],
    ) -> dict[Key, Written]:
        """Send *batch* and its *claims*; return the rows that were written, by key.

        Wait for locks for *lock_wait* seconds at most. *steps* are the versions by
        which a chain moves its row on; the claims of its actions are in their order.
        """
        if len(claims) == 1:
            (write,), (claim,) = batch, claims
            return self._send_one(connection, write, claim)
        shape, limited = Shape.of(batch), lock_wait is not None
        variant = shape, limited, bool(steps)
        if variant not in self._many:
            self._many[variant] = self._build_many(
                shape, limited=limited, chained=bool(steps)
            )
        parameters = arrays_of(self._statements).parameters(shape, batch)
        keys, actions, results, requests, _ = map(list, zip(*claims, strict=True))
        parameters |= {
            "wfs_claimed": keys,
            "wfs_action": actions,
            "wfs_result": results,
            "wfs_request": requests,
            "wfs_ttl": self._log.ttl,
        }
        if not self._alike:
            parameters["wfs_stored"] = list(map(self._log.stored.store, keys))
        if lock_wait is not None:
            parameters["wfs_lock_wait"] = f"{lock_wait * 1e3:.0f}"
        if steps:
            parameters["wfs_steps"] = [steps.get(key, 1) for key in batch.workflow_keys]
            left = Counter(keys)
            before = []
            for key in keys:
                left[key] -= 1
                before.append(left[key] if key in steps else 0)
            parameters["wfs_before"] = before
        result = connection.execute(self._many[variant], parameters)
        return written_of(batch, result)

    def refuses_chains(self, connection: Connection) -> bool:
        """Return whether chains are not written: triggers are to see each version."""
        found: bool = connection.execute(
            select(HasTriggers(self._statements.table))
        ).scalar_one()
        return found

    def _send_one(
        self, connection: Connection, write: Write, claim: Claim
    ) -> dict[Key, Written]:
        variant = write.version == 1, write.base_effect_id is not None
        if variant not in self._single:
            self._single[variant] = self._build_one(*variant)
        parameters = self._statements.parameters(write) | {
            "wfs_stored": self._log.stored.store(claim.workflow_key),
            "wfs_action": claim.action_id,
            "wfs_result": claim.result_hash,
            "wfs_request": claim.request_hash,
            "wfs_ttl": self._log.ttl,
        }
        row = first_row(connection, self._single[variant], parameters)
        return {} if row is None else {write.workflow_key: Written(*row)}

    def _build_one(self, creating: bool, based: bool) -> Any:  # noqa: FBT001
        sql, c = self._statements.sql, self._log.table.c
        key = bindparam("wfs_stored", type_=c.workflow_key.type)
        action = bindparam("wfs_action", type_=c.action_id.type)
        if creating:
            write = self._statements.creation(PROFILES["postgresql"])
        else:
            # The state may have been cached since the log was read.
            before = exists().where(c.workflow_key == key, c.action_id == action)
            write = (sql.swap_same if based else sql.swap).where(~before)
        written = write.cte("wfs_written")
        hashes = (bindparam(f"wfs_{each}", type_=Text()) for each in _HASHES)
        claimed = self._claimed(written, key, action, *hashes, written.c.version)
        return select(written.c[0], written.c[1]).add_cte(claimed)

    def _build_many(self, shape: Shape, *, limited: bool, chained: bool) -> Any:
        c = self._log.table.c
        criteria: list[Any] = []
        if limited:
            wait = bindparam("wfs_lock_wait", type_=Text())
            # A subquery runs first; the setting ends with the statement.
            limit = select(func.set_config("lock_timeout", wait, true()))
            criteria.append(limit.scalar_subquery().is_not(None))
        if chained:
            # Asked each time, as one may be created while the service runs.
            criteria.append(not_(HasTriggers(self._statements.table)))
        written = arrays_of(self._statements).written(shape, *criteria, steps=chained)
        (key,) = self._statements.keys.columns
        types = {"claimed": key.type}
        if not self._alike:
            types["stored"] = c.workflow_key.type
        types |= {"action": c.action_id.type} | dict.fromkeys(_HASHES, Text())
        if chained:
            types["before"] = BigInteger()
        claims = bound_table(types, "wfs_claims")
        of_row = claims.c.claimed == written.c[0]
        stored = "claimed" if self._alike else "stored"
        values = [claims.c[each] for each in (stored, "action", *_HASHES)]
        version = written.c.version
        if chained:
            version = version - claims.c.before
        claimed = self._claimed(
            written, *values, version, rows=claims.join(written, of_row)
        )
        return answer_of(written).add_cte(claimed)

    def _claimed(self, written: CTE[Any], *values: Any, rows: Any = None) -> CTE[Any]:
        until = func.now() + bindparam("wfs_ttl", type_=Interval())
        source = select(*values, until)
        source = source.select_from(written if rows is None else rows)
        names = ["workflow_key", "action_id", *_COLUMNS, "version", "expires_at"]
        claim = insert(self._log.table).from_select(names, source)
        return claim.cte("wfs_claimed")
