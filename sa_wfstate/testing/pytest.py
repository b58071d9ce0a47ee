"""Fixtures for pytest: a server, an engine, and sessions that leave nothing behind.

In ``conftest.py``::

    pytest_plugins = ["sa_wfstate.testing.pytest"]


    @pytest.fixture(scope="session")
    def wfstate_metadata():
        return Base.metadata

There is no entry point, which would load this in each run of pytest. Each name starts
with ``wfstate_``, so none is taken from the application.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Engine, MetaData, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from .races import one_transaction
from .servers import temporary_database, temporary_server

_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@pytest.fixture(scope="session")
def wfstate_server() -> Iterator[URL]:
    """Start a server for the run, or take that of ``SA_WFSTATE_TEST_URL``."""
    given = os.environ.get("SA_WFSTATE_TEST_URL")
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg")
    else:
        with temporary_server(settings=_SETTINGS) as url:
            yield url


@pytest.fixture(scope="session")
def wfstate_database(wfstate_server: URL) -> Iterator[URL]:
    """Make a database for the run; each process of pytest-xdist has its own."""
    with temporary_database(wfstate_server) as url:
        yield url


@pytest.fixture(scope="session")
def wfstate_metadata() -> MetaData:
    """Return the tables to create; override it to return those of your Base."""
    return MetaData()


@pytest.fixture(scope="session")
def wfstate_engine(
    wfstate_database: URL, wfstate_metadata: MetaData
) -> Iterator[Engine]:
    """Connect to the database, which has the tables of ``wfstate_metadata``."""
    engine = create_engine(wfstate_database)
    wfstate_metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def wfstate_sessions(wfstate_engine: Engine) -> Iterator[sessionmaker[Session]]:
    """Make sessions whose commits are undone after the test."""
    with one_transaction(wfstate_engine) as sessions:
        yield sessions


@pytest.fixture
def wfstate_session(wfstate_sessions: sessionmaker[Session]) -> Iterator[Session]:
    """Open one session, whose commits are undone after the test."""
    with wfstate_sessions() as session:
        yield session
