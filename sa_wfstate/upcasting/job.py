"""One job that upcasts the rows of one table in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from ..errors import MappingError, PayloadError
from ..retry import sqlstate
from ..row.arrays import bound_table, of_keys
from ..row.columns import quoted
from ..row.engine_profiles import profile_of, profile_on
from ..row.json_text import FromText
from ..row.key_columns import KeyColumns

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

    from ..payload.schema_versions import PayloadSchema


Begin = Callable[[], AbstractContextManager[Connection]]

_DEADLOCK = "40P01"
_TRIES = 10
_ARRAYS = {"version": BigInteger, "schema": Integer, "state": Text}
_TYPES: dict[str, TypeEngine[Any]] = {
    "version": BigInteger(),
    "schema_version": Integer(),
    "state": JSONB(),
}


class UpcastProgress(NamedTuple):
    """How far a job is: *done* and *failed* of *total* rows.

    If another job shares the work, *done* stays below *total*.
    """

    done: int
    failed: int
    total: int


class UpcastReport(NamedTuple):
    """The result of a job: rows *upcast*, *failures* of rows left, and *seconds*."""

    upcast: int
    failures: tuple[PayloadError, ...]
    seconds: float


class UpcastJob:
    """The upcast of one table to the version that *payload_schema* writes.

    *keys* are the types of the columns of its keys, by name. *names* are those of the
    other columns, where they differ from the attributes'. *check* is called with key,
    schema version and text of each payload before it is written, and raises
    PayloadError to refuse it.
    """

    def __init__(
        self,
        table_name: str,
        payload_schema: PayloadSchema,
        *,
        schema: str | None = None,
        names: Mapping[str, str] | None = None,
        keys: Mapping[str, TypeEngine[Any]] | None = None,
        check: Callable[[Any, int, str], object] | None = None,
    ) -> None:
        self._schema = payload_schema
        self._check = check
        called = names or {}
        self._names = {name: called.get(name, name) for name in _TYPES}
        keys = keys or {"workflow_key": Text()}
        types = {self._names[name]: type_ for name, type_ in _TYPES.items()}
        every = (column(name, type_) for name, type_ in {**keys, **types}.items())
        self._rows = table(table_name, *every, schema=schema)
        self._keys = KeyColumns(table_name, *(self._rows.c[name] for name in keys))
        self._columns = self._columns_of(self._rows)
        self._due = self._is_due(self._columns)
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
        # First the rows that no transaction has locked, then the others.
        for skip_locked in (True, False):
            first, after = True, None
            while first or after is not None:
                first, after = (
                    False,
                    self._transact(
                        begin,
                        partial(
                            batch, after=after, size=batch_size, skip_locked=skip_locked
                        ),
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
        """Upcast one batch; retry it as the victim of a deadlock."""
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
        self, connection: Connection, after: Any, size: int, *, skip_locked: bool
    ) -> tuple[int, str | None]:
        """Upcast the batch after a key; return its size, and its last key if full."""
        version, schema_version, state = self._columns
        query = (
            select(self._keys.value, version, schema_version, cast(state, Text))
            .where(self._due, self._keys.after(after))
            .order_by(*self._keys.columns)
            .limit(size)
        )
        if profile_on(connection).locks_many:
            # Else a row that has changed meanwhile is due no more, or another time.
            query = query.with_for_update(key_share=True, skip_locked=skip_locked)
        read = connection.execute(query).all()
        swaps = []
        for row in read:
            try:
                upcast = self._upcast(row[0], row[2], row[3])
            except PayloadError as error:
                self._failures[row[0]] = error
            else:
                swaps.append((*row[:3], upcast))
        done = self._swap(connection, swaps) if swaps else 0
        return done, read[-1][0] if len(read) == size else None

    def _upcast(self, key: Any, schema_version: int, state: str) -> str:
        target = self._schema.write_version
        upcast = self._schema.upcast(from_json(state), schema_version, key, target)
        if self._check is not None:
            self._check(key, schema_version, upcast)
        return upcast

    def _swap(self, connection: Connection, swaps: Sequence[tuple[Any, ...]]) -> int:
        """Write the rows that are still as they were read; return their number."""
        if not profile_of(connection.dialect).is_postgresql:
            names = [f"wfs_{name}" for name in _ARRAYS]
            parameters: list[Any] = [bindparam(name) for name in names]
            parameters[-1] = type_coerce(parameters[-1], Text)
            swap = self._swap_to(*parameters).where(self._keys.equal)
            rows = (
                self._keys.parameters(key) | dict(zip(names, values, strict=True))
                for key, *values in swaps
            )
            return sum(connection.execute(swap, row).rowcount for row in rows)
        new = bound_table({**self._keys.types(), **_ARRAYS})
        swap = self._swap_to(new.c.version, new.c.schema, FromText(new.c.state))
        keys, *values = zip(*swaps, strict=True)
        written = connection.execute(
            # As in row/batch.py, for partitions.
            swap.where(of_keys(*self._keys.pairs(new))).returning(self._columns[0]),
            self._keys.arrays(keys)
            | {f"wfs_{n}": list(v) for n, v in zip(_ARRAYS, values, strict=True)},
        )
        return len(written.all())

    def _swap_to(self, *new: Any) -> Any:
        *old, new_state = new
        *read, state = self._columns
        return (
            update(self._rows)
            .where(*(column == value for column, value in zip(read, old, strict=True)))
            .values({state: new_state, read[1]: self._schema.write_version})
        )

    def _columns_of(self, rows: Any) -> list[ColumnElement[Any]]:
        return [rows.c[name] for name in self._names.values()]

    def _is_due(self, columns: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        # In the text: in a migration it may be printed.
        oldest, target = self._schema.oldest, self._schema.write_version
        return and_(
            columns[1] >= literal_column(str(oldest)),
            columns[1] < literal_column(str(target)),
        )

    @property
    def sql(self) -> Update | None:
        """One UPDATE of all rows that are due; None if a step has no SQL."""
        rows = self._rows.alias("wfs")
        columns = self._columns_of(rows)
        return self._update(rows, self._is_due(columns))

    def _update(self, rows: Any, *where: ColumnElement[bool]) -> Update | None:
        """Return the UPDATE of those of *rows*, which are called *wfs*."""
        _, version, state = (f"wfs.{quoted(name)}" for name in self._names.values())
        new = self._schema.sql(state, version)
        if new is None:
            return None
        columns, target = self._columns_of(rows), str(self._schema.write_version)
        values: dict[Any, Any] = {
            columns[1]: literal_column(target),
            columns[2]: literal_column(new),
        }
        return update(rows).where(*where).values(values)

    def _batch_in_sql(
        self, connection: Connection, after: Any, size: int, *, skip_locked: bool
    ) -> tuple[int, str | None]:
        rows, keys = self._rows.alias("wfs"), self._keys
        batch = (
            select(*keys.columns)
            .where(self._due, keys.after(after))
            .order_by(*keys.columns)
            .limit(size)
            .with_for_update(key_share=True, skip_locked=skip_locked)
            .cte("wfs_batch")
        )
        names = [column.name for column in keys.columns]
        of_batch = (rows.c[name] == batch.c[name] for name in names)
        update = self._update(rows, *of_batch)
        if update is None:
            raise MappingError(self._schema.entity, "not every upcaster has SQL")
        done = update.returning(rows.c[names[-1]]).cte("wfs_done")
        last = select(KeyColumns(self._schema.entity, *batch.c).value)
        last = last.order_by(*(each.desc() for each in batch.c)).limit(1)
        written = select(func.count(done.c[0]), last.scalar_subquery())
        number, last_key = connection.execute(written).one()
        return number, last_key if number == size else None
