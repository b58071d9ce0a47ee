"""The mixin: what it adds to a mapped class, and what it refuses to map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    column,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    registry,
    relationship,
)

from sa_wfstate import (
    Commit,
    ConflictReason,
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
from sa_wfstate.errors import MappingError, VersionNotAssignable

from ..orders import OrderState

if TYPE_CHECKING:
    from sqlalchemy import Engine


@pytest.fixture
def base() -> type[DeclarativeBase]:
    """Make a fresh declarative base."""

    class Base(DeclarativeBase):
        pass

    return Base


def checks(cls: Any) -> dict[str, str]:
    """Return the CHECKs of the table, by name."""
    return {
        str(constraint.name): str(constraint.sqltext)
        for constraint in cls.__table__.constraints
        if isinstance(constraint, CheckConstraint)
    }


def test_three_lines_map_a_workflow(base: Any) -> None:
    """Columns, their order, the version check and the CHECKs come with the mixin."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"

    assert [column.name for column in Order.__table__.c] == [
        "workflow_key",
        "version",
        "state",
        "updated_at",
        "schema_version",
        "provenance",
    ]
    assert inspect(Order).version_id_col is Order.__table__.c.version
    assert checks(Order) == {
        "orders_version_check": "version >= 1",
        "orders_schema_version_check": "schema_version >= 1",
    }
    assert Order.__table__.indexes == set()


def test_order_of_the_bases_does_not_matter(base: Any) -> None:
    """The mixin may come after the declarative base."""

    class Order(base, WorkflowStateMixin[OrderState]):
        __tablename__ = "orders"

    assert inspect(Order).version_id_col is not None
    assert Order.state.type.type_ is OrderState


def test_registry_decorator_maps_a_workflow() -> None:
    """Without a declarative base class, the decorator maps it as well."""

    @registry().mapped
    class Order(WorkflowStateMixin[OrderState]):
        __tablename__ = "orders"

    assert inspect(Order).version_id_col is not None


def test_own_table_args_are_kept(base: Any) -> None:
    """Constraints of the application and of the mixin stand side by side."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"
        __table_args__ = (UniqueConstraint("customer"), {"schema": "shop"})
        customer: Mapped[str]

    assert len(checks(Order)) == 2
    assert Order.__table__.schema == "shop"
    assert any(isinstance(c, UniqueConstraint) for c in Order.__table__.constraints)


def test_own_mapper_args_keep_the_version_check(base: Any) -> None:
    """An own __mapper_args__ does not unlock the row."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"
        __mapper_args__ = {"confirm_deleted_rows": False}  # noqa: RUF012

    assert inspect(Order).version_id_col is Order.__table__.c.version
    assert inspect(Order).confirm_deleted_rows is False


def test_foreign_version_id_col_is_refused(base: Any) -> None:
    """Another version_id_col would leave the column version unchecked."""
    other = mapped_column("revision", nullable=False)
    with pytest.raises(MappingError, match=r"Order: .*version_id_col"):

        class Order(WorkflowStateMixin[OrderState], base):
            __tablename__ = "orders"
            revision: Mapped[int] = other
            __mapper_args__ = {"version_id_col": other}  # noqa: RUF012


def test_version_id_generator_false_is_refused(base: Any) -> None:
    """The version is not the application's to count."""
    with pytest.raises(MappingError, match="version_id_generator"):

        class Order(WorkflowStateMixin[OrderState], base):
            __tablename__ = "orders"
            __mapper_args__ = {"version_id_generator": False}  # noqa: RUF012


def test_key_that_is_unique_only_with_others_is_refused(base: Any) -> None:
    """One workflow is one key, by itself or within one tenant."""
    with pytest.raises(MappingError, match=r"part of \(workflow_key, tenant, year\)"):

        class Order(WorkflowStateMixin[OrderState], base):
            __tablename__ = "orders"
            workflow_key: Mapped[str] = mapped_column(primary_key=True)
            tenant: Mapped[str] = mapped_column(primary_key=True)
            year: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(MappingError, match=r"part of \(tenant, year, workflow_key\)"):

        class Claim(WorkflowStateMixin[OrderState], base):
            __tablename__ = "claims"
            __table_args__ = (UniqueConstraint("tenant", "year", "workflow_key"),)
            id: Mapped[int] = mapped_column(primary_key=True)
            tenant: Mapped[str]
            year: Mapped[int]


def test_missing_state_type_is_refused(base: Any) -> None:
    """WorkflowStateMixin without brackets says what to write."""
    with pytest.raises(MappingError, match=r"WorkflowStateMixin\[YourState\]"):

        class Order(WorkflowStateMixin, base):  # type: ignore[type-arg]
            __tablename__ = "orders"


def test_naming_convention_leaves_the_checks_alone() -> None:
    """The CHECKs have PostgreSQL's own names whatever the convention."""

    class Base(DeclarativeBase):
        metadata = MetaData(
            naming_convention={
                "ck": "ck_%(table_name)s_%(constraint_name)s",
                "ix": "ix_%(table_name)s_%(column_0_name)s",
            }
        )

    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = "orders"
        __workflow_indexes__ = ("version", "updated", "recent", "state", "provenance")

    assert set(checks(Order)) == {"orders_version_check", "orders_schema_version_check"}
    assert {index.name for index in Order.__table__.indexes} == {
        "idx_orders_version",
        "idx_orders_updated",
        "idx_orders_recent",
        "idx_orders_state",
        "idx_orders_provenance",
    }


def test_unknown_index_is_refused(base: Any) -> None:
    """A misspelt index is named."""
    with pytest.raises(MappingError, match="'versions'"):

        class Order(WorkflowStateMixin[OrderState], base):
            __tablename__ = "orders"
            __workflow_indexes__ = ("versions",)


@pytest.mark.parametrize(
    ("condition", "added"),
    [
        ("version >= 1", set()),
        ("(version > 0)", set()),
        (column("version") >= 1, set()),
        ("version < 1000", {"orders_version_check1"}),
        ("version >= schema_version", {"orders_check"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("of_column", [False, True])
def test_unnamed_check_of_the_application_is_kept(
    engine: Engine, condition: Any, added: set[str], of_column: bool
) -> None:
    """The name that PostgreSQL gives it does not collide with that of ours."""
    if of_column and not isinstance(condition, str):
        pytest.skip("a column cannot be given an expression of itself")

    class Base(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Base):
        __table__ = Table(
            "orders",
            Base.metadata,
            Column("workflow_key", Text, primary_key=True),
            Column(
                "version",
                BigInteger,
                *([CheckConstraint(condition)] if of_column else []),
                nullable=False,
                server_default="1",
            ),
            Column("state", PydanticJSON(OrderState), nullable=False),
            Column("updated_at", DateTime(timezone=True), server_default=func.now()),
            Column("schema_version", Integer, server_default="1", nullable=False),
            Column("provenance", PydanticJSON(Provenance), nullable=False),
            *([] if of_column else [CheckConstraint(condition)]),
        )

    Base.metadata.create_all(engine)
    made = {check["name"] for check in inspect(engine).get_check_constraints("orders")}
    ours = {"orders_version_check", "orders_schema_version_check"}
    assert made == ours | added


@pytest.mark.parametrize("letter", ["t", "ü"])
def test_names_are_as_postgresql_gives_them(engine: Engine, letter: str) -> None:
    """A table with a long name gets the CHECK names that the server itself would give.

    So a table that raw SQL made shows no difference.
    """

    class Base(DeclarativeBase):
        pass

    name = letter * (60 // len(letter.encode()))

    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = name

    with engine.begin() as connection:
        connection.exec_driver_sql(
            f'CREATE TABLE "{name}" (version BIGINT CHECK (version >= 1), '
            "schema_version INT CHECK (schema_version >= 1))"
        )
    made = {check["name"] for check in inspect(engine).get_check_constraints(name)}
    assert made == set(checks(Order))


def test_checks_hold_in_the_database(engine: Engine, base: Any) -> None:
    """What goes around the ORM cannot write version 0."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"

    base.metadata.create_all(engine)
    with engine.begin() as connection, pytest.raises(IntegrityError):
        connection.exec_driver_sql(
            "INSERT INTO orders (workflow_key, version, state, provenance) "
            "VALUES ('o-1', 0, '{}', '{}')"
        )


def test_abstract_base_passes_the_type_on(base: Any) -> None:
    """The state type may be given on an abstract base."""

    class Audited(WorkflowStateMixin[OrderState], base):
        __abstract__ = True

    class Order(Audited):
        __tablename__ = "orders"

    class Claim(Audited):
        __tablename__ = "claims"

    assert Order.state.type.type_ is OrderState
    assert set(checks(Claim)) == {"claims_version_check", "claims_schema_version_check"}


def test_generic_mixin_passes_its_parameter_on(base: Any) -> None:
    """A generic mixin of the application's own may stand in between."""
    first = TypeVar("first")
    second = TypeVar("second")

    class Tagged(WorkflowStateMixin[second], Generic[first, second]):
        tag: Mapped[str | None]

    class Order(Tagged[int, OrderState], base):
        __tablename__ = "orders"

    assert Order.state.type.type_ is OrderState
    assert "tag" in Order.__table__.c


def test_single_table_inheritance(engine: Engine, base: Any) -> None:
    """A subclass on the same table is a workflow of its own kind, with one version."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"
        kind: Mapped[str]
        __mapper_args__ = {  # noqa: RUF012
            "polymorphic_on": "kind",
            "polymorphic_identity": "order",
        }

    class Rush(Order):
        note: Mapped[str | None]
        __mapper_args__ = {"polymorphic_identity": "rush"}  # noqa: RUF012

    base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Rush(workflow_key="r-1", state=OrderState()))
        session.add(Order(workflow_key="o-1", state=OrderState()))
        made = try_commit(
            session,
            Rush,
            "r-2",
            expected_version=0,
            state=OrderState(),
            provenance={"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"},
        )
        assert isinstance(made, StateCommitted)
        session.commit()
        session.get_one(Rush, "r-1").state.status = "paid"
        session.commit()
        assert get_state(session, Rush, "r-1").version == 2
        assert {type(each) for each in session.scalars(select(Order))} == {Order, Rush}
        with pytest.raises(LookupError):
            get_state(session, Rush, "o-1")
    assert len(checks(Order)) == 2


def joined(base: Any) -> tuple[Any, Any]:
    """Map a class, and a subclass of it with a table of its own."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"
        kind: Mapped[str]
        __mapper_args__ = {  # noqa: RUF012
            "polymorphic_on": "kind",
            "polymorphic_identity": "order",
        }

    class Rush(Order):
        __tablename__ = "rush_orders"
        workflow_key: Mapped[str] = mapped_column(
            ForeignKey("orders.workflow_key"), primary_key=True
        )
        courier: Mapped[str | None]
        __mapper_args__ = {"polymorphic_identity": "rush"}  # noqa: RUF012

    return Order, Rush


def test_joined_class_leaves_the_rows_of_others_alone(
    engine: Engine, base: Any
) -> None:
    """A row of the base, or of a sibling, is not its to commit to, nor to create."""
    order_class, rush_class = joined(base)
    base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(order_class(workflow_key="o-1", state=OrderState()))
        session.add(order_class(workflow_key="o-2", state=OrderState()))
        session.add(rush_class(workflow_key="r-1", state=OrderState()))
        session.commit()
        commits = [
            Commit(
                key,
                expected_version=1,
                state=OrderState(status="sent"),
                provenance=Provenance.now(),
            )
            for key in ("o-1", "o-2", "r-1")
        ]
        *others, own = try_commit_many(session, rush_class, commits)
        assert isinstance(own, StateCommitted)
        assert isinstance(
            try_commit(
                session,
                rush_class,
                "o-1",
                expected_version=1,
                state=OrderState(),
                provenance=Provenance.now(),
            ),
            StateConflict,
        )
        assert [each.reason for each in others] == [ConflictReason.MISSING] * 2
        assert get_state(session, order_class, "o-1").version == 1
        session.commit()
        session.expunge_all()
        session.add(rush_class(workflow_key="o-1", state=OrderState()))
        with pytest.raises(StateConflict, match="exists already at version 1"):
            session.flush()


def test_joined_inheritance(engine: Engine, base: Any) -> None:
    """A change in either table counts in the version of the base's row."""
    _, rush_class = joined(base)
    base.metadata.create_all(engine)
    with Session(engine) as session, Session(engine) as other:
        session.add(rush_class(workflow_key="r-1", state=OrderState(), courier="bike"))
        session.commit()
        rush = session.get_one(rush_class, "r-1")
        rush.courier = "van"
        session.commit()
        assert rush.version == 2
        rush.state.status = "sent"
        stale = other.get_one(rush_class, "r-1")
        session.commit()
        assert get_state(session, rush_class, "r-1").version == 3
        stale.courier = "drone"
        with pytest.raises(StateConflict, match=r"Rush 'r-1': expected version 2"):
            other.commit()
        with pytest.raises(MappingError, match="second table"):
            try_commit(
                session,
                rush_class,
                "r-2",
                expected_version=0,
                state=OrderState(),
                provenance={"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"},
            )
    assert checks(rush_class) == {}


def test_version_cannot_be_assigned(base: Any) -> None:
    """Neither the constructor nor an attribute takes a version."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"

    with pytest.raises(VersionNotAssignable, match="expected_version"):
        Order(workflow_key="o-1", version=3)
    order = Order(workflow_key="o-1", state=OrderState())
    with pytest.raises(VersionNotAssignable):
        order.version = 7


def test_given_table_is_mapped(engine: Engine, base: Any) -> None:
    """A Table made elsewhere is mapped if it has the columns, and gets the CHECKs."""
    columns: list[Column[Any]] = [
        Column("workflow_key", Text, primary_key=True),
        Column("version", BigInteger, nullable=False),
        Column("updated_at", DateTime(timezone=True), server_default=func.now()),
        Column("schema_version", Integer, server_default="1"),
        Column("provenance", PydanticJSON(Provenance)),
    ]
    state = Column("state", PydanticJSON(OrderState))

    class Order(WorkflowStateMixin[OrderState], base):
        __table__ = Table("orders", base.metadata, *columns, state)

    base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))
        session.commit()
        session.get_one(Order, "o-1").state.status = "paid"
        session.commit()
        assert get_state(session, Order, "o-1").version == 2
    assert len(checks(Order)) == 2


def test_given_table_with_plain_json_is_refused(base: Any) -> None:
    """A column that would hold anything is named."""
    columns: list[Column[Any]] = [
        Column("workflow_key", Text, primary_key=True),
        Column("version", BigInteger),
        Column("state", PydanticJSON(OrderState)),
        Column("updated_at", DateTime),
        Column("schema_version", Integer),
        Column("provenance", JSON),
    ]
    problem = r"Order: column 'provenance' .* must be a PydanticJSON, not JSON"
    with pytest.raises(MappingError, match=problem):

        class Order(WorkflowStateMixin[OrderState], base):
            __table__ = Table("orders", base.metadata, *columns)


def test_related_rows_do_not_count_as_a_change(engine: Engine, base: Any) -> None:
    """A row added to a collection of a workflow writes that row only."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"
        items: Mapped[list[Item]] = relationship()

    class Item(base):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)
        order: Mapped[str] = mapped_column(ForeignKey("orders.workflow_key"))

    base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))
        session.commit()
        order = session.get_one(Order, "o-1")
        assert order.state.status == "new"
        order.items.append(Item(id=1))
        session.commit()
        assert (order.version, len(order.items)) == (1, 1)


def test_bulk_insert_gets_a_provenance(engine: Engine, base: Any) -> None:
    """An INSERT of many rows, which no mapper event sees, has one as well."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"

    base.metadata.create_all(engine)
    with Session(engine) as session:
        rows = [{"workflow_key": key, "state": OrderState()} for key in ("a", "b")]
        session.execute(insert(Order), rows)
        session.commit()
        effects = {each.provenance.effect_id for each in session.scalars(select(Order))}
    assert len(effects) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, 7, None, "a\0b"])
def test_bad_key_is_refused_when_it_is_set(base: Any, key: Any) -> None:
    """A key that cannot be stored does not wait for the database to say so."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"

    with pytest.raises(PayloadError, match="Order, at 'workflow_key'"):
        Order(workflow_key=key)


def test_write_without_provenance_gets_the_default(engine: Engine, base: Any) -> None:
    """Each write has its own effect id; one that was given is kept."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"
        __table_args__ = (Index(None, "note"),)
        note: Mapped[str | None] = mapped_column(String(20))

    base.metadata.create_all(engine)
    with Session(engine) as session:
        order = Order(workflow_key="o-1", state=OrderState())
        session.add(order)
        session.commit()
        effects = [order.provenance.effect_id]
        order.note = "x"
        session.commit()
        effects.append(order.provenance.effect_id)
        order.state.status = "paid"
        order.provenance = order.provenance.model_copy(update={"effect_id": "mine"})
        session.commit()
        effects.append(order.provenance.effect_id)
    assert len(set(effects)) == 3
    assert effects[2] == "mine"


def test_updated_at_is_there_after_each_flush(engine: Engine, base: Any) -> None:
    """It comes back with the write: an AsyncSession could not load it later."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"

    base.metadata.create_all(engine)
    with Session(engine) as session:
        order = Order(workflow_key="o-1", state=OrderState())
        session.add(order)
        session.flush()
        assert {"updated_at", "version"} <= set(inspect(order).dict)
        session.commit()
        first = order.updated_at
        order.state.status = "paid"
        session.flush()
        assert {"updated_at", "version"} <= set(inspect(order).dict)
        assert order.updated_at > first
