"""Contract: the columns of an application keep their names and their defaults."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import new_class
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    BigInteger,
    DateTime,
    Engine,
    Integer,
    Sequence,
    Text,
    create_engine,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateSchema, DropSchema

from sa_wfstate import (
    CanonicalStore,
    Commit,
    PayloadError,
    Provenance,
    PydanticJSON,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.history import HistoryMixin, keep_history, list_versions
from sa_wfstate.upcasting import Upcaster, count_schema_versions, upcast_all
from sa_wfstate.versions import version_trigger

from ..orders import OrderState
from ..verbs import verbs_of
from ..versions import ESCAPES_PERCENT

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


numbers = Sequence("numbers", metadata=Base.metadata)


class Order(WorkflowStateMixin[OrderState], Base):
    """Has a default of every kind."""

    __tablename__ = "orders"

    token: Mapped[UUID] = mapped_column(default=uuid4, unique=True)
    label: Mapped[str] = mapped_column(
        default=lambda context: context.get_current_parameters()["workflow_key"] + "!"
    )
    number: Mapped[int] = mapped_column(numbers)
    drawn: Mapped[UUID] = mapped_column(default=func.gen_random_uuid())
    made: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    plain: Mapped[int] = mapped_column(default=7)


class OrderHistory(HistoryMixin, Base):
    """Has a default of its own as well."""

    __tablename__ = "order_history"

    token: Mapped[UUID] = mapped_column(default=uuid4, unique=True)


keep_history(Order, OrderHistory)


class Stamped(WorkflowStateMixin[OrderState], Base):
    """Python makes a new token with each UPDATE."""

    __tablename__ = "stamped"

    token: Mapped[UUID | None] = mapped_column(onupdate=uuid4, unique=True)
    drawn: Mapped[UUID | None] = mapped_column(onupdate=func.gen_random_uuid())
    plain: Mapped[int | None] = mapped_column(onupdate=7)


class Renamed(WorkflowStateMixin[OrderState], Base):
    """Calls no column of its table as the attribute is called."""

    __tablename__ = "renamed"
    __schema_version__ = 2
    __upcasters__ = {1: Upcaster(lambda data: data, "state")}  # noqa: RUF012
    __workflow_indexes__ = ("version", "updated", "state", "provenance")

    workflow_key: Mapped[str] = mapped_column("order no", Text, primary_key=True)
    version: Mapped[int] = mapped_column(
        "Lock:Version%", BigInteger, nullable=False, server_default=text("1")
    )
    state: Mapped[OrderState] = mapped_column(
        "payload", PydanticJSON(OrderState), nullable=False
    )
    updated_at: Mapped[datetime] = mapped_column(
        "changed", DateTime(timezone=True), default=lambda: datetime.now(UTC)
    )
    schema_version: Mapped[int] = mapped_column(
        "shape", Integer, nullable=False, server_default=text("1"), default=1
    )
    provenance: Mapped[Provenance] = mapped_column(
        "origin", PydanticJSON(Provenance, mutable=False), default=Provenance.now
    )


class RenamedHistory(HistoryMixin, Base):
    __tablename__ = "renamed_history"


keep_history(Renamed, RenamedHistory)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


def commit(key: str, version: int, status: str = "paid") -> Commit[OrderState]:
    """Make one commit of a batch."""
    return Commit(
        key,
        expected_version=version,
        state=OrderState(status=status),
        provenance=Provenance.now(),
    )


def commit_all(session: Session, entity: Any, version: int) -> list[Any]:
    """Commit three rows at once, all of which win."""
    outcomes = try_commit_many(session, entity, [commit(k, version) for k in "abc"])
    assert all(isinstance(each, StateCommitted) for each in outcomes)
    return outcomes


def test_each_row_of_a_batch_has_defaults_of_its_own(engine: Engine) -> None:
    """Whatever makes a default, it is made for every row that a batch creates."""
    with Session(engine) as session:
        verbs = verbs_of(engine)
        commit_all(session, Order, 0)
        assert verbs[0] == "INSERT"
        session.commit()
        rows = session.scalars(select(Order).order_by(Order.workflow_key)).all()
        for name in ("token", "number", "drawn", "made"):
            assert len({getattr(row, name) for row in rows}) == 3, name
        assert [row.label for row in rows] == ["a!", "b!", "c!"]
        assert {row.plain for row in rows} == {7}
        kept = session.scalars(select(OrderHistory)).all()
        assert len({row.token for row in kept}) == 3


def test_batch_with_defaults_passes_over_what_exists(engine: Engine) -> None:
    """A creation that loses is told from those that win."""
    with Session(engine) as session:
        try_commit_many(session, Order, [commit("b", 0)])
        outcomes = try_commit_many(session, Order, [commit(key, 0) for key in "abc"])
        assert [isinstance(each, StateCommitted) for each in outcomes] == [
            True,
            False,
            True,
        ]


def test_each_row_of_a_batch_is_updated_by_itself(engine: Engine) -> None:
    """A callable onupdate is called for every row that a batch writes."""
    with Session(engine) as session:
        commit_all(session, Stamped, 0)
        commit_all(session, Stamped, 1)
        session.commit()
        rows = session.scalars(select(Stamped)).all()
        for name in ("token", "drawn"):
            values = {getattr(row, name) for row in rows}
            assert len(values - {None}) == 3, name
        assert {row.plain for row in rows} == {7}
        before = {row.token for row in rows}
        one = try_commit(
            session,
            Stamped,
            "a",
            expected_version=2,
            state=OrderState(),
            provenance=Provenance.now(),
        )
        assert isinstance(one, StateCommitted)
        session.commit()
        assert session.get_one(Stamped, "a").token not in before


def test_columns_may_have_other_names_in_the_table(engine: Engine) -> None:
    """Each way to write and to read goes by attribute."""
    with Session(engine) as a, Session(engine) as b:
        a.add(Renamed(workflow_key="k", state=OrderState()))
        a.commit()
        mine, theirs = a.get_one(Renamed, "k"), b.get_one(Renamed, "k")
        mine.state.status, theirs.state.status = "1", "2"
        a.commit()
        with pytest.raises(StateConflict) as conflict:
            b.commit()
        assert conflict.value.current is not None
        assert conflict.value.current.state.status == "1"
    store = CanonicalStore(engine, Renamed)
    base = store.get_state("k")
    assert base.version == 2
    won = store.try_commit(
        workflow_key="k",
        expected_version=2,
        state=base.state,
        provenance=Provenance.now(),
        base=base,
    )
    assert isinstance(won, StateCommitted)
    with Session(engine) as session:
        for version in (0, 1):
            commit_all(session, Renamed, version)
        assert get_state(session, Renamed, "a").version == 2
        assert session.get_one(Renamed, "a").state == OrderState(status="paid")
        assert [each.version for each in list_versions(session, Renamed, "k")] == [
            3,
            2,
            1,
        ]
        session.delete(session.get_one(Renamed, "k"))
        session.commit()


@pytest.mark.parametrize("in_sql", [False, True])
def test_renamed_columns_are_upcast(
    engine: Engine, database: Any, in_sql: bool
) -> None:
    """A job rewrites the columns of the mapping, whatever their names."""
    with Session(engine) as session:
        commit_all(session, Renamed, 0)
        session.commit()
    plain = create_engine(database)
    with plain.begin() as connection:
        connection.execute(text("UPDATE renamed SET shape = 1"))
    plain.dispose()
    with Session(engine) as session:
        assert get_state(session, Renamed, "a").state.status == "paid"
        assert session.get_one(Renamed, "b").state.status == "paid"
    report = upcast_all(engine, Renamed, in_sql=in_sql)
    assert (report.upcast, report.failures) == (3, ())
    with engine.connect() as connection:
        assert count_schema_versions(connection, Renamed) == {2: 3}


def test_constraints_name_the_renamed_columns(database: Any) -> None:
    """The CHECKs and the indexes are on the columns of the mapping."""
    plain = create_engine(database)
    checks = inspect(plain).get_check_constraints("renamed")
    plain.dispose()
    assert {check["sqltext"] for check in checks} == {
        '"Lock:Version%" >= 1',
        "shape >= 1",
    }


def new_key() -> str:
    """Make a key."""
    return str(uuid4())


def keyed(how: dict[str, Any]) -> Any:
    """Map a class whose key is made as *how* says."""

    class KeyedBase(DeclarativeBase):
        pass

    class Keyed(WorkflowStateMixin[OrderState], KeyedBase):
        __tablename__ = "keyed"
        workflow_key: Mapped[str] = mapped_column(Text, primary_key=True, **how)

    class KeyedHistory(HistoryMixin, KeyedBase):
        __tablename__ = "keyed_history"

    keep_history(Keyed, KeyedHistory)
    return Keyed


@pytest.mark.parametrize(
    "how",
    [{"default": new_key}, {"server_default": text("gen_random_uuid()::text")}],
    ids=["default", "server_default"],
)
def test_key_may_have_a_default(
    engine: Engine, create_tables: Any, how: dict[str, Any]
) -> None:
    """A row that is added without a key gets one, and is a workflow like any other."""
    entity = keyed(how)
    create_tables(entity.metadata)
    with Session(engine) as session, Session(engine) as other:
        orders = [entity(state=OrderState()) for _ in range(2)]
        session.add_all(orders)
        session.commit()
        keys = [order.workflow_key for order in orders]
        assert len({UUID(key) for key in keys}) == 2
        assert [order.version for order in orders] == [1, 1]
        assert [v.version for v in list_versions(session, entity, keys[0])] == [1]
        theirs = other.get_one(entity, keys[0])
        theirs.state.status = "theirs"
        orders[0].state.status = "mine"
        session.commit()
        with pytest.raises(StateConflict, match=keys[0]):
            other.commit()


@pytest.mark.parametrize("made", ["", "k" * 256])
def test_key_that_a_default_makes_is_checked(
    engine: Engine, create_tables: Any, made: str
) -> None:
    """A default cannot make what cannot be assigned."""
    entity = keyed({"default": made})
    create_tables(entity.metadata)
    with Session(engine) as session:
        session.add(entity(state=OrderState()))
        with pytest.raises(PayloadError, match="workflow_key"):
            session.commit()


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"state": OrderState()}, "workflow_key"),
        ({"workflow_key": "k"}, "state"),
        ({"workflow_key": "k", "state": None}, "state"),
    ],
)
def test_what_is_missing_is_named(
    engine: Engine, given: dict[str, Any], missing: str
) -> None:
    """A row without a key or a state is refused before any SQL is sent."""
    with Session(engine) as session:
        session.add(Stamped(**given))
        with pytest.raises(PayloadError, match=missing):
            session.commit()


def now() -> datetime:
    """Make a time."""
    return datetime.now(UTC)


class Timestamped:
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), default=now, onupdate=now
    )


@pytest.mark.parametrize("first", [True, False])
def test_audit_column_of_the_application_hides_no_conflict(
    engine: Engine, create_tables: Any, first: bool
) -> None:
    """An updated_at that Python makes is no sign that a row was written."""

    class AuditBase(DeclarativeBase):
        pass

    mixin: Any = WorkflowStateMixin[OrderState]
    bases = (
        (Timestamped, mixin, AuditBase) if first else (mixin, Timestamped, AuditBase)
    )
    audited: Any = new_class(
        "Audited", bases, exec_body=lambda body: body.update(__tablename__="audited")
    )
    create_tables(AuditBase.metadata)
    with Session(engine) as session:
        session.add_all([audited(workflow_key=k, state=OrderState()) for k in "abc"])
        session.commit()
    with Session(engine) as session, Session(engine) as other:
        ours = session.scalars(select(audited)).all()
        other.get_one(audited, "b").state.status = "theirs"
        other.commit()
        for order in ours:
            order.state.status = "ours"
        with pytest.raises(StateConflict) as conflict:
            session.commit()
        assert [each.workflow_key for each in conflict.value.conflicts] == ["b"]
        session.rollback()
        session.add(audited(workflow_key="a", state=OrderState()))
        session.expunge(ours[0])
        with pytest.raises(StateConflict, match="exists"):
            session.commit()
        session.rollback()
        before = get_state(session, audited, "c").updated_at
        commit_one = commit("c", 1)
        assert isinstance(
            try_commit_many(session, audited, [commit_one])[0], StateCommitted
        )
        assert get_state(session, audited, "c").updated_at > before


def odd_class(name: str, *, schema: str | None = None, column: str = "state") -> Any:
    """Map a class to a table *name* whose state is in *column*."""

    class OddBase(DeclarativeBase):
        pass

    class Odd(WorkflowStateMixin[OrderState], OddBase):
        __tablename__ = name
        __table_args__ = {"schema": schema}  # noqa: RUF012
        __schema_version__ = 3
        __upcasters__ = {  # noqa: RUF012
            1: Upcaster(lambda data: data, "state || '{\"a%:b\":1}'::jsonb"),
            2: Upcaster(lambda data: data, "state - 'a%:b'"),
        }
        state: Mapped[OrderState] = mapped_column(
            column, PydanticJSON(OrderState), nullable=False
        )

    return Odd


ODD_NAMES = ["%s %(x)s 100% a:b c::d :e", 'Mixed "quo" te\\ {x} it\'s é😀', "order"]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("place", ["table", "column", "schema"])
def test_names_may_hold_anything(engine: Engine, name: str, place: str) -> None:
    """A name is quoted wherever it is used: in DDL, triggers, statements and jobs."""
    if engine.driver == "asyncpg" and "%(" in name and not ESCAPES_PERCENT:
        pytest.skip("SQLAlchemy takes %(x)s in a name for a parameter")
    entity: Any = odd_class(
        name if place == "table" else "plain",
        schema=name if place == "schema" else None,
        column=name if place == "column" else "state",
    )
    table = entity.__table__
    with engine.begin() as connection:
        if place == "schema":
            connection.execute(CreateSchema(name))
        table.create(connection)
        for ddl in version_trigger(table):
            connection.execute(ddl)
    with Session(engine) as session:
        commit_all(session, entity, 0)
        commit_all(session, entity, 1)
        session.get_one(entity, "a").state.status = "new"
        session.commit()
        session.execute(
            update(table).values({"version": table.c.version + 1, "schema_version": 1})
        )
        session.commit()
        with pytest.raises(DBAPIError, match=r"version 3 can only be followed by"):
            session.execute(update(table).values({"version": 7}))
    report = upcast_all(engine, entity, in_sql=True)
    assert (report.upcast, report.failures) == (3, ())
    with Session(engine) as session:
        assert get_state(session, entity, "b").state == OrderState(status="paid")
    with engine.begin() as connection:
        for ddl in version_trigger(table, drop=True):
            connection.execute(ddl)
        connection.execute(update(table).values({"version": 7}))
        table.drop(connection)
        if place == "schema":
            connection.execute(DropSchema(name, cascade=True))
