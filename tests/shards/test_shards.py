"""What works where a table is hash-partitioned over servers, by postgres_fdw."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sa_wfstate import (
    CanonicalStore,
    Commit,
    ConflictReason,
    Provenance,
    StateCommitted,
    StateConflict,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.sharding import hash_partitions
from sa_wfstate.testing import temporary_database

from ..drives import DRIVES, Base, Job, State
from .cluster import cluster

if TYPE_CHECKING:
    from sqlalchemy import URL

pytestmark = pytest.mark.shards

UPSERTS = {"projection_is_kept_inline", "projection_is_rebuilt", "projection_follows"}
"""Drives that need ON CONFLICT DO UPDATE, which foreign tables do not allow."""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[URL, list[URL]]]:
    """Run two shards and their coordinator."""
    with cluster(Base.metadata) as urls:
        yield urls


@pytest.fixture
def coordinator(servers: tuple[URL, list[URL]]) -> Iterator[Engine]:
    """Connect to the coordinator."""
    engine = create_engine(servers[0])
    yield engine
    engine.dispose()


def write(count: int) -> dict[str, Any]:
    """Return the arguments of a write."""
    return {"state": State(count=count), "provenance": Provenance.now()}


def test_all_but_upserts_run_on_foreign_partitions(
    coordinator: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the drives of the public API those fail that need DO UPDATE, and no other."""
    failed: dict[str, BaseException] = {}
    for name, drive in DRIVES.items():
        try:
            drive(coordinator)
        except (SQLAlchemyError, AssertionError) as error:
            failed[name] = error
            coordinator.dispose()
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(DRIVES) - len(failed)} of {len(DRIVES)} drives pass\n"
        )
    assert failed.keys() == UPSERTS


def test_all_runs_on_hash_partitions_of_one_server(
    servers: tuple[URL, list[URL]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every drive passes where the tables are partitioned by the key."""
    metadata = MetaData()
    for table in Base.metadata.sorted_tables:
        copy = table.to_metadata(metadata)
        if "workflow_key" in copy.c:
            options = copy.dialect_options["postgresql"]
            options["partition_by"] = "HASH (workflow_key)"
    for statement in hash_partitions(metadata, 8):
        event.listen(metadata, "after_create", statement)
    with temporary_database(servers[0]) as url:
        engine = create_engine(url)
        metadata.create_all(engine)
        assert "jobs_p7" in inspect(engine).get_table_names()
        for drive in DRIVES.values():
            drive(engine)
        engine.dispose()
    with capsys.disabled():
        sys.stdout.write(f"\n{len(DRIVES)} drives pass on partitions of one server\n")


def test_rows_are_on_both_shards(
    coordinator: Engine, servers: tuple[URL, list[URL]]
) -> None:
    """A batch is written to the servers of its keys, and read from there."""
    keys = [f"spread-{number}" for number in range(20)]
    new = [Commit(key, expected_version=0, **write(1)) for key in keys]
    with Session(coordinator) as session, session.begin():
        outcomes = try_commit_many(session, Job, new)
    assert all(isinstance(each, StateCommitted) for each in outcomes)
    there = []
    for url in servers[1]:
        engine = create_engine(url)
        with engine.connect() as connection:
            like = "SELECT count(*) FROM jobs WHERE workflow_key LIKE 'spread-%'"
            there.append(connection.scalar(text(like)))
        engine.dispose()
    assert sum(there) == 20
    assert min(there) > 0


def test_batches_of_other_keys_do_not_wait(coordinator: Engine) -> None:
    """Two batches without a common key write at the same time, and both win."""
    keys = [[f"{name}-{number}" for number in range(50)] for name in ("one", "two")]
    with Session(coordinator) as session, session.begin():
        for batch in keys:
            new = [Commit(key, expected_version=0, **write(1)) for key in batch]
            try_commit_many(session, Job, new)

    def commit(session: Session, batch: list[str]) -> list[Any]:
        swaps = [Commit(key, expected_version=1, **write(2)) for key in batch]
        return try_commit_many(session, Job, swaps)

    with Session(coordinator) as first, Session(coordinator) as second:
        second.execute(text("SET LOCAL statement_timeout = '20s'"))
        outcomes = commit(first, keys[0]) + commit(second, keys[1])
        second.commit()
        first.commit()
    assert [type(each) for each in outcomes] == [StateCommitted] * 100


def test_commit_that_waited_is_a_serialization_conflict(coordinator: Engine) -> None:
    """Its transaction is over, unlike on one server; a store reads the row afterwards.

    postgres_fdw runs the statements on the shards at REPEATABLE READ.
    """
    key = "waited"
    with Session(coordinator) as session, session.begin():
        try_commit(session, Job, key, expected_version=0, **write(1))
    with Session(coordinator) as first, ThreadPoolExecutor() as pool:
        try_commit(first, Job, key, expected_version=1, **write(2))

        def wait() -> None:
            with Session(coordinator) as second:
                try_commit(second, Job, key, expected_version=1, **write(3))

        store = CanonicalStore(coordinator, Job)
        waiting = pool.submit(wait)
        stored = pool.submit(
            store.try_commit, workflow_key=key, expected_version=1, **write(4)
        )
        _wait_for_locks(coordinator, 2)
        first.commit()
        with pytest.raises(StateConflict) as caught:
            waiting.result()
        outcome = stored.result()
    assert caught.value.reason is ConflictReason.SERIALIZATION
    assert isinstance(outcome, StateConflict)
    assert outcome.actual_version == 2
    with Session(coordinator) as session:
        assert get_state(session, Job, key).state.count == 2


def _wait_for_locks(coordinator: Engine, number: int) -> None:
    """Wait until *number* sessions of the coordinator wait for a shard for a while."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event = 'PostgresFdwGetResult' AND query LIKE 'UPDATE jobs%'"
    )
    counts: list[Any] = []
    deadline = time.monotonic() + 20
    with coordinator.connect() as connection:
        while counts[-5:] != [number] * 5 and time.monotonic() < deadline:
            counts.append(connection.scalar(waiting))
            connection.rollback()
            time.sleep(0.1)
