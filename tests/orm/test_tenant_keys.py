"""Contract: a key may be unique only within a tenant; a TenantKey carries both."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from types import new_class
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import (
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    UniqueConstraint,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    load_only,
    mapped_column,
    sessionmaker,
    with_loader_criteria,
)

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    ConflictReason,
    Intent,
    PayloadError,
    Provenance,
    ReducerService,
    Reduction,
    StateCommitted,
    StateConflict,
    TenantKey,
    WorkflowNotFound,
    WorkflowSnapshot,
    WorkflowStateMixin,
    field_of,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.dedup import ActionDedupMixin, remember, should_process
from sa_wfstate.errors import (
    KeyNotAssignable,
    MappingError,
    UnflushedChanges,
    UnversionedWrite,
)
from sa_wfstate.history import (
    HistoryMixin,
    get_version,
    keep_history,
    list_versions,
    restore_version,
)
from sa_wfstate.http import etag, if_match, problem
from sa_wfstate.merging import Rebase
from sa_wfstate.outbox import IntentDispatcher, IntentMixin, revive_dead, store_intents
from sa_wfstate.patching import Patch, increment, set_to, try_patch, try_patch_many
from sa_wfstate.projection import (
    Projection,
    ProjectionMixin,
    ProjectionStore,
    ProjectionWorker,
    measure_lag,
    rebuild,
)
from sa_wfstate.projection.watermarks import WatermarkMixin
from sa_wfstate.upcasting import Upcaster, upcast_all
from sa_wfstate.versions import (
    RowVersion,
    depends_on,
    require_version,
    try_delete,
    try_delete_many,
)

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    n: int = 0


class ByPair(WorkflowStateMixin[OrderState], Base):
    """The primary key is the key: that of a shard by tenant."""

    __tablename__ = "by_pair"
    __schema_version__ = 2
    __upcasters__ = {1: Upcaster(lambda data: data, "state")}  # noqa: RUF012

    tenant_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    workflow_key: Mapped[str] = mapped_column(primary_key=True)


class ById(WorkflowStateMixin[OrderState], Base):
    """The primary key is another one; the columns have names of their own."""

    __tablename__ = "by_id"
    __table_args__ = (UniqueConstraint("shop", "order_no"),)
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: data}  # noqa: RUF012

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    tenant: Mapped[str] = mapped_column("shop")
    workflow_key: Mapped[int] = mapped_column("order_no")  # type: ignore[assignment]


class Line(Base):
    """Refers to an order by both columns."""

    __tablename__ = "lines"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[UUID] = mapped_column(ForeignKey("by_id.id"))


class PairHistory(HistoryMixin, Base):
    __tablename__ = "pair_history"


class IdHistory(HistoryMixin, Base):
    __tablename__ = "id_history"


class PairProjection(ProjectionMixin, Base):
    __tablename__ = "pair_projection"


class IdProjection(ProjectionMixin, Base):
    __tablename__ = "id_projection"


class Watermark(WatermarkMixin, Base):
    __tablename__ = "watermarks"


class Actions(ActionDedupMixin, Base):
    __tablename__ = "actions"


class Intents(IntentMixin, Base):
    __tablename__ = "intents"


keep_history(ByPair, PairHistory)
keep_history(ById, IdHistory)


def project(order: WorkflowSnapshot[OrderState]) -> Mapping[str, Any]:
    """Make a row of the projection."""
    return {"tag": f"n={order.state.n}", "namespace": "shop"}


PROJECTIONS = {
    ByPair: Projection(ByPair, PairProjection, project),
    ById: Projection(ById, IdProjection, project),
}
HISTORIES = {ByPair: PairHistory, ById: IdHistory}
# Each key of a tenant is one of the other as well.
KEYS: dict[Any, list[TenantKey]] = {
    ByPair: [TenantKey(t, k) for t in (-1, 7) for k in ("a", "a/b", "b", "c~1", "d")],
    ById: [TenantKey(t, k) for t in ("a/b", "~1/") for k in (-5, 0, 1, 9, 2**31 - 1)],
}
KINDS = pytest.mark.parametrize("entity", KEYS, ids=lambda entity: entity.__name__)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Base.metadata)


def commit(key: Any, version: int, n: int = 0) -> Commit[OrderState]:
    """Make one commit of a batch."""
    return Commit(
        key,
        expected_version=version,
        state=OrderState(n=n),
        provenance=Provenance.now(),
    )


def create(engine: Engine, entity: Any) -> tuple[list[TenantKey], TenantKey, TenantKey]:
    """Create all workflows; return two of the same key in two tenants as well."""
    keys = KEYS[entity]
    with Session(engine) as session:
        commits = [commit(key, 0, n) for n, key in enumerate(keys)]
        outcomes = try_commit_many(session, entity, commits)
        assert [each.workflow_key for each in outcomes] == keys
        assert all(isinstance(each, StateCommitted) for each in outcomes)
        session.commit()
    ours, theirs = keys[0], keys[5]
    assert ours.tenant != theirs.tenant
    assert ours.workflow_key == theirs.workflow_key
    return keys, ours, theirs


def stored(entity: Any, engine: Engine) -> dict[TenantKey, tuple[int, int]]:
    """Read version and n of each row, by key."""
    with Session(engine) as session:
        rows = session.scalars(select(entity)).all()
        return {key_of(row): (row.version, row.state.n) for row in rows}


def key_of(row: Any) -> TenantKey:
    """Return the key of an instance."""
    tenant = row.tenant_id if isinstance(row, ByPair) else row.tenant
    return TenantKey(tenant, row.workflow_key)


def make(entity: Any, key: TenantKey, n: int = 0) -> Any:
    """Make an instance."""
    name = "tenant_id" if entity is ByPair else "tenant"
    parts = {name: key.tenant, "workflow_key": key.workflow_key}
    return entity(state=OrderState(n=n), **parts)


def test_constraint_over_key_and_tenant_is_taken() -> None:
    """No other one is added, and both columns are NOT NULL."""
    for entity, names in ((ByPair, ["workflow_key"]), (ById, [])):
        table = entity.__table__
        uniques = [c for c in table.constraints if isinstance(c, UniqueConstraint)]
        assert len(uniques) == (0 if names else 1)
        for key in ("shop", "order_no") if entity is ById else ("tenant_id", *names):
            assert not table.c[key].nullable


@KINDS
def test_api_takes_and_shows_the_tenant(engine: Engine, entity: Any) -> None:
    """In snapshots, outcomes, conflicts and messages; the other tenant is not met."""
    keys, ours, theirs = create(engine, entity)
    with Session(engine) as session, Session(engine) as second:
        for n, key in enumerate(keys):
            snapshot = get_state(session, entity, key)
            assert (snapshot.workflow_key, snapshot.state.n) == (key, n)
            assert isinstance(snapshot.workflow_key, TenantKey)
        query = select(entity).where(entity.workflow_key == ours.workflow_key)
        orders = {key_of(row): row for row in session.scalars(query)}
        assert orders.keys() == {ours, theirs}
        order = orders[ours]
        won = try_commit(
            second,
            entity,
            ours,
            expected_version=1,
            state=OrderState(n=90),
            provenance=Provenance.now(),
        )
        assert (won.workflow_key, won.version) == (ours, 2)
        second.commit()
        second.scalars(query.where(order_is(entity, theirs))).one().state.n = 80
        second.commit()
        order.state.n = 91
        with pytest.raises(StateConflict) as raised:
            session.commit()
        assert raised.value.workflow_key == ours
        current = raised.value.current
        assert current is not None
        assert (current.workflow_key, current.state.n) == (ours, 90)
        assert f"{entity.__name__} {ours!r}: expected version 1" in str(raised.value)
        assert pickle.loads(pickle.dumps(raised.value)).workflow_key == ours
        session.rollback()
        first, second_ = try_commit_many(
            session, entity, [commit(ours, 1), commit(theirs, 2, 81)]
        )
        assert isinstance(first, StateConflict)
        assert first.workflow_key == ours
        assert second_.workflow_key == theirs
        session.commit()
        exists = try_commit_many(session, entity, [commit(ours, 0), commit(theirs, 0)])
        assert [each.workflow_key for each in exists] == [ours, theirs]
        assert {each.reason for each in exists} == {ConflictReason.EXISTS}  # type: ignore[union-attr]
        session.rollback()
    found = stored(entity, engine)
    assert (found.pop(ours), found.pop(theirs)) == ((2, 90), (3, 81))
    assert {version for version, _ in found.values()} == {1}
    store = CanonicalStore(engine, entity)
    outcome = store.try_commit(base=store.get_state(ours), state=OrderState(n=92),
                               provenance=Provenance.now())  # fmt: skip
    assert (outcome.workflow_key, outcome.version) == (ours, 3)
    assert store.get_state(theirs).version == 3


@KINDS
def test_unit_of_work_loses_by_both_columns(engine: Engine, entity: Any) -> None:
    """In an UPDATE, a DELETE, an INSERT, and among several rows of one flush."""
    keys, ours, theirs = create(engine, entity)
    with Session(engine) as session, Session(engine) as second:
        orders = {key_of(row): row for row in session.scalars(select(entity))}
        for key in keys[:4]:
            orders[key].state.n += 100
        session.delete(orders[theirs])
        session.delete(orders[keys[6]])
        lost = [commit(keys[1], 1), commit(theirs, 1, 70)]
        try_commit_many(second, entity, lost)
        second.commit()
        with pytest.raises(StateConflict) as raised:
            session.commit()
        assert keys[1] in {each.workflow_key for each in raised.value.conflicts}
        session.rollback()
        session.expunge_all()
        session.add(make(entity, theirs))
        with pytest.raises(StateConflict, match="exists already") as raised:
            session.flush()
        assert raised.value.workflow_key == theirs
        assert raised.value.actual_version == 2
        session.rollback()
        query = select(entity).where(entity.workflow_key == ours.workflow_key)
        for order in session.scalars(query):
            session.delete(order)
        session.commit()
        assert not {ours, theirs} & stored(entity, engine).keys()
        assert len(stored(entity, engine)) == len(keys) - 2
        session.add_all([make(entity, ours), make(entity, theirs)])
        session.commit()


@KINDS
def test_instance_of_the_session_follows_try_commit(
    engine: Engine, entity: Any
) -> None:
    """That of the tenant, and not that of the other one."""
    _, ours, theirs = create(engine, entity)
    with Session(engine) as session:
        orders = {key_of(row): row for row in session.scalars(select(entity))}
        (won,) = try_commit_many(session, entity, [commit(ours, 1, 50)])
        assert won.version == 2
        assert (orders[ours].version, orders[ours].state.n) == (2, 50)
        assert orders[theirs].version == 1
        orders[theirs].state.n = 60
        try_commit_many(session, entity, [commit(ours, 2, 51)])
        with pytest.raises(UnflushedChanges) as raised:
            try_commit_many(session, entity, [commit(theirs, 1, 51)])
        assert raised.value.workflow_key == theirs
        session.commit()
    found = stored(entity, engine)
    assert (found[ours], found[theirs]) == ((3, 51), (2, 60))


@KINDS
def test_row_that_was_loaded_without_its_key_is_written(
    engine: Engine, entity: Any
) -> None:
    """The key is read when it is needed; detached and pickled, it is known."""
    _, ours, _ = create(engine, entity)
    mine = select(entity).where(entity.workflow_key == ours.workflow_key)
    with Session(engine) as session:
        (order,) = (row for row in session.scalars(mine) if key_of(row) == ours)
        identity = inspect(order).identity
    with Session(engine) as session:
        only = [load_only(entity.state, entity.version)]
        order = session.get_one(entity, identity, options=only)
        order.state.n = 30
        session.commit()
        with Session(engine) as other:
            try_commit_many(other, entity, [commit(ours, 2, 31)])
            other.commit()
        order.state = OrderState(n=32)
        with pytest.raises(StateConflict) as raised:
            session.commit()
        assert raised.value.workflow_key == ours
        session.rollback()
        copy = pickle.loads(pickle.dumps(session.get_one(entity, identity)))
    with Session(engine) as session:
        try_commit_many(session, entity, [commit(ours, 3, 33)])
        session.commit()
        with pytest.raises(StateConflict) as raised:
            session.merge(copy)
        assert raised.value.workflow_key == ours


@KINDS
def test_neither_part_of_a_key_changes(engine: Engine, entity: Any) -> None:
    """Not by an assignment, nor by a statement."""
    keys, ours, theirs = create(engine, entity)
    name = "tenant_id" if entity is ByPair else "tenant"
    query = select(entity).where(entity.workflow_key == ours.workflow_key)
    with Session(engine) as session:
        (order,) = (row for row in session.scalars(query) if key_of(row) == ours)
        setattr(order, name, theirs.tenant)
        with pytest.raises(KeyNotAssignable) as raised:
            session.commit()
        assert raised.value.workflow_key == ours
        session.rollback()
        with pytest.raises(KeyNotAssignable):
            order.workflow_key = keys[1].workflow_key
        session.rollback()
        change: Any = (
            update(entity)
            .values({name: theirs.tenant})
            .execution_options(wfstate_unversioned=True)
        )
        with pytest.raises(UnversionedWrite, match=f"a change of {name}"):
            session.execute(change)


@KINDS
def test_key_of_another_type_is_refused(engine: Engine, entity: Any) -> None:
    """Before any SQL is sent, by the name of its part."""
    tenant, key = KEYS[entity][0]
    kinds = "int and str" if entity is ByPair else "str and int"
    swapped = TenantKey(key, tenant)
    with Session(engine) as session:
        for wrong in (key, (tenant, key), str(TenantKey(tenant, key))):
            for call in (
                lambda: get_state(session, entity, wrong),  # noqa: B023
                lambda: try_commit_many(session, entity, [commit(wrong, 0)]),  # noqa: B023
                lambda: list_versions(session, entity, wrong),  # noqa: B023
            ):
                with pytest.raises(PayloadError, match=f"a TenantKey of {kinds}, got"):
                    call()
        with pytest.raises(PayloadError, match=r"'workflow_key\.tenant': must be"):
            get_state(session, entity, swapped)
        session.add(entity(workflow_key=key, state=OrderState()))
        with pytest.raises(PayloadError, match=r"tenant(_id)?': is missing; set it"):
            session.flush()
        session.rollback()
        name = "tenant_id" if entity is ByPair else "tenant"
        row = {name: key, "workflow_key": key, "state": OrderState()}
        with pytest.raises(PayloadError, match=f"{name}': must be"):
            session.execute(insert(entity), [row])


@KINDS
def test_patches_and_deletions_take_the_tenant(engine: Engine, entity: Any) -> None:
    """One by one, and in a batch."""
    keys, ours, theirs = create(engine, entity)
    n = field_of(entity.state, lambda state: state.n)
    with Session(engine) as session:
        won = try_patch(
            session, entity, ours, [increment(n, 1)], provenance=Provenance.now()
        )
        assert isinstance(won, StateCommitted)
        assert (won.workflow_key, won.version) == (ours, 2)
        patches = [
            Patch(key, [set_to(n, 40 + i)], provenance=Provenance.now())
            for i, key in enumerate([theirs, ours, TenantKey(*keys[2])])
        ]
        outcomes = try_patch_many(session, entity, patches)
        assert [each.workflow_key for each in outcomes] == [theirs, ours, keys[2]]
        assert [each.version for each in outcomes] == [2, 3, 2]
        session.commit()
        gone = try_delete(session, entity, ours, expected_version=3)
        assert isinstance(gone, StateCommitted)
        assert gone.snapshot.workflow_key == ours
        more = try_delete_many(
            session, entity, {theirs: 1, keys[2]: RowVersion(2, None), ours: 3}
        )
        assert [isinstance(each, StateCommitted) for each in more] == [
            False,
            True,
            False,
        ]
        assert [each.workflow_key for each in more] == [theirs, keys[2], ours]
        session.commit()
    assert stored(entity, engine)[theirs] == (2, 40)
    with Session(engine) as session, pytest.raises(WorkflowNotFound):
        get_state(session, entity, ours)


@KINDS
def test_history_keeps_tenants_apart(engine: Engine, entity: Any) -> None:
    """It stores the text of the key, and shows the key."""
    keys, ours, theirs = create(engine, entity)
    with Session(engine) as session:
        try_commit_many(session, entity, [commit(theirs, 1, 60)])
        query = select(entity).where(entity.workflow_key == ours.workflow_key)
        for order in session.scalars(query):
            if key_of(order) == ours:
                order.state.n = 70
        session.commit()
        versions = list_versions(session, entity, ours)
        assert [(each.version, each.state.n) for each in versions] == [(2, 70), (1, 0)]
        assert {each.workflow_key for each in versions} == {ours}
        assert get_version(session, entity, theirs, 2).state.n == 60
        restored = restore_version(
            session, entity, ours, 1, expected_version=2, provenance=Provenance.now()
        )
        assert (restored.workflow_key, restored.version) == (ours, 3)
        session.commit()
        texts = set(session.scalars(select(HISTORIES[entity].workflow_key)))
        assert texts == set(map(str, keys))
    assert stored(entity, engine)[theirs] == (2, 60)


@KINDS
def test_projection_keeps_tenants_apart(engine: Engine, entity: Any) -> None:
    """By a rebuild, a worker, a sweep and a store, in pages."""
    if engine.dialect.is_async:
        pytest.skip("a worker has an async counterpart of its own")
    (keys, ours, theirs), projection = create(engine, entity), PROJECTIONS[entity]
    assert rebuild(engine, projection, batch_size=3) == len(keys)
    assert measure_lag(engine, projection).keys == 0
    with Session(engine) as session:
        try_commit_many(session, entity, [commit(key, 1, 3) for key in keys[:3]])
        try_delete(session, entity, keys[7], expected_version=1)
        session.commit()
    assert measure_lag(engine, projection).keys == 3
    worker = ProjectionWorker(
        engine, projection, Watermark, partitions=2, batch_size=2, overlap=60
    )
    assert worker.sweep() == 4
    assert worker.follow() == 0
    store = ProjectionStore(engine, projection)
    row = store.get(ours, 2)
    assert (row.workflow_key, row.version, row.values["tag"]) == (ours, 2, "n=3")
    assert store.get(theirs).version == 1
    assert store.get_version(keys[7]) is None
    with Session(engine) as session:
        try_commit_many(session, entity, [commit(key, 1, 4) for key in keys[3:7]])
        session.commit()
    assert sum(worker.follow() for _ in range(4)) == 4


@KINDS
def test_actions_and_intents_keep_tenants_apart(engine: Engine, entity: Any) -> None:
    """One action id for both; the service takes the key, or its text from JSON."""
    if engine.dialect.is_async:
        pytest.skip("a service has an async counterpart of its own")
    keys, ours, theirs = create(engine, entity)

    def reduce(state: OrderState, action: Action[int]) -> Reduction[OrderState]:
        intent = Intent(intent_type="mail", target="x", payload=action.payload)
        return Reduction(OrderState(n=state.n + action.payload), [intent])

    service = ReducerService(
        engine, entity, reduce, dedup=Actions, writers=[store_intents(Intents)]
    )
    id_ = uuid4()
    mine = Action(workflow_key=ours, action_id=id_, payload=2)
    assert service.handle(mine).version == 2
    outcome = service.handle(Action(workflow_key=theirs, action_id=id_, payload=2))
    assert (outcome.workflow_key, outcome.replayed) == (theirs, False)
    again = service.handle(Action[int].model_validate_json(mine.model_dump_json()))
    assert (again.workflow_key, again.replayed) == (ours, True)
    texts = [str(ours), keys[1], str(keys[6]), "x"]
    many = service.handle_many(
        [Action(workflow_key=key, action_id=uuid4(), payload=3) for key in texts]
        + [mine]
    )
    assert [getattr(each, "workflow_key", None) for each in many] == [
        ours,
        keys[1],
        keys[6],
        None,
        ours,
    ]
    assert isinstance(many[3], PayloadError)
    with Session(engine) as session:
        assert not should_process(session, Actions, theirs, id_)
        assert should_process(session, Actions, keys[2], id_)
        assert remember(session, Actions, keys[2], id_, result="{}")
        assert not remember(session, Actions, keys[2], id_, result="{}")
        assert should_process(session, Actions, keys[7], id_)
        session.commit()
        stored_keys = set(session.scalars(select(Actions.workflow_key)))
        acted = {ours, theirs, keys[1], keys[6]}
        assert stored_keys == set(map(str, {*acted, keys[2]}))
    given: list[Any] = []
    dispatcher = IntentDispatcher(engine, Intents, given.append)
    while dispatcher.dispatch():
        pass
    assert {due.workflow_key for due in given} == set(map(str, acted))
    assert len({due.intent_id for due in given}) == len(given) == 5
    assert revive_dead(engine, Intents, workflow_key=ours) == 0


@KINDS
def test_rows_are_upcast_in_the_order_of_their_keys(
    engine: Engine, entity: Any
) -> None:
    """In SQL, and in Python; the page may end within a key of two tenants."""
    if engine.dialect.is_async:
        pytest.skip("a job has an engine of its own")
    keys, *_ = create(engine, entity)
    with engine.begin() as connection:
        table = entity.__tablename__
        connection.execute(text(f"UPDATE {table} SET schema_version = 1"))
    assert upcast_all(engine, entity, batch_size=3).upcast == len(keys)
    assert stored(entity, engine) == {key: (1, n) for n, key in enumerate(keys)}


@KINDS
def test_state_of_an_older_shape_names_its_tenant(engine: Engine, entity: Any) -> None:
    """A row that cannot be read is named."""
    _, ours, theirs = create(engine, entity)
    by_tenant = "tenant_id" if entity is ByPair else "shop"
    with engine.begin() as connection:
        broken = text(
            f"UPDATE {entity.__tablename__} SET schema_version = 1,"
            f' state = \'{{"n": "x"}}\' WHERE {by_tenant} = :tenant'
        ).bindparams(tenant=ours.tenant)
        connection.execute(broken)
    name = f"{ours}|{re.escape(repr(ours))}"
    with Session(engine) as session:
        with pytest.raises(PayloadError, match=name):
            get_state(session, entity, ours)
        query = select(entity).where(entity.workflow_key == ours.workflow_key)
        (order,) = (row for row in session.scalars(query) if key_of(row) == ours)
        with pytest.raises(PayloadError, match=name):
            _ = order.state
        states = select(entity.state).where(
            entity.workflow_key == ours.workflow_key, order_is(entity, ours)
        )
        with pytest.raises(PayloadError, match=name):
            session.scalars(states).all()
        assert get_state(session, entity, theirs).version == 1


def order_is(entity: Any, key: TenantKey) -> Any:
    """Return the criterion of its tenant."""
    tenant = entity.tenant_id if entity is ByPair else entity.tenant
    return tenant == key.tenant


@KINDS
def test_session_of_one_tenant_sees_its_rows_only(engine: Engine, entity: Any) -> None:
    """By with_loader_criteria(), which get_state and try_commit honour."""
    _, ours, theirs = create(engine, entity)
    makes = sessionmaker(engine)

    @event.listens_for(makes, "do_orm_execute")
    def of_tenant(execute: Any) -> None:
        if execute.is_select:
            own = with_loader_criteria(entity, order_is(entity, ours))
            execute.statement = execute.statement.options(own)

    with makes() as session:
        assert get_state(session, entity, ours).workflow_key == ours
        with pytest.raises(WorkflowNotFound):
            get_state(session, entity, theirs)
        outcomes = try_commit_many(
            session, entity, [commit(ours, 1, 5), commit(theirs, 1, 5)]
        )
        assert [isinstance(each, StateCommitted) for each in outcomes] == [True, False]
        assert isinstance(outcomes[1], StateConflict)
        assert outcomes[1].reason is ConflictReason.MISSING
        gone = try_delete_many(session, entity, {ours: 2, theirs: 1})
        assert [isinstance(each, StateCommitted) for each in gone] == [True, False]


def test_statements_compare_each_column(engine: Engine) -> None:
    """So that a database which distributes by tenant sends them to one shard."""
    _, ours, _ = create(engine, ByPair)
    sent: list[str] = []
    target = getattr(engine, "sync_engine", engine)
    event.listen(
        target, "before_cursor_execute", lambda *args: sent.append(str(args[2]))
    )
    with Session(engine) as session:
        get_state(session, ByPair, ours)
        try_commit(
            session,
            ByPair,
            ours,
            expected_version=1,
            state=OrderState(n=5),
            provenance=Provenance.now(),
        )
        session.commit()
        own = [each for each in sent if "by_pair" in each and "history" not in each]
        sent.clear()
        try_delete_many(session, ByPair, dict.fromkeys(KEYS[ByPair], 9))
        # Once for each connection it is asked whether there are shards.
        sent = [each for each in sent if "pg_extension" not in each]
        assert sent
        # A plan for each of many pairs would take seconds.
        assert all("unnest(" in each for each in sent)
    assert len(own) == 2
    for statement in own:
        where = statement.partition("WHERE")[2]
        assert "by_pair.tenant_id = " in where
        assert "by_pair.workflow_key = " in where


def test_http_shows_the_text_of_the_key(engine: Engine) -> None:
    """And the entity tag, which names the effect, tells tenants apart."""
    _, ours, theirs = create(engine, ByPair)
    with Session(engine) as session:
        one, two = (get_state(session, ByPair, key) for key in (ours, theirs))
        assert etag(one) != etag(two)
        outcome = try_commit(
            session,
            ByPair,
            ours,
            expected_version=if_match(etag(two)),
            state=OrderState(),
            provenance=Provenance.now(),
        )
        assert isinstance(outcome, StateConflict)
        status, body = problem(outcome, if_match=etag(two))
        assert (status, body["workflow_key"]) == (412, "-1/a")


def test_racing_insert_of_two_tenants_is_no_conflict(engine: Engine) -> None:
    """Another tenant's row of the same key does not stand in the way."""
    ours, theirs = TenantKey(1, "new"), TenantKey(2, "new")
    with Session(engine) as one, Session(engine) as two:
        one.add(make(ByPair, ours))
        one.flush()
        two.add(make(ByPair, theirs))
        two.commit()
        (lost,) = try_commit_many(two, ByPair, [commit(theirs, 0)])
        assert isinstance(lost, StateConflict)
        one.commit()
    assert stored(ByPair, engine) == {ours: (1, 0), theirs: (1, 0)}


def test_rebase_merges_the_rows_of_its_tenant(engine: Engine) -> None:
    """In the flush, and in try_commit."""

    class Own(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[dict[str, int]], Own):
        __tablename__ = "rebased"
        __rebase__ = Rebase()
        tenant_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        workflow_key: Mapped[str] = mapped_column(primary_key=True)
        note: Mapped[str | None]

    Own.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            Order(tenant_id=t, workflow_key="a", state={"x": 1, "y": t}) for t in (1, 2)
        )
        session.commit()
    key = TenantKey(2, "a")
    with Session(engine) as session, Session(engine) as other:
        order = session.get_one(Order, {"tenant_id": 2, "workflow_key": "a"})
        base = get_state(other, Order, key)
        order.state["x"] = 5
        state: Any = {"x": 1, "y": 9}
        given: Any = {"state": state, "provenance": Provenance.now()}
        assert try_commit(other, Order, base=base, **given).version == 2
        other.commit()
        session.connection().execution_options(sa_wfstate_rebase=True)
        session.commit()
        assert get_state(session, Order, key).state == {"x": 5, "y": 9}
        assert get_state(session, Order, TenantKey(1, "a")).version == 1


@KINDS
def test_guards_name_the_row_of_one_tenant(engine: Engine, entity: Any) -> None:
    """Of require_version() and of a reducer; the same key of another tenant is free."""
    keys, ours, theirs = create(engine, entity)
    own = keys[1]

    def move(key: TenantKey) -> None:
        with Session(engine) as other:
            rows = other.scalars(select(entity)).all()
            next(row for row in rows if key_of(row) == key).state.n += 100
            other.commit()

    with Session(engine) as session:
        held = {key_of(row): row for row in session.scalars(select(entity))}
        require_version(session, held[ours])
        held[own].state.n = 50
        move(theirs)
        session.commit()
        require_version(session, held[ours])
        held[own].state.n = 60
        move(ours)
        with pytest.raises(StateConflict) as caught:
            session.commit()
        assert (caught.value.workflow_key, caught.value.role) == (ours, "read")
        session.rollback()
    rivals = [theirs, ours]
    seen = []

    @depends_on(lambda *_: [(entity, ours), (entity, theirs)])
    def reducer(state: OrderState, _: Action[Any], others: Any) -> OrderState:
        seen.append([(each.workflow_key, each.state.n) for each in others])
        if rivals:
            move(rivals.pop())
        return state

    service = ReducerService(engine, entity, reducer)
    done = service.handle(Action(workflow_key=own, action_id=1, payload=None))
    assert done.attempts == 3
    assert seen == [
        [(ours, 100), (theirs, 105)],
        [(ours, 200), (theirs, 105)],
        [(ours, 200), (theirs, 205)],
    ]


def test_default_of_the_tenant_makes_a_part_of_the_key(engine: Engine) -> None:
    """The key is known after the INSERT."""

    class Own(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Own):
        __tablename__ = "defaulted"
        tenant: Mapped[str] = mapped_column(primary_key=True, default=lambda: "ours")
        workflow_key: Mapped[str] = mapped_column(primary_key=True)

    Own.metadata.create_all(engine)
    with Session(engine) as session:
        order = Order(workflow_key="a", state=OrderState())
        session.add(order)
        session.commit()
        with Session(engine) as other:
            key = TenantKey("ours", "a")
            try_commit_many(other, Order, [commit(key, 1, 3)])
            other.commit()
        order.state = OrderState(n=4)
        with pytest.raises(StateConflict) as raised:
            session.commit()
        assert raised.value.workflow_key == key


def test_foreign_keys_to_the_row_work(engine: Engine) -> None:
    """A violation by another constraint is no conflict."""
    _, ours, _ = create(engine, ById)
    with Session(engine) as session:
        query = select(ById).where(ById.workflow_key == ours.workflow_key)
        order = next(row for row in session.scalars(query) if key_of(row) == ours)
        identity = order.id
        session.add(Line(order_id=identity))
        order.state.n = 5
        session.commit()
        session.expunge_all()
        session.add(ById(id=identity, tenant="new", workflow_key=3, state=OrderState()))
        with pytest.raises(IntegrityError) as raised:
            session.commit()
        assert not isinstance(raised.value, StateConflict)
        session.rollback()
        count = session.scalar(select(func.count()).select_from(ById))
        assert count == len(KEYS[ById])


def test_other_constraints_are_refused() -> None:
    """Over three columns, over two tenants, or with a column that holds no key."""

    def map_(*constraints: Any, type_: Any = int) -> Any:
        class Own(DeclarativeBase):
            pass

        namespace: Any = {
            "__tablename__": "orders",
            "__table_args__": constraints,
            "__annotations__": {"one": Mapped[type_], "two": Mapped[type_]},
            "id": mapped_column(Integer, primary_key=True),
        }
        bases = WorkflowStateMixin[OrderState], Own
        return new_class("Order", bases, exec_body=lambda body: body.update(namespace))

    key = "workflow_key"
    for constraints, type_ in (
        ([UniqueConstraint("one", "two", key)], int),
        ([UniqueConstraint("one", key), UniqueConstraint("two", key)], int),
        ([UniqueConstraint("one", key)], float),
        ([UniqueConstraint("id", key)], int),
        ([UniqueConstraint("one"), UniqueConstraint("one", key)], int),
    ):
        with pytest.raises(MappingError, match="unique only as part of"):
            map_(*constraints, type_=type_)
    for taken in (
        UniqueConstraint("one", key),
        UniqueConstraint(key, "one"),
        Index("one_key", "one", key, unique=True),
    ):
        entity = map_(taken)
        with pytest.raises(PayloadError, match="a TenantKey of int and str"):
            read_without_type(entity)
    alone = map_(UniqueConstraint("one", key), UniqueConstraint(key))
    with pytest.raises(PayloadError, match="must be a str"):
        read_without_type(alone)


def read_without_type(entity: Any) -> None:
    """Read by a key of no type."""
    get_state(Session(), entity, 0.5)  # type: ignore[arg-type]


def test_foreign_key_that_changes_a_tenant_is_refused() -> None:
    """As one that changes the workflow key."""

    class Own(DeclarativeBase):
        pass

    class Tenant(Own):
        __tablename__ = "tenants"
        name: Mapped[str] = mapped_column(primary_key=True)

    with pytest.raises(MappingError, match="ON UPDATE CASCADE of the foreign key of"):

        class Order(WorkflowStateMixin[OrderState], Own):
            __tablename__ = "orders"
            __table_args__ = (PrimaryKeyConstraint("tenant", "workflow_key"),)
            tenant: Mapped[str] = mapped_column(
                ForeignKey("tenants.name", onupdate="CASCADE")
            )
