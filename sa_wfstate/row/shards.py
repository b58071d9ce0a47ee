"""Servers that lock the rows of one shard at a time: Citus.

It refuses a statement that locks rows of several keys, which may be on several shards.
There each key is locked by itself, or rows are written as they were read or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

_ASKED: Final = "sa_wfstate.has_shards"
_QUESTION: Final = text(
    "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
)


def has_shards(connection: Connection) -> bool:
    """Return whether the server refuses locks of several keys in one statement.

    It is asked once for each connection to the database.
    """
    if connection.dialect.name != "postgresql":
        return False
    known = connection.info.get(_ASKED)
    if known is None:
        known = connection.info[_ASKED] = bool(connection.scalar(_QUESTION))
    return bool(known)
