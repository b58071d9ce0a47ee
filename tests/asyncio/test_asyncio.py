"""The async counterparts: the same names, the same parameters, the same outcomes."""

from __future__ import annotations

import inspect
from asyncio import create_task
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    sessionmaker,
)

import sa_wfstate
import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    Commit,
    ErrorKind,
    Intent,
    Provenance,
    Reduction,
    StateCommitted,
    StateConflict,
    TenantKey,
    WorkflowNotFound,
    WorkflowSnapshot,
    WorkflowStateMixin,
    classify,
    field_of,
    outbox,
    patching,
    projection,
    versions,
)
from sa_wfstate.asyncio import CanonicalStore, ReducerService, get_state, try_commit
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.outbox import IntentMixin, store_intents

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


async def place(engine: AsyncEngine) -> None:
    """Commit an order."""
    async with AsyncSession(engine) as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))
        await session.commit()


async def test_second_writer_gets_conflict(async_engine: AsyncEngine) -> None:
    """An AsyncSession raises the conflict, and goes on after rollback."""
    await place(async_engine)
    first, second = AsyncSession(async_engine), AsyncSession(async_engine)
    async with first, second:
        (await first.get_one(Order, "o-1")).state.status = "paid"
        (await second.get_one(Order, "o-1")).state.status = "lost"
        await first.commit()
        with pytest.raises(StateConflict, match="expected version 1, found 2"):
            await second.commit()
        await second.rollback()
        order = await second.get_one(Order, "o-1")
        assert order.state.status == "paid"
        order.state.status = "sent"
        await second.flush()
        # Everything was loaded: an expired attribute would raise MissingGreenlet.
        assert (order.version, order.updated_at.tzinfo is None) == (3, False)
        await second.commit()


async def test_session_functions(async_engine: AsyncEngine) -> None:
    """get_state and try_commit take part in the transaction of an AsyncSession."""
    await place(async_engine)
    async with AsyncSession(async_engine) as session:
        read = await get_state(session, Order, "o-1")
        outcome = await try_commit(
            session,
            Order,
            "o-1",
            expected_version=read.version,
            state=OrderState(status="paid"),
            provenance=Provenance.now(),
        )
        await session.rollback()
        assert isinstance(outcome, StateCommitted)
        assert (await get_state(session, Order, "o-1")).version == 1
        with pytest.raises(WorkflowNotFound):
            await get_state(session, Order, "o-9")


@pytest.mark.parametrize("wrap", [lambda engine: engine, async_sessionmaker])
async def test_store(async_engine: AsyncEngine, wrap: Any) -> None:
    """The store commits by itself, over an engine and over a sessionmaker."""
    await place(async_engine)
    store = CanonicalStore(wrap(async_engine), Order)
    read = await store.get_state("o-1")
    outcomes = [
        await store.try_commit(
            workflow_key="o-1",
            expected_version=read.version,
            state=OrderState(status=status),
            provenance=Provenance.now(),
        )
        for status in ("paid", "lost")
    ]
    assert [type(each) for each in outcomes] == [StateCommitted, StateConflict]
    assert (await store.get_state("o-1")).state.status == "paid"
    sent = Commit(
        base=await store.get_state("o-1"),
        state=OrderState(status="sent"),
        provenance=Provenance.now(),
    )
    outcomes = [(await store.try_commit_many([sent]))[0] for _ in "12"]
    assert [getattr(each, "replayed", None) for each in outcomes] == [False, True]


class Tenants(DeclarativeBase):
    """The base of the classes of tenants."""


class Ticket(WorkflowStateMixin[OrderState], Tenants):
    """Its key is unique within a tenant."""

    __tablename__ = "tickets"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    workflow_key: Mapped[str] = mapped_column(primary_key=True)


class TicketActions(ActionDedupMixin, Tenants):
    __tablename__ = "ticket_actions"


class TicketIntents(IntentMixin, Tenants):
    __tablename__ = "ticket_intents"


class TicketHistory(HistoryMixin, Tenants):
    __tablename__ = "ticket_history"


keep_history(Ticket, TicketHistory)


async def test_tenants_of_one_key_are_kept_apart(async_engine: AsyncEngine) -> None:
    """By a service, its dedup log, outbox and history, and by a store."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Tenants.metadata.create_all)

    def reduce(state: OrderState, action: Action[str]) -> Reduction[OrderState]:
        intent = Intent(intent_type="mail", target=action.payload)
        status = f"{state.status}, {action.payload}"
        return Reduction(OrderState(status=status), [intent])

    service = ReducerService(
        async_engine,
        Ticket,
        reduce,
        initial=OrderState,
        dedup=TicketActions,
        writers=[store_intents(TicketIntents)],
    )
    keys, id_ = [TenantKey(tenant, "t-1") for tenant in ("ours", "theirs")], uuid4()
    for replayed in (False, True):
        for key in keys:
            action = Action(workflow_key=key, action_id=id_, payload=key.tenant)
            outcome = await service.handle(action)
            assert (outcome.workflow_key, outcome.version) == (key, 1)
            assert outcome.replayed is replayed
    store = CanonicalStore(async_engine, Ticket)
    for key in keys:
        assert (await store.get_state(key)).state.status == f"new, {key.tenant}"
    async with AsyncSession(async_engine) as session:
        for table in (TicketActions, TicketIntents, TicketHistory):
            stored = await session.scalars(select(table.workflow_key))
            assert sorted(stored) == ["ours/t-1", "theirs/t-1"]


async def test_four_steps(async_engine: AsyncEngine) -> None:
    """Read, compute, commit and handle conflicts, in words that others use for it."""

    class Reducer:
        async def process(self, state: WorkflowSnapshot[Any]) -> Reduction[OrderState]:
            return Reduction(OrderState(status=state.state.status + "!"))

    async def step() -> StateCommitted[OrderState]:
        state = await canonical_store.get_state(workflow_key)
        result = await reducer.process(state)
        outcome = await canonical_store.try_commit(
            workflow_key=workflow_key,
            expected_version=state.version,
            state_prime=result.state,
            provenance={"effect_id": str(uuid4()), "timestamp": datetime.now(UTC)},
        )
        if isinstance(outcome, StateConflict):
            return await step()
        return outcome

    await place(async_engine)
    canonical_store = CanonicalStore(async_engine, Order)
    reducer, workflow_key = Reducer(), "o-1"
    outcomes = [await each for each in (create_task(step()), create_task(step()))]
    assert sorted(each.version for each in outcomes) == [2, 3]
    assert (await canonical_store.get_state("o-1")).state.status == "new!!"


async def test_patches(async_engine: AsyncEngine) -> None:
    """In a session, in bulk, and by a store."""
    await place(async_engine)
    status = field_of(Order.state, lambda state: state.status)
    edits, now = [patching.set_to(status, "paid")], Provenance.now()
    async with AsyncSession(async_engine) as session:
        outcome = await sa_wfstate.asyncio.try_patch(
            session, Order, "o-1", edits, when=status == "new", provenance=now
        )
        assert isinstance(outcome, StateCommitted)
        again = patching.Patch("o-1", edits, provenance=now, expected_version=1)
        (outcome,) = await sa_wfstate.asyncio.try_patch_many(session, Order, [again])
        assert isinstance(outcome, StateCommitted)
        assert outcome.replayed
        await session.commit()
    store = CanonicalStore(async_engine, Order)
    outcome = await store.try_patch(
        workflow_key="o-1", edits=edits, when=status == "new", provenance=now
    )
    assert isinstance(outcome, StateConflict)
    assert outcome.reason == "condition"
    won, lost = await store.try_patch_many(
        [again, patching.Patch("o-2", edits, provenance=now)]
    )
    assert isinstance(won, StateCommitted)
    assert isinstance(lost, StateConflict)
    assert (won.replayed, lost.reason) == (True, "missing")


@pytest.mark.parametrize("names", [(), ("state", "state_prime")])
async def test_state_is_given_once(async_engine: AsyncEngine, names: Any) -> None:
    """Neither of the two names, or both, is a TypeError that tells them."""
    write: dict[str, Any] = {
        "workflow_key": "o-1",
        "expected_version": 0,
        "provenance": Provenance.now(),
    } | dict.fromkeys(names, OrderState())
    with pytest.raises(TypeError, match="either state= or state_prime="):
        await CanonicalStore(async_engine, Order).try_commit(**write)
    with pytest.raises(TypeError, match="either state= or state_prime="):
        sa_wfstate.CanonicalStore(async_engine.sync_engine, Order).try_commit(**write)


def test_server_that_goes_away_while_asyncpg_connects() -> None:
    """What asyncpg raises then, SQLAlchemy does not wrap; it passes all the same."""
    for passing in (
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
    ):
        assert classify(passing) is ErrorKind.TRANSIENT
    refused = asyncpg.InvalidPasswordError("password authentication failed")
    assert classify(refused) is ErrorKind.FATAL


async def test_wrong_kind_is_refused_with_a_word(async_engine: AsyncEngine) -> None:
    """A sync function that is given what must be awaited says so, and vice versa."""
    session: Any = AsyncSession(async_engine)
    with pytest.raises(TypeError, match="an asynchronous AsyncSession; await"):
        sa_wfstate.get_state(session, Order, "o-1")
    binds: list[Any] = [async_engine, async_sessionmaker(async_engine)]
    for bind in binds:
        with pytest.raises(TypeError, match="got an asynchronous"):
            sa_wfstate.CanonicalStore(bind, Order)
    plain = create_engine("sqlite://")
    session = Session(plain)
    with pytest.raises(TypeError, match="a synchronous Session; give"):
        await get_state(session, Order, "o-1")
    binds = [plain, sessionmaker(plain)]
    for bind in binds:
        with pytest.raises(TypeError, match="got a synchronous"):
            CanonicalStore(bind, Order)


def test_counterparts_have_the_same_names_and_parameters() -> None:
    """Each name of sa_wfstate.asyncio is the counterpart of a synchronous one."""
    modules = (versions, patching, outbox, projection, sa_wfstate)
    originals: dict[str, Any] = {}
    for module in modules:
        originals |= {name: getattr(module, name) for name in dir(module)}
    for name in sa_wfstate.asyncio.__all__:
        original, counterpart = originals[name], getattr(sa_wfstate.asyncio, name)
        if not inspect.isclass(original):
            assert inspect.iscoroutinefunction(counterpart), name
            pairs = [(original, counterpart)]
        else:
            public = {key for key in vars(original) if not key.startswith("_")}
            assert public == {
                key for key in vars(counterpart) if not key.startswith("_")
            }
            methods = ["__init__", *sorted(public)]
            pairs = [
                (getattr(original, key), getattr(counterpart, key)) for key in methods
            ]
        for one, other in pairs:
            names = [list(inspect.signature(each).parameters) for each in (one, other)]
            assert names[0] == names[1], (name, names)
