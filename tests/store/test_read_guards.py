"""require_version: rows that were only read are checked when the session commits."""

from __future__ import annotations

import pickle
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import create_engine, delete, event, select, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, load_only, sessionmaker

from sa_wfstate import (
    ErrorKind,
    Provenance,
    RetryPolicy,
    StateConflict,
    classify,
    run_transaction,
    try_commit,
)
from sa_wfstate.errors import VersionNotSeen
from sa_wfstate.row.engine_profiles import profile_on
from sa_wfstate.versions import require_version

from ..doctors import Base, Doctor, OnCall, Ward
from ..verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine, MetaData

    from ..conftest import Driver


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None], database: URL) -> None:
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        for key in ("alice", "bob"):
            session.add(Doctor(workflow_key=key, state=OnCall()))
            session.add(Ward(workflow_key=key, state=OnCall()))
        session.commit()
    plain.dispose()


def move(engine: Engine, key: str = "bob", entity: Any = Doctor) -> None:
    """Commit a change by another session."""
    with Session(engine) as other:
        other.get_one(entity, key).state.on_call = False
        other.commit()


def on_call(engine: Engine) -> int:
    """Count the doctors on call."""
    with Session(engine) as session:
        return sum(each.state.on_call for each in session.scalars(select(Doctor)))


@pytest.mark.contract
def test_moved_row_is_a_conflict_of_the_reader(engine: Engine) -> None:
    """It has the role, the current row, and loses nothing else after the rollback."""
    with Session(engine) as session:
        alice, bob = session.get_one(Doctor, "alice"), session.get_one(Doctor, "bob")
        require_version(session, bob)
        move(engine)
        alice.state.on_call = False
        for _ in "12":
            with pytest.raises(StateConflict) as caught:
                session.commit()
        conflict = caught.value
        assert (conflict.role, conflict.workflow_key) == ("read", "bob")
        assert (conflict.expected_version, conflict.actual_version) == (1, 2)
        assert not conflict.current.state.on_call
        assert "'bob', which was only read: expected version 1, found 2" in str(
            conflict
        )
        assert pickle.loads(pickle.dumps(conflict)).role == "read"
        assert classify(conflict) is ErrorKind.CONFLICT
        session.rollback()
        assert alice.state.on_call
        alice.state.on_call = False
        session.commit()
    assert on_call(engine) == 0


class Ended(NamedTuple):
    """How the transaction of a doctor ended, after which waits for locks."""

    error: Exception | None
    seconds: float
    waits: list[str]


def doctors(
    driver: Driver, engine: Engine, *, guarded: bool, flush_first: bool
) -> tuple[int, list[Ended]]:
    """Let each doctor go off call if the other one is on call, both at once."""
    meet = driver.meeting(2)

    def go_off_call(me: str, other: str) -> Ended:
        error, waits = None, list[str]()
        with Session(engine) as session:
            # Whatever needs the deadlock detector takes this long.
            session.execute(text("SET LOCAL deadlock_timeout = '10s'"))
            found = {
                each.workflow_key: each for each in session.scalars(select(Doctor))
            }
            assert all(each.state.on_call for each in found.values())
            found[me].state.on_call = False
            if guarded:
                require_version(session, found[other])
            assert meet(30)
            if flush_first:
                session.flush()
                assert meet(30)

            @event.listens_for(session.connection(), "before_cursor_execute")
            def note(*args: Any) -> None:
                if "FOR NO KEY UPDATE" in args[2] and "NOWAIT" not in args[2]:
                    waits.append("lock")
                elif "set_config('lock_timeout'" in args[2]:
                    values = args[3]
                    values = values.values() if isinstance(values, dict) else values
                    waits.extend(values)

            begin = time.perf_counter()
            try:
                session.commit()
            except Exception as caught:  # noqa: BLE001 - the test looks at it
                error = caught
                session.rollback()
        return Ended(error, time.perf_counter() - begin, waits)

    ends = driver.together(
        partial(go_off_call, "alice", "bob"), partial(go_off_call, "bob", "alice")
    )
    return on_call(engine), ends


@pytest.mark.contract
@pytest.mark.parametrize("flush_first", [False, True])
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_doctors_on_call(
    driver: Driver, engine: Engine, level: str, flush_first: bool
) -> None:
    """One stays on call; it ends soon, and never by the deadlock detector.

    Soon is under 100 ms, which a test on a busy machine cannot measure. So the detector
    takes 10 s here, and what else could take its time is counted: a transaction that
    has written rows waits once, for 30 ms; one that has not, for the other's COMMIT.
    """
    leveled = engine.execution_options(isolation_level=level)
    without, _ = doctors(driver, leveled, guarded=False, flush_first=flush_first)
    assert without == 0  # The write skew that the guards exclude.
    for _ in range(2):
        with Session(engine) as session:
            session.execute(text("UPDATE doctors SET state = '{\"on_call\": true}'"))
            session.commit()
        left, ends = doctors(driver, leveled, guarded=True, flush_first=flush_first)
        errors = [each.error for each in ends if each.error is not None]
        assert left == len(errors) >= 1
        assert {type(error) for error in errors} == {StateConflict}, errors
        assert all(each.role == "read" for error in errors for each in error.conflicts)
        assert max(each.seconds for each in ends) < 5
        waits = {tuple(each.waits[: 1 + flush_first]) for each in ends}
        assert waits == {("30ms", "lock") if flush_first else ("lock",)}
        assert all(each.waits.count("lock") == 1 for each in ends)


@pytest.mark.contract
def test_row_that_moved_at_repeatable_read(engine: Engine) -> None:
    """The database refuses its lock: a conflict of that row, and of no other."""
    level = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(level) as session:
        alice, bob = session.get_one(Doctor, "alice"), session.get_one(Doctor, "bob")
        require_version(session, alice)
        require_version(session, bob)
        move(engine)
        with pytest.raises(StateConflict) as caught:
            session.commit()
        conflict = caught.value
        assert [each.workflow_key for each in conflict.conflicts] == ["bob"]
        assert (conflict.role, conflict.reason) == ("read", "serialization")
        session.rollback()
        # One that the session writes itself is the flush's own conflict.
        bob = session.get_one(Doctor, "bob")
        require_version(session, session.get_one(Doctor, "alice"))
        bob.state.on_call = True
        with Session(engine) as other:
            other.get_one(Doctor, "bob").provenance = Provenance.now()
            other.commit()
        with pytest.raises(StateConflict) as caught:
            session.commit()
        assert (caught.value.role, caught.value.workflow_key) == ("write", "bob")


def test_lock_that_is_not_had_is_a_conflict(engine: Engine) -> None:
    """Where rows were written before, the guard waits for milliseconds only."""
    with Session(engine) as session, Session(engine) as other:
        alice, bob = session.get_one(Doctor, "alice"), session.get_one(Doctor, "bob")
        require_version(session, bob)
        alice.state.on_call = False
        session.flush()
        other.get_one(Doctor, "bob").state.on_call = False
        other.flush()
        with pytest.raises(StateConflict) as caught:
            session.commit()
        assert (caught.value.role, caught.value.actual_version) == ("read", None)
        session.rollback()
        # So is one that it is going to write.
        require_version(session, alice)
        alice.state.on_call = False
        session.flush()
        bob.state.on_call = False
        require_version(session, session.get_one(Doctor, "alice"))
        with pytest.raises(StateConflict) as caught:
            session.commit()
        assert (caught.value.role, caught.value.workflow_key) == ("write", "bob")


def test_lock_timeout_is_left_as_it_was(engine: Engine) -> None:
    """That of the guard is set back before the flush."""
    with engine.connect() as connection, Session(connection) as session:
        session.execute(text("SET lock_timeout = '7s'"))
        require_version(session, session.get_one(Doctor, "bob"))
        session.get_one(Doctor, "alice").state.on_call = False
        session.flush()
        session.commit()
        assert session.scalar(text("SHOW lock_timeout")) == "7s"


def test_statements_of_a_guarded_commit(engine: Engine) -> None:
    """One for each class, before the flush; none without a guard, or after a commit."""
    with Session(engine, expire_on_commit=False) as session:
        doctor = session.get_one(Doctor, "alice")
        others = [*session.scalars(select(Doctor)), *session.scalars(select(Ward))]
        profile_on(session.connection())  # Asked once for each pool.
        sent = verbs_of(engine)
        for other in others:
            require_version(session, other)
        doctor.state.on_call = False
        session.commit()
        assert sent == ["SELECT", "SELECT", "UPDATE"]
        sent.clear()
        doctor.state.on_call = True
        session.commit()
        assert sent == ["UPDATE"]


def test_rows_that_the_transaction_writes(engine: Engine) -> None:
    """Its own writes are no conflict; what they have replaced may be one."""
    with Session(engine) as session:
        bob = session.get_one(Doctor, "bob")
        require_version(session, bob)
        bob.state.on_call = False
        session.flush()
        bob.state.on_call = True
        session.commit()
        assert bob.version == 3
        require_version(session, bob)
        move(engine)
        session.expire(bob)
        bob.state.on_call = True  # Read again, and written over the other's commit.
        session.flush()
        with pytest.raises(StateConflict, match="only read: expected version 3, found"):
            session.commit()
        session.rollback()
        move(engine, "alice")
        alice = session.get_one(Doctor, "alice")
        require_version(session, bob)
        outcome = try_commit(
            session,
            Doctor,
            "alice",
            expected_version=alice.version,
            state=OnCall(),
            provenance=Provenance.now(),
        )
        assert outcome.version == 3
        session.commit()


def test_row_that_is_gone(engine: Engine) -> None:
    """Also where the block of begin() commits."""

    def decide() -> None:
        with sessionmaker(engine).begin() as session:
            require_version(session, session.get_one(Doctor, "bob"))
            with engine.begin() as connection:
                connection.execute(delete(Doctor.__table__))

    with pytest.raises(StateConflict) as caught:
        decide()
    assert (caught.value.reason, caught.value.role) == ("missing", "read")


def test_savepoint_is_no_commit(engine: Engine) -> None:
    """A guard that was set within it is checked when the transaction ends."""
    with Session(engine) as session:
        bob = session.get_one(Doctor, "bob")
        with session.begin_nested():
            require_version(session, bob)
            move(engine)
        with pytest.raises(StateConflict):
            session.commit()
        session.rollback()
        session.commit()  # The rollback has ended the guard.


def test_session_joined_into_an_outer_transaction_keeps_the_lock(
    engine: Engine,
) -> None:
    """Until the outer COMMIT, no other writer can move the row."""
    with engine.connect() as connection, connection.begin():
        with Session(connection) as session:
            require_version(session, session.get_one(Doctor, "bob"))
            session.get_one(Doctor, "alice").state.on_call = False
            session.commit()
        with engine.connect() as other:
            other.execute(text("SET lock_timeout = '50ms'"))
            with pytest.raises(DBAPIError, match="lock timeout"):
                other.execute(text("UPDATE doctors SET version = version + 1"))


def test_run_transaction_decides_again(engine: Engine) -> None:
    """The conflict of a guard is retried in a new transaction."""
    moved = [lambda: move(engine)]

    def go_off_call(session: Session) -> bool:
        alice, bob = session.get_one(Doctor, "alice"), session.get_one(Doctor, "bob")
        require_version(session, bob)
        for each in moved:
            moved.clear()
            each()
        if bob.state.on_call:
            alice.state.on_call = False
        return alice.state.on_call

    sessions = sessionmaker(engine)
    assert run_transaction(sessions, go_off_call, retry=RetryPolicy())
    assert on_call(engine) == 1


async def test_async_session(async_engine: AsyncEngine, database: URL) -> None:
    """It is given itself, or its sync_session."""
    plain = create_engine(database)
    async with AsyncSession(async_engine) as session:
        require_version(session, await session.get_one(Doctor, "bob"))
        move(plain)
        with pytest.raises(StateConflict, match="only read"):
            await session.commit()
    plain.dispose()


def test_what_cannot_be_guarded(engine: Engine) -> None:
    """An instance of another session, or one whose version was not loaded."""
    with Session(engine) as session, Session(engine) as other:
        with pytest.raises(InvalidRequestError, match="does not belong to it"):
            require_version(session, other.get_one(Doctor, "bob"))
        bob = session.scalars(select(Doctor).options(load_only(Doctor.state))).first()
        assert bob is not None
        with pytest.raises(VersionNotSeen):
            require_version(session, bob)
