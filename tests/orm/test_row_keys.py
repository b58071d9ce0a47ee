"""Contract: a class keeps its primary key; its rows are addressed by workflow_key."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    load_only,
    make_transient,
    mapped_column,
    relationship,
)

from sa_wfstate import (
    CanonicalStore,
    Commit,
    ConflictReason,
    PayloadError,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowNotFound,
    WorkflowStateMixin,
    field_of,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.errors import KeyNotAssignable, MappingError, UnflushedChanges
from sa_wfstate.history import HistoryMixin, keep_history, list_versions
from sa_wfstate.patching import Patch, set_to, try_patch_many

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    n: int = 0


class HasId:
    """A base as applications have it."""

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)


class ByNumber(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "by_number"

    id: Mapped[int] = mapped_column(primary_key=True)


class ByIdentity(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "by_identity"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)


class ByInheritedUuid(HasId, WorkflowStateMixin[OrderState], Base):
    __tablename__ = "by_inherited_uuid"


class ByText(WorkflowStateMixin[OrderState], Base):
    """A ULID, say, that the application makes, and a key of another name."""

    __tablename__ = "by_text"

    workflow_key: Mapped[str] = mapped_column("order_no", String(40), unique=True)
    id: Mapped[str] = mapped_column(
        String(26), primary_key=True, default=lambda: uuid4().hex[:26]
    )


class ByTwo(WorkflowStateMixin[OrderState], Base):
    """The key comes from the server, if it is not given."""

    __tablename__ = "by_two"

    workflow_key: Mapped[str] = mapped_column(
        Text, server_default=text("CAST(gen_random_uuid() AS TEXT)")
    )
    tenant: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False, server_default="7"
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)


class Note(Base):
    """Refers to an order by its primary key."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("by_number.id"))
    order: Mapped[ByNumber] = relationship(backref="notes")


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "by_number_history"


keep_history(ByNumber, OrderHistory)

ENTITIES: list[Any] = [ByNumber, ByIdentity, ByInheritedUuid, ByText, ByTwo]


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Base.metadata)


def commit(entity: Any, session: Session, key: str, version: int, n: int) -> Any:
    """Commit *n* to a workflow by try_commit."""
    return try_commit(
        session,
        entity,
        key,
        expected_version=version,
        state=OrderState(n=n),
        provenance=Provenance.now(),
    )


def stored(entity: Any, engine: Engine) -> dict[str, tuple[int, int]]:
    """Read version and state of each row, by key."""
    with Session(engine) as session:
        rows = session.scalars(select(entity).order_by(entity.workflow_key))
        return {row.workflow_key: (row.version, row.state.n) for row in rows}


def test_workflow_key_is_unique_beside_a_primary_key() -> None:
    """It is NOT NULL, and unique under the name that PostgreSQL gives."""
    for entity in ENTITIES:
        table, key = entity.__table__, inspect(entity).columns["workflow_key"]
        unique = [c for c in table.constraints if isinstance(c, UniqueConstraint)]
        assert [list(each.columns) for each in unique] == [[key]]
        assert not key.nullable
        assert not key.primary_key
    (unique,) = (
        each
        for each in ByNumber.__table__.constraints
        if isinstance(each, UniqueConstraint)
    )
    assert unique.name == "by_number_workflow_key_key"
    assert [c.name for c in ByTwo.__table__.primary_key] == ["tenant", "number"]


def test_no_index_holds_a_column_that_a_commit_writes(engine: Engine) -> None:
    """So each commit can be a HOT update."""
    indexed = text(
        "SELECT a.attname FROM pg_index i JOIN pg_attribute a"
        " ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
        " WHERE i.indrelid = CAST(:table AS regclass)"
    )
    written = {"version", "state", "updated_at", "schema_version", "provenance"}
    with engine.connect() as connection:
        for entity in ENTITIES:
            table = {"table": entity.__tablename__}
            names = set(connection.scalars(indexed, table))
            assert names
            assert not names & written


def test_rows_are_written_and_read_by_workflow_key(engine: Engine) -> None:
    """By a flush, by try_commit, in batches, by a store and by session.get()."""
    for entity in ENTITIES:
        with Session(engine) as session:
            order = entity(workflow_key="a", state=OrderState())
            session.add(order)
            session.commit()
            order.state.n = 1
            session.commit()
            identity = inspect(order).identity
        with Session(engine) as session:
            assert isinstance(commit(entity, session, "b", 0, 2), StateCommitted)
            lost = commit(entity, session, "b", 0, 3)
            assert lost.reason is ConflictReason.EXISTS
            assert commit(entity, session, "b", 1, 4).version == 2
            assert get_state(session, entity, "a").version == 2
            session.commit()
            commits = [
                Commit(
                    key,
                    expected_version=version,
                    state=OrderState(n=9),
                    provenance=Provenance.now(),
                )
                for key, version in {"a": 2, "b": 1, "c": 0, "d": 0}.items()
            ]
            outcomes = try_commit_many(session, entity, commits)
            won = [isinstance(each, StateCommitted) for each in outcomes]
            assert won == [True, False, True, True]
            session.commit()
        store = CanonicalStore(engine, entity)
        with pytest.raises(WorkflowNotFound):
            store.get_state("e")
        assert store.get_state("d").state.n == 9
        assert stored(entity, engine) == {
            "a": (3, 9),
            "b": (2, 4),
            "c": (1, 9),
            "d": (1, 9),
        }
        with Session(engine) as session:
            order = session.get_one(entity, identity)
            assert order.workflow_key == "a"
            session.delete(order)
            session.commit()
        assert "a" not in stored(entity, engine)


def test_conflict_names_the_workflow_key(engine: Engine) -> None:
    """In a flush of one or of several rows, in a delete, and where a key exists."""
    for entity in ENTITIES:
        with Session(engine) as session:
            keys = [f"k{n}" for n in range(4)]
            session.add_all(entity(workflow_key=k, state=OrderState()) for k in keys)
            session.commit()
        query = select(entity).order_by(entity.workflow_key)
        with Session(engine) as one, Session(engine) as two:
            orders = one.scalars(query).all()
            for order in orders[:3]:
                order.state.n = 1
            one.delete(orders[3])
            for key in ("k1", "k3"):
                commit(entity, two, key, 1, 5)
            two.commit()
            with pytest.raises(StateConflict) as raised:
                one.commit()
            lost = {c.workflow_key: c.actual_version for c in raised.value.conflicts}
            assert lost == {"k1": 2}
            one.rollback()
            one.add(entity(workflow_key="k0", state=OrderState()))
            with pytest.raises(StateConflict, match="'k0': expected no row") as raised:
                one.flush()
            assert raised.value.reason is ConflictReason.EXISTS


def test_other_unique_columns_are_no_conflict(engine: Engine) -> None:
    """A primary key that exists, of another workflow, is the application's error."""
    with Session(engine) as session:
        session.add(ByNumber(id=1, workflow_key="a", state=OrderState()))
        session.commit()
        session.expunge_all()
        session.add(ByNumber(id=1, workflow_key="b", state=OrderState()))
        with pytest.raises(IntegrityError) as raised:
            session.commit()
        assert not isinstance(raised.value, StateConflict)


def test_instance_of_the_session_follows_try_commit(engine: Engine) -> None:
    """It is found by its key, in a batch too, and its changes are not written over."""
    for entity in ENTITIES:
        with Session(engine) as session:
            orders = {k: entity(workflow_key=k, state=OrderState()) for k in "ab"}
            session.add_all(orders.values())
            session.commit()
            assert commit(entity, session, "a", 1, 2).version == 2
            assert (orders["a"].version, orders["a"].state.n) == (2, 2)
            edits = [set_to(field_of(entity.state, lambda state: state.n), 7)]
            patch = Patch("b", edits, provenance=Provenance.now())
            assert try_patch_many(session, entity, [patch])[0].version == 2
            assert (orders["b"].version, orders["b"].state.n) == (2, 7)
            orders["a"].state.n = 3
            with pytest.raises(UnflushedChanges, match="'a'"):
                commit(entity, session, "a", 2, 4)
            session.commit()
            assert stored(entity, engine)["a"] == (3, 3)


def test_row_that_was_loaded_without_its_key_is_written(engine: Engine) -> None:
    """The key is read when it is needed; expired, or pickled, it is known."""
    for entity in ENTITIES:
        with Session(engine) as session:
            session.add(entity(workflow_key="a", state=OrderState()))
            session.commit()
        only = select(entity).options(load_only(entity.state, entity.version))
        with Session(engine) as session:
            order = session.scalars(only).one()
            assert "workflow_key" not in inspect(order).dict
            order.state.n = 1
            session.commit()
            with Session(engine) as other:
                commit(entity, other, "a", 2, 2)
                other.commit()
            order.state = OrderState(n=3)
            with pytest.raises(StateConflict, match="'a'"):
                session.commit()
        with Session(engine) as session:
            order = session.scalars(select(entity)).one()
            copy = pickle.loads(pickle.dumps(order))
        copy.state = OrderState(n=4)
        with Session(engine) as session:
            session.add(copy)
            session.commit()
        assert stored(entity, engine) == {"a": (4, 4)}


def test_stale_objects_lose_by_their_workflow_key(engine: Engine) -> None:
    """In merge(), and in a locked load."""
    for entity in ENTITIES:
        with Session(engine) as session:
            order = entity(workflow_key="a", state=OrderState())
            session.add(order)
            session.commit()
            identity = inspect(order).identity
            session.refresh(order)
        with Session(engine) as session, Session(engine) as other:
            held = session.get_one(entity, identity)
            commit(entity, other, "a", 1, 2)
            other.commit()
            with pytest.raises(StateConflict, match="'a'"):
                session.get(entity, identity, with_for_update=True)
            assert held.version == 1
        order.state = OrderState(n=5)
        with Session(engine) as session:
            with pytest.raises(StateConflict, match="'a'"):
                session.merge(order)
            session.rollback()
            names = [column.key for column in inspect(entity).primary_key]
            own = dict(zip(names, identity or (), strict=True))
            new = entity(workflow_key="a", state=OrderState(), **own)
            with pytest.raises(StateConflict, match="exists already"):
                session.merge(new)
            session.rollback()
            session.merge(entity(workflow_key="a", state=OrderState()))
            with pytest.raises(StateConflict, match="exists already"):
                session.flush()


def test_workflow_key_of_a_stored_row_is_kept(engine: Engine) -> None:
    """Its primary key may change; a row that replaces it has the same key."""
    with Session(engine) as session:
        order = ByNumber(id=1, workflow_key="a", state=OrderState())
        session.add(order)
        session.commit()
        with pytest.raises(KeyNotAssignable, match="'a'"):
            order.workflow_key = "b"
        order.id = 2
        session.commit()
        session.delete(order)
        session.add(ByNumber(id=2, workflow_key="b", state=OrderState()))
        with pytest.raises(KeyNotAssignable, match="'a'"):
            session.flush()
        session.rollback()
        session.delete(session.get_one(ByNumber, 2))
        session.add(ByNumber(id=2, workflow_key="a", state=OrderState(n=3)))
        session.commit()
        assert stored(ByNumber, engine) == {"a": (3, 3)}
        copy = session.get_one(ByNumber, 2)
        assert copy.state.n == 3
        make_transient(copy)
        copy.id, copy.workflow_key = 3, "b"
        session.add(copy)
        session.commit()
        assert stored(ByNumber, engine) == {"a": (3, 3), "b": (1, 3)}


def test_key_is_not_deleted_and_added_in_one_flush(engine: Engine) -> None:
    """SQLAlchemy inserts first; the error says what to do."""
    with Session(engine) as session:
        order = ByNumber(workflow_key="a", state=OrderState())
        session.add(order)
        session.commit()
        session.delete(order)
        session.add(ByNumber(workflow_key="a", state=OrderState(n=1)))
        with pytest.raises(PayloadError, match=r"flush\(\) the deletion first"):
            session.flush()
        session.rollback()
        session.delete(order)
        session.flush()
        session.add(ByNumber(workflow_key="a", state=OrderState(n=1)))
        session.commit()
    assert stored(ByNumber, engine) == {"a": (1, 1)}


def test_key_that_the_server_makes(engine: Engine) -> None:
    """The instance has it, and so has the next conflict."""
    with Session(engine) as session:
        order = ByTwo(state=OrderState())
        session.add(order)
        session.commit()
        key = order.workflow_key
        assert UUID(key)
        with Session(engine) as other:
            commit(ByTwo, other, key, 1, 2)
            other.commit()
        order.state = OrderState(n=3)
        with pytest.raises(StateConflict, match=key):
            session.commit()


def test_foreign_keys_to_the_primary_key_work(engine: Engine) -> None:
    """And relationships, both ways; history is kept by workflow key."""
    with Session(engine) as session:
        order = ByNumber(workflow_key="a", state=OrderState())
        session.add(Note(order=order))
        session.commit()
        order.state.n = 1
        session.commit()
        assert [note.order_id for note in order.notes] == [order.id]
        assert order.notes[0].order.version == 2
        versions = list_versions(session, ByNumber, "a")
        assert [each.version for each in versions] == [2, 1]


def test_unique_index_is_enough() -> None:
    """A whole unique index of the application's own is taken; a partial one is not."""

    class Own(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Own):
        __tablename__ = "orders"
        __table_args__ = (Index("one", "workflow_key", unique=True),)
        id: Mapped[int] = mapped_column(primary_key=True)

    class Claim(WorkflowStateMixin[OrderState], Own):
        __tablename__ = "claims"
        __table_args__ = (
            Index("two", "workflow_key", unique=True, postgresql_where=text("id > 9")),
        )
        id: Mapped[int] = mapped_column(primary_key=True)

    def uniques(entity: Any) -> int:
        each = entity.__table__.constraints
        return sum(isinstance(constraint, UniqueConstraint) for constraint in each)

    assert (uniques(Order), uniques(Claim)) == (0, 1)


def test_naming_convention_names_the_unique_constraint() -> None:
    """If there is one for unique constraints."""

    class Own(DeclarativeBase):
        metadata = MetaData(naming_convention={"uq": "uq_%(table_name)s"})

    class Order(WorkflowStateMixin[OrderState], Own):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    names = {constraint.name for constraint in Order.__table__.constraints}
    assert "uq_orders" in names


def test_table_without_a_primary_key_gets_the_workflow_key(engine: Engine) -> None:
    """Also under another name, of a Table, and mapped imperatively."""

    class Own(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Own):
        __tablename__ = "orders"
        workflow_key: Mapped[str] = mapped_column("order_no", Text)

    class Claim(WorkflowStateMixin[OrderState], Own):
        __table__ = Table(
            "claims", Own.metadata, Column("order_no", Text), *columns_but_the_key()
        )
        workflow_key = __table__.c.order_no

    for entity in (Order, Claim):
        table: Any = entity.__table__
        assert list(table.primary_key) == [table.c.order_no]
        table.create(engine)
        with Session(engine) as session:
            session.add(entity(workflow_key="a", state=OrderState()))
            session.commit()
            assert session.get_one(entity, "a").version == 1


def columns_but_the_key() -> list[Column[Any]]:
    """Copy the other columns of a workflow."""
    return [
        column._copy()
        for column in ByNumber.__table__.c
        if column.name not in {"id", "workflow_key"}
    ]


def test_try_commit_creates_no_row_of_an_incomplete_primary_key(engine: Engine) -> None:
    """A column of it without a default is named."""

    class Own(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Own):
        __tablename__ = "orders"
        tenant: Mapped[str] = mapped_column(primary_key=True)

    Own.metadata.create_all(engine)
    with Session(engine) as session:
        with pytest.raises(MappingError, match="'tenant' of its primary key"):
            commit(Order, session, "a", 0, 1)
        session.add(Order(tenant="x", workflow_key="a", state=OrderState()))
        session.flush()
        assert commit(Order, session, "a", 1, 1).version == 2
        count = select(func.count()).select_from(Order)
        assert session.scalar(count) == 1
