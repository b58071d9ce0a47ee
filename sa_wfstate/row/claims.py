"""The claims of actions: the rows of a deduplication log, written and looked up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Interval, Table, bindparam, func, inspect, select, tuple_

from ..errors import ActionIdReused
from .arrays import bound_table, of_keys
from .chunks import chunks
from .engine_profiles import profile_of
from .keys import TEXT_KEY, KeyType, StoredKey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from ..values.keys import Key
    from .auxiliary import AuxiliaryTable
    from .engine_profiles import EngineProfile


TTL = timedelta(hours=6)
"""How long a processed action is kept by default, at least."""


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
        log: type[AuxiliaryTable],
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


def refuse_reuse(
    workflow_key: Key, action_id: UUID, processed: Processed, request_hash: str
) -> None:
    """Raise ActionIdReused if the action was *processed* with another payload."""
    if processed.request_hash not in {None, request_hash}:
        raise ActionIdReused(workflow_key, action_id)
