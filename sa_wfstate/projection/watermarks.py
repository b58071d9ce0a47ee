"""Watermarks: how far the workers have followed the commits of each partition.

The row of a watermark is also the lock of its partition. A worker holds it for one
transaction; a killed worker loses it at once.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Table,
    Text,
    bindparam,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from ..row.engine_profiles import profile_of

if TYPE_CHECKING:
    from collections.abc import Sequence


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class WatermarkMixin:
    """The columns of a table of watermarks, for your own mapped class."""

    partition_id: Mapped[str] = mapped_column(Text, primary_key=True, sort_order=-30)
    offset: Mapped[int] = mapped_column(
        BigInteger, server_default=text("0"), sort_order=-20
    )
    """The time up to which commits were followed, in microseconds since 1970."""

    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True),
        server_default=func.now(),
        onupdate=func.now(),
        sort_order=-10,
    )


class Taken(NamedTuple):
    """A watermark that this transaction holds; *now* is the server's clock."""

    watermark: datetime
    now: datetime


class Watermarks:
    """The watermarks of one projection, in the table of *entity*."""

    def __init__(self, entity: type[WatermarkMixin], projection: str) -> None:
        table = inspect(entity).local_table
        assert isinstance(table, Table)  # noqa: S101
        self._projection = projection
        mine = table.c.partition_id == bindparam("id")
        self._read = select(table.c.offset, func.now()).where(mine)
        self._lock = self._read.with_for_update(skip_locked=True)
        self._several = select(table.c.partition_id, table.c.offset).where(
            table.c.partition_id.in_(bindparam("ids", expanding=True))
        )
        self._create = (
            insert(table)
            .values(partition_id=bindparam("id"), offset=bindparam("offset"))
            .on_conflict_do_nothing()
        )
        self._advance = (
            update(table)
            .where(mine)
            .values(
                offset=func.greatest(
                    table.c.offset, bindparam("reached", type_=BigInteger)
                ),
                updated_at=func.now(),
            )
        )

    def read(
        self, connection: Connection, partitions: Sequence[str]
    ) -> dict[str, datetime]:
        """Return the watermarks of *partitions* that there are."""
        names = {f"{self._projection}:{each}": each for each in partitions}
        found = connection.execute(self._several, {"ids": list(names)})
        return {names[name]: _time(offset) for name, offset in found}

    def take(
        self, connection: Connection, partition: str, *, initial: datetime | None = None
    ) -> Taken | None:
        """Lock the watermark until the transaction ends; None if it is locked.

        A new one starts at *initial*, or now.
        """
        name = {"id": f"{self._projection}:{partition}"}
        lock = self._lock
        if not profile_of(connection.dialect).lock_options:
            lock = self._read.with_for_update()
        found = connection.execute(lock, name).first()
        if found is None:
            start = initial or connection.execute(select(func.now())).scalar_one()
            offset = {"offset": _microseconds(start)}
            connection.execute(self._create, name | offset)
            found = connection.execute(lock, name).first()
        if found is None:
            return None
        return Taken(_time(found[0]), found[1])

    def advance(
        self, connection: Connection, partition: str, reached: datetime
    ) -> None:
        """Move the watermark on to *reached*, unless it is there already."""
        parameters: dict[str, Any] = {
            "id": f"{self._projection}:{partition}",
            "reached": _microseconds(reached),
        }
        connection.execute(self._advance, parameters)


def _time(offset: int) -> datetime:
    return _EPOCH + offset * _MICROSECOND


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND
