"""Engines for the tests, and contract tests: written once, run over every driver."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util import greenlet_spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import URL, MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine

DRIVERS = {
    "psycopg": "postgresql+psycopg",
    "psycopg_async": "postgresql+psycopg",
    "asyncpg": "postgresql+asyncpg",
}
ISOLATION_LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


class Driver:
    """A synchronous driver: a test runs as it is."""

    def __init__(self, name: str, url: URL) -> None:
        self.name = name
        self.url = url.set(drivername=DRIVERS[name])
        self._engines: list[Engine] = []

    def create_engine(self, **options: Any) -> Engine:
        """Make another engine on the same database, disposed of after the test."""
        engine = create_engine(self.url, **options)
        self._engines.append(engine)
        return engine

    def run(self, function: Callable[..., object], **arguments: Any) -> None:
        function(**arguments)

    def close(self) -> None:
        for engine in self._engines:
            engine.dispose()


class AsyncDriver(Driver):
    """An asynchronous driver: a test runs in a greenlet inside an event loop.

    There the synchronous face of an AsyncEngine works like any engine, so a test
    sees no difference, and two Sessions can still take turns in one test.
    """

    def __init__(self, name: str, url: URL) -> None:
        super().__init__(name, url)
        self._runner = asyncio.Runner()
        self._async_engines: list[AsyncEngine] = []

    def create_engine(self, **options: Any) -> Engine:
        engine = create_async_engine(self.url, **options)
        self._async_engines.append(engine)
        return engine.sync_engine

    def run(self, function: Callable[..., object], **arguments: Any) -> None:
        self._runner.run(greenlet_spawn(function, **arguments))

    def close(self) -> None:
        for engine in self._async_engines:
            self._runner.run(engine.dispose())
        self._runner.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a contract test over every driver, any other test over psycopg."""
    if "driver" in metafunc.fixturenames:
        contract = metafunc.definition.get_closest_marker("contract")
        names = list(DRIVERS) if contract else ["psycopg"]
        metafunc.parametrize("driver", names, indirect=True, scope="function")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """Hand the test to its driver, which knows where it must run."""
    driver = pyfuncitem.funcargs.get("driver")
    if not isinstance(driver, AsyncDriver):
        return (yield)
    test = pyfuncitem.obj
    pyfuncitem.obj = partial(driver.run, test)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


@pytest.fixture
def database(url: URL, empty_database: Callable[[], None]) -> Iterator[URL]:
    """Lend the worker's database, and empty it afterwards."""
    yield url
    empty_database()


@pytest.fixture
def driver(request: pytest.FixtureRequest, database: URL) -> Iterator[Driver]:
    """Choose the driver of this run of a contract test."""
    kind = Driver if request.param == "psycopg" else AsyncDriver
    driver = kind(request.param, database)
    yield driver
    driver.close()


@pytest.fixture
def engine(driver: Driver) -> Engine:
    """Connect to an empty database; in a contract test, over its driver."""
    return driver.create_engine()


@pytest.fixture
def create_tables(database: URL) -> Callable[[MetaData], None]:
    """Return a function that creates the tables of a MetaData, over psycopg."""

    def create(metadata: MetaData) -> None:
        engine = create_engine(database)
        metadata.create_all(engine)
        engine.dispose()

    return create


@pytest.fixture(params=ISOLATION_LEVELS)
def isolation_level(request: pytest.FixtureRequest) -> str:
    """Run the test at each isolation level."""
    level: str = request.param
    return level


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio only: SQLAlchemy knows no other."""
    return "asyncio"


@pytest.fixture(params=["psycopg", "asyncpg"])
async def async_engine(
    request: pytest.FixtureRequest, database: URL
) -> AsyncIterator[AsyncEngine]:
    """Connect to an empty database, over each asynchronous driver."""
    engine = create_async_engine(
        make_url(database).set(drivername=f"postgresql+{request.param}")
    )
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(database: URL) -> Iterator[sessionmaker[Session]]:
    """Sessions of somebody else: synchronous, at READ COMMITTED, one at a time."""
    engine = create_engine(database, pool_size=1, max_overflow=0, pool_timeout=2)
    yield sessionmaker(engine)
    engine.dispose()
