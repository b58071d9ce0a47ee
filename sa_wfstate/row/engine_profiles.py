"""Engine profiles: what the library must do in another way, by database engine.

The name of the dialect says which profile holds. A statement is compiled by that alone.
Citus and YugabyteDB are also reached by the dialect ``postgresql``, so what is decided
while statements run asks the server, once for each pool. Tables over postgres_fdw need
no profile: what PostgreSQL refuses there, no statement can do in another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from ..errors import MappingError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect, Pool


class EngineProfile(NamedTuple):
    """What an engine has, and what is off."""

    name: str

    is_postgresql: bool = True
    """It has the casts, the arrays, the clock and the ON CONFLICT of PostgreSQL."""

    has_jsonb: bool = True
    """JSON columns are JSONB, so patches and upcasters can be SQL."""

    locks_many: bool = True
    """One statement can lock rows of several keys; else each is locked by itself."""

    lock_options: bool = True
    """It has FOR NO KEY UPDATE and SKIP LOCKED; else all locks are FOR UPDATE."""

    savepoints: bool = True
    """What the database may refuse can be tried within a transaction."""

    read_committed: bool = True
    """A transaction can have this level."""

    timeouts: bool = True
    """It has the settings lock_timeout and idle_in_transaction_session_timeout."""

    transaction_ids: bool = False
    """The fate of a transaction can be asked for by its id."""

    groups: bool = False
    """Writes of several callers may share a transaction."""

    triggers: bool = False
    """The version trigger works."""

    partitions: bool = False
    """It has tables PARTITION BY HASH, and the catalog pg_inherits."""

    rows: int | None = None
    """How many rows a transaction may write, if that is limited."""

    @property
    def insert(self) -> Any:
        """The function that makes an INSERT with ON CONFLICT."""
        if self.is_postgresql:
            return postgresql.insert
        # A tenth of the package's import, of which production needs nothing.
        from sqlalchemy.dialects import sqlite

        return sqlite.insert


_POSTGRESQL: Final = EngineProfile(
    "postgresql", transaction_ids=True, groups=True, triggers=True, partitions=True
)
_SQLITE: Final = EngineProfile(
    "sqlite",
    is_postgresql=False,
    has_jsonb=False,
    lock_options=False,
    savepoints=False,
    read_committed=False,
    timeouts=False,
)
PROFILES: Final = {
    profile.name: profile
    for profile in (
        _POSTGRESQL,
        _POSTGRESQL._replace(name="citus", locks_many=False, triggers=False),
        EngineProfile("cockroachdb"),
        EngineProfile("yugabytedb", triggers=True, partitions=True),
        EngineProfile(
            "auroradsql",
            has_jsonb=False,
            locks_many=False,
            lock_options=False,
            savepoints=False,
            read_committed=False,
            timeouts=False,
            rows=3_000,
        ),
        _SQLITE,
    )
}
"""The profiles by their names, which are those of dialects, too."""

_by_dialect: dict[str, EngineProfile] = {
    **PROFILES,
    "default": _SQLITE,  # str(statement)
}
_by_pool: WeakKeyDictionary[Pool, EngineProfile] = WeakKeyDictionary()

_QUESTION: Final = text(
    "SELECT CASE"
    " WHEN EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN 'citus'"
    " WHEN version() LIKE '%-YB-%' THEN 'yugabytedb'"
    " ELSE 'postgresql' END"
)


def profile_of(dialect: Dialect) -> EngineProfile:
    """Return the profile of *dialect*; raise MappingError if it has none."""
    found = _by_dialect.get(dialect.name)
    if found is None:
        raise MappingError(
            f"the dialect {dialect.name!r}",
            f"has no engine profile; if one of {', '.join(PROFILES)} fits, call "
            f"sa_wfstate.engines.use_profile({dialect.name!r}, profile=…) before the "
            "first statement",
        )
    return found


def profile_on(connection: Connection) -> EngineProfile:
    """Return the profile of the server of *connection*."""
    profile = profile_of(connection.dialect)
    if profile is not _POSTGRESQL:
        return profile
    pool = connection.engine.pool
    known = _by_pool.get(pool)
    if known is None:
        known = _by_pool[pool] = PROFILES[connection.execute(_QUESTION).scalar_one()]
    return known


def set_profile(dialect: str, profile: str) -> None:
    """Give dialects with the name *dialect* the profile with the name *profile*."""
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}: {profile!r}")
    _by_dialect[dialect] = PROFILES[profile]
