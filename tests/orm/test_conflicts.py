"""Contract: whoever commits second gets a StateConflict, over every driver."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, func, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Session,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.orm.exc import StaleDataError

from sa_wfstate import (
    ConflictReason,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    try_commit,
)
from sa_wfstate.errors import WriteSuppressed
from sa_wfstate.orm.write_log import written_on

from ..orders import Base, Customer, Order, OrderState
from ..triggers import before_update
from ..versions import ENDS_REFUSED_PREPARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine

pytestmark = pytest.mark.contract


@pytest.fixture
def winner(
    sessions: sessionmaker[Session], create_tables: Callable[..., None]
) -> sessionmaker[Session]:
    """Make the sessions of the one who wins, synchronous and at READ COMMITTED."""
    create_tables(Base.metadata)
    return sessions


def place(winner: sessionmaker[Session], *keys: str) -> None:
    """Commit orders at version 1."""
    with winner.begin() as session:
        session.add_all(Order(workflow_key=key, state=OrderState()) for key in keys)


def pay(winner: sessionmaker[Session], *keys: str) -> None:
    """Commit the next version of each of *keys*."""
    with winner.begin() as session:
        for key in keys:
            order = session.get_one(Order, key)
            order.state.status = "paid"
            order.provenance = Provenance.now(f"winner-{key}-{order.version + 1}")


def delete(winner: sessionmaker[Session], *keys: str) -> None:
    """Delete *keys*."""
    with winner.begin() as session:
        for key in keys:
            session.delete(session.get_one(Order, key))


def at(engine: Engine, level: str) -> Engine:
    """Return *engine* at an isolation level."""
    return engine.execution_options(isolation_level=level)


def autoflush(session: Session) -> None:
    """Flush as a query does."""
    session.execute(select(Customer))


TRIGGERS: dict[str, Callable[[Session], object]] = {
    "flush": Session.flush,
    "commit": Session.commit,
    "autoflush": autoflush,
}


def lose(trigger: Callable[[Session], object], session: Session) -> StateConflict:
    """Write what *session* holds, and return the conflict."""
    with pytest.raises(StateConflict) as caught:
        trigger(session)
    assert isinstance(caught.value.__cause__, (StaleDataError, DBAPIError))
    session.rollback()
    return caught.value


def assert_moved(conflict: StateConflict, key: str = "o-1", found: int = 2) -> None:
    """Check that a payment has won, and that the conflict tells so."""
    assert conflict.workflow_key == key
    assert conflict.expected_version == found - 1
    assert conflict.actual_version == found
    assert conflict.reason is ConflictReason.MOVED
    assert conflict.current is not None
    assert conflict.current.version == found
    assert conflict.current.state == OrderState(status="paid")
    assert conflict.current.provenance.effect_id == f"winner-{key}-{found}"


def test_second_writer_gets_conflict(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """Of two that change one version, the second loses, and may begin anew."""
    for trigger in TRIGGERS.values():
        with Session(at(engine, isolation_level)) as session:
            place(winner, "o-1")
            order = session.get_one(Order, "o-1")
            order.state.status = "cancelled"
            pay(winner, "o-1")
            conflict = lose(trigger, session)
            assert_moved(conflict)
            assert conflict.conflicts == (conflict,)
            session.get_one(Order, "o-1").state.status = "cancelled"
            session.commit()
            assert order.version == 3
        delete(winner, "o-1")


def test_writer_that_waited_gets_conflict(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """A flush that waits for the winner's lock loses when the winner commits."""
    place(winner, "o-1")
    with Session(at(engine, isolation_level)) as session, winner() as first:
        session.get_one(Order, "o-1").state.status = "cancelled"
        order = first.get_one(Order, "o-1")
        order.state.status = "paid"
        order.provenance = Provenance.now("winner-o-1-2")
        first.flush()
        committer = threading.Thread(target=_commit_when_awaited, args=[first])
        committer.start()
        assert_moved(lose(Session.flush, session))
        committer.join()


def _commit_when_awaited(session: Session) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    for _ in range(500):
        if session.scalar(waiting):
            break
        time.sleep(0.01)
    session.commit()


def test_deleted_row_is_missing(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """A workflow that was deleted meanwhile cannot be written any more."""
    for trigger in TRIGGERS.values():
        place(winner, "o-1")
        with Session(at(engine, isolation_level)) as session:
            session.get_one(Order, "o-1").state.status = "cancelled"
            delete(winner, "o-1")
            conflict = lose(trigger, session)
            assert conflict.reason is ConflictReason.MISSING
            assert conflict.expected_version == 1
            assert conflict.actual_version is None
            assert conflict.current is None


def test_delete_of_a_moved_row_loses(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """What was changed meanwhile is not deleted."""
    for trigger in TRIGGERS.values():
        place(winner, "o-1")
        with Session(at(engine, isolation_level)) as session:
            session.delete(session.get_one(Order, "o-1"))
            pay(winner, "o-1")
            assert_moved(lose(trigger, session))
        delete(winner, "o-1")


def test_of_several_deletes_the_stale_ones_are_named(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """Deleting several, of which one moved and one is gone, deletes none."""
    place(winner, "o-1", "o-2", "o-3", "o-4")
    with Session(at(engine, isolation_level)) as session:
        for order in session.scalars(select(Order)).all():
            session.delete(order)
        pay(winner, "o-2")
        delete(winner, "o-3")
        conflict = lose(Session.commit, session)
        reasons = {each.workflow_key: each.reason for each in conflict.conflicts}
        assert reasons == {
            "o-2": ConflictReason.MOVED,
            "o-3": ConflictReason.MISSING,
        }
        for order in session.scalars(select(Order)).all():
            session.delete(order)
        session.commit()
        assert session.scalar(select(func.count()).select_from(Order)) == 0


def test_second_creator_gets_conflict(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """Of two that create one key, the second learns of the first one's row."""
    for trigger in TRIGGERS.values():
        with Session(at(engine, isolation_level)) as session:
            assert session.get(Order, "o-1") is None
            session.add(Order(workflow_key="o-1", state=OrderState()))
            session.add(Order(workflow_key="o-2", state=OrderState()))
            place(winner, "o-1")
            conflict = lose(trigger, session)
            assert conflict.reason is ConflictReason.EXISTS
            assert [each.workflow_key for each in conflict.conflicts] == ["o-1"]
            assert (conflict.expected_version, conflict.actual_version) == (0, 1)
        delete(winner, "o-1")


def test_exactly_the_rows_that_lost_are_named(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """Of a flush of several rows, those are in the conflict that have moved."""
    keys = [f"o-{n}" for n in range(1, 6)]
    for trigger in TRIGGERS.values():
        place(winner, *keys)
        with Session(at(engine, isolation_level)) as session:
            for order in session.scalars(select(Order)).all():
                order.state.status = "cancelled"
            pay(winner, "o-2", "o-4")
            conflict = lose(trigger, session)
            assert [each.workflow_key for each in conflict.conflicts] == ["o-2", "o-4"]
            for each in conflict.conflicts:
                assert_moved(each, each.workflow_key)
        delete(winner, *keys)


def test_row_that_moves_after_the_rollback_has_not_lost(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """Whoever waited for a row that this flush had written is no winner over it."""
    place(winner, "o-1", "o-2")
    with Session(engine) as session, winner() as other:
        for order in session.scalars(select(Order)).all():
            order.state.status = "cancelled"
        pay(winner, "o-2")
        waiter = threading.Thread(target=_pay_after_waiting, args=[other])
        # o-1 is written first; while its lock is held, the other one arrives.
        _delay_second_update(session, waiter)
        conflict = lose(Session.flush, session)
        waiter.join()
    assert [each.workflow_key for each in conflict.conflicts] == ["o-2"]


def _pay_after_waiting(session: Session) -> None:
    order = session.get_one(Order, "o-1")
    order.state.status = "paid"
    session.commit()


def _delay_second_update(session: Session, waiter: threading.Thread) -> None:
    from sqlalchemy import event

    connection = session.connection()

    @event.listens_for(connection, "after_cursor_execute")
    def wait(*args: Any) -> None:
        if args[2].startswith("UPDATE") and not waiter.ident:
            waiter.start()
            time.sleep(0.3)


def test_row_written_before_in_the_transaction_has_not_lost(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """What an earlier flush of the transaction wrote is locked, and cannot lose."""
    place(winner, "o-1", "o-2")
    with Session(at(engine, isolation_level)) as session:
        one = session.get_one(Order, "o-1")
        one.state.status = "cancelled"
        session.flush()
        two = session.get_one(Order, "o-2")
        one.state.status = two.state.status = "refunded"
        pay(winner, "o-2")
        conflict = lose(Session.commit, session)
        assert [each.workflow_key for each in conflict.conflicts] == ["o-2"]
        assert_moved(conflict, "o-2")
        # A blind second try is based on what was seen, not on what was rolled back.
        one.state = OrderState(status="refunded")
        session.commit()
        assert one.version == 2


def test_inside_a_savepoint(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """A savepoint survives the loss; where its snapshot is old, actual is None."""
    place(winner, "o-1", "o-2")
    with Session(at(engine, isolation_level)) as session:
        session.get_one(Order, "o-2").state.status = "kept"
        session.flush()
        stale = session.get_one(Order, "o-1")
        pay(winner, "o-1")
        with pytest.raises(StateConflict) as caught, session.begin_nested():
            stale.state.status = "cancelled"
        conflict = caught.value
        if isolation_level == "READ COMMITTED":
            assert_moved(conflict)
        else:
            assert conflict.reason is ConflictReason.SERIALIZATION
            assert conflict.workflow_key == "o-1"
            assert conflict.actual_version is None
            assert conflict.current is None
        session.commit()
    with winner() as session:
        assert session.get_one(Order, "o-2").state.status == "kept"


def test_released_savepoint_is_part_of_the_transaction(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """Rows written in a savepoint are own rows once it is released, else not."""
    place(winner, "o-1", "o-2", "o-3")
    with Session(engine) as session:
        one, two = session.get_one(Order, "o-1"), session.get_one(Order, "o-2")
        with session.begin_nested():
            one.state.status = "released"
        savepoint = session.begin_nested()
        two.state.status = "rolled back"
        session.flush()
        savepoint.rollback()
        three = session.get_one(Order, "o-3")
        one.state.status = two.state.status = three.state.status = "again"
        pay(winner, "o-2", "o-3")
        conflict = lose(Session.flush, session)
    assert {each.workflow_key for each in conflict.conflicts} == {"o-2", "o-3"}


def test_in_a_tests_own_transaction(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """A session that joins a test's transaction through savepoints loses alike."""
    place(winner, "o-1")
    with engine.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.get_one(Order, "o-1").state.status = "cancelled"
            pay(winner, "o-1")
            assert_moved(lose(Session.commit, session))
            session.get_one(Order, "o-1").state.status = "cancelled"
            session.commit()
        assert connection.scalar(select(Order.version)) == 3
        place(winner, "o-2")
        # The next session on the same connection is told apart from the first.
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.get_one(Order, "o-2").state.status = "cancelled"
            delete(winner, "o-2")
            place(winner, "o-2")
            conflict = lose(Session.commit, session)
            assert conflict.reason is ConflictReason.RECREATED
        outer.rollback()
    with winner() as session:
        assert session.get_one(Order, "o-1").version == 2


def test_with_a_pool_of_one(driver: Any, winner: sessionmaker[Session]) -> None:
    """The row is read again on the session's own connection."""
    engine = driver.create_engine(pool_size=1, max_overflow=0, pool_timeout=1)
    place(winner, "o-1")
    sessions = scoped_session(sessionmaker(engine))
    sessions.get_one(Order, "o-1").state.status = "cancelled"
    pay(winner, "o-1")
    with pytest.raises(StateConflict) as caught:
        sessions.commit()
    assert_moved(caught.value)
    sessions.remove()


def test_session_over_two_engines(
    driver: Any, engine: Engine, winner: sessionmaker[Session]
) -> None:
    """Each row is read again where it was written."""

    class OtherBase(DeclarativeBase):
        pass

    class Invoice(WorkflowStateMixin[OrderState], OtherBase):
        __tablename__ = "invoices"

    other = driver.create_engine()
    OtherBase.metadata.create_all(other)
    place(winner, "o-1")
    with Session(binds={Base: engine, OtherBase: other}) as session:
        session.add(Invoice(workflow_key="i-1", state=OrderState()))
        session.commit()
        invoice = session.get_one(Invoice, "i-1")
        session.get_one(Order, "o-1").state.status = "cancelled"
        invoice.state.status = "cancelled"
        pay(winner, "o-1")
        conflict = lose(Session.commit, session)
        assert [each.workflow_key for each in conflict.conflicts] == ["o-1"]
        assert_moved(conflict)
        assert session.get_one(Invoice, "i-1").version == 1


def test_commit_that_is_refused(engine: Engine, winner: sessionmaker[Session]) -> None:
    """Write skew is found by COMMIT: neither row has moved, and yet one has lost."""
    place(winner, "o-1", "o-2")
    serializable = at(engine, "SERIALIZABLE")
    with Session(serializable) as one, Session(serializable) as two:
        for session, key in ((one, "o-1"), (two, "o-2")):
            session.scalars(select(Order)).all()
            session.get_one(Order, key).state.status = "cancelled"
        one.flush()
        two.flush()
        one.commit()
        with pytest.raises(StateConflict) as caught:
            two.commit()
        conflict = caught.value
        assert conflict.reason is ConflictReason.SERIALIZATION
        assert [each.workflow_key for each in conflict.conflicts] == ["o-2"]
        assert conflict.expected_version == 1
        assert conflict.actual_version is None
        two.rollback()
        two.get_one(Order, "o-2").state.status = "cancelled"
        two.commit()


def cancel(session: Session, key: str) -> None:
    """Write the next version of *key*."""
    order = session.get_one(Order, key)
    order.state.status = f"cancelled {order.version}"
    session.flush()


def skew(engine: Engine, committed: Callable[[], object]) -> StateConflict:
    """Let somebody else write what was read, and return the loss of *committed*."""
    with Session(engine) as rival:
        rival.scalars(select(Order)).all()
        rival.add(Order(workflow_key="rival", state=OrderState()))
        rival.commit()
    with pytest.raises(StateConflict) as caught:
        committed()
    return caught.value


JOINING: list[Any] = ["create_savepoint", "rollback_only", "conditional_savepoint"]


@pytest.mark.parametrize("mode", JOINING)
def test_outer_commit_that_is_refused(
    engine: Engine, winner: sessionmaker[Session], mode: Any
) -> None:
    """It loses what the sessions that joined it wrote, and what was not undone."""
    place(winner, *(f"o-{n}" for n in range(1, 10)))
    engine = at(engine, "SERIALIZABLE")
    with engine.connect() as connection:
        sessions = sessionmaker(connection, join_transaction_mode=mode)
        connection.begin()
        with sessions.begin() as session:
            cancel(session, "o-1")
        connection.commit()  # That one is over.

        connection.execute(select(Order.version)).all()
        with sessions.begin() as session:
            cancel(session, "o-2")
        savepoint = connection.begin_nested()
        with sessions.begin() as session:
            cancel(session, "o-3")
        savepoint.rollback()
        with connection.begin_nested(), sessions.begin() as session:
            cancel(session, "o-4")
        if mode == "create_savepoint":
            with sessions() as session:
                cancel(session, "o-5")  # It rolls back to its savepoint.
        with sessions.begin() as session:
            cancel(session, "o-2")
            with session.begin_nested():
                cancel(session, "o-6")
            undone = session.begin_nested()
            cancel(session, "o-7")
            undone.rollback()
            outcome = try_commit(
                session,
                Order,
                "o-8",
                expected_version=1,
                state=OrderState(status="cancelled"),
                provenance=Provenance.now(),
            )
            assert isinstance(outcome, StateCommitted)
        conflict = skew(engine, connection.commit)
        connection.rollback()
    assert isinstance(conflict.__cause__, Exception)
    assert getattr(conflict.__cause__, "sqlstate", None) == "40001"
    assert {each.reason for each in conflict.conflicts} == {
        ConflictReason.SERIALIZATION
    }
    expected = {each.workflow_key: each.expected_version for each in conflict.conflicts}
    assert expected == {"o-2": 1, "o-4": 1, "o-6": 1, "o-8": 1}


def test_outer_transaction_whose_session_is_not_committed(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """What was flushed is lost, whoever commits, and whether the session is there."""
    place(winner, "o-1", "o-2", "o-3")
    engine = at(engine, "SERIALIZABLE")
    with engine.connect() as connection:
        session = Session(connection, join_transaction_mode="control_fully")
        connection.execute(select(Order.version)).all()
        cancel(session, "o-1")
        conflict = skew(engine, session.commit)
        assert [each.workflow_key for each in conflict.conflicts] == ["o-1"]
        session.rollback()
        delete(winner, "rival")

        connection.execute(select(Order.version)).all()
        with Session(connection) as session:
            cancel(session, "o-2")
        held = Session(connection)
        cancel(held, "o-3")
        conflict = skew(engine, connection.commit)
        assert [each.workflow_key for each in conflict.conflicts] == ["o-2", "o-3"]


def test_row_written_by_a_session_before_has_not_lost(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """What another session has written in the same outer transaction is locked too.

    That transaction, which the session has rolled back, allows no reading any more.
    """
    place(winner, "o-1", "o-2")
    with engine.begin() as connection:
        with Session(connection) as session:
            cancel(session, "o-1")
            session.commit()
        with Session(connection) as session:
            for order in session.scalars(select(Order)):
                order.state.status = "refunded"
            pay(winner, "o-2")
            conflict = lose(Session.commit, session)
    assert [each.workflow_key for each in conflict.conflicts] == ["o-2"]


def test_schema_of_a_tenant_is_read_again(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """The row is looked for where it was written, also after the outer rollback."""
    with winner.begin() as session:
        session.execute(text("CREATE SCHEMA tenant"))
        session.execute(text("CREATE TABLE tenant.orders (LIKE orders INCLUDING ALL)"))
    in_tenant = {"schema_translate_map": {None: "tenant"}}
    tenant = sessionmaker(winner.kw["bind"].execution_options(**in_tenant))
    place(tenant, "o-1")
    with engine.connect() as connection:
        connection.execution_options(**in_tenant)
        with connection.begin(), Session(connection) as session:
            session.get_one(Order, "o-1").state.status = "cancelled"
            pay(tenant, "o-1")
            assert_moved(lose(Session.commit, session))
    with winner.begin() as session:
        session.execute(text("DROP SCHEMA tenant CASCADE"))


def test_sessions_of_one_transaction_lose_to_each_other(
    engine: Engine, winner: sessionmaker[Session], isolation_level: str
) -> None:
    """That the row is locked by their transaction keeps no other session away."""
    place(winner, "o-1")
    with at(engine, isolation_level).begin() as connection:
        joined = sessionmaker(connection, join_transaction_mode="create_savepoint")
        with joined() as one:
            order = one.get_one(Order, "o-1")
            order.state = OrderState(status="cancelled")
            one.commit()
            pay(joined, "o-1")
            order.state = OrderState(status="refunded")
            assert_moved(lose(Session.commit, one), found=3)


def test_nothing_is_kept_of_a_transaction(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """A connection that lives for long does not gather what was written on it."""
    place(winner, "o-1")
    with engine.connect() as connection:
        for end in (connection.commit, connection.rollback):
            connection.begin()
            with Session(connection) as session:
                cancel(session, "o-1")
                session.commit()
                states = weakref.WeakSet([inspect(session.get_one(Order, "o-1"))])
            assert [entry.workflow_key for entry in written_on(connection)] == ["o-1"]
            entries = weakref.WeakSet(written_on(connection))
            gc.collect()
            assert (len(states), len(entries)) == (0, 1)
            end()
            gc.collect()
            assert not entries


def test_session_that_is_dropped_gives_back_its_connection(
    winner: sessionmaker[Session],
) -> None:
    """What a session has written does not keep its connection from the pool of one."""
    place(winner, "o-1")
    for _ in range(2):
        cancel(winner(), "o-1")
        gc.collect()


def test_recreated_workflow_is_another(
    engine: Engine, isolation_level: str, winner: sessionmaker[Session]
) -> None:
    """Version 1 of a workflow that was deleted and created again is not the old one."""
    for write in ("update", "delete", "try_commit"):
        place(winner, "o-1")
        with Session(at(engine, isolation_level)) as session:
            order = session.get_one(Order, "o-1")
            base = order.provenance.effect_id
            delete(winner, "o-1")
            place(winner, "o-1")
            if write == "try_commit":
                if isolation_level != "READ COMMITTED":
                    continue
                outcome: Any = try_commit(
                    session,
                    Order,
                    "o-1",
                    expected_version=1,
                    expected_effect_id=base,
                    state=OrderState(),
                    provenance=Provenance.now(),
                )
            else:
                if write == "update":
                    order.state.status = "cancelled"
                else:
                    session.delete(order)
                outcome = lose(Session.flush, session)
        assert isinstance(outcome, StateConflict)
        assert outcome.reason is ConflictReason.RECREATED
        assert (outcome.expected_version, outcome.actual_version) == (1, 1)
        assert outcome.current is not None
        assert outcome.current.provenance.effect_id != base
        delete(winner, "o-1")


def test_replaced_row_is_checked(engine: Engine, winner: sessionmaker[Session]) -> None:
    """A delete and an insert of one key, which become one UPDATE, are checked."""
    place(winner, "o-1")
    with Session(engine) as session:
        session.delete(session.get_one(Order, "o-1"))
        session.add(Order(workflow_key="o-1", state=OrderState(status="new again")))
        pay(winner, "o-1")
        assert_moved(lose(Session.flush, session))
        session.delete(session.get_one(Order, "o-1"))
        order = Order(workflow_key="o-1", state=OrderState(status="new again"))
        session.add(order)
        session.commit()
        order.state.status = "changed"
        session.commit()


def test_own_unversioned_write_is_no_conflict(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """Nobody else has won if the transaction itself has counted the row before."""
    place(winner, "o-1")
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        session.execute(
            update(Order).values(number=1),
            execution_options={"wfstate_unversioned": True},
        )
        order.state.status = "paid"
        with pytest.raises(WriteSuppressed, match="same transaction"):
            session.commit()


@pytest.mark.skipif(not ENDS_REFUSED_PREPARE, reason="SQLAlchemy before 2.0.51")
def test_prepare_that_is_refused_is_left_alone(
    database: URL, winner: sessionmaker[Session]
) -> None:
    """It ends as it does in SQLAlchemy, which cannot roll it back and says so."""
    place(winner, "o-1")
    engine = create_engine(database, isolation_level="SERIALIZABLE")
    with Session(engine, twophase=True) as session:
        session.scalars(select(Order)).all()
        cancel(session, "o-1")
        with Session(engine) as rival:
            rival.scalars(select(Order)).all()
            rival.add(Order(workflow_key="rival", state=OrderState()))
            rival.commit()
        with pytest.raises(DBAPIError) as caught:
            session.commit()
        assert not isinstance(caught.value.__context__, StateConflict)
    engine.dispose()


def test_suppressed_write_is_no_conflict(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """A write that a trigger hides is told apart: a retry would never end."""
    place(winner, "o-1", "o-2")
    before_update(engine, "RETURN NULL", key="o-2")
    with Session(engine) as session:
        for order in session.scalars(select(Order)):
            order.state.status = "cancelled"
        with pytest.raises(WriteSuppressed) as caught:
            session.commit()
        assert caught.value.workflow_key == "o-2"
        assert caught.value.version == 1
        assert type(caught.value.__cause__) is StaleDataError


def test_other_errors_pass_through(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """Another entity's staleness, or another constraint, is no business of ours."""
    place(winner, "o-1")
    with winner.begin() as session:
        session.add(Customer(id=1, name="Ann"))
        session.add(Order(workflow_key="o-9", state=OrderState(), number=9))
    with Session(engine) as session:
        customer = session.get_one(Customer, 1)
        session.get_one(Order, "o-1").state.status = "cancelled"
        customer.name = "Bea"
        with winner.begin() as other:
            other.get_one(Customer, 1).name = "Cid"
        with pytest.raises(StaleDataError) as stale:
            session.commit()
        assert type(stale.value) is StaleDataError
        assert "customers" in str(stale.value)
        session.rollback()
        pay(winner, "o-1")
        session.add(Order(workflow_key="o-2", state=OrderState(), number=9))
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        session.expunge_all()
        session.get_one(Order, "o-1").state.status = "cancelled"
        session.add(Customer(id=1, name="Dora"))
        with pytest.raises(IntegrityError):
            session.commit()
