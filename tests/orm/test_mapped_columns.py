"""A workflow class maps in each way that SQLAlchemy has, and takes columns over."""

from __future__ import annotations

import dataclasses
import inspect as python
from types import new_class
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    Integer,
    Table,
    Text,
    inspect,
    select,
)
from sqlalchemy.exc import InvalidRequestError, SADeprecationWarning
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    registry,
    relationship,
    synonym,
)

from sa_wfstate import (
    Provenance,
    PydanticJSON,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    get_state,
    try_commit,
)
from sa_wfstate.errors import MappingError


class OrderState(BaseModel):
    n: int = 0


@pytest.fixture
def base() -> Any:
    """Return a declarative base of its own."""

    class Base(DeclarativeBase):
        pass

    return Base


def write(entity: Any, engine: Engine, *, creates: bool = True) -> None:
    """Write a row in each way, and lose to another writer."""
    inspect(entity).local_table.metadata.create_all(engine)
    with Session(engine) as session, Session(engine) as other:
        order = entity(workflow_key="a", state=OrderState())
        session.add(order)
        session.commit()
        first = order.updated_at
        order.state.n = 1
        session.commit()
        assert order.version == 2
        assert order.updated_at > first
        for version, key in [(2, "a")] + [(0, "b")] * creates:
            outcome = try_commit(
                other,
                entity,
                key,
                expected_version=version,
                state=OrderState(n=2),
                provenance=Provenance.now(),
            )
            assert isinstance(outcome, StateCommitted)
        other.commit()
        order.state = OrderState(n=3)
        with pytest.raises(StateConflict, match="'a'"):
            session.commit()
        session.rollback()
        assert get_state(session, entity, "a").state.n == 2
        session.delete(session.scalars(select(entity).filter_by(n_key="a")).one())
        session.commit()


def columns(*names: str) -> list[Column[Any]]:
    """Return the columns of a Table: the key, version, state, updated_at and more."""
    key, version, state, updated_at, schema_version, provenance = names
    return [
        Column(key, Text),
        Column(version, BigInteger, nullable=False, server_default="1"),
        Column(state, PydanticJSON(OrderState), nullable=False),
        Column(updated_at, DateTime(timezone=True), nullable=False),
        Column(schema_version, Integer, nullable=False, server_default="1"),
        Column(provenance, PydanticJSON(Provenance), nullable=False),
    ]


CANONICAL = (
    "workflow_key",
    "version",
    "state",
    "updated_at",
    "schema_version",
    "provenance",
)
RENAMED = ("no", "lock", "payload", "changed", "shape", "origin")


def test_joined_and_single_inheritance_with_a_primary_key(
    engine: Engine, base: Any
) -> None:
    """A row is addressed by its key whichever class it is of."""

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {  # noqa: RUF012
            "polymorphic_on": "kind",
            "polymorphic_identity": "order",
        }
        n_key = synonym("workflow_key")

    class Rush(Order):
        __tablename__ = "rushes"
        id: Mapped[int] = mapped_column(ForeignKey("orders.id"), primary_key=True)
        fee: Mapped[int] = mapped_column(default=0)
        __mapper_args__ = {"polymorphic_identity": "rush"}  # noqa: RUF012

    class Gift(Order):
        __mapper_args__ = {"polymorphic_identity": "gift"}  # noqa: RUF012

    write(Rush, engine, creates=False)
    write(Order, engine)
    with Session(engine) as session:
        session.delete(session.scalars(select(Order)).one())
        session.commit()
    write(Gift, engine)


def test_concrete_inheritance_derives_from_an_abstract_base(
    engine: Engine, base: Any
) -> None:
    """Each class has a table of its own; a subclass that lacks columns is refused."""

    class Document(WorkflowStateMixin[OrderState], base):
        __abstract__ = True
        id: Mapped[int] = mapped_column(primary_key=True)

    class Order(Document):
        __tablename__ = "orders"
        n_key = synonym("workflow_key")

    class Claim(Document):
        __tablename__ = "claims"
        n_key = synonym("workflow_key")

    write(Order, engine)
    write(Claim, engine)
    with pytest.raises(MappingError, match="derive both classes from an abstract base"):

        class Rush(Order):
            __tablename__ = "rushes"
            id: Mapped[int] = mapped_column(primary_key=True)
            __mapper_args__ = {"concrete": True}  # noqa: RUF012


def test_subclass_of_a_class_that_is_no_workflow_is_refused(base: Any) -> None:
    """SQLAlchemy keeps the version in the table of the base."""

    class Document(base):
        __tablename__ = "documents"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(MappingError, match="derives from Document, which is no work"):

        class Order(WorkflowStateMixin[OrderState], Document):
            __tablename__ = "orders"
            id: Mapped[int] = mapped_column(
                ForeignKey("documents.id"), primary_key=True
            )


@pytest.mark.parametrize("kw_only", [False, True])
def test_dataclass(engine: Engine, *, kw_only: bool) -> None:
    """Key and state are keywords of its constructor; its own fields stay in order."""

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Base, kw_only=kw_only):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(init=False, primary_key=True)
        name: Mapped[str] = mapped_column(default="x")
        n_key = synonym("workflow_key", init=False)

    names = list(python.signature(Order).parameters)
    ours = ["workflow_key", "state", "provenance"]
    assert sorted(names) == sorted(["name", *ours])
    order = Order(workflow_key="z", state=OrderState(n=4))
    assert (order.name, order.state.n) == ("x", 4)
    assert "OrderState" not in repr(type(order))
    assert dataclasses.is_dataclass(Order)
    assert not dataclasses.is_dataclass(WorkflowStateMixin)
    assert Order.__table__.c.keys()[:3] == ["workflow_key", "version", "state"]
    write(Order, engine)


def test_dataclass_declares_its_own_key_and_inherits_it() -> None:
    """What the class declares itself stays; an abstract base hands it on."""

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Audited(WorkflowStateMixin[OrderState], Base):
        __abstract__ = True
        workflow_key: Mapped[int] = mapped_column(  # type: ignore[assignment]
            "id", primary_key=True, init=False
        )

    class Order(Audited):
        __tablename__ = "orders"

    class Claim(Audited, kw_only=True):
        __tablename__ = "claims"
        name: Mapped[str]

    assert list(python.signature(Order).parameters) == ["state", "provenance"]
    for entity in (Order, Claim):
        table: Any = entity.__table__
        assert [column.name for column in table.primary_key] == ["id"]


def test_dataclasses_of_one_registry(engine: Engine) -> None:
    """SQLAlchemy's decorator refuses a mixin; a base of its registry does the same."""
    mapped = registry()

    @mapped.mapped_as_dataclass
    class Customer:
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True)

    # SQLAlchemy 2.0 warns only.
    refusals = (InvalidRequestError, SADeprecationWarning)
    with pytest.raises(refusals, match="which is not a dataclass"):

        @mapped.mapped_as_dataclass
        class Refused(WorkflowStateMixin[OrderState]):
            __tablename__ = "refused"
            id: Mapped[int] = mapped_column(init=False, primary_key=True)

    class Base(MappedAsDataclass, DeclarativeBase):
        registry = mapped

    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(init=False, primary_key=True)
        customer_id: Mapped[int | None] = mapped_column(
            ForeignKey("customers.id"), init=False
        )
        customer: Mapped[Any] = relationship(Customer, default=None)

    mapped.metadata.create_all(engine)
    customer = Customer(id=1)
    order = Order(workflow_key="a", state=OrderState(), customer=customer)
    with Session(engine) as session:
        session.add(order)
        session.commit()
        assert (order.customer_id, order.version) == (1, 1)


def test_plain_registry(engine: Engine) -> None:
    """Without a declarative base."""
    mapped = registry()

    @mapped.mapped
    class Order(WorkflowStateMixin[OrderState]):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        n_key = synonym("workflow_key")

    write(Order, engine)


def test_imperative_mapping(engine: Engine) -> None:
    """Of a Table, whose columns may have other names; defaults are added."""
    for names in (CANONICAL, RENAMED):
        mapped = registry()
        table = Table(
            f"orders_{names[0]}",
            mapped.metadata,
            Column("id", Integer, primary_key=True),
            *columns(*names),
        )
        entity: Any = new_class("Order", (WorkflowStateMixin[OrderState],))
        entity.__init__ = _assign
        properties = dict(zip(CANONICAL, (table.c[n] for n in names), strict=True))
        properties["n_key"] = synonym("workflow_key")  # type: ignore[assignment]
        mapped.map_imperatively(entity, table, properties=properties)
        write(entity, engine)


def _assign(self: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(self, name, value)


def test_table_with_other_names(engine: Engine, base: Any) -> None:
    """Each column is named by its attribute."""
    table = Table(
        "orders",
        base.metadata,
        Column("id", Integer, primary_key=True),
        *columns(*RENAMED),
    )
    attributes: dict[str, Any] = dict(
        zip(CANONICAL, (table.c[n] for n in RENAMED), strict=True)
    )
    attributes |= {"__table__": table, "n_key": synonym("workflow_key")}
    bases = (WorkflowStateMixin[OrderState], base)
    entity: Any = new_class("Order", bases, {}, lambda body: body.update(attributes))
    write(entity, engine)


@pytest.mark.parametrize(
    ("name", "own", "wanted"),
    [
        ("state", mapped_column(Text), "a PydanticJSON, not Text"),
        ("version", mapped_column(Text), "a BigInteger or an Integer, not Text"),
        ("version", mapped_column(Float), "a BigInteger or an Integer, not Float"),
        ("updated_at", mapped_column(Date), "a DateTime, not Date"),
        ("schema_version", mapped_column(Text), "an Integer, not Text"),
        ("provenance", mapped_column(Text), "a PydanticJSON, not Text"),
    ],
)
def test_column_of_another_meaning_is_refused(
    engine: Engine, base: Any, name: str, own: Any, wanted: str
) -> None:
    """The error names the way, and the way works."""
    bases = (WorkflowStateMixin[OrderState], base)

    def declare(**attributes: Any) -> Any:
        attributes |= {"__tablename__": "orders", "n_key": synonym("workflow_key")}
        attributes["id"] = mapped_column(Integer, primary_key=True)
        return new_class("Order", bases, {}, lambda body: body.update(attributes))

    with pytest.raises(MappingError, match=f"must be {wanted}") as raised:
        declare(**{name: own})
    assert f"own_{name}: … = mapped_column('{name}', …)" in str(raised.value)
    ours = dict(zip(CANONICAL, columns(*CANONICAL), strict=True))[name]
    renamed = mapped_column(
        f"workflow_{name}",
        ours.type,
        nullable=False,
        server_default=ours.server_default,
    )
    way = {f"own_{name}": mapped_column(name, own.column.type), name: renamed}
    entity = declare(**way)
    assert {name, f"workflow_{name}"} <= set(entity.__table__.c.keys())
    write(entity, engine)


def test_attribute_that_is_no_column_is_refused(base: Any) -> None:
    """A relationship, say, that has the name of a column."""

    class Shop(base):
        __tablename__ = "shops"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(MappingError, match="attribute 'version' is no column"):

        class Order(WorkflowStateMixin[OrderState], base):
            __tablename__ = "orders"
            shop_id: Mapped[int] = mapped_column(ForeignKey("shops.id"))
            version: Mapped[Shop] = relationship()  # type: ignore[assignment]


def test_version_of_a_mixin_is_replaced(engine: Engine, base: Any) -> None:
    """Its ``__mapper_args__`` name a column that the class no longer has."""

    class Versioned:
        id = Column(Integer, primary_key=True)
        version_id = Column(Integer, nullable=False)
        __mapper_args__ = {"version_id_col": version_id}  # noqa: RUF012

    class Order(WorkflowStateMixin[OrderState], base, Versioned):
        __tablename__ = "orders"
        version: Mapped[int] = mapped_column("version_id", Integer)
        version_id = synonym("version")
        n_key = synonym("workflow_key")

    assert inspect(Order).version_id_col is Order.__table__.c.version_id
    write(Order, engine)


def test_existing_version_column_is_taken_over(engine: Engine, base: Any) -> None:
    """Under another name; one that is only named in __mapper_args__ says the way."""
    lock = mapped_column("lock_version", Integer, nullable=False)
    with pytest.raises(MappingError, match=r"mapped_column\('lock_version'"):

        class Refused(WorkflowStateMixin[OrderState], base):
            __tablename__ = "orders"
            lock_version = lock
            __mapper_args__ = {"version_id_col": lock}  # noqa: RUF012

    class Order(WorkflowStateMixin[OrderState], base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        version: Mapped[int] = mapped_column("lock_version", Integer, nullable=False)
        lock_version = synonym("version")
        n_key = synonym("workflow_key")

    assert inspect(Order).version_id_col is Order.__table__.c.lock_version
    write(Order, engine)
