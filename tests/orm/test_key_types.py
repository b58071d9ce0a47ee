"""Contract: the key of a workflow may be an existing column: a number or a UUID."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import (
    Engine,
    ForeignKey,
    MetaData,
    Uuid,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

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
    WorkflowSnapshot,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.dedup import ActionDedupMixin, remember, should_process
from sa_wfstate.errors import WorkflowNotFound
from sa_wfstate.history import (
    HistoryMixin,
    get_version,
    keep_history,
    list_versions,
    restore_version,
)
from sa_wfstate.outbox import IntentDispatcher, IntentMixin, store_intents
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

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    n: int = 0


class ByUuid(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "by_uuid"
    __schema_version__ = 2
    __upcasters__ = {1: Upcaster(lambda data: data, "state")}  # noqa: RUF012

    workflow_key: Mapped[UUID] = mapped_column(  # type: ignore[assignment]
        "id", primary_key=True, default=uuid4
    )


class ByInt(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "by_int"
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: data}  # noqa: RUF012

    workflow_key: Mapped[int] = mapped_column(  # type: ignore[assignment]
        "id", primary_key=True
    )


class UuidHistory(HistoryMixin, Base):
    __tablename__ = "uuid_history"


class IntHistory(HistoryMixin, Base):
    __tablename__ = "int_history"


class UuidProjection(ProjectionMixin, Base):
    __tablename__ = "uuid_projection"


class IntProjection(ProjectionMixin, Base):
    """Refers to the row, so its key is of the same type."""

    __tablename__ = "int_projection"

    workflow_key: Mapped[int] = mapped_column(  # type: ignore[assignment]
        ForeignKey("by_int.id", ondelete="CASCADE"), primary_key=True
    )


class Watermark(WatermarkMixin, Base):
    __tablename__ = "watermarks"


class Actions(ActionDedupMixin, Base):
    """Of both classes."""

    __tablename__ = "actions"


class Intents(IntentMixin, Base):
    __tablename__ = "intents"


class UuidIntents(IntentMixin, Base):
    __tablename__ = "uuid_intents"

    workflow_key: Mapped[UUID] = mapped_column(  # type: ignore[assignment]
        Uuid, primary_key=True
    )


keep_history(ByUuid, UuidHistory)
keep_history(ByInt, IntHistory)


def project(order: WorkflowSnapshot[OrderState]) -> Mapping[str, Any]:
    """Make a row of the projection."""
    return {"tag": f"n={order.state.n}", "namespace": "shop"}


PROJECTIONS = {
    ByUuid: Projection(ByUuid, UuidProjection, project),
    ByInt: Projection(ByInt, IntProjection, project),
}
KEYS: dict[Any, list[Any]] = {
    ByUuid: sorted(uuid4() for _ in range(12)),
    ByInt: [-5, 0, 1, 2, 9, 10, 11, 99, 100, 2000, 30000, 2**31 - 1],
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


def create(engine: Engine, entity: Any) -> list[Any]:
    """Create a workflow of each key."""
    keys = KEYS[entity]
    with Session(engine) as session:
        outcomes = try_commit_many(session, entity, [commit(key, 0) for key in keys])
        assert [each.workflow_key for each in outcomes] == keys
        assert all(isinstance(each, StateCommitted) for each in outcomes)
        session.commit()
    return keys


def as_type(entity: Any) -> type[Any]:
    """Return the type of the keys."""
    return UUID if entity is ByUuid else int


@KINDS
def test_api_takes_and_shows_the_type_of_the_key(engine: Engine, entity: Any) -> None:
    """In snapshots, outcomes, conflicts and messages."""
    key, other, *_ = create(engine, entity)
    with Session(engine) as session, Session(engine) as second:
        snapshot = get_state(session, entity, key)
        assert snapshot.workflow_key == key
        assert isinstance(snapshot.workflow_key, as_type(entity))
        order = session.get_one(entity, key)
        assert order.workflow_key == key
        (won,) = try_commit_many(second, entity, [commit(key, 1, 1)])
        assert won.workflow_key == key
        second.commit()
        order.state.n = 2
        with pytest.raises(StateConflict) as raised:
            session.commit()
        assert raised.value.workflow_key == key
        assert isinstance(raised.value.workflow_key, as_type(entity))
        assert f"{entity.__name__} {key!r}: expected version 1" in str(raised.value)
        session.rollback()
        lost = try_commit_many(session, entity, [commit(key, 1), commit(other, 1)])
        assert [each.workflow_key for each in lost] == [key, other]
        assert isinstance(lost[0], StateConflict)
        patch = [commit(key, 0), commit(other, 0)]
        for exists in try_commit_many(session, entity, patch):
            assert isinstance(exists, StateConflict)
            assert exists.reason is ConflictReason.EXISTS
        session.rollback()
        session.expunge_all()
        session.add(entity(workflow_key=key, state=OrderState()))
        with pytest.raises(StateConflict, match="exists already"):
            session.flush()
        session.rollback()
        session.delete(session.get_one(entity, key))
        session.commit()
        with pytest.raises(WorkflowNotFound):
            CanonicalStore(engine, entity).get_state(key)


@KINDS
def test_key_of_another_type_is_refused(engine: Engine, entity: Any) -> None:
    """Before any SQL is sent, also in an instance."""
    wrong = str(KEYS[entity][0])
    with Session(engine) as session:
        for call in (
            lambda: get_state(session, entity, wrong),
            lambda: try_commit_many(session, entity, [commit(wrong, 0)]),
            lambda: list_versions(session, entity, wrong),
            lambda: entity(workflow_key=wrong),
        ):
            with pytest.raises(PayloadError, match=r"must be (a UUID|an int), got str"):
                call()


def test_server_and_python_make_the_key(engine: Engine) -> None:
    """In a flush and in the conflict after it."""
    with Session(engine) as session:
        orders: list[Any] = [ByUuid(state=OrderState()), ByInt(state=OrderState())]
        session.add_all(orders)
        session.commit()
        for order, type_ in zip(orders, (UUID, int), strict=True):
            key = order.workflow_key
            assert isinstance(key, type_)
            assert inspect(order).identity == (key,)
            with Session(engine) as other:
                try_commit(
                    other,
                    type(order),
                    key,
                    expected_version=1,
                    state=OrderState(n=1),
                    provenance=Provenance.now(),
                )
                other.commit()
            order.state = OrderState(n=2)
            with pytest.raises(StateConflict) as raised:
                session.commit()
            session.rollback()
            assert raised.value.workflow_key == key


@KINDS
def test_history_stores_the_text_and_shows_the_key(engine: Engine, entity: Any) -> None:
    """By a flush and by a batch; a version is found and restored by the key."""
    key, *_ = create(engine, entity)
    with Session(engine) as session:
        session.get_one(entity, key).state.n = 7
        session.commit()
        versions = list_versions(session, entity, key)
        assert [each.version for each in versions] == [2, 1]
        assert versions[0].workflow_key == key
        assert isinstance(versions[0].workflow_key, as_type(entity))
        assert get_version(session, entity, key, 2).state.n == 7
        restored = restore_version(
            session, entity, key, 1, expected_version=2, provenance=Provenance.now()
        )
        assert restored.workflow_key == key
        session.commit()
        history = UuidHistory if entity is ByUuid else IntHistory
        stored = set(session.scalars(select(history.workflow_key)))
        assert stored == set(map(str, KEYS[entity]))


@KINDS
def test_projection_follows_keys_of_each_type(engine: Engine, entity: Any) -> None:
    """Inline or by a worker, in sweeps in any order of the texts."""
    if engine.dialect.is_async:
        pytest.skip("a worker has an async counterpart of its own")
    keys, projection = create(engine, entity), PROJECTIONS[entity]
    assert rebuild(engine, projection, batch_size=5) == len(keys)
    assert measure_lag(engine, projection).keys == 0
    with Session(engine) as session:
        try_commit_many(session, entity, [commit(key, 1, 3) for key in keys[:6]])
        session.delete(session.get_one(entity, keys[7]))
        session.commit()
    assert measure_lag(engine, projection).keys == 6
    worker = ProjectionWorker(
        engine, projection, Watermark, partitions=2, batch_size=2, overlap=60
    )
    assert worker.sweep() == (7 if entity is ByUuid else 6)  # One cascades.
    assert worker.follow() == 0
    store = ProjectionStore(engine, projection)
    row = store.get(keys[0], 2)
    assert (row.workflow_key, row.values["tag"]) == (keys[0], "n=3")
    assert store.get_version(keys[7]) is None
    with Session(engine) as session:
        try_commit_many(session, entity, [commit(key, 1, 4) for key in keys[8:]])
        session.commit()
    assert sum(worker.follow() for _ in range(4)) == len(keys[8:])


@KINDS
def test_actions_of_keys_of_each_type_are_idempotent(
    engine: Engine, entity: Any
) -> None:
    """The service takes the key, or its text from JSON; so does a loop of one's own."""
    if engine.dialect.is_async:
        pytest.skip("a service has an async counterpart of its own")
    key, other, *_ = create(engine, entity)

    def reduce(state: OrderState, action: Action[int]) -> Reduction[OrderState]:
        intent = Intent(intent_type="mail", target="x", payload=action.payload)
        return Reduction(OrderState(n=state.n + action.payload), [intent])

    intents: Any = UuidIntents if entity is ByUuid else Intents
    service = ReducerService(
        engine, entity, reduce, dedup=Actions, writers=[store_intents(intents)]
    )
    action = Action(workflow_key=key, action_id=uuid4(), payload=2)
    assert service.handle(action).workflow_key == key
    again = Action[int].model_validate_json(action.model_dump_json())
    outcome = service.handle(again)
    assert outcome.replayed
    assert outcome.workflow_key == key
    more = [
        Action(workflow_key=each, action_id=uuid4(), payload=3)
        for each in (str(key), other, "x")
    ]
    first, second, third = service.handle_many([*more[:2], more[2]])
    assert isinstance(first, StateCommitted)
    assert isinstance(second, StateCommitted)
    assert (first.workflow_key, first.version) == (key, 3)
    assert second.workflow_key == other
    assert isinstance(third, PayloadError)
    with Session(engine) as session:
        assert not should_process(session, Actions, key, action.action_id)
        assert should_process(session, Actions, other, action.action_id)
        assert remember(session, Actions, other, action.action_id, result="{}")
        assert not should_process(session, Actions, other, action.action_id)
        session.commit()
        stored = set(session.scalars(select(Actions.workflow_key)))
        assert stored == {str(key), str(other)}
    given: list[Any] = []
    IntentDispatcher(engine, intents, given.append).dispatch()
    shown = {key, other} if entity is ByUuid else {str(key), str(other)}
    assert {due.workflow_key for due in given} == shown


@KINDS
def test_rows_are_upcast_in_the_order_of_their_keys(
    engine: Engine, entity: Any
) -> None:
    """In SQL, and in Python."""
    if engine.dialect.is_async:
        pytest.skip("a job has an engine of its own")
    keys = create(engine, entity)
    with engine.begin() as connection:
        table = entity.__tablename__
        connection.execute(text(f"UPDATE {table} SET schema_version = 1"))
    assert upcast_all(engine, entity, batch_size=5).upcast == len(keys)


@KINDS
def test_state_of_an_older_shape_names_its_key(engine: Engine, entity: Any) -> None:
    """A row that cannot be read is named."""
    key, *_ = create(engine, entity)
    with engine.begin() as connection:
        broken = text(
            f"UPDATE {entity.__tablename__} SET schema_version = 1,"
            ' state = \'{"n": "x"}\' WHERE id = :key'
        ).bindparams(key=key)
        connection.execute(broken)
    with Session(engine) as session:
        with pytest.raises(PayloadError, match=str(key)):
            get_state(session, entity, key)
        order = session.get_one(entity, key)
        with pytest.raises(PayloadError, match=str(key)):
            _ = order.state
        states = select(entity.state).where(entity.workflow_key == key)
        with pytest.raises(PayloadError, match=str(key)):
            session.scalars(states).all()
    count = select(func.count()).select_from(entity)
    with engine.connect() as connection:
        assert connection.scalar(count) == len(KEYS[entity])
