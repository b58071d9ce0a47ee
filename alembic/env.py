"""Migrations of the canonical tables: how a revision reaches the database.

Alembic runs this module for every command, from the root of the repository::

    alembic -x url=postgresql://user@host/database upgrade head

The URL may also be in the environment variable ``SA_WFSTATE_URL``. A plain
``postgresql://`` means psycopg; an asynchronous driver works as well. With ``--sql``
no database is asked, so no URL is needed.

A program hands in a Connection of its own instead, which is then neither committed
(if it is in a transaction) nor closed::

    config.attributes["connection"] = connection
    command.upgrade(config, "head")

That is the way in for a program whose event loop is running, too::

    await async_connection.run_sync(upgrade)
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from alembic import context
from alembic.util import CommandError
from sqlalchemy import URL, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine

from sa_wfstate.canonical import CanonicalBase

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Of its own, so that these migrations can share a database with an application's.
VERSION_TABLE = "sa_wfstate_alembic_version"
# All that Alembic can compare, CHECK constraints included.
AUTOGENERATE_PLUGINS = ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"]
HOW_TO_GIVE_A_URL = "give one with -x url=postgresql://... or in SA_WFSTATE_URL"


def database_url() -> URL:
    """Return the URL of the database to migrate."""
    given = context.get_x_argument(as_dictionary=True).get("url")
    text = given or os.environ.get("SA_WFSTATE_URL")
    if not text:
        raise CommandError(f"no database URL; {HOW_TO_GIVE_A_URL}")
    try:
        url = make_url(text)
        url.get_dialect()
    except (ArgumentError, ValueError) as error:
        # Not the text itself, which may hold a password.
        raise CommandError(
            f"the database URL cannot be read; {HOW_TO_GIVE_A_URL}"
        ) from error
    if url.get_backend_name() != "postgresql":
        raise CommandError(
            f"the canonical tables need PostgreSQL, not {url.drivername};"
            f" {HOW_TO_GIVE_A_URL}"
        )
    # The driver that a plain URL means depends on the version of SQLAlchemy.
    plain = url.drivername == "postgresql"
    return url.set(drivername="postgresql+psycopg") if plain else url


def migrate(connection: Connection) -> None:
    """Run the command on *connection*."""
    context.configure(
        connection=connection,
        target_metadata=CanonicalBase.metadata,
        version_table=VERSION_TABLE,
        compare_server_default=True,
        autogenerate_plugins=AUTOGENERATE_PLUGINS,
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_on(given: Connection | Engine) -> None:
    """Run the command on what a program hands in; pytest-alembic has an Engine."""
    if isinstance(given, Engine):
        with given.connect() as connection:
            migrate(connection)
    else:
        migrate(given)


def migrate_at(url: URL) -> None:
    """Run the command on a new connection, with the driver of *url*."""
    if url.get_dialect().is_async:
        asyncio.run(async_migrate_at(url))
        return
    with create_engine(url, poolclass=NullPool).connect() as connection:
        migrate(connection)


async def async_migrate_at(url: URL) -> None:
    """Async version of :func:`migrate_at`."""
    async with create_async_engine(url, poolclass=NullPool).connect() as connection:
        await connection.run_sync(migrate)


def write_sql() -> None:
    """Write the SQL of the command, and send nothing."""
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        target_metadata=CanonicalBase.metadata,
        version_table=VERSION_TABLE,
        literal_binds=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def show_log() -> None:
    """Show Alembic's log on its command line; a program sets up its own logging."""
    options = context.config.cmd_opts
    if not hasattr(options, "cmd") or getattr(options, "quiet", False):
        return
    logging.basicConfig(format="%(levelname)s [%(name)s] %(message)s")
    for name in ("alembic.autogenerate", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.INFO)
    # It logs what it prints: an error would be there twice.
    logging.getLogger("alembic.util.messaging").propagate = False
    logging.getLogger("alembic.util.messaging").addHandler(logging.NullHandler())


show_log()
if context.is_offline_mode():
    write_sql()
elif "connection" in context.config.attributes:
    migrate_on(context.config.attributes["connection"])
else:
    migrate_at(database_url())
