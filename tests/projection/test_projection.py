"""Contract: a projection becomes what its function makes of the newest version."""

from __future__ import annotations

import signal
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import bindparam, create_engine, event, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sa_wfstate import (
    CanonicalStore,
    Provenance,
    StateCommitted,
    WorkflowNotFound,
    WorkflowSnapshot,
    WorkflowStateMixin,
    try_commit,
)
from sa_wfstate.errors import MappingError, ProjectionBehind
from sa_wfstate.hooks import Hooks
from sa_wfstate.projection import (
    Projection,
    ProjectionMixin,
    ProjectionSource,
    ProjectionStore,
    ProjectionWorker,
    WatermarkMixin,
    measure_lag,
    rebuild,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import URL, Engine


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"
    total: int = 0


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class OrderProjection(ProjectionMixin, Base):
    __tablename__ = "order_projection"
    total: Mapped[int] = mapped_column(index=True)


class Parcel(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "parcels"


class ParcelProjection(ProjectionMixin, Base):
    __tablename__ = "parcel_projection"
    total: Mapped[int | None]


class Watermark(WatermarkMixin, Base):
    __tablename__ = "watermarks"


def project(order: WorkflowSnapshot[OrderState]) -> Mapping[str, Any]:
    """Make the row of a projection, unless the order is poison."""
    if order.state.status == "poison":
        raise ValueError("poison")
    if order.state.status == "no tag":
        return {"namespace": "shop", "total": order.state.total}
    return {
        "tag": order.state.status,
        "namespace": "shop",
        "total": order.state.total,
        "indices": {"total": order.state.total},
    }


orders = Projection(Order, OrderProjection, project)
parcels = Projection(Parcel, ParcelProjection, project)
parcels.keep_inline()


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


def put(session: Session, entity: Any, key: str, version: int, status: str) -> Any:
    """Commit version *version* of the workflow *key*, without COMMIT."""
    outcome = try_commit(
        session,
        entity,
        key,
        expected_version=version - 1,
        state=OrderState(status=status, total=version),
        provenance=Provenance.now(),
    )
    assert isinstance(outcome, StateCommitted)
    return outcome


def place(engine: Engine, *keys: str, entity: Any = Order, status: str = "new") -> None:
    """Create the workflows *keys*."""
    state = OrderState(status=status)
    with Session(engine) as session:
        session.add_all(entity(workflow_key=key, state=state) for key in keys)
        session.commit()


def worker(engine: Any, **options: Any) -> ProjectionWorker[OrderState]:
    """Make a worker of the orders."""
    return ProjectionWorker(engine, orders, Watermark, **options)


def rows(engine: Engine, entity: Any = OrderProjection) -> dict[str, tuple[int, str]]:
    """Read version and tag of what is projected."""
    with Session(engine) as session:
        found = session.scalars(select(entity))
        return {row.workflow_key: (row.version, row.tag) for row in found}


@pytest.mark.contract
def test_inline_follows_every_way_to_commit(engine: Engine) -> None:
    """A flush, try_commit and a store each leave the projection of their version."""
    place(engine, "p-1", entity=Parcel)
    assert rows(engine, ParcelProjection) == {"p-1": (1, "new")}
    with Session(engine) as session:
        session.get_one(Parcel, "p-1").state.status = "packed"
        session.commit()
        assert rows(engine, ParcelProjection) == {"p-1": (2, "packed")}
        put(session, Parcel, "p-1", 3, "lost")
        session.rollback()
        assert rows(engine, ParcelProjection) == {"p-1": (2, "packed")}
    CanonicalStore(engine, Parcel).try_commit(
        workflow_key="p-1",
        expected_version=2,
        state=OrderState(status="sent", total=7),
        provenance=Provenance.now(),
    )
    with Session(engine) as session:
        row = session.get_one(ParcelProjection, "p-1")
        assert (row.version, row.tag, row.total) == (3, "sent", 7)
        assert (row.indices, row.extras, row.last_action) == ({"total": 7}, None, None)
        assert session.scalar(text("SELECT extras IS NULL FROM parcel_projection"))


@pytest.mark.contract
def test_inline_follows_deletion_and_rebirth(engine: Engine) -> None:
    """The row goes with its workflow, and a new life of the key counts from 1."""
    place(engine, "p-1", entity=Parcel)
    with Session(engine) as session:
        put(session, Parcel, "p-1", 2, "sent")
        session.commit()
        session.delete(session.get_one(Parcel, "p-1"))
        session.flush()
        assert session.scalars(select(ParcelProjection)).all() == []
        put(session, Parcel, "p-1", 1, "reborn")
        session.commit()
    assert rows(engine, ParcelProjection) == {"p-1": (1, "reborn")}


@pytest.mark.contract
def test_failing_function_undoes_the_commit(engine: Engine) -> None:
    """Inline, a version that cannot be projected is not committed."""
    with Session(engine) as session:
        session.add(Parcel(workflow_key="p-1", state=OrderState(status="poison")))
        with pytest.raises(ValueError, match="poison"):
            session.commit()
        session.rollback()
        assert session.get(Parcel, "p-1") is None


def test_unknown_column_is_named(engine: Engine) -> None:
    """A function that returns what the table does not have says so."""
    wrong = Projection(
        Order, OrderProjection, lambda order: {"tog": order.state.status}
    )
    place(engine, "o-1")
    with pytest.raises(MappingError, match="cannot set tog of 'order_projection'"):
        rebuild(engine, wrong)


@pytest.mark.contract
def test_worker_follows_commits(engine: Engine) -> None:
    """New workflows and new versions arrive; with nothing new nothing is done."""
    one = worker(engine)
    one.follow()
    place(engine, "o-1", "o-2")
    assert one.follow() == 2
    with Session(engine) as session:
        put(session, Order, "o-1", 2, "paid")
        put(session, Order, "o-1", 3, "sent")
        session.commit()
    assert one.follow() == 1
    assert one.follow() == 0
    assert rows(engine) == {"o-1": (3, "sent"), "o-2": (1, "new")}


@pytest.mark.contract
def test_late_commit_is_not_missed(engine: Engine) -> None:
    """A transaction that becomes visible after later ones were followed is followed."""
    one = worker(engine)
    one.follow()
    with Session(engine) as late:
        put(late, Order, "o-late", 1, "late")
        place(engine, "o-1")
        assert one.follow() == 1
        late.commit()
    assert one.follow() == 1
    assert rows(engine) == {"o-1": (1, "new"), "o-late": (1, "late")}


@pytest.mark.contract
@pytest.mark.parametrize("by", ["the same worker", "a new worker"])
def test_commit_of_a_long_transaction_is_followed(engine: Engine, by: str) -> None:
    """However long it was open, whether it wrote before later commits or after them.

    A worker that is new starts from a watermark that had to wait for it.
    """
    one = worker(engine, overlap=0.0, partitions=2)
    one.follow()
    with Session(engine) as older, Session(engine) as longer, Session(engine) as other:
        put(older, Order, "o-older", 1, "late")
        longer.scalar(text("SELECT 1"))
        other.scalar(text("SELECT 1"))
        place(engine, "o-1", "o-2")
        assert one.follow() == 2
        place(engine, "o-3", "o-4")
        assert one.follow() == 2
        put(longer, Order, "o-longer", 1, "late")
        assert one.follow() == 0
        if by == "a new worker":
            one = worker(engine, overlap=0.0, partitions=2)
            assert one.follow() == 0
        older.commit()
        assert one.follow() == 1
        assert one.follow() == 0
        longer.commit()
        assert one.follow() == 1
        # The third one holds the watermark back, and nothing else.
        assert one.follow() == 0
    assert {key for key, (_, tag) in rows(engine).items() if tag == "late"} == {
        "o-older",
        "o-longer",
    }


def test_prepared_transaction_is_followed(engine: Engine) -> None:
    """One that was prepared before a worker started, and one prepared meanwhile."""
    one = worker(engine, overlap=0.0)
    one.follow()
    own = engine.url.database  # The names are those of the whole server.
    for name in ("before", "meanwhile"):
        with Session(engine) as session:
            put(session, Order, f"o-{name}", 1, "late")
            assert one.follow() == 0
            session.execute(text(f"PREPARE TRANSACTION '{own}-{name}'"))
        place(engine, name)
        if name == "before":
            one = worker(engine, overlap=0.0)
        assert one.follow() == 1
        with engine.connect().execution_options(
            isolation_level="AUTOCOMMIT"
        ) as connection:
            connection.execute(text(f"COMMIT PREPARED '{own}-{name}'"))
        assert one.follow() == 1
    assert rows(engine).keys() == {"o-before", "o-meanwhile", "before", "meanwhile"}


@pytest.mark.contract
def test_row_with_an_older_time_is_swept(engine: Engine) -> None:
    """One that following cannot find, as its time was set by hand, is found then."""
    one = worker(engine, overlap=0.0, sweep_every=0.0)
    one.follow()
    place(engine, "o-1", "o-2")
    with engine.begin() as connection:
        old = "UPDATE orders SET updated_at = '2001-01-01' WHERE workflow_key = 'o-2'"
        connection.execute(text(old))
    assert one.follow() == 1
    assert one.sweep() == 1
    assert rows(engine) == {"o-1": (1, "new"), "o-2": (1, "new")}


def test_idle_poll_is_the_same_for_any_number_of_partitions(engine: Engine) -> None:
    """It reads the watermarks, what is open, and the rows: once each, not per share."""
    statements: list[str] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda *arguments: statements.append(arguments[2]),
    )
    for partitions in (1, 8):
        one = worker(engine, partitions=partitions)
        one.follow()
        statements.clear()
        one.follow()
        assert len(statements) == 3
        assert sum("FROM orders" in each for each in statements) == 1


@pytest.mark.contract
def test_older_version_is_never_written(engine: Engine) -> None:
    """A worker that comes late with an old version changes nothing."""
    place(engine, "o-1")
    with Session(engine) as session:
        old = put(session, Order, "o-1", 2, "paid").snapshot
        new = put(session, Order, "o-1", 3, "sent").snapshot
        session.commit()
        connection = session.connection()
        assert orders.write(connection, [orders.row(new)], over="older") == {"o-1"}
        assert orders.write(connection, [orders.row(old)], over="older") == set()
        assert orders.write(connection, [orders.row(new)], over="older") == set()
        session.commit()
    assert rows(engine) == {"o-1": (3, "sent")}


@pytest.mark.contract
def test_partition_is_taken_by_one_worker(engine: Engine) -> None:
    """While its watermark is locked, other workers pass the partition by."""
    keys = [f"o-{number}" for number in range(40)]
    one = worker(engine, partitions=4)
    one.follow()
    place(engine, *keys)
    with Session(engine) as session:
        first = select(Watermark).where(
            Watermark.partition_id == "order_projection:2/4"
        )
        session.scalars(first.with_for_update()).one()
        applied = one.follow()
        assert 0 < applied < 40
        session.rollback()
    assert applied + one.follow() == 40


@pytest.mark.contract
def test_watermark_moves_with_the_rows_and_never_back(engine: Engine) -> None:
    """Both are in one transaction; a watermark that is ahead stays where it is."""
    one = worker(engine)
    one.follow()
    ahead = update(Watermark).values(offset=2**53).returning(Watermark.partition_id)
    with Session(engine) as session:
        before = session.scalars(select(Watermark.offset)).one()
        place(engine, "o-1")
        one.follow()
        session.rollback()
        assert session.scalars(select(Watermark.offset)).one() > before
        session.execute(ahead)
        session.commit()
        place(engine, "o-2")
        one.follow()
        assert session.scalars(select(Watermark.offset)).one() == 2**53
    assert one.sweep() == 1


@pytest.mark.contract
def test_batches_catch_up_after_downtime(engine: Engine) -> None:
    """What happened while no worker ran is caught up with, batch by batch."""
    worker(engine).follow()
    place(engine, *(f"o-{number}" for number in range(25)))
    one = worker(engine, batch_size=10)
    assert [one.follow() for _ in range(4)] == [10, 10, 5, 0]


@pytest.mark.contract
def test_sweep_repairs(engine: Engine) -> None:
    """Missing rows, orphans, and rows of an earlier life of a key are put right."""
    place(engine, "o-1", "o-2", "o-3")
    rebuild(engine, orders)
    with engine.begin() as connection:
        for statement in (
            "DELETE FROM order_projection WHERE workflow_key = 'o-1'",
            "DELETE FROM orders WHERE workflow_key = 'o-2'",
            "UPDATE order_projection SET version = 9 WHERE workflow_key = 'o-3'",
        ):
            connection.execute(text(statement))
    assert worker(engine).sweep() == 3
    assert rows(engine) == {"o-1": (1, "new"), "o-3": (1, "new")}


@pytest.mark.contract
def test_poison_harms_no_neighbour(engine: Engine) -> None:
    """A row that cannot be projected, or not even read, is reported and passed over."""
    batches: list[Any] = []

    class Batches(Hooks):
        projected = staticmethod(batches.append)  # type: ignore[assignment]

    one = worker(engine, hooks=Batches(), batch_size=2)
    one.follow()
    with Session(engine) as session:
        put(session, Order, "o-1", 1, "poison")
        session.commit()
    place(engine, "o-2", "o-3", "o-4")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE orders SET state = :s WHERE workflow_key = 'o-3'").bindparams(
                bindparam("s", {"total": "?"}, JSONB)
            )
        )
    for _ in range(4):
        one.follow()
    assert rows(engine) == {"o-2": (1, "new"), "o-4": (1, "new")}
    assert sum(batch.failed for batch in batches) == 2
    with Session(engine) as session:
        put(session, Order, "o-1", 2, "cured")
        session.commit()
    one.follow()
    assert rows(engine)["o-1"] == (2, "cured")


@pytest.mark.contract
def test_refused_row_harms_no_neighbour(engine: Engine) -> None:
    """A row that the database does not take is passed over, by the sweep as well."""
    one = worker(engine)
    one.follow()
    with Session(engine) as session:
        for key, status in (("o-1", "new"), ("o-2", "no tag"), ("o-3", "new")):
            put(session, Order, key, 1, status)
        session.commit()
    assert one.follow() == 2
    assert one.follow() == 0
    assert one.sweep() == 0
    assert rows(engine) == {"o-1": (1, "new"), "o-3": (1, "new")}


@pytest.mark.contract
def test_rebuild_and_lag(engine: Engine) -> None:
    """A rebuild makes each row anew, with progress; the lag has two units."""
    place(engine, "o-1", "o-2", "o-3")
    rebuild(engine, orders)
    with Session(engine) as session:
        put(session, Order, "o-1", 2, "paid")
        put(session, Order, "o-1", 3, "sent")
        session.commit()
    lag = measure_lag(engine, orders)
    assert (lag.keys, lag.versions) == (1, 2)
    assert 0 < lag.seconds < 60
    seen: list[int] = []
    changed = Projection(
        Order,
        OrderProjection,
        lambda order: {**project(order), "tag": "changed"},
    )
    assert rebuild(engine, changed, batch_size=2, progress=seen.append) == 3
    assert seen == [2, 3]
    assert set(rows(engine).values()) == {(1, "changed"), (3, "changed")}
    assert measure_lag(engine, changed) == (0, 0, 0.0)


def test_rebuild_survives_a_deadlock(engine: Engine, database: URL) -> None:
    """A page that deadlocks with a transaction's inline rows is made again."""
    place(engine, "p-1", "p-2", "p-3", entity=Parcel)
    other = create_engine(database)
    seen: list[int] = []
    done: list[Any] = []

    def run() -> None:
        try:
            done.append(rebuild(other, parcels, batch_size=2, progress=seen.append))
        except DBAPIError as error:
            done.append(error)

    thread = Thread(target=run)
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    with Session(engine) as session:
        # Of the two that wait for each other, the rebuild is the one that looks.
        session.execute(text("SET LOCAL deadlock_timeout = '1min'"))
        put(session, Parcel, "p-2", 2, "sent")
        thread.start()
        with engine.connect() as connection:
            while not connection.scalar(waiting):
                connection.rollback()
        put(session, Parcel, "p-1", 2, "paid")
        session.commit()
    thread.join()
    other.dispose()
    assert (done, seen) == ([3], [2, 3])
    assert rows(engine, ParcelProjection) == {
        "p-1": (2, "paid"),
        "p-2": (2, "sent"),
        "p-3": (1, "new"),
    }


def test_rebuild_raises_what_the_function_raises(engine: Engine) -> None:
    """An error of the function is not tried again, though it looks like a lost one."""
    calls: list[int] = []

    def fail(order: WorkflowSnapshot[OrderState]) -> Mapping[str, Any]:
        calls.append(order.version)
        raise TimeoutError

    place(engine, "o-1")
    with pytest.raises(TimeoutError):
        rebuild(engine, Projection(Order, OrderProjection, fail))
    assert calls == [1]


@pytest.mark.parametrize("wrap", [lambda engine: engine, sessionmaker])
def test_running_worker_serves_gated_reads(engine: Engine, wrap: Any) -> None:
    """A reader that insists on the version it has just committed gets it."""
    stop = Event()
    thread = Thread(target=worker(wrap(engine), poll=0.01).run, args=(stop,))
    thread.start()
    try:
        store = ProjectionStore(wrap(engine), orders)
        place(engine, "o-1")
        for version in range(2, 8):
            with Session(engine) as session:
                put(session, Order, "o-1", version, "paid")
                session.commit()
            read = store.get("o-1", version, max_wait=10.0, fallback="raise")
            assert (read.version, read.source) == (version, ProjectionSource.PROJECTION)
    finally:
        stop.set()
        thread.join()


def test_worker_survives_a_lost_connection(engine: Engine, database: URL) -> None:
    """A worker whose connections are cut goes on by itself."""
    other = create_engine(database)
    stop = Event()
    thread = Thread(target=worker(engine, poll=0.01).run, args=(stop,))
    thread.start()
    try:
        store = ProjectionStore(other, orders)
        for number in range(3):
            place(other, f"o-{number}")
            store.get(f"o-{number}", 1, max_wait=10.0, fallback="raise")
            with other.connect() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database()"
                        " AND backend_type = 'client backend'"
                        " AND pid <> pg_backend_pid()"
                    )
                )
    finally:
        stop.set()
        thread.join()
        other.dispose()


@pytest.mark.contract
def test_gated_read_falls_back(engine: Engine) -> None:
    """A projection that is behind is answered for by the canonical row, or as asked."""
    place(engine, "o-1", "o-2")
    worker(engine).sweep()
    with Session(engine) as session:
        put(session, Order, "o-1", 2, "paid")
        session.commit()
    store = ProjectionStore(engine, orders)
    read = store.get("o-1")
    assert (read.version, read.source) == (1, "projection")
    read = store.get("o-1", required_version=2, max_wait=0.01)
    assert (read.version, read.source, read.values["tag"]) == (2, "canonical", "paid")
    read = store.get("o-1", 2, 0.0, fallback="stale")
    assert (read.version, read.source, read.values["tag"]) == (1, "stale", "new")
    with pytest.raises(ProjectionBehind, match="version 2 is required, found 1"):
        store.get("o-1", 2, 0.0, fallback="raise")
    with pytest.raises(ProjectionBehind, match="version 9 is required, found 2"):
        store.get("o-1", 9, 0.0)
    assert store.get_version("o-1") == 1
    assert store.get_version("o-9") is None


@pytest.mark.contract
def test_gated_read_of_a_missing_workflow(engine: Engine) -> None:
    """No workflow is WorkflowNotFound; a row that is not there yet is made."""
    store = ProjectionStore(engine, orders)
    for fallback in ("canonical", "stale"):
        with pytest.raises(WorkflowNotFound, match="'o-9'"):
            store.get("o-9", max_wait=0.0, fallback=fallback)  # type: ignore[arg-type]
    with pytest.raises(ProjectionBehind, match="found 0"):
        store.get("o-9", max_wait=0.0, fallback="raise")
    place(engine, "o-1")
    assert store.get("o-1", max_wait=0.0).source is ProjectionSource.CANONICAL


@pytest.mark.contract
def test_rows_that_fail_keep_no_other_waiting(engine: Engine) -> None:
    """However many of them there are, and each is tried and told of once."""
    batches: list[Any] = []

    class Batches(Hooks):
        projected = staticmethod(batches.append)  # type: ignore[assignment]

    one = worker(engine, hooks=Batches(), batch_size=10, partitions=2)
    one.follow()
    place(engine, *(f"bad-{number}" for number in range(95)), status="poison")
    place(engine, "o-1")
    while not rows(engine):
        one.follow()
        assert len(batches) < 20
    for _ in range(3):
        one.follow()
    assert sum(batch.failed for batch in batches) == 95
    with Session(engine) as session:
        put(session, Order, "bad-7", 2, "cured")
        session.commit()
    one.follow()
    assert rows(engine) == {"o-1": (1, "new"), "bad-7": (2, "cured")}


class _Odd(BaseException):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.contract
@pytest.mark.parametrize(
    "made",
    [_Odd(), OSError(), None, {"tag": "\udcff", "namespace": "n"}, {"tag": object()}],
    ids=["no text", "like a lost connection", "None", "surrogate", "object"],
)
def test_whatever_a_function_makes_harms_no_neighbour(
    engine: Engine, made: Any
) -> None:
    """What it raises, and what no driver can send, concerns its own row."""

    def function(order: WorkflowSnapshot[OrderState]) -> Mapping[str, Any]:
        if order.workflow_key != "bad":
            return project(order)
        if isinstance(made, BaseException):
            raise made
        return made  # type: ignore[no-any-return]

    place(engine, "bad", "good")
    one = ProjectionWorker(
        engine, Projection(Order, OrderProjection, function), Watermark
    )
    assert one.sweep() == 1
    assert rows(engine) == {"good": (1, "new")}


def test_interrupt_ends_a_worker(engine: Engine) -> None:
    """What is meant for the process is no failure of a row."""

    def function(_: object) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    place(engine, "o-1")
    one = ProjectionWorker(
        engine, Projection(Order, OrderProjection, function), Watermark
    )
    with pytest.raises(KeyboardInterrupt):
        one.sweep()


def test_log_of_a_refused_row_holds_no_value(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the statement's parameters nor the server's DETAIL get into it."""
    with Session(engine) as session:
        session.execute(
            text("ALTER TABLE order_projection ADD CHECK (tag <> 'my secret')")
        )
        put(session, Order, "o-1", 1, "my secret")
        session.commit()
    assert worker(engine).sweep() == 0
    assert "Order 'o-1' cannot be projected: CheckViolation" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"partitions": 0}, {"poll": -1.0}, {"overlap": float("nan")}],
)
def test_worker_refuses_what_would_never_end(engine: Engine, wrong: Any) -> None:
    """A batch of none would be made for ever."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        worker(engine, **wrong)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        rebuild(engine, orders, batch_size=0)
    with pytest.raises(ValueError, match="max_wait must be 0 or more, got nan"):
        ProjectionStore(engine, orders).get("o-1", max_wait=float("nan"))


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs such a signal")
def test_error_of_a_signal_handler_ends_the_worker(engine: Engine) -> None:
    """It is no row that cannot be projected, which would be left out."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    def interrupt(_: object) -> dict[str, Any]:
        signal.raise_signal(signal.SIGALRM)
        return {}

    place(engine, "o-1")
    interrupted = Projection(Order, OrderProjection, interrupt)
    before = signal.signal(signal.SIGALRM, too_long)
    try:
        with pytest.raises(TimeoutError):
            ProjectionWorker(engine, interrupted, Watermark).run(Event())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rows(engine) == {}
