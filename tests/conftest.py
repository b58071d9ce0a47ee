"""Engines for the tests, and contract tests: written once, run over every driver."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util import await_only, greenlet_spawn

from .dialects.lacks import LACKS, refuse
from .statements import Lint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import URL, MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine

# How long an example takes says how busy the machine is, no more.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")

DIALECT = os.environ.get("SA_WFSTATE_DIALECT", "postgresql")
DRIVERS = {
    "psycopg": f"{DIALECT}+psycopg",
    "psycopg_async": f"{DIALECT}+psycopg",
    "asyncpg": f"{DIALECT}+asyncpg",
}
# Objects that a database was not created with have a number from here on.
CATALOG = text(
    "SELECT count(*), max(xmin::text::bigint) FROM ("
    + " UNION ALL ".join(
        f"SELECT xmin FROM {catalog} WHERE {column} >= 16384"
        for catalog, column in {
            "pg_attrdef": "oid",
            "pg_attribute": "attrelid",
            "pg_class": "oid",
            "pg_constraint": "oid",
            "pg_index": "indexrelid",
            "pg_namespace": "oid",
            "pg_policy": "oid",
            "pg_proc": "oid",
            "pg_rewrite": "oid",
            "pg_trigger": "oid",
            "pg_type": "oid",
        }.items()
    )
    + ") AS definitions"
)
"""What there is, and which transaction was the last to define any of it."""

RESTART_SEQUENCES = text(
    "SELECT setval(seqrelid, seqstart, false) FROM pg_sequence WHERE seqrelid >= 16384"
)
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
        if DIALECT in LACKS:
            refuse(engine, DIALECT, skip=True)
        self._engines.append(engine)
        return engine

    def run(self, function: Callable[..., object], **arguments: Any) -> None:
        function(**arguments)

    def together(self, *functions: Callable[[], Any]) -> list[Any]:
        """Call *functions* at the same time; return what each returned."""
        with ThreadPoolExecutor(len(functions)) as pool:
            return [each.result() for each in [pool.submit(f) for f in functions]]

    def meeting(self, parties: int) -> Callable[[float], bool]:
        """Return a function that waits until so many of *together* have called it.

        For a number of seconds; it returns whether all came.
        """
        barrier = threading.Barrier(parties)

        def wait(seconds: float) -> bool:
            try:
                barrier.wait(seconds)
            except threading.BrokenBarrierError:
                return False
            return True

        return wait

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

    def together(self, *functions: Callable[[], Any]) -> list[Any]:
        return list(await_only(asyncio.gather(*map(greenlet_spawn, functions))))

    def meeting(self, parties: int) -> Callable[[float], bool]:
        barrier = asyncio.Barrier(parties)

        def wait(seconds: float) -> bool:
            try:
                await_only(asyncio.wait_for(barrier.wait(), seconds))
            except (TimeoutError, asyncio.BrokenBarrierError):
                return False
            return True

        return wait

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


LINT = Lint()
LINTED = (Engine, "before_cursor_execute", LINT.note)
if "SA_WFSTATE_LINT_SQL" in os.environ:
    event.listen(*LINTED)


@pytest.fixture
def unobserved() -> Iterator[None]:
    """Keep the lint from listening: an engine with a listener is another case."""
    linted = event.contains(*LINTED)
    if linted:
        event.remove(*LINTED)
    yield
    if linted:
        event.listen(*LINTED)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:  # noqa: ARG001 - of the hook
    """Fail a test in which the library sends what some engine would refuse."""
    LINT.take()
    outcome = yield
    assert LINT.take() == []
    return outcome


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


class Tables:
    """The tables in the worker's database: kept for the next test if it wants the same.

    To drop and create them takes longer than most tests. They are kept as long as no
    test changes their definitions, or makes anything beside them.
    """

    def __init__(self, engine: Engine, drop: Callable[[], None]) -> None:
        self._engine = engine
        self._drop = drop
        self._kept: tuple[MetaData, ...] = ()
        self._catalog: object = None

    def create(self, *metadata: MetaData) -> None:
        if metadata == self._kept and self._are_kept():
            return
        self.drop_kept()
        for each in metadata:
            each.create_all(self._engine)
        self._kept, self._catalog = metadata, self._read_catalog()

    def drop(self) -> None:
        self._kept = ()
        self._drop()

    def drop_kept(self) -> None:
        if self._kept:
            self.drop()

    def clear(self) -> None:
        """Delete all rows; drop everything if there is more than was created here."""
        if not self._kept or not self._are_kept():
            self.drop()
            return
        try:
            with self._engine.connect() as connection:
                for metadata in self._kept:
                    for table in reversed(metadata.sorted_tables):
                        connection.execute(table.delete())
                connection.execute(RESTART_SEQUENCES)
        except IntegrityError:  # Tables that refer to each other.
            self.drop()

    def _are_kept(self) -> bool:
        return self._read_catalog() == self._catalog

    def _read_catalog(self) -> object:
        with self._engine.connect() as connection:
            return connection.execute(CATALOG).one()


@pytest.fixture(scope="session")
def kept_tables(maintenance: Engine, empty_database: Callable[[], None]) -> Tables:
    """Keep the tables of the worker's database."""
    return Tables(maintenance, empty_database)


@pytest.fixture
def database(
    request: pytest.FixtureRequest,
    url: URL,
    kept_tables: Tables,
    cut_connections: Callable[[], None],
) -> Iterator[URL]:
    """Lend the worker's database, and empty it afterwards."""
    if "create_tables" not in request.fixturenames:
        kept_tables.drop_kept()
    yield url
    cut_connections()
    kept_tables.clear()


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
def create_tables(
    database: URL,  # noqa: ARG001 - emptied after the test
    kept_tables: Tables,
) -> Callable[..., None]:
    """Return a function that creates the tables of each MetaData, over psycopg."""
    return kept_tables.create


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


@pytest.fixture(scope="session")
def rival_engine(url: URL) -> Iterator[Engine]:
    """Connect once for all tests: the first connection of an engine is a slow one."""
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=2)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(database: URL, rival_engine: Engine) -> Iterator[sessionmaker[Session]]:  # noqa: ARG001 - lent
    """Sessions of another program: synchronous, at READ COMMITTED, one at a time."""
    yield sessionmaker(rival_engine)
    rival_engine.dispose()
