"""A hot standby refuses commits and loses none, and takes them once it is promoted."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import NullPool, Update, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from tenacity import Retrying, retry_if_exception

from sa_wfstate import (
    CanonicalStore,
    ErrorKind,
    Provenance,
    RetryPolicy,
    StateCommitted,
    classify,
    run_transaction,
)
from sa_wfstate.retry import READ_ONLY_TRANSACTION, sqlstate
from sa_wfstate.testing import temporary_server

from .ledgers import Claims, Count, Tally, check, prepare
from .standbys import hot_standby

pytestmark = pytest.mark.faults

SETTINGS = {"fsync": "off", "synchronous_commit": "remote_apply"}
RETRY = RetryPolicy(max_attempts=None, base_delay=0.05, max_delay=0.5, deadline=20)


def is_refusal(error: BaseException) -> bool:
    """Say whether *error* is that of a standby, and one to be tried again."""
    return (
        sqlstate(error) == READ_ONLY_TRANSACTION
        and classify(error) is ErrorKind.TRANSIENT
        and classify(error, committing=True) is ErrorKind.TRANSIENT
    )


def count(session: Session, key: str) -> dict[str, tuple[str, int]]:
    """Count *key* on, and return where the effect will be found."""
    provenance = Provenance.now()
    row = session.get(Tally, key)
    if row is None:
        session.add(Tally(workflow_key=key, state=Count(), provenance=provenance))
        return {provenance.effect_id: (key, 1)}
    row.state.value += 1
    row.provenance = provenance
    return {provenance.effect_id: (key, row.version + 1)}


def commit(store: CanonicalStore[Count], key: str, provenance: Provenance) -> Any:
    """Count *key* on by the store."""
    read = store.get_state(key)
    return store.try_commit(
        workflow_key=key,
        expected_version=read.version,
        state=Count(value=read.state.value + 1),
        provenance=provenance,
    )


def test_promoted_standby_is_written_to() -> None:
    """What a standby refuses is not there, and an attempt after its promotion wins."""
    claims = Claims()
    with (
        temporary_server(settings=SETTINGS) as primary_url,
        hot_standby(primary_url) as standby,
    ):
        primary = create_engine(primary_url, poolclass=NullPool)
        prepare(primary)
        for key in ("s-1", "s-2", "s-1", "s-2"):
            with Session(primary) as session, session.begin():
                claims.done |= count(session, key)

        engine = create_engine(standby.url)
        other = create_engine(standby.url, poolclass=NullPool)
        store = CanonicalStore(other, Tally)
        provenance = Provenance.now()
        with pytest.raises(DBAPIError, check=is_refusal):
            commit(store, "s-1", provenance)
        claims.not_done.add(provenance.effect_id)
        with Session(engine) as session:
            claims.not_done |= count(session, "s-2").keys()
            with pytest.raises(DBAPIError, check=is_refusal):
                session.commit()
        assert check(primary, claims)["versions"] == 4
        assert check(engine, claims)["versions"] == 4

        refused: list[Any] = []
        pids: list[Any] = []
        retrying = Retrying(
            stop=RETRY.stop,
            wait=RETRY.wait,
            retry=retry_if_exception(is_refusal),
            before_sleep=refused.append,
            reraise=True,
        )

        def fn(session: Session) -> dict[str, tuple[str, int]]:
            pids.append(session.scalar(text("SELECT pg_backend_pid()")))
            done = count(session, "s-2")
            if len(pids) == 1:
                claims.not_done.update(done)
                while not (refused or pending.done()):
                    time.sleep(0.01)
                standby.take_over()
            return done

        with ThreadPoolExecutor() as pool:
            provenance = Provenance.now()
            pending = pool.submit(retrying, commit, store, "s-1", provenance)
            claims.done |= run_transaction(sessionmaker(engine), fn, retry=RETRY)
            outcome = pending.result()
        assert isinstance(outcome, StateCommitted)
        claims.done[provenance.effect_id] = "s-1", 3
        assert len(set(pids)) == 2
        assert check(engine, claims)["versions"] == 6
        engine.dispose()


def test_reader_of_a_standby_sees_its_own_commit() -> None:
    """A standby that lags is waited for; the primary is asked after that."""
    with (
        temporary_server(settings={"fsync": "off"}) as primary_url,
        hot_standby(primary_url) as standby,
    ):
        primary, replica = create_engine(primary_url), create_engine(standby.url)
        prepare(primary)
        asked: list[str] = []
        for name, engine in (("primary", primary), ("replica", replica)):
            event.listen(
                engine,
                "before_cursor_execute",
                lambda *_, name=name: asked.append(name),
            )

        class RoutingSession(Session):
            def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:  # type: ignore[override]
                writes = self._flushing or isinstance(clause, Update)
                return primary if writes else replica

        store = CanonicalStore(sessionmaker(class_=RoutingSession), Tally)
        made = store.try_commit(
            workflow_key="r-1",
            expected_version=0,
            state=Count(),
            provenance=Provenance.now(),
        )
        assert isinstance(made, StateCommitted)
        assert store.get_state("r-1", min_version=made.token, max_wait=20).version == 1
        asked.clear()
        with replica.connect() as connection:
            connection.execute(text("SELECT pg_wal_replay_pause()"))
            connection.commit()
            with primary.connect() as writing:
                # Or the COMMIT would wait for the standby.
                local = "ALTER DATABASE postgres SET synchronous_commit = local"
                writing.execute(text(local))
                writing.commit()
            primary.dispose()
            read = store.get_state("r-1")
            moved = store.try_commit(
                workflow_key="r-1",
                expected_version=1,
                base=read,
                state=Count(value=1),
                provenance=Provenance.now(),
            )
            assert isinstance(moved, StateCommitted)
            assert store.get_state("r-1").version == 1
            asked.clear()
            read = store.get_state("r-1", min_version=moved.token, max_wait=0.05)
            assert read.version == 2
            assert asked[-1] == "primary"
            connection.execute(text("SELECT pg_wal_replay_resume()"))
            connection.commit()
        asked.clear()
        assert store.get_state("r-1", min_version=moved.token, max_wait=20).version == 2
        assert "primary" not in asked
        replica.dispose()
        primary.dispose()
