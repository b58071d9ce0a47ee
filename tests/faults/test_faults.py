"""Commits under fire: none is lost, none is doubled, and what was told is true."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from sa_wfstate import (
    ErrorKind,
    StateConflict,
    classify,
    run_transaction,
)
from sa_wfstate.testing import temporary_database, temporary_server

from .fire import KEYS, LINES, Fire, count, create_counters
from .killing import Server
from .ledgers import Claims, Tally, check, prepare
from .proxy import losing_commits

pytestmark = pytest.mark.faults

COMMITS = int(os.environ.get("SA_WFSTATE_FAULT_COMMITS", "100000"))

# A killed server must find in its log what it has acknowledged.
SETTINGS = {"fsync": "off", "synchronous_commit": "on", "max_connections": "200"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Start a server, and make a database in it."""
    with temporary_server(settings=SETTINGS) as url, temporary_database(url) as own:
        yield Server(own)


def kill_servers(fire: Fire, server: Server, every: float) -> None:
    """Kill *server* about *every* seconds."""
    while fire.burning:
        time.sleep(random.uniform(0.5, 1.5) * every)
        server.kill()


def test_commits_under_fire(server: Server) -> None:
    """100,000 commits, while the server, backends and connections die.

    Of stores, transactions, patches, and services that commit in groups.
    """
    calm = create_engine(server.url, poolclass=NullPool)
    prepare(calm)
    fire = Fire(COMMITS)
    create_counters(calm, fire.claims)
    started = time.monotonic()
    with losing_commits(server.url, at_commit=0.01, seed=1) as (proxied, proxy):
        direct, flaky = create_engine(server.url), create_engine(proxied)
        fire.run(
            lambda: fire.store(direct, 1),
            lambda: fire.store(flaky, 2),
            lambda: fire.transactions(direct, 3),
            lambda: fire.transactions(flaky, 4),
            lambda: fire.async_transactions(server.url, 5),
            lambda: fire.async_transactions(proxied, 6),
            lambda: fire.service(direct, 7),
            lambda: fire.service(flaky, 8),
            lambda: fire.async_service(server.url, 9),
            lambda: fire.async_service(proxied, 10),
            lambda: fire.patches(direct, 11),
            lambda: fire.patches(flaky, 12),
            lambda: fire.service(flaky, 13, LINES),
            lambda: fire.async_service(server.url, 14, LINES),
            lambda: fire.async_service(proxied, 15, LINES),
            lambda: kill_servers(fire, server, 15),
            lambda: fire.terminate_backends(server.url, 0.5),
        )
        direct.dispose()
        flaky.dispose()
    figures = check(calm, fire.claims) | {"kills": server.kills} | proxy.lost
    figures["seconds"] = round(time.monotonic() - started)
    print("\n", figures)  # noqa: T201
    told = ("acknowledged", "actions", "actions of lines")
    assert sum(figures[each] for each in told) >= COMMITS
    assert min(figures[each] for each in told[1:]) > COMMITS / 10


def test_checker_sees_what_it_should(database: URL) -> None:
    """A client that swallows conflicts, or writes blindly, does not pass."""
    engine = create_engine(database, poolclass=NullPool)
    prepare(engine)
    claims = Claims()
    create_counters(engine, claims)
    assert check(engine, claims)["versions"] == len(KEYS)
    stale = Session(engine)
    row = stale.get_one(Tally, "hot-0")
    with Session(engine) as session, session.begin():
        claims.done |= count(session, ["hot-0"], {})
    check(engine, claims)
    swallowed = count(stale, ["hot-0"], {})
    with suppress(StateConflict):
        stale.commit()
    stale.close()
    with pytest.raises(AssertionError, match="not there"):
        check(engine, Claims(claims.done | swallowed))
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE counters SET version = version + 1,"
                " provenance = jsonb_build_object('effect_id', 'blind')"
                " WHERE workflow_key = 'hot-0'"
            )
        )
    blind = claims.done | {"blind": ("hot-0", 3)}
    with pytest.raises(AssertionError, match="lost"):
        check(engine, Claims(blind))
    assert row is not None


def test_timeouts_are_tried_again(database: URL) -> None:
    """A lock or a statement that times out leaves nothing, and may be repeated."""
    engine = create_engine(database)
    Tally.metadata.create_all(engine)
    create_counters(engine, Claims())
    sessions = sessionmaker(engine)
    for setting in ("lock_timeout", "statement_timeout"):
        calls = []

        def fn(session: Session, calls: Any = calls, setting: str = setting) -> None:
            calls.append(1)
            session.execute(text(f"SET LOCAL {setting} = '50ms'"))
            session.get_one(Tally, "hot-0").state.value += 1

        with Session(engine) as holder:
            holder.execute(text("SELECT 1 FROM counters FOR UPDATE"))
            with pytest.raises(DBAPIError) as caught:
                run_transaction(sessions, fn)
        assert classify(caught.value) is ErrorKind.TRANSIENT
        assert len(calls) == 3
        run_transaction(sessions, fn)
    with sessions() as session:
        assert session.get_one(Tally, "hot-0").version == 3
    engine.dispose()
