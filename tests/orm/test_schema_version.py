"""Schema versions: old rows are read as the current model, over every driver."""

from __future__ import annotations

import json
import pickle
from types import new_class
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import (
    ForeignKey,
    cast,
    create_engine,
    except_,
    false,
    func,
    insert,
    inspect,
    select,
    text,
    type_coerce,
    union,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    defer,
    joinedload,
    lazyload,
    mapped_column,
    relationship,
    selectinload,
)

from sa_wfstate import (
    CanonicalStore,
    Commit,
    PayloadError,
    Provenance,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.errors import MappingError, SchemaVersionAhead
from sa_wfstate.payload.schema_versions import PayloadSchema
from sa_wfstate.upcasting import Upcaster, skip_unreadable, upcast_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine


class Base(DeclarativeBase):
    pass


class OldBase(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    orders: Mapped[list[Order]] = relationship(order_by="Order.workflow_key")


class OldState(BaseModel):
    """Version 2, as the previous release has it."""

    status: str = "new"
    lines: list[str] = []


class OrderState(BaseModel):
    """Version 3; an older payload would validate, with the wrong meaning."""

    model_config = ConfigDict(extra="ignore")

    status: str = "new"
    lines: list[str] = []
    vip: bool = False


def v1_to_v2(data: Any) -> Any:
    """Rename the lines."""
    data["lines"] = data.pop("items", [])
    return data


def v2_to_v3(data: Any) -> Any:
    """Add a field that follows from another."""
    return data | {"vip": "gold" in data["lines"]}


def v3_to_v2(data: Any) -> Any:
    """Leave the new field out."""
    del data["vip"]
    return data


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __schema_version__ = 3
    __upcasters__ = {1: v1_to_v2, 2: v2_to_v3}  # noqa: RUF012

    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customers.id"))
    note: Mapped[str | None]


class OldOrder(WorkflowStateMixin[OldState], OldBase):
    """The same table, as the previous release maps it."""

    __tablename__ = "orders"
    __schema_version__ = 2
    __upcasters__ = {1: v1_to_v2}  # noqa: RUF012

    note: Mapped[str | None]


class BridgeBase(DeclarativeBase):
    pass


class BridgeOrder(WorkflowStateMixin[OrderState], BridgeBase):
    """The release in between: it reads version 3 and still writes version 2."""

    __tablename__ = "orders"
    __schema_version__ = 3
    __upcasters__ = {1: v1_to_v2, 2: v2_to_v3}  # noqa: RUF012
    __write_schema_version__ = 2
    __downcasters__ = {3: v3_to_v2}  # noqa: RUF012

    note: Mapped[str | None]


ROWS = """
    INSERT INTO customers VALUES (1);
    INSERT INTO orders (workflow_key, customer_id, schema_version, state, provenance)
    SELECT key, 1, schema_version, CAST(state AS JSONB),
           '{"effect_id": "e-0", "timestamp": "2026-01-01T00:00:00Z"}'
    FROM (VALUES
        ('o-1', 1, '{"status": "paid", "items": ["gold"]}'),
        ('o-2', 2, '{"status": "paid", "lines": ["gold"]}'),
        ('o-3', 3, '{"status": "paid", "lines": ["gold"], "vip": true}')
    ) AS rows (key, schema_version, state)
"""
CURRENT = OrderState(status="paid", lines=["gold"], vip=True)
KEYS = ["o-1", "o-2", "o-3"]


def run(database: URL, script: str) -> None:
    """Run the statements of *script*."""
    engine = create_engine(database)
    with engine.begin() as connection:
        for statement in script.split(";"):
            connection.exec_driver_sql(statement)
    engine.dispose()


def raw(engine: Engine, key: str) -> tuple[int, int, Any]:
    """Read version, schema version and the JSON data of a row as they are."""
    with engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT version, schema_version, CAST(state AS TEXT) FROM orders "
                "WHERE workflow_key = :key"
            ),
            {"key": key},
        ).one()
    return row[0], row[1], json.loads(row[2])


@pytest.fixture(autouse=True)
def _orders(create_tables: Callable[..., None], database: URL) -> None:
    create_tables(Base.metadata)
    run(database, ROWS)


def run_upcast(engine: Engine) -> None:
    """Let the newest release rewrite the rows, as its bulk job does."""
    assert upcast_all(engine, Order).upcast


def provenance() -> Provenance:
    """Make a provenance of its own for a write."""
    return Provenance.now()


def reads(session: Session) -> dict[str, list[OrderState]]:
    """Read the three orders in every way there is."""
    by_key = select(Order).order_by(Order.workflow_key)
    state = select(Order.state).order_by(Order.workflow_key)
    inner = by_key.subquery()
    found: dict[str, list[Any]] = {}
    found["get"] = [session.get_one(Order, key).state for key in KEYS]
    session.expunge_all()
    orders = session.scalars(by_key).all()
    found["entities"] = [order.state for order in orders]
    for order in orders:
        session.refresh(order)
    found["refresh"] = [order.state for order in orders]
    for order in orders:
        session.refresh(order, ["state"])
    found["refresh of the state"] = [order.state for order in orders]
    session.expire_all()
    found["expired"] = [order.state for order in orders]
    session.expunge_all()
    without = session.scalars(by_key.options(defer(Order.schema_version))).all()
    found["without its schema version"] = [order.state for order in without]
    session.expunge_all()
    deferred = session.scalars(by_key.options(defer(Order.state))).all()
    found["deferred"] = [order.state for order in deferred]
    session.expunge_all()
    found["column"] = [*session.scalars(state)]
    found["label"] = [*session.scalars(select(Order.state.label("s")).order_by("s"))]
    found["Core"] = [*session.scalars(select(Order.__table__.c.state))]
    found["alias"] = [order.state for order in session.scalars(select(aliased(Order)))]
    found["subquery"] = [*session.scalars(select(inner.c.state))]
    union = select(Order).union_all(select(Order)).subquery()
    found["union"] = [*session.scalars(select(union.c.state).limit(3))]
    cte = by_key.cte()
    found["CTE"] = [*session.scalars(select(cte.c.state))]
    found["entity of a subquery"] = [
        order.state for order in session.scalars(select(aliased(Order, inner)))
    ]
    session.expunge_all()
    found["get_state"] = [get_state(session, Order, key).state for key in KEYS]
    for load in (joinedload, selectinload):
        session.expunge_all()
        one = select(Customer).options(load(Customer.orders))
        customer = session.scalars(one).unique().one()
        found[load.__name__] = [order.state for order in customer.orders]
    session.expunge_all()
    customer = session.scalars(select(Customer)).one()
    found["lazy load"] = [order.state for order in customer.orders]
    session.expunge_all()
    options = {"wfstate_unversioned": True}
    returning = update(Order).values(note="x").execution_options(**options)
    found["UPDATE RETURNING"] = [
        *session.scalars(returning.returning(Order.state)),
    ]
    session.expunge_all()
    found["UPDATE RETURNING entity"] = [
        order.state for order in session.scalars(returning.returning(Order))
    ]
    session.expunge_all()
    textual = text("SELECT * FROM orders ORDER BY workflow_key")
    found["textual SELECT"] = [
        order.state for order in session.scalars(select(Order).from_statement(textual))
    ]
    return found


@pytest.mark.contract
def test_every_way_to_read_gives_the_current_model(engine: Engine) -> None:
    """An old payload is upcast even where it would validate as it is.

    So it is when SQLAlchemy takes a statement, and how to get its rows, from its cache.
    """
    with Session(engine) as session:
        for _ in range(2):
            for way, states in reads(session).items():
                assert states == [CURRENT] * 3, way
            session.rollback()
    store = CanonicalStore(engine, Order)
    assert [store.get_state(key).state for key in KEYS] == [CURRENT] * 3


def test_getter_of_a_state_is_made_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each execution, as SQLAlchemy does for what is no plain column."""
    calls: list[str] = []
    loader = type(inspect(Order).attrs["state"].strategy)
    make = loader.create_row_processor

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(self.key)
        make(self, *args, **kwargs)

    monkeypatch.setattr(loader, "create_row_processor", counted)
    with Session(engine) as session:
        for _ in range(3):
            key = select(Order.workflow_key.label("a_label_of_this_test")).limit(1)
            order = session.scalars(
                select(Order).where(Order.workflow_key == key.scalar_subquery())
            ).one()
            assert order.state == CURRENT
            session.expunge_all()
    assert calls == ["state"]


@pytest.mark.contract
def test_textual_columns_do_not_tell_the_schema_version(engine: Engine) -> None:
    """An old state must not be taken for a current one, and then written as that."""
    names = "workflow_key, version, schema_version, state"
    columns = Order.workflow_key, Order.version, Order.schema_version, Order.state
    orders = text(f"SELECT {names} FROM orders").columns(*columns)
    states = text("SELECT state FROM orders").columns(Order.__table__.c.state)
    nothing = text("SELECT CAST(NULL AS JSONB) AS state").columns(Order.state)
    with Session(engine) as session:
        for query in select(Order).from_statement(orders), states:
            with pytest.raises(MappingError, match="by textual SQL without its schema"):
                session.execute(query).all()
        assert session.scalars(nothing).all() == [None]


def test_old_state_beside_a_schema_version_that_is_newer(engine: Engine) -> None:
    """Its text is of the row that it was read from, not of the one read since."""
    with Session(engine) as session:
        orders = session.scalars(select(Order).order_by(Order.workflow_key)).all()
        session.connection().exec_driver_sql("UPDATE orders SET schema_version = 3")
        for order in orders:
            session.refresh(order, ["schema_version"])
        assert [order.state for order in orders] == [CURRENT] * 3


@pytest.mark.contract
def test_reading_writes_nothing(engine: Engine) -> None:
    """Rows that were upcast on read stay as they are, and keep their version."""
    before = [raw(engine, key) for key in KEYS]
    with Session(engine) as session:
        orders = session.scalars(select(Order)).all()
        assert all(order.state.vip for order in orders)
        for order in orders:
            order.state = order.state.model_copy()
        session.commit()
    assert [raw(engine, key) for key in KEYS] == before


@pytest.mark.contract
def test_next_change_writes_the_new_shape(engine: Engine) -> None:
    """Shape and schema version go together, in a flush and in a commit."""
    expected = {"status": "sent", "lines": ["gold"], "vip": True}
    with Session(engine) as session:
        session.get_one(Order, "o-1").state.status = "sent"
        session.commit()
        assert raw(engine, "o-1") == (2, 3, expected)
        sent = CURRENT.model_copy(update={"status": "sent"})
        arguments: dict[str, Any] = {"expected_version": 1, "state": sent}
        assert try_commit(session, Order, "o-2", **arguments, provenance=provenance())
        commit = Commit("o-3", **arguments, provenance=provenance())
        assert all(try_commit_many(session, Order, [commit]))
        session.commit()
    assert raw(engine, "o-2") == (2, 3, expected)
    assert raw(engine, "o-3") == (2, 3, expected)


@pytest.mark.contract
def test_change_of_another_column_leaves_the_payload_alone(engine: Engine) -> None:
    """Only a change of the state writes a new shape."""
    before = raw(engine, "o-1")
    with Session(engine) as session:
        session.get_one(Order, "o-1").note = "call back"
        session.commit()
    assert raw(engine, "o-1") == (2, *before[1:])


@pytest.mark.contract
def test_new_rows_have_the_current_schema_version(engine: Engine) -> None:
    """Whichever way a row is made, it says which shape it has."""
    with Session(engine) as session:
        session.add(Order(workflow_key="n-1", state=CURRENT))
        session.flush()
        made = try_commit(
            session,
            Order,
            "n-2",
            expected_version=0,
            state=CURRENT,
            provenance=provenance(),
        )
        commit = Commit(
            "n-3", expected_version=0, state=CURRENT, provenance=provenance()
        )
        assert made
        assert all(try_commit_many(session, Order, [commit]))
        session.execute(insert(Order), [{"workflow_key": "n-4", "state": CURRENT}])
        session.commit()
    assert [raw(engine, f"n-{number}")[1] for number in range(1, 5)] == [3] * 4


def ahead(database: URL) -> None:
    """Let newer code have written a row."""
    run(database, "UPDATE orders SET schema_version = 4 WHERE workflow_key = 'o-3'")


@pytest.mark.contract
def test_newer_row_is_refused(engine: Engine, database: URL) -> None:
    """Entity, key and both versions are named, and nothing of the payload."""
    ahead(database)
    expected = r"Order 'o-3' has schema version 4, .* versions up to 3; leave"
    with Session(engine) as session:
        order = session.get_one(Order, "o-3")
        assert order.version == 1
        with pytest.raises(SchemaVersionAhead, match=expected) as caught:
            _ = order.state
        with pytest.raises(SchemaVersionAhead, match=expected):
            session.scalars(select(Order.state)).all()
        with pytest.raises(SchemaVersionAhead, match=expected):
            get_state(session, Order, "o-3")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.schema_version, copy.known, str(copy)) == (4, 3, str(caught.value))
    assert "gold" not in str(copy)


@pytest.mark.contract
def test_newer_row_is_not_written_over(engine: Engine, database: URL) -> None:
    """Neither by code that never looked at the state, nor by a commit in any form."""
    ahead(database)
    before = raw(engine, "o-3")
    arguments: dict[str, Any] = {"expected_version": 1, "state": CURRENT}
    for options in ([], [defer(Order.state)], [defer(Order.schema_version)]):
        with Session(engine) as session:
            order = session.get_one(Order, "o-3", options=options)
            order.state = OrderState(status="sent")
            with pytest.raises(SchemaVersionAhead):
                session.commit()
    with Session(engine) as session:
        with pytest.raises(SchemaVersionAhead):
            try_commit(session, Order, "o-3", **arguments, provenance=provenance())
        commit = Commit("o-3", **arguments, provenance=provenance())
        with pytest.raises(SchemaVersionAhead):
            try_commit_many(session, Order, [commit])
    store = CanonicalStore(engine, Order)
    with pytest.raises(SchemaVersionAhead):
        store.try_commit(
            workflow_key="o-3",
            expected_version=1,
            state=CURRENT,
            provenance=provenance(),
        )
    assert raw(engine, "o-3") == before


@pytest.mark.contract
def test_old_and_new_code_side_by_side(engine: Engine) -> None:
    """Read 3, write 2: both releases work on the rows, until only new code is left."""
    with Session(engine) as session:
        session.get_one(BridgeOrder, "o-3").state.status = "open"
        bridge = session.get_one(BridgeOrder, "o-1")
        assert bridge.state == CURRENT
        bridge.state.status = "open"
        session.add(BridgeOrder(workflow_key="o-4", state=CURRENT))
        session.commit()
        committed = try_commit(
            session,
            BridgeOrder,
            "o-2",
            expected_version=1,
            state=CURRENT.model_copy(update={"status": "open"}),
            provenance=provenance(),
        )
        assert committed
        assert committed.snapshot.state.vip
        assert bridge.state.vip
        commit = Commit(
            "o-5", expected_version=0, state=CURRENT, provenance=provenance()
        )
        (many,) = try_commit_many(session, BridgeOrder, [commit])
        assert many
        session.commit()
    for key in (*KEYS, "o-4", "o-5"):
        assert raw(engine, key)[1] == 2, key
        assert "vip" not in raw(engine, key)[2], key

    with Session(engine) as session:  # the previous release, meanwhile
        for order in session.scalars(select(OldOrder)):
            order.state.status = "old"
        session.commit()
    with Session(engine) as session:  # the next one
        order = session.get_one(Order, "o-1")
        assert order.state == OrderState(status="old", lines=["gold"], vip=True)
        order.state.vip = False
        session.commit()
        assert raw(engine, "o-1")[1] == 3
    with Session(engine) as session:  # what it wrote, the release in between can read
        assert session.get_one(BridgeOrder, "o-1").state.vip is False
        with pytest.raises(SchemaVersionAhead):
            _ = session.get_one(OldOrder, "o-1").state


@pytest.mark.contract
def test_old_code_writes_a_row_that_was_upcast_meanwhile(engine: Engine) -> None:
    """A bulk upcast does not count the version, so shape and number go together."""
    with Session(engine) as session:
        order = session.get_one(OldOrder, "o-2")
        order.state.status = "old"
        run_upcast(engine)
        session.commit()
    assert raw(engine, "o-2") == (2, 2, {"status": "old", "lines": ["gold"]})


@pytest.mark.contract
def test_merge_over_a_row_that_was_upcast_meanwhile(engine: Engine) -> None:
    """What was detached before it has the old number, which is not written."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-2")
    run_upcast(engine)
    with Session(engine) as session:
        assert session.merge(order).state == CURRENT
        session.commit()
        assert raw(engine, "o-2")[:2] == (1, 3)
        order.note = "call back"
        session.merge(order)
        session.commit()
    assert raw(engine, "o-2")[:2] == (2, 3)


@pytest.mark.contract
def test_schema_version_cannot_be_assigned(engine: Engine) -> None:
    """It follows the state."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.schema_version = 3
        session.commit()
        assert raw(engine, "o-1")[:2] == (1, 1)
        order.schema_version = 2
        order.note = "call back"
        session.commit()
        assert order.schema_version == 1
        order.schema_version = 2
        order.state.status = "sent"
        session.commit()
    assert raw(engine, "o-1")[:2] == (3, 3)


@pytest.mark.contract
def test_broken_payload_names_the_row(engine: Engine, database: URL) -> None:
    """Entity, key, schema version and path are named, the payload is not."""
    run(
        database,
        'UPDATE orders SET state = \'{"status": 7, "lines": []}\' '
        "WHERE workflow_key <> 'o-1'",
    )
    with Session(engine) as session:
        for key, version in (("o-2", 2), ("o-3", 3)):
            expected = f"Order '{key}' state (schema version {version}), at 'status': "
            with pytest.raises(PayloadError) as caught:
                _ = session.get_one(Order, key).state
            assert str(caught.value).startswith(expected)
            with pytest.raises(PayloadError) as caught:
                get_state(session, Order, key)
            assert str(caught.value).startswith(expected)


@pytest.mark.contract
def test_failing_upcaster_names_the_row(engine: Engine, database: URL) -> None:
    """What an upcaster raises is the cause, and never shown."""
    run(database, "UPDATE orders SET state = '[]' WHERE workflow_key = 'o-1'")
    with Session(engine) as session, pytest.raises(PayloadError) as caught:
        _ = session.get_one(Order, "o-1").state
    message = "Order 'o-1' state (schema version 1): the step from version 1 raised"
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value.__cause__, AttributeError | TypeError)


@pytest.mark.contract
def test_unreadable_rows_can_be_skipped(engine: Engine, database: URL) -> None:
    """A query over many rows goes on, and tells which rows it has left out."""
    ahead(database)
    run(database, "UPDATE orders SET state = '7' WHERE workflow_key = 'o-1'")
    errors: list[Any] = []
    with Session(engine) as session:
        query = session.scalars(select(Order).order_by(Order.workflow_key))
        orders = list(skip_unreadable(query, errors.append))
        assert [order.workflow_key for order in orders] == ["o-2"]
        session.commit()
    assert [type(error) for error in errors] == [PayloadError, SchemaVersionAhead]
    assert "'o-1'" in str(errors[0])
    assert "'o-3'" in str(errors[1])


@pytest.mark.contract
@pytest.mark.parametrize("load", [lazyload, joinedload, selectinload])
def test_unreadable_rows_of_a_relationship_can_be_skipped(
    engine: Engine, database: URL, load: Any
) -> None:
    """Loading them raises nothing, and so does a change beside the state."""
    run(database, BREAK)
    errors: list[Any] = []
    with Session(engine) as session:
        query = select(Customer).options(load(Customer.orders))
        customer = session.scalars(query).unique().one()
        for order in customer.orders:
            order.note = "call back"
        read = list(skip_unreadable(customer.orders, errors.append))
        assert [order.workflow_key for order in read] == ["o-1", "o-2"]
        session.commit()
    assert [str(error)[:11] for error in errors] == ["Order 'o-3'"]
    assert raw(engine, "o-3") == (2, 3, {"status": 7})


def test_sqlite_names_rows_too() -> None:
    """For unit tests of an application, with keys of any characters."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    key = "o '\x1f\n\"€"
    with engine.begin() as connection:
        rows = [(key, 2, '{"lines": []}'), ("o-2", 2, '{"lines": []}')]
        for row in [*rows, ("o-3", 3, "{}")]:
            connection.exec_driver_sql(
                "INSERT INTO orders (workflow_key, schema_version, state, provenance) "
                "VALUES (?, ?, ?, '{}')",
                row,
            )
    states = [OrderState()] * 2
    with Session(engine) as session:
        query = select(Order.state)
        assert session.scalars(query.where(Order.schema_version == 2)).all() == states
        assert session.scalars(query.group_by(Order.workflow_key)).first() == states[0]
        for version in (2, 3):
            session.connection().exec_driver_sql(
                "UPDATE orders SET schema_version = ?, "
                'state = \'{"status": 7, "lines": []}\' WHERE workflow_key = ?',
                (version, key),
            )
            with pytest.raises(PayloadError) as caught:
                session.scalars(query).all()
            where = f"Order {key!r} state (schema version {version})"
            assert caught.value.where == where
    engine.dispose()


@pytest.mark.contract
def test_outer_join_without_a_row_gives_none(engine: Engine) -> None:
    """No row, no state."""
    with Session(engine) as session:
        session.add(Customer(id=2))
        session.flush()
        query = select(Order.state).join_from(Customer, Order, isouter=True)
        assert session.scalars(query.where(Customer.id == 2)).all() == [None]


BREAK = "UPDATE orders SET state = '{\"status\": 7}' WHERE workflow_key = 'o-3'"
INNER = select(Order).subquery()
NAMING = {
    "column": select(Order.state),
    "Core": select(Order.__table__.c.state),
    "label": select(Order.state.label("s")).order_by("s"),
    "ordered": select(Order.state).order_by(Order.state),
    "alias": select(aliased(Order).state),
    "subquery": select(INNER.c.state),
    "CTE": select(select(Order).cte().c.state),
    "columns of an entity": select(Order).with_only_columns(Order.state),
    "RETURNING": update(Order)
    .values(note="x")
    .returning(Order.state)
    .execution_options(wfstate_unversioned=True),
    "UNION ALL": union_all(select(Order.state), select(Order.state)),
    "GROUP BY key": select(Order.state).group_by(Order.workflow_key),
}
COMPARING = {
    "GROUP BY": select(Order.state, func.count()).group_by(Order.state),
    "DISTINCT": select(Order.state).distinct(),
    "UNION": union(select(Order.state), select(Order.state)),
    "EXCEPT": except_(select(Order.state), select(Order.state).where(false())),
    "nested": union(
        union_all(select(Order.state), select(Order.state)), select(Order.state)
    ),
    "subquery": select(INNER.c.state).distinct(),
}


@pytest.mark.contract
@pytest.mark.parametrize("query", NAMING.values(), ids=list(NAMING))
def test_every_query_names_the_row(engine: Engine, database: URL, query: Any) -> None:
    """Of a row at the current version, too, whether or not its key is selected."""
    run(database, BREAK)
    expected = r"^Order 'o-3' state \(schema version 3\), at 'status': "
    with Session(engine) as session, pytest.raises(PayloadError, match=expected):
        session.execute(query).all()
    ahead(database)
    expected = r"^Order 'o-3' has schema version 4"
    with Session(engine) as session, pytest.raises(SchemaVersionAhead, match=expected):
        session.execute(query).all()


@pytest.mark.contract
@pytest.mark.parametrize("query", COMPARING.values(), ids=list(COMPARING))
def test_query_that_compares_states_is_refused(engine: Engine, query: Any) -> None:
    """Two shapes of one state would be two states, and one text two states."""
    with Session(engine) as session:
        expected = "Order: its state cannot be selected with DISTINCT, .*cast"
        with pytest.raises(MappingError, match=expected):
            session.execute(query)


@pytest.mark.contract
@pytest.mark.filterwarnings("ignore:Passing expression to ``distinct``")
def test_plain_json_and_entities_can_be_compared(engine: Engine) -> None:
    """What the error of a query that compares states advises."""
    plain = cast(Order.state, JSONB)
    alike = select(Order).distinct()
    with Session(engine) as session:
        assert len(session.scalars(select(plain).distinct()).all()) == 3
        counted = session.execute(select(plain, func.count()).group_by(plain)).all()
        assert [count for _, count in counted] == [1] * 3
        for entities in (alike, select(Order).group_by(Order.workflow_key)):
            read = session.scalars(entities)
            assert [order.state for order in read] == [CURRENT] * 3
        latest = select(Order.state).distinct(Order.workflow_key)
        assert session.scalars(latest).all() == [CURRENT] * 3
        subquery = alike.subquery()
        assert session.scalars(select(subquery.c.state)).all() == [CURRENT] * 3


@pytest.mark.contract
@pytest.mark.parametrize(
    "expression",
    [
        select(Order.state).subquery().c.state,
        select(Order.state).limit(1).scalar_subquery(),
        func.coalesce(Order.state, Order.state),
        select(Order.state.label("s"), Order.note).cte().c.s,
    ],
)
def test_state_without_its_schema_version_is_refused(
    engine: Engine, expression: Any
) -> None:
    """Rather than to take an old payload for a new one."""
    expected = "its state is selected without the schema_version of its row"
    with Session(engine) as session:
        with pytest.raises(MappingError, match=expected):
            session.scalars(select(expression)).all()
        plain = select(type_coerce(expression, JSONB))
        assert session.scalars(plain).first()["status"] == "paid"


@pytest.mark.contract
def test_merge_of_an_old_row(engine: Engine) -> None:
    """A detached instance of an old row is merged as the current model."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
    with Session(engine) as session:
        merged = session.merge(order)
        assert merged.state == CURRENT
        session.commit()
    assert raw(engine, "o-1")[:2] == (1, 1)


async def later(data: Any) -> Any:
    """Be no upcaster."""
    return data


def define(**attributes: Any) -> Any:
    """Define a workflow class with *attributes*."""

    class FreshBase(DeclarativeBase):
        pass

    namespace = {"__tablename__": "claims", "__module__": __name__, **attributes}
    bases = (WorkflowStateMixin[OrderState], FreshBase)
    return new_class("Claim", bases, exec_body=lambda ns: ns.update(namespace))


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"__schema_version__": 0}, "__schema_version__ must be an int from 1"),
        ({"__schema_version__": True}, "__schema_version__ must be an int from 1"),
        ({"__schema_version__": "2"}, "__schema_version__ must be an int from 1"),
        ({"__schema_version__": 2}, "__upcasters__ has no step from version 1"),
        (
            {"__schema_version__": 4, "__upcasters__": {1: v1_to_v2, 3: v2_to_v3}},
            "__upcasters__ has no step from version 2",
        ),
        ({"__upcasters__": {1: v1_to_v2}}, "__upcasters__ has a step from version 1"),
        (
            {"__schema_version__": 2, "__upcasters__": {1: v1_to_v2, 2: v2_to_v3}},
            "__upcasters__ has a step from version 2",
        ),
        (
            {"__schema_version__": 2, "__upcasters__": {1: "state || '{}'"}},
            r"__upcasters__\[1\] must be a function of the JSON data, got str",
        ),
        (
            {"__schema_version__": 2, "__upcasters__": {1: Upcaster("f", "state")}},  # type: ignore[arg-type]
            r"__upcasters__\[1\] must be a function of the JSON data, got str",
        ),
        (
            {"__schema_version__": 2, "__upcasters__": {1: later}},
            r"__upcasters__\[1\] must be a function of the JSON data, got an async one",
        ),
        (
            {"__schema_version__": 2, "__upcasters__": [v1_to_v2]},
            "__upcasters__ must be a dict of functions by version, got list",
        ),
        (
            {"__schema_version__": 1, "__write_schema_version__": 2},
            "__write_schema_version__ is beyond",
        ),
        (
            {
                "__schema_version__": 2,
                "__upcasters__": {1: v1_to_v2},
                "__write_schema_version__": 1,
            },
            "__downcasters__ has no step from version 2",
        ),
    ],
)
def test_wrong_declaration_is_refused(attributes: Any, problem: str) -> None:
    """A gap, a step too many or a wrong type fails when the class is defined."""
    with pytest.raises(MappingError, match=f"Claim: {problem}"):
        define(**attributes)


def test_subclass_has_the_schema_of_its_base() -> None:
    """The state is in the table of the base."""

    class FreshBase(DeclarativeBase):
        pass

    class Claim(WorkflowStateMixin[OrderState], FreshBase):
        __tablename__ = "claims"
        kind: Mapped[str]
        __mapper_args__ = {  # noqa: RUF012
            "polymorphic_on": "kind",
            "polymorphic_identity": "claim",
        }

    with pytest.raises(
        MappingError, match=r"Rush: __schema_version__ belongs on Claim"
    ):

        class Rush(Claim):
            __schema_version__ = 2
            __mapper_args__ = {"polymorphic_identity": "rush"}  # noqa: RUF012


def test_upcaster_in_two_languages_is_a_function() -> None:
    """On read the function is used."""
    step = Upcaster(v1_to_v2, "state - 'items'")
    schema = PayloadSchema("Order", 2, {1: step})
    assert schema.read('v[1,"o-1",{"items":["a"]}]') == '{"lines":["a"]}'
    assert schema.read('{"lines":[]}') == '{"lines":[]}'


def test_table_of_the_applications_own_is_upcast_too() -> None:
    """A class mapped with ``__table__`` has schema versions like any other."""
    claim = define(__schema_version__=2, __upcasters__={1: v1_to_v2})
    other = define(
        __table__=claim.__table__.to_metadata(claim.metadata, name="others"),
        __tablename__=None,
        __schema_version__=2,
        __upcasters__={1: v1_to_v2},
    )
    assert other.__table__.c.state.type.payload_schema.version == 2
    assert "CAST(others.schema_version AS TEXT)" in str(select(other.state))
