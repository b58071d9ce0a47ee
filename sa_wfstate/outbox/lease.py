"""Leases: an intent of an outbox belongs to one dispatcher for a limited time.

All times are the server's. After a lease has expired the intent is due again;
*attempts* identifies the lease.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    Connection,
    Table,
    bindparam,
    delete,
    func,
    select,
    tuple_,
    type_coerce,
    update,
)

from ..row.engine_profiles import profile_on
from ..row.types import PydanticJSON
from ..row.unread import Unread
from ..values.reports import DueIntent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from ..values.keys import Key


class Leased(NamedTuple):
    """An intent without its payload, which is *stored*; *age* in seconds."""

    intent: DueIntent
    stored: Any
    age: float


class Claim(NamedTuple):
    """The key of an intent, and with *attempts* of its lease."""

    workflow_key: Key
    version: int
    position: int
    intent_id: UUID
    attempts: int


def claim_of(intent: DueIntent) -> Claim:
    """Return the claim of *intent*."""
    return Claim(
        intent.workflow_key,
        intent.version,
        intent.position,
        intent.intent_id,
        intent.attempt,
    )


class Leases:
    """The statements of an outbox, each built once."""

    def __init__(self, table: Table, batch_size: int) -> None:
        columns: dict[str, Any] = dict(table.c)
        # Not the primary key, whose columns may be in any order.
        key = [columns[name] for name in Claim._fields if name != "attempts"]
        self._payload_type: Any = table.c.payload.type
        if isinstance(self._payload_type, PydanticJSON):
            # Each is decoded before its delivery: one that cannot be decoded must not
            # block the others of its batch.
            unread = self._payload_type.unread()
            columns["payload"] = type_coerce(table.c.payload, unread)
        earlier = table.alias("earlier")
        first = ~(
            select(earlier.c.position)
            .where(
                earlier.c.workflow_key == table.c.workflow_key,
                earlier.c.dead_at.is_(None),
                tuple_(earlier.c.version, earlier.c.position)
                < tuple_(table.c.version, table.c.position),
            )
            .exists()
        )
        # A row that another dispatcher has just leased is locked, or not due any more.
        is_due = table.c.dead_at.is_(None), table.c.due_at <= func.now()
        page = select(*key).where(*is_due, first).limit(batch_size)
        page = page.order_by(table.c.due_at)
        due = page.with_for_update(skip_locked=True, of=table).cte("due")
        lease = (
            update(table)
            .values(
                attempts=table.c.attempts + 1,
                due_at=func.statement_timestamp() + bindparam("wfs_lease"),
            )
            .returning(
                *(columns[name] for name in _GIVEN),
                table.c.due_at,
            )
        )
        self._claim = lease.where(*(column == due.c[column.name] for column in key))
        # Where rows of several keys cannot be locked, one that another dispatcher has
        # leased since it was read has more attempts.
        leased = tuple_(*key, table.c.attempts)
        self._page = page.add_columns(table.c.attempts)
        names = dict(zip(Claim._fields, [*key, table.c.attempts], strict=True))
        self._claim_one = lease.where(
            *(column == bindparam(f"wfs_{name}") for name, column in names.items()),
            *is_due,
        )
        mine = leased.in_(bindparam("wfs_claims", expanding=True))
        self._delete = delete(table).where(mine)
        self._release = (
            update(table)
            .where(mine)
            .values(attempts=table.c.attempts - 1, due_at=func.statement_timestamp())
        )
        self._set_back = (
            update(table)
            .where(mine)
            .values(
                last_error=bindparam("wfs_error"),
                due_at=func.statement_timestamp() + bindparam("wfs_pause"),
            )
        )
        self._give_up = (
            update(table)
            .where(mine)
            .values(
                last_error=bindparam("wfs_error"), dead_at=func.statement_timestamp()
            )
        )

    def claim(self, connection: Connection, lease: timedelta) -> list[Leased]:
        """Lease the intents that are due."""
        leased = []
        for *given, due_at in self._claimed(connection, lease):
            intent = DueIntent(*given)
            age = (due_at - lease - intent.created_at).total_seconds()
            payload, unread = intent.payload, replace(intent, payload=None)
            leased.append(Leased(unread, payload, age))
        return leased

    def _claimed(self, connection: Connection, lease: timedelta) -> Iterable[Any]:
        given = {"wfs_lease": lease}
        if profile_on(connection).locks_many:
            yield from connection.execute(self._claim, given)
            return
        # In the order of their keys, so that two dispatchers wait for each other once.
        for row in sorted(connection.execute(self._page)):
            names = {f"wfs_{n}": v for n, v in zip(Claim._fields, row, strict=True)}
            yield from connection.execute(self._claim_one, names | given)

    def read(self, leased: Leased) -> DueIntent:
        """Return the intent with its payload; PayloadError if it cannot be read."""
        payload = leased.stored
        if isinstance(payload, Unread):
            payload = self._payload_type.load(payload.text)
        return replace(leased.intent, payload=payload)

    def delete(self, connection: Connection, claims: Sequence[Claim]) -> None:
        """Delete delivered intents, unless another dispatcher has leased them since."""
        if claims:
            connection.execute(self._delete, {"wfs_claims": claims})

    def release(self, connection: Connection, claims: Sequence[Claim]) -> None:
        """Release intents that were leased and not tried."""
        if claims:
            connection.execute(self._release, {"wfs_claims": claims})

    def set_back(
        self,
        connection: Connection,
        claim: Claim,
        error: str | None,
        delay: float | None,
    ) -> None:
        """Make an intent due again in *delay* seconds; None makes it a dead letter."""
        parameters: dict[str, Any] = {"wfs_claims": [claim], "wfs_error": error}
        if delay is None:
            connection.execute(self._give_up, parameters)
        else:
            parameters["wfs_pause"] = timedelta(seconds=delay)
            connection.execute(self._set_back, parameters)


_GIVEN = (
    "intent_id",
    "workflow_key",
    "version",
    "position",
    "intent_type",
    "target",
    "payload",
    "attempts",
    "created_at",
)
