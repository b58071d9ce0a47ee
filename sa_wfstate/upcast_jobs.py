"""One job that upcasts the rows of one table, batch by batch: see :mod:`.upcasting`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json
from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Text,
    TextClause,
    and_,
    bindparam,
    cast,
    column,
    func,
    select,
    table,
    text,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError

from .bound_arrays import bound_table
from .errors import MappingError, PayloadError
from .sqlstates import sqlstate

if TYPE_CHECKING:
    from .upcasters import PayloadSchema

Begin = Callable[[], AbstractContextManager[Connection]]

_DEADLOCK = "40P01"
_TRIES = 10
_ARRAYS = {"key": Text, "version": BigInteger, "schema": Integer, "state": Text}


class UpcastProgress(NamedTuple):
    """How far a job is: *done* and *failed* of the *total* rows there were to do.

    Another job that shares the work makes *done* end below *total*.
    """

    done: int
    failed: int
    total: int


class UpcastReport(NamedTuple):
    """What a job has done: rows *upcast*, rows left as they are, time in seconds."""

    upcast: int
    failures: tuple[PayloadError, ...]
    seconds: float


class UpcastJob:
    """The upcast of one table to the version that *payload_schema* writes.

    *check* is called with key, schema version and text of each payload that is about
    to be written, and raises PayloadError if it must not be.
    """

    def __init__(
        self,
        table_name: str,
        payload_schema: PayloadSchema,
        *,
        schema: str | None = None,
        check: Callable[[str, int, str], object] | None = None,
    ) -> None:
        self._schema = payload_schema
        self._check = check
        self._rows = rows = table(
            table_name,
            column("workflow_key", Text()),
            column("version", BigInteger()),
            column("schema_version", Integer()),
            column("state", JSONB()),
            schema=schema,
        )
        self._due = and_(
            rows.c.schema_version >= payload_schema.oldest,
            rows.c.schema_version < payload_schema.write_version,
        )
        self._done = 0
        self._failures: dict[str, PayloadError] = {}

    def run(
        self,
        begin: Begin,
        batch_size: int = 1000,
        progress: Callable[[UpcastProgress], object] | None = None,
        *,
        in_sql: bool = False,
    ) -> UpcastReport:
        """Upcast all rows that are due, each batch in a transaction of *begin*."""
        started = time.monotonic()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        batch = self._batch_in_sql if in_sql else self._batch
        total = 0
        if progress is not None:
            due = select(func.count()).select_from(self._rows).where(self._due)
            with begin() as connection:
                total = connection.scalars(due).one()
        # At first what nobody else is working on, then what is left.
        for skip_locked in (True, False):
            after: str | None = ""
            while after is not None:
                after = self._transact(
                    begin,
                    partial(
                        batch, after=after, size=batch_size, skip_locked=skip_locked
                    ),
                )
                if progress is not None:
                    failed = len(self._failures)
                    progress(UpcastProgress(self._done, failed, total))
        failures = tuple(self._failures.values())
        return UpcastReport(self._done, failures, time.monotonic() - started)

    def _transact(
        self, begin: Begin, batch: Callable[[Connection], tuple[int, str | None]]
    ) -> str | None:
        """Do one batch; again, if the database chose it to end a deadlock."""
        for tries_left in reversed(range(_TRIES)):
            try:
                with begin() as connection:
                    done, last = batch(connection)
            except DBAPIError as error:
                if sqlstate(error) != _DEADLOCK or not tries_left:
                    raise
            else:
                self._done += done
                return last
        raise AssertionError

    def _batch(
        self, connection: Connection, after: str, size: int, *, skip_locked: bool
    ) -> tuple[int, str | None]:
        """Upcast the batch after a key; return its size and the key to go on after."""
        rows = self._rows
        query = (
            select(
                rows.c.workflow_key,
                rows.c.version,
                rows.c.schema_version,
                cast(rows.c.state, Text),
            )
            .where(self._due, rows.c.workflow_key > after)
            .order_by(rows.c.workflow_key)
            .limit(size)
            .with_for_update(key_share=True, skip_locked=skip_locked)
        )
        read = connection.execute(query).all()
        swaps = []
        for key, version, schema_version, state in read:
            try:
                upcast = self._upcast(key, schema_version, state)
            except PayloadError as error:
                self._failures[key] = error
            else:
                swaps.append((key, version, schema_version, upcast))
        done = self._swap(connection, swaps) if swaps else 0
        return done, read[-1].workflow_key if len(read) == size else None

    def _upcast(self, key: str, schema_version: int, state: str) -> str:
        target = self._schema.write_version
        upcast = self._schema.upcast(from_json(state), schema_version, key, target)
        if self._check is not None:
            self._check(key, schema_version, upcast)
        return upcast

    def _swap(self, connection: Connection, swaps: Sequence[tuple[Any, ...]]) -> int:
        """Write the rows that are still as they were read; return their number."""
        if not isinstance(connection.dialect, PGDialect):
            names = ("wfs_key", "wfs_version", "wfs_schema", "wfs_state")
            parameters: list[Any] = [bindparam(name) for name in names]
            parameters[-1] = type_coerce(parameters[-1], Text)
            swap = self._swap_to(*parameters)
            return sum(
                connection.execute(swap, dict(zip(names, each, strict=True))).rowcount
                for each in swaps
            )
        new = bound_table(_ARRAYS)
        swap = self._swap_to(
            new.c.key, new.c.version, new.c.schema, cast(new.c.state, JSONB)
        )
        values = zip(*swaps, strict=True)
        written = connection.execute(
            swap.returning(self._rows.c.version),
            {f"wfs_{n}": list(v) for n, v in zip(_ARRAYS, values, strict=True)},
        )
        return len(written.all())

    def _swap_to(self, *new: Any) -> Any:
        key, version, schema_version, state = new
        rows = self._rows
        return (
            update(rows)
            .where(
                rows.c.workflow_key == key,
                rows.c.version == version,
                rows.c.schema_version == schema_version,
            )
            .values(state=state, schema_version=self._schema.write_version)
        )

    @property
    def sql(self) -> TextClause | None:
        """One UPDATE of all rows that are due; None if a step has no SQL."""
        update = self._update()
        return None if update is None else text(f"{update} WHERE {self._due_sql}")

    def _update(self) -> str | None:
        """Return the UPDATE without its WHERE; the table is called *wfs* in it."""
        state = self._schema.sql("wfs")
        if state is None:
            return None
        return (
            f"UPDATE {self._name} AS wfs "  # noqa: S608 - a quoted name, the caller's SQL
            f"SET schema_version = {self._schema.write_version}, state = {state}"
        )

    def _batch_in_sql(
        self, connection: Connection, after: str, size: int, *, skip_locked: bool
    ) -> tuple[int, str | None]:
        update = self._update()
        if update is None:
            raise MappingError(self._schema.entity, "not every upcaster has SQL")
        skip = "SKIP LOCKED" if skip_locked else ""
        statement = text(
            f"WITH wfs_batch AS (SELECT workflow_key FROM {self._name} "  # noqa: S608
            f"WHERE {self._due_sql} AND workflow_key > :after "
            f"ORDER BY workflow_key LIMIT :size FOR NO KEY UPDATE {skip}), "
            f"wfs_done AS ({update} FROM wfs_batch "
            "WHERE wfs.workflow_key = wfs_batch.workflow_key "
            "RETURNING wfs.workflow_key) "
            "SELECT count(*), max(workflow_key) FROM wfs_done"
        )
        done, last = connection.execute(statement, {"after": after, "size": size}).one()
        return done, last if done == size else None

    @property
    def _due_sql(self) -> str:
        schema = self._schema
        last = schema.write_version - 1
        return f"schema_version BETWEEN {schema.oldest} AND {last}"

    @property
    def _name(self) -> str:
        """The quoted name, as text() takes it; that doubles percent signs itself."""
        dialect: Any = PGDialect  # Its constructor is not typed.
        preparer = dialect(paramstyle="named").identifier_preparer
        return str(preparer.format_table(self._rows)).replace(":", "\\:")
