"""What ``doctor`` asks of the tables: whether they are as mapped, and what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import func, inspect, select, text

from ..outbox.table import table_of
from ..projection.lag import measure_lag
from ..row.engine_profiles import profile_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.engine.reflection import Inspector

    from ..projection.definition import Projection

LATE: Final = 60.0
"""Seconds after which work that waits is worth a word."""

MANY: Final = 100_000
"""Rows from which on it takes long to read all of them."""

ESTIMATED_ROWS = text(
    "SELECT reltuples FROM pg_class WHERE oid = CAST(:name AS regclass)"
)

INVALID = text(
    "SELECT indexrelid::regclass::text FROM pg_index "
    "WHERE indrelid = CAST(:name AS regclass) AND NOT indisvalid"
)


class Finding(NamedTuple):
    """Something that is wrong, or has a cost, and what to do."""

    level: str
    """``error``, ``warning``, or ``note``."""

    subject: str
    finding: str
    advice: str


def check_table(connection: Connection, name: str, table: Table) -> Iterator[Finding]:
    """Compare *table* with that of the database: columns, keys, indexes."""
    there = inspect(connection)
    if not there.has_table(table.name, table.schema):
        advice = "run the migrations"
        yield Finding("error", name, f"the table {table.fullname} is missing", advice)
        return
    columns = {each["name"] for each in there.get_columns(table.name, table.schema)}
    missing = sorted(each.name for each in table.columns if each.name not in columns)
    if missing:
        found = f"{table.fullname} has no {', '.join(missing)}"
        yield Finding("error", name, found, "run the migrations")
    key = {each.name for each in table.primary_key}
    if key and key not in _unique_sets(there, table):
        yield Finding(
            "warning",
            name,
            f"nothing keeps ({', '.join(sorted(key))}) of {table.fullname} unique",
            "add the primary key, on each shard if its rows are on other servers",
        )
    if profile_of(connection.dialect).name != "postgresql":
        return
    quoted = connection.dialect.identifier_preparer.format_table(table)
    for index in connection.scalars(INVALID, {"name": quoted}):
        advice = f"DROP INDEX CONCURRENTLY {index}, and create it again"
        found = f"the index {index} was not finished, and is not used"
        yield Finding("warning", name, found, advice)
    yield from _check_hot_updates(there, name, table)


def _unique_sets(there: Inspector, table: Table) -> list[set[str]]:
    at = (table.name, table.schema)
    unique = [{*there.get_pk_constraint(*at)["constrained_columns"]}]
    unique += [{*each["column_names"]} for each in there.get_unique_constraints(*at)]
    unique += [
        {each or "" for each in index["column_names"]}
        for index in there.get_indexes(*at)
        if index["unique"]
        and not index.get("dialect_options", {}).get("postgresql_where")
    ]
    return unique


def _check_hot_updates(there: Inspector, name: str, table: Table) -> Iterator[Finding]:
    """Note the indexes on what each commit of a workflow changes."""
    if not {"state", "version", "updated_at", "provenance"} <= {*table.c.keys()}:
        return
    if table.primary_key.columns.keys() != ["workflow_key"]:
        return
    for index in there.get_indexes(table.name, table.schema):
        options = index.get("dialect_options", {})
        changing = {"version", "updated_at"} & {*index["column_names"]}
        if changing and options.get("postgresql_using") != "brin":
            on = f"{index['name']} on {', '.join(sorted(changing))}"
            found = f"the index {on} costs each commit its HOT update"
            yield Finding("note", name, found, "drop it, or make it a BRIN index")


def check_intents(engine: Engine, intents: Any) -> Iterator[Finding]:
    """Look for dead letters, and for intents that are due since long."""
    table = table_of(intents)
    waits = func.extract("epoch", func.now() - func.min(table.c.due_at))
    with engine.connect() as connection:
        dead = connection.scalar(
            select(func.count()).where(table.c.dead_at.is_not(None))
        )
        late = None
        if profile_of(engine.dialect).is_postgresql:
            late = connection.scalar(select(waits).where(table.c.dead_at.is_(None)))
    name = intents.__name__
    if dead:
        advice = f"wfstate dead-letters show {intents.__module__}:{name}"
        yield Finding("warning", name, f"{dead:,} dead letters", advice)
    if late is not None and late > LATE:
        found = f"an intent is due for {late:,.0f} s"
        yield Finding("warning", name, found, "see whether a dispatcher runs")


def _check_following(
    connection: Connection, projection: Projection[Any]
) -> Iterator[Finding]:
    """Note a large table in which a worker finds new rows by reading all of them."""
    if profile_of(connection.dialect).name != "postgresql":
        return
    table, updated = projection.statements.table, projection.statements.columns
    quoted = connection.dialect.identifier_preparer.format_table(table)
    rows = connection.scalar(ESTIMATED_ROWS, {"name": quoted}) or 0
    indexes = inspect(connection).get_indexes(table.name, table.schema)
    leading = {each["column_names"][0] for each in indexes}
    if rows >= MANY and updated.updated_at.name not in leading:
        yield Finding(
            "note",
            projection.name,
            f"some {rows:,.0f} rows of {table.fullname} have no index on their time: a "
            "worker reads all of them at each poll",
            'add "recent" to __workflow_indexes__, unless the projection is inline',
        )


def check_projection(engine: Engine, projection: Projection[Any]) -> Iterator[Finding]:
    """Look how far *projection* is behind."""
    with engine.connect() as connection:
        tables = [projection.statements.table, projection.table]
        if not all(inspect(connection).has_table(t.name, t.schema) for t in tables):
            found = "a table of it is missing"
            yield Finding("error", projection.name, found, "run the migrations")
            return
        yield from _check_following(connection, projection)
    lag = measure_lag(engine, projection)
    if lag.seconds > LATE:
        yield Finding(
            "warning",
            projection.name,
            f"{lag.keys:,} workflows are behind, since {lag.seconds:,.0f} s",
            "see whether a projection worker runs",
        )
