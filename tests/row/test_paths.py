"""Typed paths: names are checked, values dumped as the field is, indexes used."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import Index, create_engine, event, select, text
from sqlalchemy.orm import DeclarativeBase, Session, aliased
from typing_extensions import TypedDict

from sa_wfstate import PayloadError, WorkflowStateMixin, field_of
from sa_wfstate.errors import MappingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class Tier(Enum):
    GOLD = "gold"
    SILVER = "silver"


class Customer(BaseModel):
    name: str
    tier: Tier = Tier.SILVER
    since: date | None = None


@dataclasses.dataclass
class Place:
    city: str


class Note(TypedDict):
    author: str


class OrderState(BaseModel):
    status: Literal["new", "paid"] = "new"
    customer: Customer | None = None
    reference: UUID = UUID(int=0)
    total: Decimal = Decimal(0)
    count: int = 0
    weight: float = 0.0
    urgent: bool = False
    due: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    patience: timedelta = timedelta(0)
    lines: list[Customer] = []
    odd_name: str = Field("", alias="odd 'name', \"100%\" {\\}")
    free: dict[str, Any] = {}
    by_day: dict[date, int] = {}
    place: Place = Place("")
    note: Note = {"author": ""}


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __table_args__ = ()


ODD = "odd 'name', \"100%\" {\\}"
FULL = OrderState.model_validate(
    {
        "status": "paid",
        "customer": Customer(name="Ada", tier=Tier.GOLD, since=date(2026, 1, 2)),
        "reference": UUID(int=7),
        "total": Decimal("12.50"),
        "count": 3,
        "weight": 1.5,
        "urgent": True,
        "due": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "patience": timedelta(hours=1),
        "lines": [Customer(name="Bob")],
        ODD: "here",
        "free": {"deep": {"list": [1, 2]}},
        "by_day": {date(2026, 1, 2): 5},
        "place": Place("Utrecht"),
        "note": {"author": "Eve"},
    }
)


@pytest.fixture(autouse=True)
def _orders(create_tables: Callable[..., None], database: URL) -> None:
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        session.add(Order(workflow_key="empty", state=OrderState()))
        session.add(Order(workflow_key="full", state=FULL))
        session.commit()
    plain.dispose()


def customer() -> Any:
    """Return the customer, which may be None, to go on from."""
    return field_of(Order.state, lambda state: state.customer)


CRITERIA: list[Callable[[], Any]] = [
    lambda: field_of(Order.state, lambda s: s.status) == "paid",
    lambda: field_of(Order.state, lambda s: s.status).in_(["paid"]),
    lambda: field_of(Order.state, lambda s: s.status).like("p%"),
    lambda: field_of(customer(), lambda c: c.tier) == Tier.GOLD,
    lambda: field_of(customer(), lambda c: c.since) == date(2026, 1, 2),
    lambda: field_of(customer(), lambda c: c.since) > date(2026, 1, 1),
    lambda: field_of(customer(), lambda c: c.since).is_not(None),
    lambda: customer() == FULL.customer,
    lambda: customer().is_not(None),
    lambda: field_of(Order.state, lambda s: s.reference) == UUID(int=7),
    lambda: field_of(Order.state, lambda s: s.total) == Decimal("12.5"),
    lambda: field_of(Order.state, lambda s: s.total) > Decimal(2),
    lambda: field_of(Order.state, lambda s: s.count) + 1 == 4,
    lambda: field_of(Order.state, lambda s: s.count).between(2, 3),
    lambda: field_of(Order.state, lambda s: s.weight) > 1.2,
    lambda: field_of(Order.state, lambda s: s.urgent).is_(True),
    lambda: field_of(Order.state, lambda s: s.due) > datetime(2026, 2, 1, tzinfo=UTC),
    lambda: field_of(Order.state, lambda s: s.patience) == timedelta(hours=1),
    lambda: field_of(Order.state, lambda s: s.lines[0].name) == "Bob",
    lambda: field_of(Order.state, lambda s: s.lines) != [],
    lambda: field_of(Order.state, lambda s: s.odd_name) == "here",
    lambda: field_of(Order.state, lambda s: s.free["deep"]["list"][1]) == 2,
    lambda: field_of(Order.state, lambda s: s.by_day[date(2026, 1, 2)]) == 5,
    lambda: field_of(Order.state, lambda s: s.place.city) == "Utrecht",
    lambda: field_of(Order.state, lambda s: s.note["author"]) == "Eve",
    lambda: field_of(Order.state, lambda s: s.free).contains({"deep": {"list": [2]}}),
]


def test_field_is_compared_as_it_is_stored(engine: Engine) -> None:
    """Whatever the type of the field, the comparison finds the one row."""
    with Session(engine) as session:
        for criterion in CRITERIA:
            statement = select(Order.workflow_key).where(criterion())
            assert session.scalars(statement).all() == ["full"], statement


PICKS: list[Callable[[Any], Any]] = [
    lambda s: s.status,
    lambda s: s.customer,
    lambda s: s.customer.tier,
    lambda s: s.customer.since,
    lambda s: s.reference,
    lambda s: s.total,
    lambda s: s.count,
    lambda s: s.weight,
    lambda s: s.urgent,
    lambda s: s.due,
    lambda s: s.patience,
    lambda s: s.lines,
    lambda s: s.place,
    lambda s: s.free["deep"],
]


def test_field_is_selected_as_its_type(engine: Engine) -> None:
    """A selected field has the value that the model has."""
    with Session(engine) as session:
        for pick in PICKS:
            column = field_of(Order.state, pick)
            statement = select(column).where(Order.workflow_key == "full")
            value = session.scalars(statement).one()
            assert value == pick(FULL)
            assert type(value) is type(pick(FULL))


SPECIAL = [
    *(
        "tab\there",
        "line\nbreak",
        "bell\x07",
        "back\\slash",
        "a\\tb",
        "both\\\"quotes'",
    ),
    *("{brace}", "com,ma", "100%", "a:b", "a::b", "$.x", "NULL", "", " ", "é\u2028😀"),
]


@pytest.mark.parametrize("key", SPECIAL, ids=ascii)
def test_path_reads_the_very_key(engine: Engine, key: str) -> None:
    """Whatever a key is made of, no other key is read."""
    others = dict.fromkeys((*SPECIAL, "tabthere", "linenbreak", "atb"), "wrong")
    held = OrderState(free={**others, key: {"deep": "right"}})
    lite = create_engine("sqlite://")
    Base.metadata.create_all(lite)
    # SQLite has no path to an empty key, nor to one that holds a quote.
    for each in [engine, *([lite] if key and '"' not in key else [])]:
        with Session(each) as session:
            session.add(Order(workflow_key="k", state=held))
            session.flush()
            deep = field_of(Order.state, lambda state: state.free[key]["deep"])
            found = session.scalars(select(deep).where(Order.workflow_key == "k"))
            assert found.one() == "right"
    lite.dispose()


def test_path_of_an_alias(engine: Engine) -> None:
    """An aliased entity has the same paths."""
    other = aliased(Order)
    statement = select(other.workflow_key).where(
        field_of(other.state, lambda s: s.status) == "paid"
    )
    with Session(engine) as session:
        assert session.scalars(statement).all() == ["full"]


def test_statements_with_different_paths_do_not_share_a_cache(engine: Engine) -> None:
    """The same statement with another path gives another result."""
    with Session(engine) as session:
        for pick in (lambda s: s.lines[0].name, lambda s: s.note["author"]):
            column = field_of(Order.state, pick)
            statement = select(column).where(Order.workflow_key == "full")
            assert session.scalars(statement).one() == pick(FULL)


WRONG: list[Callable[[Any], Any]] = [
    lambda s: s.statuz,
    lambda s: s.customer.nmae,
    lambda s: s.lines.name,
    lambda s: s.note["autor"],
    lambda s: s.place.town,
    lambda s: s.status[0],
    lambda _: "status",
]


def test_wrong_field_fails_at_once() -> None:
    """A name that the model does not have is an error before there is a statement."""
    for pick in WRONG:
        with pytest.raises(MappingError):
            field_of(Order.state, pick)


def test_wrong_value_fails_at_once() -> None:
    """A value that the field cannot hold is an error before there is a statement."""
    status = field_of(Order.state, lambda s: s.status)
    with pytest.raises(PayloadError):
        status == "lost"  # noqa: B015


INDEXED: list[Callable[[], Any]] = [
    lambda: field_of(Order.state, lambda s: s.status) == "paid",
    lambda: field_of(Order.state, lambda s: s.customer.tier) == Tier.GOLD,  # type: ignore[union-attr]
    lambda: field_of(Order.state, lambda s: s.total) > Decimal(2),
    lambda: field_of(Order.state, lambda s: s.odd_name) == "here",
]


def test_expression_index_is_used(engine: Engine) -> None:
    """An index made of a path serves a query by that path."""
    with engine.connect() as connection:
        for number, criterion in enumerate(INDEXED):
            index = Index(
                f"idx_path_{number}", criterion().left, _table=Order.__table__
            )
            Order.__table__.indexes.discard(index)  # type: ignore[attr-defined]
            index.create(connection)
            statement = select(Order.version).where(criterion())
            assert index.name in plan(connection, statement)


def test_gin_index_is_used(engine: Engine) -> None:
    """A GIN index on a part serves containment in that part."""
    free = field_of(Order.state, lambda s: s.free)
    index = Index("idx_free", free, _table=Order.__table__, postgresql_using="gin")
    Order.__table__.indexes.discard(index)  # type: ignore[attr-defined]
    with engine.connect() as connection:
        index.create(connection)
        statement = select(Order.version).where(free.contains({"deep": {}}))  # type: ignore[arg-type]
        assert "idx_free" in plan(connection, statement)


def plan(connection: Any, statement: Any) -> str:
    """Return how PostgreSQL would run *statement* if sequential scans were dear."""
    connection.execute(text("SET LOCAL enable_seqscan = off"))

    def prefix(*arguments: Any) -> Any:
        _, _, sql, parameters, *_ = arguments
        return f"EXPLAIN {sql}", parameters

    event.listen(connection, "before_cursor_execute", prefix, retval=True)
    try:
        result = connection.execute(statement.with_only_columns(Order.workflow_key))
        return "\n".join(result.scalars())
    finally:
        event.remove(connection, "before_cursor_execute", prefix)


def test_paths_work_on_sqlite() -> None:
    """Unit tests of an application's queries run on SQLite as well."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Order(workflow_key="full", state=FULL))
        session.flush()
        for pick in (
            lambda s: s.status,
            lambda s: s.customer,
            lambda s: s.total,
            lambda s: s.count,
            lambda s: s.urgent,
            lambda s: s.lines[0].name,
        ):
            column = field_of(Order.state, pick)
            assert session.scalars(select(column)).one() == pick(FULL)
    engine.dispose()
