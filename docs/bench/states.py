"""Reading, changing and committing a state, against psycopg without an ORM.

Each table compares ways to do one thing, for states of about 0.3, 2, 20 and 200 kB, as
ratios to raw psycopg with ``validate_json`` and ``to_json``, in one run. The usual
recipe is a TypeDecorator over JSONB with ``model_validate`` and ``model_dump``. Where
it is SQLAlchemy that costs, its Core with the same statement is there to compare with.

    python docs/bench/states.py [--quick]
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from _harness import Result, compare, postgresql, print_table, save
from _usual import UsualJSON
from pydantic import BaseModel, Field, TypeAdapter
from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Engine,
    Integer,
    Text,
    bindparam,
    cast,
    column,
    create_engine,
    func,
    insert,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import (
    CanonicalStore,
    Provenance,
    StateCommitted,
    WorkflowStateMixin,
)
from sa_wfstate.orm.tracking import changed_in_place

try:
    from sqlalchemy_pydantic_json import EmbeddedPydanticModel
except ImportError:  # Only one contender less.
    EmbeddedPydanticModel = None

QUICK = "--quick" in sys.argv
ROUNDS = 7 if QUICK else 31
MANY = 1000
SIZES = {"0.3 kB": 0, "2 kB": 25, "20 kB": 285, "200 kB": 2850}
if QUICK:
    SIZES = {"2 kB": 25}


class Tier(StrEnum):
    GOLD = "gold"
    SILVER = "silver"


class Address(BaseModel):
    street: str
    city: str
    country: str = "NL"


class Customer(BaseModel):
    id: UUID
    name: str
    tier: Tier
    address: Address


class Line(BaseModel):
    sku: str
    quantity: int
    price: Decimal
    tags: list[str] = []


class OrderState(BaseModel):
    status: str = "new"
    created: datetime
    customer: Customer
    lines: list[Line] = []
    notes: dict[str, str] = {}
    total: float = 0.0


def state_of(lines: int) -> OrderState:
    """Make an order with so many lines."""
    return OrderState(
        created=datetime(2026, 1, 1, tzinfo=UTC),
        customer=Customer(
            id=UUID(int=7),
            name="Ada Lovelace",
            tier=Tier.GOLD,
            address=Address(street="Oudegracht 1", city="Utrecht"),
        ),
        lines=[
            Line(sku=f"sku-{n:05}", quantity=n, price=Decimal("12.50"), tags=["a", "b"])
            for n in range(lines)
        ],
        notes={"channel": "web"},
    )


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class Unchecked(WorkflowStateMixin[OrderState], Base):
    """The same without the round-trip check."""

    __tablename__ = "unchecked"
    __state_options__ = {"round_trip": False}  # noqa: RUF012


class Usual(Base):
    __tablename__ = "usual"

    workflow_key: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[OrderState] = mapped_column(UsualJSON(OrderState))

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


ENTITIES: dict[str, type[Any]] = {
    "sa_wfstate": Order,
    "sa_wfstate, round_trip=False": Unchecked,
    "the usual recipe": Usual,
}

if EmbeddedPydanticModel is not None:

    class TAddress(EmbeddedPydanticModel):  # type: ignore[misc]
        street: str
        city: str
        country: str = "NL"

    class TCustomer(EmbeddedPydanticModel):  # type: ignore[misc]
        id: UUID
        name: str
        tier: Tier
        address: TAddress

    class TLine(EmbeddedPydanticModel):  # type: ignore[misc]
        sku: str
        quantity: int
        price: Decimal
        tags: list[str] = Field(default_factory=list)

    class TState(EmbeddedPydanticModel):  # type: ignore[misc]
        status: str = "new"
        created: datetime
        customer: TCustomer
        lines: list[TLine] = Field(default_factory=list)
        notes: dict[str, str] = Field(default_factory=dict)
        total: float = 0.0

    class Embedded(Base):
        __tablename__ = "embedded"

        workflow_key: Mapped[str] = mapped_column(primary_key=True)
        version: Mapped[int] = mapped_column(BigInteger)
        state: Mapped[TState] = mapped_column(TState.column(JSONB))

        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    ENTITIES["sqlalchemy-pydantic-json"] = Embedded

ADAPTER = TypeAdapter(OrderState)
READ = "SELECT version, state::text FROM orders WHERE workflow_key = %s"
SWAP = """UPDATE orders SET version = %s, state = %s::jsonb, updated_at = now()
    WHERE workflow_key = %s AND version = %s"""
BUMP = """UPDATE orders SET version = %s, updated_at = now(), provenance = %s::jsonb
    WHERE workflow_key = %s AND version = %s"""
PROVENANCE = Provenance.now("bench")

CORE = "SQLAlchemy Core, the same statement"
PLAIN = table(
    "orders",
    column("workflow_key", Text),
    column("version", BigInteger),
    column("state", Text),
    column("updated_at", DateTime(timezone=True)),
    column("schema_version", Integer),
    column("provenance", Text),
)
CORE_READ = select(
    PLAIN.c.workflow_key,
    PLAIN.c.version,
    cast(PLAIN.c.state, Text),
    PLAIN.c.updated_at,
    PLAIN.c.schema_version,
    cast(PLAIN.c.provenance, Text),
).where(PLAIN.c.workflow_key == bindparam("key"))
CORE_SWAP = (
    update(PLAIN)
    .where(
        PLAIN.c.workflow_key == bindparam("key"),
        PLAIN.c.version == bindparam("expected"),
    )
    .values(
        version=PLAIN.c.version + 1,
        state=cast(bindparam("new_state", type_=Text), JSONB),
        updated_at=func.now(),
        schema_version=bindparam("new_schema_version"),
        provenance=cast(bindparam("new_provenance", type_=Text), JSONB),
    )
    .returning(PLAIN.c.updated_at)
)


def autocommit(connection: Connection) -> Connection:
    """Return *connection*, which comes out of the pool, committing by itself."""
    return connection.execution_options(isolation_level="AUTOCOMMIT")


def to_json(state: OrderState) -> str:
    """Dump as all contenders do that take care."""
    return ADAPTER.serializer.to_json(state, by_alias=True, round_trip=True).decode()


def fill(engine: Engine, state: OrderState, rows: int = MANY) -> None:
    """Put equal rows into each table."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    plain = state.model_dump(mode="json")
    with engine.begin() as connection:
        for entity in ENTITIES.values():
            value = (
                TState.model_validate(plain) if entity.__name__ == "Embedded" else state
            )
            more = {"provenance": PROVENANCE} if hasattr(entity, "provenance") else {}
            connection.execute(
                insert(entity.__table__),  # type: ignore[arg-type]
                [
                    {"workflow_key": f"o-{n}", "version": 1, "state": value, **more}
                    for n in range(rows)
                ],
            )
        connection.execute(text("ANALYZE"))


def read_one(engine: Engine, raw: psycopg.Connection[Any]) -> dict[str, Result]:
    """Read one row by its key in a session of its own, and use its state."""

    def by_hand() -> None:
        _, state = raw.execute(READ, ("o-1",)).fetchone()  # type: ignore[misc]
        assert ADAPTER.validator.validate_json(state).status  # type: ignore[attr-defined]
        raw.rollback()

    def in_session(entity: type[Any]) -> Callable[[], None]:
        def run() -> None:
            with Session(engine) as session:
                assert session.get_one(entity, "o-1").state.status

        return run

    contenders = {"raw psycopg": by_hand}
    contenders |= {name: in_session(entity) for name, entity in ENTITIES.items()}
    return compare(contenders, baseline="raw psycopg", rounds=ROUNDS)


def read_many(
    engine: Engine, raw: psycopg.Connection[Any], *, used: bool
) -> dict[str, Result]:
    """Read MANY rows, and use each state or none."""
    sql = "SELECT workflow_key, version, state::text FROM orders"

    def by_hand() -> None:
        validate = ADAPTER.validator.validate_json
        for _, _, state in raw.execute(sql):
            assert validate(state).status  # type: ignore[attr-defined]
        raw.rollback()

    def in_session(entity: type[Any]) -> Callable[[], None]:
        def run() -> None:
            with Session(engine) as session:
                for row in session.scalars(select(entity)):
                    assert not used or row.state.status

        return run

    def states_only() -> None:
        with Session(engine) as session:
            for state in session.scalars(select(Order.state)):
                assert state.status

    contenders = {"raw psycopg": by_hand}
    contenders |= {name: in_session(entity) for name, entity in ENTITIES.items()}
    if used:
        contenders["sa_wfstate, select(Order.state)"] = states_only
    return compare(contenders, baseline="raw psycopg", rounds=max(5, ROUNDS // 4))


def change_one(engine: Engine, raw: psycopg.Connection[Any]) -> dict[str, Result]:
    """Read one row, change its state in place, commit."""
    numbers = count()

    def by_hand() -> None:
        version, text_ = raw.execute(READ, ("o-1",)).fetchone()  # type: ignore[misc]
        state = ADAPTER.validator.validate_json(text_)
        state.status = f"s{next(numbers)}"  # type: ignore[attr-defined]
        raw.execute(SWAP, (version + 1, to_json(state), "o-1", version))  # type: ignore[arg-type]
        raw.commit()

    def in_session(entity: type[Any]) -> Callable[[], None]:
        copies = entity is Usual

        def run() -> None:
            with Session(engine) as session:
                row = session.get_one(entity, "o-2")
                if copies:  # It sees no change in place.
                    row.state = row.state.model_copy(
                        update={"status": f"s{next(numbers)}"}
                    )
                else:
                    row.state.status = f"s{next(numbers)}"
                session.commit()

        return run

    contenders = {"raw psycopg": by_hand}
    contenders |= {name: in_session(entity) for name, entity in ENTITIES.items()}
    return compare(contenders, baseline="raw psycopg", rounds=ROUNDS)


def get_state(engine: Engine, raw: psycopg.Connection[Any]) -> dict[str, Result]:
    """Read a snapshot, in autocommit."""
    store = CanonicalStore(engine, Order)
    plain = create_engine(engine.url)  # Without what the library listens to.

    def by_hand() -> None:
        _, state = raw.execute(READ, ("o-1",)).fetchone()  # type: ignore[misc]
        assert ADAPTER.validator.validate_json(state)

    def in_core() -> None:
        with plain.connect() as connection:
            row = autocommit(connection).execute(CORE_READ, {"key": "o-1"}).one()
            assert ADAPTER.validator.validate_json(row[2])

    contenders = {
        "raw psycopg": by_hand,
        CORE: in_core,
        "sa_wfstate": lambda: store.get_state("o-1"),
    }
    results = compare(contenders, baseline="raw psycopg", rounds=ROUNDS)
    plain.dispose()
    return results


def try_commit(
    engine: Engine, raw: psycopg.Connection[Any], state: OrderState
) -> dict[str, Result]:
    """Compare and set, in autocommit, with the version known."""
    plain = create_engine(engine.url)
    versions = {"raw": 1, "core": 1, "checked": 1, "unchecked": 1}
    versions["raw"] = raw.execute(READ, ("o-5",)).fetchone()[0]  # type: ignore[index]

    def by_hand() -> None:
        state.status = f"s{versions['raw'] % 10}"
        version = versions["raw"]
        raw.execute(SWAP, (version + 1, to_json(state), "o-5", version))
        versions["raw"] += 1

    def in_core() -> None:
        state.status = f"s{versions['core'] % 10}"
        values = {
            "key": "o-7",
            "expected": versions["core"],
            "new_state": to_json(state),
            "new_schema_version": 1,
            "new_provenance": PROVENANCE.model_dump_json(),
        }
        with plain.connect() as connection:
            assert autocommit(connection).execute(CORE_SWAP, values).scalar_one()
        versions["core"] += 1

    def through(entity: type[Any], name: str, key: str) -> Callable[[], None]:
        store: CanonicalStore[OrderState] = CanonicalStore(engine, entity)

        def run() -> None:
            state.status = f"s{versions[name] % 10}"
            outcome = store.try_commit(
                workflow_key=key,
                expected_version=versions[name],
                state=state,
                provenance=PROVENANCE,
            )
            assert outcome
            versions[name] += 1

        return run

    contenders = {
        "raw psycopg": by_hand,
        CORE: in_core,
        "sa_wfstate": through(Order, "checked", "o-6"),
        "sa_wfstate, round_trip=False": through(Unchecked, "unchecked", "o-6"),
    }
    results = compare(contenders, baseline="raw psycopg", rounds=ROUNDS)
    plain.dispose()
    return results


def commit_unchanged(engine: Engine, raw: psycopg.Connection[Any]) -> dict[str, Result]:
    """Compare and set a state that is what was read: sent, or left as it is."""
    store = CanonicalStore(engine, Order)
    versions = {"o-9": 1, "o-10": 1}
    state = store.get_state("o-9").state
    provenance = PROVENANCE.model_dump_json()

    def by_hand(sql: str, key: str, what: Callable[[], str]) -> Callable[[], None]:
        def run() -> None:
            raw.execute(sql, (versions[key] + 1, what(), key, versions[key]))
            versions[key] += 1

        return run

    def through(key: str, *, told: bool) -> Callable[[], None]:
        base = store.get_state(key)

        def run() -> None:
            nonlocal base
            outcome = store.try_commit(
                workflow_key=key,
                expected_version=base.version,
                state=base.state,
                provenance=PROVENANCE,
                base=base if told else None,
            )
            assert isinstance(outcome, StateCommitted)
            base = outcome.snapshot

        return run

    contenders = {
        "raw psycopg": by_hand(SWAP, "o-9", lambda: to_json(state)),
        "raw psycopg, without the state": by_hand(BUMP, "o-10", lambda: provenance),
        "sa_wfstate": through("o-11", told=False),
        "sa_wfstate, base=": through("o-12", told=True),
    }
    return compare(contenders, baseline="raw psycopg", rounds=ROUNDS)


def look_at_touched(engine: Engine) -> dict[str, Result]:
    """Flush a session with one touched and unchanged state."""
    with Session(engine) as clean, Session(engine) as touched:
        clean.get_one(Order, "o-8")
        held = touched.get_one(Order, "o-8")
        value, codec = held.state, Order.__table__.c.state.type.codec  # type: ignore[attr-defined]
        text_ = to_json(value)
        return compare(
            {
                "to_json": lambda: to_json(value),
                "look at one touched state": lambda: changed_in_place(held),
                "check that it survives": lambda: codec.check(value, text_),
                "flush, one touched": touched.flush,
                "flush, nothing touched": clean.flush,
            },
            baseline="to_json",
            rounds=ROUNDS,
        )


def memory(engine: Engine) -> None:
    """Read 100,000 rows in batches, and print what the session held at its peak."""
    total = 5_000 if QUICK else 100_000
    with Session(engine) as session:
        session.execute(
            text(
                "INSERT INTO orders (workflow_key, version, state, provenance)"
                " SELECT 'm-' || n, 1, state, provenance FROM orders,"
                " generate_series(1, :total) AS n WHERE workflow_key = 'o-1'"
            ),
            {"total": total},
        )
        statement = select(Order).execution_options(yield_per=1000)
        for touched in (False, True):
            session.expunge_all()
            tracemalloc.start()
            held = rows = 0
            for order in session.scalars(statement):
                rows += 1
                if touched:
                    assert order.state.status
                held = max(held, len(session.identity_map))
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            what = "each state read" if touched else "no state read"
            print(f"{rows} rows, {what}: held {held} at most, {peak:.0f} MB at peak")
        session.rollback()


def main() -> None:
    """Print every table, and keep the figures for the plot."""
    tables: dict[str, dict[str, dict[str, Result]]] = {}

    def note(title: str, size: str, results: dict[str, Result]) -> None:
        tables.setdefault(title, {})[size] = results

    with postgresql(fsync="off") as url:
        engine = create_engine(url)
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with (
            psycopg.connect(dsn) as raw,
            psycopg.connect(dsn, autocommit=True) as autocommitting,
        ):
            for size, lines in SIZES.items():
                state = state_of(lines)
                fill(engine, state, MANY if lines < 2000 else 20)
                note("Read one in a Session", size, read_one(engine, raw))
                if lines < 2000:
                    results = read_many(engine, raw, used=True)
                    note("Read 1,000, use each state", size, results)
                    results = read_many(engine, raw, used=False)
                    note("Read 1,000, use no state", size, results)
                note("Read, change, commit", size, change_one(engine, raw))
                note(
                    "CanonicalStore.get_state", size, get_state(engine, autocommitting)
                )
                results = try_commit(engine, autocommitting, state)
                note("CanonicalStore.try_commit", size, results)
                results = commit_unchanged(engine, autocommitting)
                note("CanonicalStore.try_commit, state unchanged", size, results)
                note("Look for a change", size, look_at_touched(engine))
                if lines == min(SIZES.values()):
                    memory(engine)
        engine.dispose()
    for title, columns in tables.items():
        print_table(title, columns)
    if not QUICK:
        save(Path(__file__).with_suffix(".json"), tables)


if __name__ == "__main__":
    main()
