"""Contract: criteria that a session adds to what it loads hold outside the ORM, too."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    ORMExecuteState,
    Session,
    mapped_column,
    sessionmaker,
    with_loader_criteria,
)

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    ConflictReason,
    Provenance,
    ReducerService,
    RetryPolicy,
    StateCommitted,
    StateConflict,
    WorkflowNotFound,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate import asyncio as wfs
from sa_wfstate.errors import ReducerGaveUp

from ..orders import OrderState
from ..verbs import verbs_of

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


tenant = ContextVar("tenant", default="ours")


class OfTenant:
    tenant: Mapped[str] = mapped_column(default=tenant.get)
    deleted: Mapped[bool] = mapped_column(default=False)


class Order(OfTenant, WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


PAID = OrderState(status="paid")
Start = Callable[[], Session]


class TenantSession(Session):
    """Sees what belongs to the tenant and is not deleted."""


@event.listens_for(TenantSession, "do_orm_execute")
def _filter(execute: ORMExecuteState) -> None:
    if execute.is_select and not execute.is_column_load:
        mine = tenant.get()
        execute.statement = execute.statement.options(
            with_loader_criteria(
                OfTenant,
                lambda cls: (cls.tenant == mine) & ~cls.deleted,
                include_aliases=True,
            )
        )


@pytest.fixture(autouse=True)
def rows(create_tables: Callable[..., None], database: Any) -> Any:
    """Make a row of ours, one of theirs and a deleted one; return a way to look."""
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        session.add(Order(workflow_key="ours", state=OrderState()))
        session.add(Order(workflow_key="theirs", tenant="other", state=OrderState()))
        session.add(Order(workflow_key="deleted", deleted=True, state=OrderState()))
        session.commit()

    def look() -> dict[str, Any]:
        with plain.connect() as connection:
            found = connection.execute(
                text("SELECT workflow_key, version, state->>'status' FROM orders")
            )
            return {key: (version, status) for key, version, status in found}

    yield look
    plain.dispose()


@pytest.fixture(params=["class", "sessionmaker", "session"])
def start(engine: Engine, request: pytest.FixtureRequest) -> Start:
    """Return what opens sessions with the listener, wherever it is registered."""
    if request.param == "class":
        return sessionmaker(engine, class_=TenantSession)
    sessions = sessionmaker(engine)
    if request.param == "sessionmaker":
        event.listen(sessions, "do_orm_execute", _filter)
        return sessions

    def listening() -> Session:
        session = sessions()
        event.listen(session, "do_orm_execute", _filter)
        return session

    return listening


def commit(session: Session, key: str, expected_version: int) -> Any:
    """Try to commit a paid order."""
    return try_commit(
        session,
        Order,
        key,
        expected_version=expected_version,
        state=PAID,
        provenance=Provenance.now(),
    )


HIDDEN = pytest.mark.parametrize("key", ["theirs", "deleted"])


@pytest.mark.contract
@HIDDEN
def test_hidden_row_is_not_found(start: Start, key: str) -> None:
    """get_state() finds what the criteria of the session let through."""
    with start() as session:
        assert get_state(session, Order, "ours").version == 1
        with pytest.raises(WorkflowNotFound):
            get_state(session, Order, key)


@pytest.mark.contract
@HIDDEN
def test_hidden_row_is_not_written(start: Start, rows: Any, key: str) -> None:
    """To try_commit() a row that the criteria hide is missing."""
    with start() as session:
        assert isinstance(commit(session, "ours", 1), StateCommitted)
        conflict = commit(session, key, 1)
        session.commit()
        assert isinstance(conflict, StateConflict)
        assert conflict.reason is ConflictReason.MISSING
        assert (conflict.actual_version, conflict.current) == (None, None)
        assert rows() == {
            "ours": (2, "paid"),
            "theirs": (1, "new"),
            "deleted": (1, "new"),
        }


@pytest.mark.contract
@HIDDEN
def test_hidden_key_exists_and_tells_nothing(start: Start, key: str) -> None:
    """A creation over a hidden row is a conflict that does not show the row."""
    with start() as session:
        conflict = commit(session, key, 0)
        assert conflict.reason is ConflictReason.EXISTS
        assert (conflict.actual_version, conflict.current) == (None, None)
        assert "expected no row, it exists already" in str(conflict)
        visible = commit(session, "ours", 0)
        assert visible.reason is ConflictReason.EXISTS
        assert visible.current.version == 1


@pytest.mark.contract
def test_flush_over_a_hidden_key_tells_nothing(start: Start) -> None:
    """A flush that creates a key of another tenant does not show their row."""
    with start() as session:
        session.add(Order(workflow_key="theirs", state=PAID))
        with pytest.raises(StateConflict, match="exists already") as conflict:
            session.commit()
        assert (conflict.value.actual_version, conflict.value.current) == (None, None)


@pytest.mark.contract
def test_new_row_belongs_to_the_tenant(start: Start) -> None:
    """A created row has the defaults of the application, and so can be seen."""
    with start() as session:
        assert isinstance(commit(session, "new", 0), StateCommitted)
        assert get_state(session, Order, "new").state == PAID


@pytest.mark.contract
def test_batch_leaves_hidden_rows_alone(start: Start, rows: Any) -> None:
    """Of a batch the visible rows are written; the others are missing, or exist."""
    with start() as session:
        versions = {"ours": 1, "theirs": 1, "deleted": 1, "new": 0}
        commits = [
            Commit(
                key, expected_version=version, state=PAID, provenance=Provenance.now()
            )
            for key, version in versions.items()
        ]
        won, theirs, deleted, new = try_commit_many(session, Order, commits)
        assert isinstance(won, StateCommitted)
        assert isinstance(new, StateCommitted)
        for lost in (theirs, deleted):
            assert isinstance(lost, StateConflict)
            assert (lost.reason, lost.current) == (ConflictReason.MISSING, None)
        session.commit()
        assert rows()["theirs"] == (1, "new")
        creations = [
            Commit(key, expected_version=0, state=PAID, provenance=Provenance.now())
            for key in ("theirs", "ours")
        ]
        theirs, ours = try_commit_many(session, Order, creations)
        assert isinstance(theirs, StateConflict)
        assert isinstance(ours, StateConflict)
        assert (theirs.reason, theirs.actual_version) == (ConflictReason.EXISTS, None)
        assert ours.current is not None


@pytest.mark.contract
def test_store_of_sessions_honours_the_criteria(engine: Engine, rows: Any) -> None:
    """A store reads and writes by the sessions that it is given."""
    store = CanonicalStore(sessionmaker(engine, class_=TenantSession), Order)
    with pytest.raises(WorkflowNotFound):
        store.get_state("theirs")
    outcomes = [
        store.try_commit(
            workflow_key=key,
            expected_version=1,
            state=PAID,
            provenance=Provenance.now(),
        )
        for key in ("ours", "theirs")
    ]
    assert isinstance(outcomes[0], StateCommitted)
    assert isinstance(outcomes[1], StateConflict)
    assert outcomes[1].reason is ConflictReason.MISSING
    assert rows()["theirs"] == (1, "new")


def pay(_: OrderState, __: Action[Any]) -> OrderState:
    """Reduce any order to a paid one."""
    return PAID


@pytest.mark.contract
@pytest.mark.parametrize("many", [False, True])
def test_service_of_sessions_honours_the_criteria(
    engine: Engine, rows: Any, many: bool
) -> None:
    """A service reduces what its sessions see, also after another tenant's action."""
    sessions = sessionmaker(engine, class_=TenantSession)
    service = ReducerService(sessions, Order, pay)

    def handle(key: str) -> Any:
        action = Action[Any](workflow_key=key, action_id=uuid4(), payload=None)
        if not many:
            return service.handle(action)
        (outcome,) = service.handle_many([action])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert handle("ours").version == 2
    token = tenant.set("other")
    try:
        with pytest.raises(WorkflowNotFound):
            handle("ours")
    finally:
        tenant.reset(token)
    with pytest.raises(WorkflowNotFound):
        handle("theirs")
    assert rows()["ours"] == (2, "paid")
    assert rows()["theirs"] == (1, "new")


def test_service_does_not_create_over_a_hidden_row(engine: Engine) -> None:
    """With *initial*, a hidden key is in the way, and is not shown."""
    sessions = sessionmaker(engine, class_=TenantSession)
    service = ReducerService(
        sessions, Order, pay, initial=OrderState, retry=RetryPolicy(max_attempts=1)
    )
    with pytest.raises(ReducerGaveUp) as gave_up:
        service.handle(
            Action[Any](workflow_key="theirs", action_id=uuid4(), payload=None)
        )
    assert gave_up.value.conflict is not None
    assert gave_up.value.conflict.current is None


def test_row_that_leaves_meanwhile_is_not_written(engine: Engine, rows: Any) -> None:
    """What is written is locked when it is looked at, for the whole transaction."""
    with TenantSession(engine) as session, engine.connect() as other:
        commit(session, "ours", 1)
        other.execute(text("SET lock_timeout = '100ms'"))
        with pytest.raises(Exception, match="lock timeout"):
            other.execute(text("UPDATE orders SET tenant = 'other'"))
        other.rollback()
        session.rollback()
        other.execute(text("UPDATE orders SET tenant = 'other'"))
        other.commit()
        assert commit(session, "ours", 1).reason is ConflictReason.MISSING
    assert rows()["ours"] == (1, "new")


def test_session_without_a_listener_sends_one_statement(engine: Engine) -> None:
    """The criteria cost nothing where there are none."""
    with Session(engine) as session:
        session.connection()
        verbs = verbs_of(engine)
        get_state(session, Order, "theirs")
        commit(session, "theirs", 1)
    assert verbs == ["SELECT", "UPDATE"]


def test_pending_changes_are_not_flushed(engine: Engine) -> None:
    """As without criteria, try_commit() does not flush what the session holds."""
    with TenantSession(engine) as session:
        session.add(Order(workflow_key="pending", state=OrderState()))
        assert isinstance(commit(session, "ours", 1), StateCommitted)
        assert len(session.new) == 1


async def test_async_twins_honour_the_criteria(async_engine: AsyncEngine) -> None:
    """An AsyncSession and an async_sessionmaker filter as their sync session does."""
    sessions = async_sessionmaker(async_engine, sync_session_class=TenantSession)
    async with sessions() as session:
        assert isinstance(session, AsyncSession)
        with pytest.raises(WorkflowNotFound):
            await wfs.get_state(session, Order, "theirs")
        conflict = await wfs.try_commit(
            session,
            Order,
            "theirs",
            expected_version=1,
            state=PAID,
            provenance=Provenance.now(),
        )
        assert isinstance(conflict, StateConflict)
        assert conflict.reason is ConflictReason.MISSING
    store = wfs.CanonicalStore(sessions, Order)
    assert (await store.get_state("ours")).version == 1
    with pytest.raises(WorkflowNotFound):
        await store.get_state("theirs")
