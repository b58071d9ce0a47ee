"""What an idle poll of a ProjectionWorker costs on a large table.

python docs/bench/following.py [ROWS]

Once on a table without an index but its key, once with the index "recent", in one run
and with one and eight partitions. *A scan for each partition* is the search as it was:
the same question, asked for each partition by itself.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from sqlalchemy import Index, create_engine, text
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin
from sa_wfstate.projection import (
    Projection,
    ProjectionMixin,
    ProjectionWorker,
    WatermarkMixin,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
PARTITIONS = (1, 8)
FILL = (
    """
    INSERT INTO orders (workflow_key, version, state, updated_at, provenance)
    SELECT 'order-' || n, 3,
           jsonb_build_object('status', 'new', 'note', repeat(md5(n::text), 8)),
           now() - interval '1 day',
           jsonb_build_object('effect_id', md5(n::text), 'timestamp', now())
    FROM generate_series(1, :rows) n
    """,
    """
    INSERT INTO rows (workflow_key, version, tag, namespace)
    SELECT 'order-' || n, 3, 'new', 'shop' FROM generate_series(1, :rows) n
    """,
)
CHANGE = """
    UPDATE orders SET version = version + 1, updated_at = now()
    WHERE workflow_key IN (
        SELECT 'order-' || 1 + n::bigint * 7919 % :rows FROM generate_series(1, 5000) n
    )
"""
WITHOUT_INDEX = text("SET LOCAL enable_bitmapscan = off")
BASELINE = "a scan for each of 1"
BEFORE = text(
    """
    SELECT orders.workflow_key, orders.version, rows.version, orders.updated_at,
           EXTRACT(epoch FROM clock_timestamp() - orders.updated_at)
    FROM orders LEFT JOIN rows ON rows.workflow_key = orders.workflow_key
    WHERE (rows.version IS NULL OR rows.version < orders.version)
      AND (:partitions = 1
           OR abs(hashtext(orders.workflow_key) % :partitions) = :partition)
      AND orders.updated_at > :since
    ORDER BY orders.updated_at, orders.workflow_key LIMIT 500
    """
)


class Base(DeclarativeBase): ...


class OrderState(BaseModel):
    status: str = "new"
    note: str = ""


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class Row(ProjectionMixin, Base):
    __tablename__ = "rows"


class Watermark(WatermarkMixin, Base):
    __tablename__ = "watermarks"


def project(order: Any) -> dict[str, Any]:
    """Make the row of a projection."""
    return {"tag": order.state.status, "namespace": "shop"}


def scan_each(engine: Engine, partitions: int) -> Callable[[], object]:
    """Return a poll that searches once for each partition."""
    since = datetime.now(UTC) - timedelta(seconds=5)
    either = {"partitions": partitions, "since": since}

    def poll() -> None:
        for partition in range(partitions):
            with engine.begin() as connection:
                connection.execute(WITHOUT_INDEX)
                found = connection.execute(BEFORE, either | {"partition": partition})
                assert not found.all()

    return poll


def follow(engine: Engine, partitions: int) -> Callable[[], object]:
    """Return the poll of a worker."""
    worker = ProjectionWorker(
        engine, Projection(Order, Row, project), Watermark, partitions=partitions
    )
    worker.follow()
    return worker.follow


def polls_of(engine: Engine) -> dict[str, Callable[[], object]]:
    """Return the contenders, for what has been committed by now."""
    each = {f"a scan for each of {n}": scan_each(engine, n) for n in PARTITIONS}
    once = {f"one search, {n} partition(s)": follow(engine, n) for n in PARTITIONS}
    return each | once


def main() -> None:
    """Measure all of it."""
    settings = {"fsync": "off", "shared_buffers": "512MB", "max_wal_size": "8GB"}
    with postgresql(**settings) as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            for statement in FILL:
                connection.execute(text(statement), {"rows": ROWS})
        vacuum = engine.execution_options(isolation_level="AUTOCOMMIT")
        with vacuum.connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))
        polls = polls_of(engine)
        columns = {"no index": compare(polls, baseline=BASELINE, rounds=3)}
        recent = Index(
            "idx_orders_recent",
            Order.updated_at,
            postgresql_using="brin",
            postgresql_with={"pages_per_range": 16, "autosummarize": "on"},
        )
        begin = time.perf_counter()
        recent.create(engine)
        print(f"index made in {time.perf_counter() - begin:.1f} s")
        columns["recent"] = compare(polls, baseline=BASELINE, rounds=3)
        with engine.begin() as connection:
            connection.execute(text(CHANGE), {"rows": ROWS})
        while follow(engine, 1)():
            pass
        time.sleep(6)  # Longer than the overlap.
        after = "recent, after 5,000 commits"
        columns[after] = compare(polls_of(engine), baseline=BASELINE, rounds=3)
        print_table(f"An idle poll of {ROWS} workflows", columns)
        engine.dispose()


if __name__ == "__main__":
    main()
