"""A table upcast in bulk: rows a second, and how much memory the job takes.

Every order starts at schema version 1 and ends at 3, by two steps. *python* fetches
each payload, runs the steps, validates and writes; *sql* leaves it to the server;
*shared* is two jobs in Python at once. Then the states of 1,000 orders are read:
*plain*, from a column that knows no schema versions; at the current version; and at
version 1, upcast on the way.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from functools import partial
from typing import Any

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from sqlalchemy import create_engine, select, text, type_coerce
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import PydanticJSON, WorkflowStateMixin
from sa_wfstate.upcasting import Upcaster, UpcastReport, upcast_all

LINES = 20
ORDERS = f"""
    INSERT INTO orders (workflow_key, schema_version, state, provenance)
    SELECT CAST(:prefix AS text) || n, 1, jsonb_build_object('status', 'new', 'items', (
             SELECT jsonb_agg(jsonb_build_object('sku', md5(n || ' ' || line), 'n', n))
             FROM generate_series(1, {LINES}) AS line)),
           '{{"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}}'
    FROM generate_series(1, CAST(:rows AS int)) AS n
"""


class Line(BaseModel):
    sku: str
    n: int


class OrderState(BaseModel):
    status: str
    lines: list[Line]
    vip: bool


class Base(DeclarativeBase):
    pass


def v1_to_v2(data: Any) -> Any:
    """Rename the lines."""
    data["lines"] = data.pop("items")
    return data


def v2_to_v3(data: Any) -> Any:
    """Add a field."""
    return data | {"vip": False}


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __schema_version__ = 3
    __upcasters__ = {  # noqa: RUF012
        1: Upcaster(
            v1_to_v2, "state - 'items' || jsonb_build_object('lines', state->'items')"
        ),
        2: Upcaster(v2_to_v3, "state || '{\"vip\": false}'"),
    }


def upcast(url: Any, batch_size: int, in_sql: bool, reports: Any) -> None:
    """Run one job in a process of its own, so that its memory can be told."""
    engine = create_engine(url)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = upcast_all(engine, Order, batch_size=batch_size, in_sql=in_sql)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reports.put((report, peak, peak - before))
    engine.dispose()


def measure(url: Any, name: str, options: argparse.Namespace) -> None:
    """Fill the table, upcast it, and print a row of figures."""
    fill(url, options.rows)
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    arguments = (url, options.batch_size, name == "sql", reports)
    count = 2 if name == "shared" else 1
    jobs = [context.Process(target=upcast, args=arguments) for _ in range(count)]
    for job in jobs:
        job.start()
    found: list[tuple[UpcastReport, int, int]] = [reports.get() for _ in jobs]
    for job in jobs:
        job.join()
    seconds = max(report.seconds for report, _, _ in found)
    done = sum(report.upcast for report, _, _ in found)
    assert done == options.rows
    peak, grown = max((peak, grown) for _, peak, grown in found)
    print(
        f"{name:8} {done:>11,} {seconds:>9.1f} {done / seconds:>11,.0f} "
        f"{peak / 1024:>9.0f} {grown / 1024:>9.0f}",
        flush=True,
    )


def fill(url: Any, rows: int, prefix: str = "order-") -> None:
    """Make orders at schema version 1."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text(ORDERS), {"rows": rows, "prefix": prefix})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE orders"))
        connection.execute(text("CHECKPOINT"))
    engine.dispose()


def empty(url: Any) -> None:
    """Drop the table."""
    engine = create_engine(url)
    Base.metadata.drop_all(engine)
    engine.dispose()


def read(url: Any) -> None:
    """Print what it costs to read states."""
    fill(url, 1000)
    engine = create_engine(url)
    upcast_all(engine, Order)
    fill(url, 1000, "old-")
    table = Order.__table__
    plain = type_coerce(table.c.state, PydanticJSON(OrderState))
    statements = {
        "plain": select(plain).where(table.c.schema_version == 3),
        "current version": select(Order.state).where(Order.schema_version == 3),
        "version 1": select(Order.state).where(Order.schema_version == 1),
    }

    def run(statement: Any) -> None:
        with Session(engine) as session:
            rows = session.execute(statement).all()
        assert len(rows) == 1000

    contenders: dict[str, Any] = {
        name: partial(run, statement) for name, statement in statements.items()
    }
    results = compare(contenders, baseline="plain", rounds=101)
    print_table("Read 1,000 states", {f"{LINES} lines": results})
    engine.dispose()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=1000)
    options = parser.parse_args()
    with postgresql() as url:
        read(url)
        empty(url)
        print(f"{'':8} {'rows':>11} {'seconds':>9} {'rows/s':>11} {'peak MB':>9} grown")
        for name in ("python", "sql", "shared"):
            measure(url, name, options)
            empty(url)


if __name__ == "__main__":
    main()
