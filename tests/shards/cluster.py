"""Two shards from the wheel, and a coordinator whose partitions are foreign tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import URL, NullPool, create_engine
from sqlalchemy.schema import CreateColumn

from sa_wfstate.testing import temporary_server

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData, Table

SETTINGS = {"fsync": "off", "max_prepared_transactions": "20"}


@contextmanager
def cluster(metadata: MetaData) -> Iterator[tuple[URL, list[URL]]]:
    """Start the servers, with the tables of *metadata*; yield their URLs."""
    with ExitStack() as stack:
        first, *shards = (
            stack.enter_context(temporary_server(settings=SETTINGS)) for _ in range(3)
        )
        for url in shards:
            engine = create_engine(url, poolclass=NullPool)
            metadata.create_all(engine)
        engine = create_engine(first, poolclass=NullPool)
        with engine.begin() as connection:
            _link(connection, shards)
            for table in metadata.sorted_tables:
                if "workflow_key" in table.c:
                    _distribute(connection, table, len(shards))
                else:
                    table.create(connection)
        yield first, shards


def _link(connection: Connection, shards: Sequence[URL]) -> None:
    execute = connection.exec_driver_sql
    execute("CREATE EXTENSION postgres_fdw")
    for number, url in enumerate(shards):
        host = url.query["host"]
        execute(
            f"CREATE SERVER shard_{number} FOREIGN DATA WRAPPER postgres_fdw "
            f"OPTIONS (host '{host}', dbname '{url.database}')"
        )
        execute(
            f"CREATE USER MAPPING FOR CURRENT_USER SERVER shard_{number} "
            f"OPTIONS (user '{url.username}', password_required 'false')"
        )


def _distribute(connection: Connection, table: Table, shards: int) -> None:
    """Create *table* with a foreign table as each of its partitions.

    It has no primary key: PostgreSQL allows none over foreign tables.
    """
    execute, dialect = connection.exec_driver_sql, connection.dialect
    columns = ", ".join(
        str(CreateColumn(column).compile(dialect=dialect)) for column in table.columns
    )
    execute(f"CREATE TABLE {table.name} ({columns}) PARTITION BY HASH (workflow_key)")
    for number in range(shards):
        execute(
            f"CREATE FOREIGN TABLE {table.name}_{number} PARTITION OF {table.name} "
            f"FOR VALUES WITH (MODULUS {shards}, REMAINDER {number}) "
            f"SERVER shard_{number} OPTIONS (table_name '{table.name}')"
        )
