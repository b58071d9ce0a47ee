"""Whether a pooler gives each transaction another connection of the server.

Three facts tell, none of which a pooler can hide: a driver is told a process id when it
connects, and the server has another one; two connections that are open at the same time
are served by one process; and a statement has another name on the server than the one
that the driver gave it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from sqlalchemy.exc import DBAPIError

from ..retry import sqlstate

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

TURNS = (0, 0, 1, 0, 1, 1, 0, 1)
"""Which of two connections has the next transaction."""

OWN_NAME = "SELECT name FROM pg_prepared_statements WHERE strpos(statement, '{}') > 0"
"""It finds itself by a text that no other run has, if the driver has prepared it."""

TRIES = 8
"""More executions than psycopg makes before it prepares a statement by default."""

LOST_STATEMENTS = {"26000", "42P05"}
"""A prepared statement does not exist, or exists already: it is another client's."""

RENAMED = "PGBOUNCER_"
"""How PgBouncer names the statements that it keeps for its clients."""


class Pooler(NamedTuple):
    """What is between a client and the server."""

    between: bool
    """Another process answers the client."""

    by_transaction: bool
    """Connections of the server change with the transaction."""

    prepares: bool
    """The driver, as it is set, prepares statements."""

    supported: bool
    """The pooler knows them."""


def find_pooler(engine: Engine) -> Pooler:
    """Find out what is between *engine* and the server."""
    try:
        return _probe(engine)
    except DBAPIError as error:
        if sqlstate(error) not in LOST_STATEMENTS:
            raise
        return Pooler(between=True, by_transaction=True, prepares=True, supported=False)


def _probe(engine: Engine) -> Pooler:
    told: set[int | None] = set()
    served: list[set[int]] = []
    with ExitStack() as stack:
        pair = [stack.enter_context(engine.connect()) for _ in range(2)]
        for connection in pair:
            told.add(_told(connection))
            served.append(set())
        for turn, number in enumerate(TURNS):
            # Another text each time: none is prepared in one transaction for the next.
            query = f"SELECT pg_backend_pid() + {turn} - {turn}"
            served[number].add(pair[number].exec_driver_sql(query).scalar_one())
            pair[number].commit()
        by_transaction = len(served[0] | served[1]) < sum(map(len, served)) or any(
            len(pids) > 1 for pids in served
        )
        between = by_transaction or not (told <= served[0] | served[1] | {None})
        name = _name_of_statement(pair[0])
    supported = name is not None and name.startswith(RENAMED)
    return Pooler(between, by_transaction, name is not None, supported)


def _told(connection: Connection) -> int | None:
    """Return the process id that the driver was told; None if it does not say."""
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "get_server_pid"):  # asyncpg
        return int(driver.get_server_pid())
    info = getattr(driver, "info", None)  # psycopg
    return getattr(info, "backend_pid", None)


def _name_of_statement(connection: Connection) -> str | None:
    """Return the name of a prepared statement on the server; None if there is none."""
    name: str | None = None
    query = OWN_NAME.format(uuid4())
    # In one transaction, and so on one connection of the server.
    for _ in range(TRIES):
        name = connection.exec_driver_sql(query).scalars().first()
        if name is not None:
            break
    if name is not None and not name.startswith(RENAMED):
        # A client that is given this connection later must not meet it.
        quoted = connection.dialect.identifier_preparer.quote_identifier(name)
        connection.exec_driver_sql(f"DEALLOCATE {quoted}")
    connection.commit()
    return name
