"""Reads from a standby that lags, and a standby that takes over under load."""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import Any

import pytest
from sqlalchemy import URL, Engine, NullPool, Update, create_engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from sa_wfstate import CanonicalStore, Provenance, StateCommitted
from sa_wfstate.testing import temporary_server

from ..faults.fire import Fire, create_counters
from ..faults.ledgers import Claims, Count, Tally, check, prepare
from ..faults.standbys import Standby, hot_standby

pytestmark = pytest.mark.replicas

COMMITS = int(os.environ.get("SA_WFSTATE_REPLICA_COMMITS", "3000"))
READS = min(COMMITS // 10, 2000)
LAG = 0.04

SETTINGS = {"fsync": "off", "max_connections": "200"}


def routing(primary: Engine, replica: Engine) -> sessionmaker[Any]:
    """Return sessions that read from *replica*."""

    class RoutingSession(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:  # type: ignore[override]
            writes = self._flushing or isinstance(clause, Update)
            return primary if writes else replica

    return sessionmaker(class_=RoutingSession)


def failover_url(primary: URL, standby: Standby) -> URL:
    """Return the URL that names both servers, for the one that can be written to."""
    hosts = [str(url.query["host"]) for url in (primary, standby.url)]
    # asyncpg wants a port for each.
    ports = [str(url.port or 5432) for url in (primary, standby.url)]
    names = {"host": ",".join(hosts), "port": ",".join(ports)}
    return primary.update_query_dict(names | {"target_session_attrs": "read-write"})


def report(capsys: pytest.CaptureFixture[str], figures: object) -> None:
    """Show *figures* in the output of the tests."""
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")


def test_reader_waits_for_a_standby_that_lags(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No read of its own commit is old; one that may not wait asks the primary."""
    delay = f"recovery_min_apply_delay={LAG * 1e3:.0f}ms"
    with (
        temporary_server(settings=SETTINGS) as primary_url,
        hot_standby(primary_url, delay, synchronous=False) as standby,
    ):
        primary, replica = create_engine(primary_url), create_engine(standby.url)
        prepare(primary)
        asked: list[str] = []
        event.listen(
            primary, "before_cursor_execute", lambda *_: asked.append("primary")
        )
        store = CanonicalStore(routing(primary, replica), Tally)
        writing = CanonicalStore(primary, Tally)
        version = 0

        def commit() -> Any:
            nonlocal version
            made = writing.try_commit(
                workflow_key="r-1",
                expected_version=version,
                state=Count(value=version + 1),
                provenance=Provenance.now(),
            )
            assert isinstance(made, StateCommitted)
            version += 1
            asked.clear()
            return made.token

        token = commit()
        assert store.get_state("r-1", min_version=token, max_wait=20).version == 1
        waits = []
        for _ in range(READS):
            token = commit()
            begin = time.perf_counter()
            read = store.get_state("r-1", min_version=token, max_wait=20)
            waits.append(time.perf_counter() - begin)
            assert (read.version, asked) == (version, [])
        token = commit()
        read = store.get_state("r-1", min_version=token, max_wait=LAG / 8)
        assert (read.version, bool(asked)) == (version, True)
        waits.sort()
        p50, p99 = statistics.median(waits), waits[int(0.99 * len(waits))]
        report(
            capsys,
            f"{READS} reads of a standby {LAG * 1e3:.0f} ms behind waited for "
            f"p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms",
        )
        assert p50 < 10 * LAG
        primary.dispose()
        replica.dispose()


@pytest.mark.parametrize("synchronous", [True, False], ids=["synchronous", "async"])
def test_standby_takes_over_under_load(
    synchronous: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Synchronous, no commit is lost or doubled; else the last ones are lost.

    What is lost of a workflow are its last versions: there are no gaps, and what was
    committed after the promotion is built on what is there.
    """
    with (
        temporary_server(settings=SETTINGS) as primary_url,
        hot_standby(primary_url, synchronous=synchronous) as standby,
    ):
        calm = create_engine(primary_url, poolclass=NullPool)
        prepare(calm)
        url = failover_url(primary_url, standby)
        fire, engine = Fire(COMMITS), create_engine(url)
        create_counters(calm, fire.claims)

        def promote() -> None:
            while fire.burning and fire.acknowledged < COMMITS / 2:
                time.sleep(0.01)
            if not synchronous:
                # As where the network fails first: commits go on meanwhile.
                standby.lose_sight()
                time.sleep(0.5)
            standby.take_over()

        started = time.monotonic()
        fire.run(
            lambda: fire.store(engine, 1),
            lambda: fire.store(engine, 2),
            lambda: fire.transactions(engine, 3),
            lambda: fire.async_transactions(url, 4),
            lambda: fire.service(engine, 5),
            promote,
        )
        engine.dispose()
        promoted = create_engine(standby.url, poolclass=NullPool)
        lost = take_lost(promoted, fire.claims)
        figures: dict[str, Any] = check(promoted, fire.claims)
        figures |= {"lost": lost, "seconds": round(time.monotonic() - started)}
        kind = "a synchronous" if synchronous else "an asynchronous"
        report(capsys, f"{kind} standby took over: {figures}")
        assert (lost == 0) is synchronous
        assert figures["acknowledged"] + figures["actions"] + lost >= COMMITS


def take_lost(engine: Engine, claims: Claims) -> int:
    """Remove from *claims* what is not there any more; return how many these are."""
    with engine.connect() as connection:
        audit = connection.execute(text("SELECT * FROM audit")).all()
    places = {
        (key, version, action or effect) for key, version, effect, action in audit
    }
    names = {name for *_, name in places}
    lost = 0
    for claimed in (claims.done, claims.handled):
        for name, place in list(claimed.items()):
            if (*place, name) not in places:
                assert name not in names
                del claimed[name]
                lost += 1
    return lost
