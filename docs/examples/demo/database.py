"""A database for one run: an empty one, with the canonical tables migrated into it."""

from __future__ import annotations

from argparse import Namespace
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from sa_wfstate.testing import temporary_database, temporary_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Engine

MIGRATIONS = Path(__file__).resolve().parents[3] / "alembic"


class DatabaseError(Exception):
    """Say in one line why there is no database to work in."""


@contextmanager
def demo_engine(server_url: URL | None, connections: int) -> Iterator[Engine]:
    """Yield an engine on an empty, migrated database, which is dropped at exit.

    The server is the one of *server_url*, whose user must be allowed to create
    databases; None starts one of its own. *connections* is the size of the pool.

    Raises :class:`DatabaseError` if the server refuses the connection or the database.
    """
    with ExitStack() as stack:
        server = server_url or stack.enter_context(temporary_server())
        try:
            url = stack.enter_context(temporary_database(server, prefix="demo"))
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            raise DatabaseError(f"no database on {server!r}: {reason}") from error
        migrate(url)
        engine = create_engine(url, pool_size=connections, max_overflow=0)
        stack.callback(engine.dispose)
        yield engine


def migrate(url: URL) -> None:
    """Do ``alembic -x url=… upgrade head`` in the repository's environment."""
    text = url.render_as_string(hide_password=False)
    config = Config(cmd_opts=Namespace(x=[f"url={text}"]))
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")
