"""Open transactions: rows that they write become visible late, with an earlier time.

``updated_at`` of a row is when its transaction began. So the time up to which all rows
are visible is when the oldest transaction began that is still open, and whatever has
just ended may have written rows since its own beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import func, select, text

from ..row.engine_profiles import profile_on

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


# The columns of sessions of other roles are NULL, unless one may read all statistics.
_OPEN: Final = text(
    "SELECT '' AS name, now() AS began"
    " UNION ALL SELECT CONCAT(pid, '/', xact_start), xact_start FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND xact_start IS NOT NULL"
    " UNION ALL SELECT gid, NULL FROM pg_prepared_xacts"
    " WHERE database = current_database()"
)


class Observed(NamedTuple):
    """What is open at *now*, by the server's clock.

    All transactions that began before *horizon* have ended. Those that have ended since
    the last time began at *ended* or later.
    """

    now: datetime
    horizon: datetime
    ended: datetime


class OpenTransactions:
    """The open transactions of a database, by name, each with the time it began."""

    def __init__(self) -> None:
        self._began: dict[str, datetime] = {}
        self._last: datetime | None = None

    def observe(self, connection: Connection, *, floor: datetime | None) -> Observed:
        """Look which transactions are open; all that began before *floor* have ended.

        Of a prepared transaction the server does not tell when it began: not before one
        that is gone since the last time, and is perhaps the same.
        """
        now, found = self._read(connection)
        gone = [at for name, at in self._began.items() if name not in found]
        last = min(self._last or floor or now, now)
        earliest = min([last, *gone])
        self._began = {
            name: began or self._began.get(name, earliest)
            for name, began in found.items()
        }
        self._last = now
        horizon = min([now, *self._began.values()])
        return Observed(now, horizon, min([now, *gone]))

    @staticmethod
    def _read(connection: Connection) -> tuple[datetime, dict[str, datetime | None]]:
        if not profile_on(connection).transaction_ids:
            return connection.execute(select(func.now())).scalar_one(), {}
        rows: dict[str, Any] = {
            row.name: row.began for row in connection.execute(_OPEN)
        }
        return rows.pop(""), rows
