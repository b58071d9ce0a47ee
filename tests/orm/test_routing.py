"""A session that chooses its database is given what it decides by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import URL, Delete, Engine, Update, create_engine, event, select
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    sessionmaker,
)

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    Intent,
    Provenance,
    ReducerService,
    StateCommitted,
    StateConflict,
    TenantKey,
    WorkflowStateMixin,
    field_of,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.dedup import ActionDedupMixin, remember, should_process
from sa_wfstate.errors import MappingError
from sa_wfstate.history import HistoryMixin, get_version, keep_history
from sa_wfstate.outbox import IntentMixin, add_intents
from sa_wfstate.patching import Patch, set_to, try_patch, try_patch_many
from sa_wfstate.testing import temporary_database
from sa_wfstate.versions import require_version, try_delete_many

from ..orders import Base as Orders
from ..orders import Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import MetaData

    from ..conftest import Driver


class Base(DeclarativeBase):
    """The declarative base of these classes."""

    metadata = Orders.metadata


class Parcel(WorkflowStateMixin[OrderState], Base):
    """A workflow with a history."""

    __tablename__ = "routed_parcels"


class ParcelHistory(HistoryMixin, Base):
    """The history of the parcels."""

    __tablename__ = "routed_history"


keep_history(Parcel, ParcelHistory)


class Ticket(WorkflowStateMixin[OrderState], Base):
    """A workflow whose key is unique within a shop, whose name names the shard."""

    __tablename__ = "routed_tickets"

    shop: Mapped[str] = mapped_column(primary_key=True)
    workflow_key: Mapped[str] = mapped_column(primary_key=True)


class OrderActions(ActionDedupMixin, Base):
    """A dedup log."""

    __tablename__ = "routed_actions"


class OrderIntents(IntentMixin, Base):
    """An outbox."""

    __tablename__ = "routed_intents"


ACTION = UUID(int=1)


def state(status: str) -> dict[str, Any]:
    """Return the arguments of a write."""
    return {"state": OrderState(status=status), "provenance": Provenance.now()}


@pytest.fixture
def primary(driver: Driver, create_tables: Callable[[MetaData], None]) -> Engine:
    """Return an engine that writes."""
    create_tables(Base.metadata)
    return driver.create_engine()


@pytest.fixture
def replica(driver: Driver) -> Engine:
    """Return an engine of the same database that refuses to write."""
    read_only = {"default_transaction_read_only": "on"}
    arguments: dict[str, Any] = {"options": "-c default_transaction_read_only=on"}
    if driver.name == "asyncpg":
        arguments = {"server_settings": read_only}
    return driver.create_engine(connect_args=arguments)


@pytest.fixture
def asked(primary: Engine, replica: Engine) -> dict[str, int]:
    """Count the statements that each of the two has got."""
    counts = {"primary": 0, "replica": 0}

    def count(name: str) -> Any:
        def note(*_: object) -> None:
            counts[name] += 1

        return note

    event.listen(primary, "before_cursor_execute", count("primary"))
    event.listen(replica, "before_cursor_execute", count("replica"))
    return counts


@pytest.fixture
def routing(primary: Engine, replica: Engine) -> sessionmaker[Session]:
    """Make sessions that read from a replica, as in the manual of SQLAlchemy."""

    class RoutingSession(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:  # type: ignore[override]
            if self._flushing or isinstance(clause, (Update, Delete)):
                return primary
            return replica

    return sessionmaker(class_=RoutingSession)


@pytest.mark.contract
def test_writes_go_to_the_primary_and_reads_to_the_replica(
    routing: sessionmaker[Session], asked: dict[str, int]
) -> None:
    """The reader and writer recipe of SQLAlchemy's manual works as it is."""
    with routing() as session, session.begin():
        created = try_commit(session, Order, "o-1", expected_version=0, **state("new"))
        assert isinstance(created, StateCommitted)
        many = [Commit(f"o-{n}", expected_version=0, **state("new")) for n in (2, 3)]
        assert len(try_commit_many(session, Order, many)) == 2
        assert should_process(session, OrderActions, "o-1", ACTION)
        assert remember(session, OrderActions, "o-1", ACTION, result="{}")
        intent = Intent(intent_type="mail", target="kim", payload={})
        add_intents(session, OrderIntents, created, [intent])
    assert asked["replica"] == 0

    asked["primary"] = 0
    store = CanonicalStore(routing, Order)
    with routing() as session:
        base = get_state(session, Order, "o-1")
    assert store.get_state("o-1") == base
    assert asked["primary"] == 0
    assert asked["replica"] > 0

    asked["replica"] = 0
    assert isinstance(
        store.try_commit(workflow_key="o-1", expected_version=1, **state("paid")),
        StateCommitted,
    )
    lost = store.try_commit(workflow_key="o-1", expected_version=1, **state("sent"))
    assert isinstance(lost, StateConflict)
    assert lost.actual_version == 2
    assert asked["replica"] == 0


def test_service_reads_from_the_primary(
    routing: sessionmaker[Session], asked: dict[str, int]
) -> None:
    """What a service decides on must not lag."""

    def pay(state: OrderState, _: Action[Any]) -> OrderState:
        return state.model_copy(update={"status": "paid"})

    service = ReducerService(
        routing, Order, pay, initial=OrderState, dedup=OrderActions
    )
    action = Action(workflow_key="o-1", action_id=ACTION, payload=None)
    assert service.handle(action).version == 1
    assert service.handle(action).replayed
    assert service.handle_many([action])[0].replayed  # type: ignore[union-attr]
    assert asked["replica"] == 0


def test_merge_is_judged_by_the_primary(
    routing: sessionmaker[Session], primary: Engine, asked: dict[str, int]
) -> None:
    """Which row a detached object has lost to is not asked of a replica."""
    with Session(primary) as session, session.begin():
        detached = Order(workflow_key="o-1", state=OrderState())
        session.add(detached)
        session.flush()
        session.expunge(detached)
    with Session(primary) as session, session.begin():
        session.get_one(Order, "o-1").state.status = "paid"
    asked["primary"] = 0
    with routing() as session, pytest.raises(StateConflict):
        session.merge(detached)
    assert asked["primary"] == 1


def test_required_version_is_locked_on_the_primary(
    routing: sessionmaker[Session], primary: Engine
) -> None:
    """A row that must not move until COMMIT is not looked at in a replica."""
    with Session(primary) as session, session.begin():
        session.add(Order(workflow_key="o-1", state=OrderState()))
    with routing() as session, session.begin():
        require_version(session, session.get_one(Order, "o-1"))
        session.add(Order(workflow_key="o-2", state=OrderState()))
    with Session(primary) as session:
        assert get_state(session, Order, "o-2").version == 1


def test_clause_names_the_row(primary: Engine) -> None:
    """A get_bind() of the application's finds table and key in the statement."""
    seen: list[tuple[type, Any, Any]] = []

    class Deciding(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None, **kw: Any) -> Any:
            keys = clause.whereclause.right.effective_value
            seen.append((type(clause), mapper.class_, keys))
            return primary

    with Deciding() as session, session.begin():
        with pytest.raises(LookupError):
            get_state(session, Order, "o-1")
        try_commit(session, Order, "o-1", expected_version=0, **state("new"))
    assert seen[0][1:] == (Order, ["o-1"])
    assert seen[-1] == (Update, Order, ["o-1"])


@pytest.fixture
def shards(database: URL) -> Iterator[dict[str, Engine]]:
    """Return engines of two databases with the same tables."""
    with temporary_database(database) as other:
        engines = {"a": create_engine(database), "b": create_engine(other)}
        for engine in engines.values():
            Base.metadata.create_all(engine)
        yield engines
        for engine in engines.values():
            engine.dispose()


def shard_of_key(key: str) -> str:
    """Return the shard of a key: its first letter."""
    return key[0]


@pytest.fixture
def sharded(shards: dict[str, Engine]) -> sessionmaker[ShardedSession]:
    """Make sessions that find the shard by the workflow key."""

    def of_instance(_: object, instance: Any, _clause: object = None) -> str:
        return shard_of_key(instance.workflow_key)

    def of_identity(_: object, primary_key: Any, **__: object) -> list[str]:
        return [shard_of_key(primary_key[0])]

    return sessionmaker(
        class_=ShardedSession,
        shards=shards,
        shard_chooser=of_instance,
        identity_chooser=of_identity,
        execute_chooser=lambda _: list(shards),
    )


def keys_in(engine: Engine, entity: Any = Order) -> list[str]:
    """Return the keys in one database."""
    with Session(engine) as session:
        return sorted(session.scalars(select(entity.workflow_key)))


def test_sharded_session_commits_to_the_shard_of_the_key(
    sharded: sessionmaker[ShardedSession], shards: dict[str, Engine]
) -> None:
    """Reads, commits and conflicts go to the shard that the key names."""
    with sharded() as session, session.begin():
        for key in ("a-1", "b-1"):
            try_commit(session, Parcel, key, expected_version=0, **state("new"))
        many = [
            Commit(key, expected_version=0, **state("new"))
            for key in ("b-2", "a-2", "b-1", "a-3")
        ]
        outcomes = try_commit_many(session, Parcel, many)
        assert [each.workflow_key for each in outcomes] == ["b-2", "a-2", "b-1", "a-3"]
        assert [type(each) for each in outcomes] == [
            StateCommitted,
            StateCommitted,
            StateConflict,
            StateCommitted,
        ]
    assert keys_in(shards["a"], Parcel) == ["a-1", "a-2", "a-3"]
    assert keys_in(shards["b"], Parcel) == ["b-1", "b-2"]
    assert keys_in(shards["b"], ParcelHistory) == ["b-1", "b-2"]
    with sharded() as session:
        assert get_state(session, Parcel, "b-2").version == 1
        assert get_version(session, Parcel, "a-3", 1).state.status == "new"


def test_patches_go_to_the_shard_of_the_key(
    sharded: sessionmaker[ShardedSession], shards: dict[str, Engine]
) -> None:
    """Patches are grouped by shard too."""
    keys = ["b-1", "a-1", "b-2"]
    for key in keys:
        with Session(shards[key[0]]) as session, session.begin():
            session.add(Order(workflow_key=key, state=OrderState()))
    edits = [set_to(field_of(Order.state, lambda state: state.status), "paid")]
    store = CanonicalStore(sharded, Order)
    store.try_patch(workflow_key="b-1", edits=edits, provenance=Provenance.now())
    with sharded() as session, session.begin():
        patches = [Patch(key, edits, provenance=Provenance.now()) for key in keys]
        outcomes = try_patch_many(session, Order, patches)
        again = Provenance.now()
        try_patch(session, Order, "a-1", edits, provenance=again)
    assert [each.workflow_key for each in outcomes] == keys
    with sharded() as session, session.begin():
        expected = {"a-1": 3, "b-2": 1}
        gone, kept = try_delete_many(session, Order, expected)
        assert isinstance(gone, StateCommitted)
        assert isinstance(kept, StateConflict)
        session.rollback()
    assert [store.get_state(key).version for key in keys] == [3, 3, 2]


def test_sharded_session_keeps_its_instance_up_to_date(
    sharded: sessionmaker[ShardedSession],
) -> None:
    """try_commit() finds the instance of the row by its shard too."""
    with sharded() as session, session.begin():
        session.add(Order(workflow_key="b-1", state=OrderState()))
    with sharded() as session, session.begin():
        order = session.get_one(Order, "b-1")
        try_commit(session, Order, "b-1", expected_version=1, **state("paid"))
        assert (order.version, order.state.status) == (2, "paid")
        order.state.status = "sent"
    with sharded() as session:
        assert get_state(session, Order, "b-1").version == 3


def test_store_and_service_work_on_shards(
    sharded: sessionmaker[ShardedSession], shards: dict[str, Engine]
) -> None:
    """Each call goes to the shard of its key, and actions are claimed there."""
    store = CanonicalStore(sharded, Order)
    for key in ("a-1", "b-1"):
        store.try_commit(workflow_key=key, expected_version=0, **state("new"))
        assert store.get_state(key).version == 1
    assert (keys_in(shards["a"]), keys_in(shards["b"])) == (["a-1"], ["b-1"])

    def pay(state: OrderState, _: Action[Any]) -> OrderState:
        return state.model_copy(update={"status": "paid"})

    service = ReducerService(
        sharded, Order, pay, initial=OrderState, dedup=OrderActions
    )
    actions = [
        Action(workflow_key=key, action_id=UUID(int=number), payload=None)
        for number, key in enumerate(("b-1", "a-2", "a-1", "b-2"))
    ]
    assert service.handle(actions[0]).version == 2
    results = service.handle_many(actions)
    assert [each.version for each in results] == [2, 1, 2, 1]  # type: ignore[union-attr]
    assert [each.replayed for each in results] == [True, False, False, False]  # type: ignore[union-attr]
    assert keys_in(shards["a"], OrderActions) == ["a-1", "a-2"]
    assert keys_in(shards["b"], OrderActions) == ["b-1", "b-2"]


def test_service_works_on_shards(
    sharded: sessionmaker[ShardedSession], shards: dict[str, Engine]
) -> None:
    """Each action is handled, and claimed, in the shard of its key."""

    def pay(state: OrderState, _: Action[Any]) -> OrderState:
        return state.model_copy(update={"status": "paid"})

    service = ReducerService(
        sharded, Order, pay, initial=OrderState, dedup=OrderActions
    )
    actions = [
        Action(workflow_key=key, action_id=UUID(int=number), payload=None)
        for number, key in enumerate(("b-1", "a-2", "a-1", "b-2"))
    ]
    assert service.handle(actions[0]).version == 1
    results = service.handle_many(actions)
    assert [each.version for each in results] == [1, 1, 1, 1]  # type: ignore[union-attr]
    assert [each.replayed for each in results] == [True, False, False, False]  # type: ignore[union-attr]
    assert keys_in(shards["a"], OrderActions) == ["a-1", "a-2"]
    assert keys_in(shards["b"], OrderActions) == ["b-1", "b-2"]


def test_tenant_names_the_shard(
    sharded: sessionmaker[ShardedSession], shards: dict[str, Engine]
) -> None:
    """The identity chooser gets the primary key; that of a log starts with the key."""
    ours, theirs = TenantKey("a", "x-1"), TenantKey("b", "x-1")

    def reduce(order: OrderState, action: Action[str]) -> OrderState:
        return OrderState(status=f"{order.status}, {action.payload}")

    with sharded() as session, session.begin():
        commits = [
            Commit(k, expected_version=0, **state("new")) for k in (ours, theirs)
        ]
        try_commit_many(session, Ticket, commits)
    service = ReducerService(sharded, Ticket, reduce, dedup=OrderActions)
    actions = [
        Action(workflow_key=key, action_id=ACTION, payload="paid")
        for key in (theirs, ours, theirs)
    ]
    outcomes = [service.handle(action) for action in actions]
    assert [each.replayed for each in outcomes] == [False, False, True]
    assert [type(each) for each in service.handle_many(actions[:2])] == [
        StateCommitted,
        StateCommitted,
    ]
    for name, engine in shards.items():
        with Session(engine) as session:
            (ticket,) = session.scalars(select(Ticket))
            assert (ticket.shop, ticket.version) == (name, 2)
        assert keys_in(engine, OrderActions) == [f"{name}/x-1"]


def test_criteria_hide_rows_of_a_shard(
    sharded: sessionmaker[ShardedSession],
) -> None:
    """What a listener filters is asked of the key's shard only."""
    with sharded() as session, session.begin():
        session.add(Order(workflow_key="b-1", state=OrderState()))
    with sharded() as session:
        seen: list[object] = []
        event.listen(session, "do_orm_execute", seen.append)
        assert get_state(session, Order, "b-1").version == 1
        assert len(seen) == 1
        assert isinstance(
            try_commit(session, Order, "b-1", expected_version=1, **state("paid")),
            StateCommitted,
        )


def test_key_of_several_shards_is_refused(shards: dict[str, Engine]) -> None:
    """A commit must know the one shard that has the row."""
    session = ShardedSession(
        shards=shards,
        shard_chooser=lambda *_: "a",
        identity_chooser=lambda *_, **__: ["a", "b"],
        execute_chooser=lambda _: ["a", "b"],
    )
    with session, pytest.raises(MappingError, match="returns 2 shards for the key"):
        get_state(session, Order, "a-1")
