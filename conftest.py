"""One PostgreSQL server for a test run, one database for each of its workers.

Shared by the tests and by the snippets of the README and the documentation, which
are collected from here. The server is an embedded one unless
``SA_WFSTATE_TEST_URL`` names another.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.schema import DropSchema
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

from sa_wfstate.testing import temporary_database, temporary_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

# Nothing here outlives a crash of the machine, so nothing needs to reach the disk.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_prepared_transactions": "20",
}

_server = pytest.StashKey["Server"]()


class Server:
    """The server of this run, started when first asked for."""

    def __init__(self) -> None:
        self._exits = ExitStack()
        self._url: URL | None = None

    def url(self) -> URL:
        if self._url is None:
            given = os.environ.get("SA_WFSTATE_TEST_URL")
            if given:
                self._url = make_url(given).set(drivername="postgresql+psycopg")
            else:
                # A run that is told to end takes its server along, as after Ctrl-C.
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                self._url = self._exits.enter_context(
                    temporary_server(settings=SETTINGS)
                )
        return self._url

    def stop(self) -> None:
        self._exits.close()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_server] = Server()
    if sys.dont_write_bytecode and hasattr(config, "cache"):
        # Or each program that a test starts compiles all that it imports, for seconds.
        cache = config.cache.mkdir("bytecode")
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(cache)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_server].stop()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker of pytest-xdist the server of the process that started it.

    That process ends last, so the server survives until no worker needs it.
    """
    url = node.config.stash[_server].url()
    node.workerinput["server_url"] = url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> URL:
    """Locate the server, as a superuser."""
    workerinput = getattr(pytestconfig, "workerinput", None)
    if workerinput is not None:
        return make_url(workerinput["server_url"])
    return pytestconfig.stash[_server].url()


@pytest.fixture(scope="session")
def url(server_url: URL) -> Iterator[URL]:
    """Make this worker's database; the driver is psycopg."""
    with temporary_database(server_url) as url:
        yield url


@pytest.fixture(scope="session")
def maintenance(url: URL) -> Iterator[Engine]:
    """Connect to the worker's database between tests."""
    # A test may have cut the connection: pre-ping.
    engine = create_engine(url, pool_pre_ping=True, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def cut_connections(maintenance: Engine) -> Callable[[], None]:
    """Return a function that cuts what tests have left open: it might hold locks."""

    def cut() -> None:
        with maintenance.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database()"
                    " AND backend_type = 'client backend'"
                    " AND pid <> pg_backend_pid()"
                )
            )

    return cut


@pytest.fixture(scope="session")
def empty_database(
    maintenance: Engine, cut_connections: Callable[[], None]
) -> Callable[[], None]:
    """Return a function that drops whatever is in the worker's database."""

    def empty() -> None:
        cut_connections()
        with maintenance.connect() as connection:
            schemas = connection.scalars(
                text(
                    "SELECT nspname FROM pg_namespace"
                    " WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
                )
            ).all()
            for schema in schemas:  # Its name may hold anything.
                connection.execute(DropSchema(schema, cascade=True))
            connection.execute(text("CREATE SCHEMA public"))

    return empty


@pytest.fixture(scope="module")
def DATABASE_URL(  # noqa: N802 - what a snippet would call it
    url: URL, empty_database: Callable[[], None]
) -> Iterator[str]:
    """Lend the snippets of one page an empty database."""
    empty_database()
    yield url.render_as_string(hide_password=False)
    empty_database()


def name_module(namespace: dict[str, Any]) -> None:
    """Give a page the name of a program: frameworks look up where a function is."""
    namespace["__name__"] = "__main__"


def dispose_of_engines(namespace: dict[str, Any]) -> None:
    """Close what the snippets of a page left open: collected later, it would warn."""
    for value in namespace.values():
        if isinstance(value, Engine):
            value.dispose()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    fixtures=["DATABASE_URL"],
    setup=name_module,
    teardown=dispose_of_engines,
).pytest()
