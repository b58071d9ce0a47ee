"""What works on Citus, with the tables distributed by the workflow key."""

from __future__ import annotations

import os
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Column,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    make_url,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from sa_wfstate import (
    Action,
    Commit,
    Intent,
    Provenance,
    ReducerService,
    Reduction,
    StateCommitted,
    get_state,
    run_transaction,
    try_commit_many,
)
from sa_wfstate.alembic.sharding import DistributeTableOp
from sa_wfstate.outbox import IntentDispatcher, store_intents
from sa_wfstate.sharding import distribute

from ..drives import DRIVES, Base, Job, Mail, State, lose_a_race

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Engine

    from sa_wfstate.values.reports import DueIntent

URL_OF_COORDINATOR: Final = os.environ.get("SA_WFSTATE_CITUS_URL")

pytestmark = [
    pytest.mark.citus,
    pytest.mark.skipif(
        URL_OF_COORDINATOR is None,
        reason="SA_WFSTATE_CITUS_URL does not name a Citus coordinator",
    ),
]


@pytest.fixture(scope="module")
def coordinator() -> Iterator[URL]:
    """Distribute the tables in the database of the coordinator, and drop them."""
    url = make_url(URL_OF_COORDINATOR or "")
    engine = create_engine(url, poolclass=NullPool)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        # A second time for what is distributed already.
        for statement in [*distribute(Base), *distribute(Base)]:
            connection.execute(statement)
    yield url
    Base.metadata.drop_all(engine)


@pytest.fixture
def engine(coordinator: URL) -> Iterator[Engine]:
    """Connect to the coordinator."""
    engine = create_engine(coordinator)
    yield engine
    engine.dispose()


def write(count: int) -> dict[str, Any]:
    """Return the arguments of a write."""
    return {"state": State(count=count), "provenance": Provenance.now()}


def test_all_drives_run_on_citus(engine: Engine) -> None:
    """The whole public API works, workers and batches over several shards included."""
    failed: dict[str, str] = {}
    for name, drive in DRIVES.items():
        try:
            drive(engine)
        except Exception as error:  # noqa: BLE001 - what comes of it is the result
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
            engine.dispose()
    assert failed == {}


def test_rows_are_on_several_workers(engine: Engine) -> None:
    """A batch writes to the shards of its keys, and the rows are there."""
    keys = [f"spread-{number}" for number in range(40)]
    new = [Commit(key, expected_version=0, **write(1)) for key in keys]
    with Session(engine) as session, session.begin():
        outcomes = try_commit_many(session, Job, new)
    assert all(isinstance(each, StateCommitted) for each in outcomes)
    with engine.connect() as connection:
        ports = connection.scalars(
            text(
                "SELECT DISTINCT nodeport FROM pg_dist_shard_placement "
                "WHERE shardid IN (SELECT get_shard_id_for_distribution_column("
                "'jobs', key) FROM unnest(CAST(:keys AS text[])) AS key)"
            ),
            {"keys": keys},
        ).all()
    assert len(ports) == 2


def test_two_dispatchers_deliver_each_intent_once(engine: Engine) -> None:
    """A dispatcher gets no intent that another has leased since both have read it."""

    def send(state: State, _: Action[Any]) -> Reduction[State]:
        intents = [Intent(intent_type="mail", target=str(n)) for n in range(3)]
        return Reduction(state.model_copy(update={"count": 1}), intents=intents)

    service = ReducerService(
        engine, Job, send, initial=State, writers=[store_intents(Mail)]
    )
    for number in range(20):
        key = f"mail-{number}"
        service.handle(Action(workflow_key=key, action_id=uuid4(), payload=None))
    delivered: list[tuple[Any, str]] = []
    start = Barrier(2)

    def deliver(intent: DueIntent) -> None:
        delivered.append((intent.workflow_key, intent.target))

    def work() -> None:
        dispatcher = IntentDispatcher(engine, Mail, deliver)
        start.wait(30)
        for _ in range(10):
            dispatcher.dispatch()

    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(delivered) == sorted(
        (f"mail-{number}", str(target)) for number in range(20) for target in range(3)
    )


def test_lost_race_is_a_conflict(engine: Engine) -> None:
    """A writer that waited for another shard's row learns of the version there."""
    lose_a_race(engine)
    with Session(engine) as session:
        assert get_state(session, Job, "raced").state.count == 1


def distributed(engine: Engine, name: str) -> list[tuple[str, int]]:
    """Return which tables of that name are distributed, and their groups."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT CAST(logicalrelid AS text), colocationid FROM pg_dist_partition"
                " WHERE CAST(logicalrelid AS text) LIKE :name ORDER BY 1"
            ),
            {"name": f"{name}%"},
        )
        return [(table, group) for table, group in rows]


def test_migration_distributes_and_undoes_it(engine: Engine) -> None:
    """Rows stay, a second upgrade changes nothing, and a downgrade brings all back."""
    metadata = MetaData()
    for name in ("moved", "moved_history"):
        key = Column("workflow_key", Text, primary_key=True)
        Table(name, metadata, key)
    metadata.create_all(engine)
    rows = text("INSERT INTO moved SELECT 'm-' || n FROM generate_series(1, 30) n")
    there = [
        DistributeTableOp("moved"),
        DistributeTableOp("moved_history", colocate_with="moved"),
    ]

    def migrate(*operations: DistributeTableOp) -> None:
        with engine.begin() as connection:
            run = Operations(MigrationContext.configure(connection))
            for operation in operations:
                run.invoke(operation)

    try:
        with engine.begin() as connection:
            connection.execute(rows)
        for _ in range(2):
            migrate(*there)
            (one, group), (two, beside) = distributed(engine, "moved")
            assert (one, two, group) == ("moved", "moved_history", beside)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM moved")) == 30
        migrate(*(operation.reverse() for operation in reversed(there)))
        assert distributed(engine, "moved") == []
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM moved")) == 30
    finally:
        metadata.drop_all(engine)


def test_lost_commit_at_serializable(coordinator: URL) -> None:
    """It has a code that leaves the outcome open; run_transaction repeats it.

    So it is within a shard. Over two of them such a transaction is not found.
    """
    strict = create_engine(coordinator, isolation_level="SERIALIZABLE")
    same = text(
        "SELECT 'skew-' || n FROM generate_series(0, 400) n WHERE"
        " get_shard_id_for_distribution_column('jobs', 'skew-' || n)"
        " = get_shard_id_for_distribution_column('jobs', 'skew-0') ORDER BY n LIMIT 2"
    )
    with Session(strict) as session, session.begin():
        one, two = session.scalars(same).all()
        session.add_all(Job(workflow_key=key, state=State()) for key in (one, two))

    def change(session: Session, mine: str, other: str) -> None:
        get_state(session, Job, other)
        session.get_one(Job, mine).state.count += 1

    with Session(strict) as first, Session(strict) as second:
        change(first, one, two)
        change(second, two, one)
        first.flush()
        second.flush()
        first.commit()
        with pytest.raises(DBAPIError) as caught:
            second.commit()
    assert caught.value.orig.sqlstate == "XX000"  # type: ignore[union-attr]

    attempts: list[int] = []

    def compete(session: Session) -> None:
        attempts.append(1)
        change(session, two, one)
        session.flush()
        if len(attempts) == 1:
            with Session(strict) as rival, rival.begin():
                change(rival, one, two)

    run_transaction(sessionmaker(strict), compete)
    assert len(attempts) == 2
    with Session(strict) as session:
        counts = [get_state(session, Job, key).state.count for key in (one, two)]
    strict.dispose()
    assert counts == [2, 1]
