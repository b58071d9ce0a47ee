"""What a commit, a read, a page and the upkeep cost as the tables grow.

Each size has tables of its own, filled by SQL (``INSERT … SELECT generate_series``), so
all sizes are measured side by side, in rounds that take turns: workflows without an
index, and others with one on ``updated_at`` (``--index``: "recent", a BRIN index, or
"updated", a B-tree), a history and a projection of the latter, a deduplication log.
``--largest`` is the last size, in rows of each of these tables; ``--save`` keeps the
figures for the picture. 10,000,000 rows need some 20 GB.

    python docs/bench/scale.py [--largest 1000000] [--save]
    python docs/bench/scale.py --cleanup 10000000
    python docs/bench/scale.py --churn 3600

The second clears a log that has expired altogether, while actions run; the third
commits to random workflows for so many seconds, with autovacuum as it is by default,
and shows what the tables have grown by, and how many updates were HOT. Without
``--durable`` commits do not wait for the disk.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from _harness import postgresql
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    Action,
    CanonicalStore,
    Provenance,
    ReducerService,
    StateCommitted,
    WorkflowStateMixin,
)
from sa_wfstate.dedup import ActionDedupMixin, cleanup_expired
from sa_wfstate.history import HistoryMixin, keep_history, trim_history
from sa_wfstate.projection import (
    Projection,
    ProjectionMixin,
    ProjectionWorker,
    WatermarkMixin,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

ROUNDS = 8
CALLS = 200
"""Calls of each contender in a round, of those that take one row."""

VERSIONS = 10
"""Versions in the history of each workflow that has one."""

AGE = timedelta(days=VERSIONS)

SERVER = {"shared_buffers": "1GB", "max_wal_size": "8GB"}


class OrderState(BaseModel):
    status: str = "new"
    total: int = 0


class Mapped(NamedTuple):
    """The classes of one size."""

    rows: int
    base: Any
    order: Any
    sale: Any
    history: Any
    projection: Projection[OrderState]
    watermarks: Any
    log: Any


def mapped(rows: int, index: str = "recent") -> Mapped:
    """Map classes of their own for a size; sales have an *index* on updated_at."""

    class Base(DeclarativeBase):
        pass

    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = f"orders_{rows}"

    class Sale(WorkflowStateMixin[OrderState], Base):
        __tablename__ = f"sales_{rows}"
        __workflow_indexes__ = (index,)

    class History(HistoryMixin, Base):
        __tablename__ = f"history_{rows}"

    class Row(ProjectionMixin, Base):
        __tablename__ = f"projection_{rows}"

    class Watermark(WatermarkMixin, Base):
        __tablename__ = f"watermarks_{rows}"

    class Actions(ActionDedupMixin, Base):
        __tablename__ = f"actions_{rows}"

    keep_history(Sale, History)
    projection = Projection(Sale, Row, lambda _: {"tag": "new", "namespace": "shop"})
    return Mapped(rows, Base, Order, Sale, History, projection, Watermark, Actions)


EFFECT = '{"effect_id": "00000000-0000-4000-8000-000000000000", "timestamp": "%s"}'
PROVENANCE = f"'{EFFECT % '2026-01-01T00:00:00Z'}'::jsonb"
STATE = """'{"status": "new", "total": 0}'::jsonb"""
COLUMNS = "workflow_key, version, state, schema_version, provenance"
VALUES = f"{STATE}, 1, {PROVENANCE}"

FILL = {
    "orders": f"({COLUMNS}, updated_at) SELECT 'order-' || n, 1, {VALUES},"
    " now() - interval '1 day' FROM generate_series(1, :rows) n",
    "sales": f"({COLUMNS}, updated_at) SELECT 'order-' || n, {VERSIONS}, {VALUES},"
    " now() - interval '1 day' FROM generate_series(1, :rows) n",
    "history": f"({COLUMNS}, committed_at) SELECT 'order-' || n, v, {VALUES},"
    f" now() - make_interval(days => {VERSIONS} - v) - interval '1 hour'"
    f" FROM generate_series(1, :rows / {VERSIONS}) n, generate_series(1, {VERSIONS}) v",
    "projection": "(workflow_key, version, tag, namespace) SELECT 'order-' || n,"
    f" {VERSIONS}, 'new', 'shop' FROM generate_series(1, :rows) n",
    "actions": "(workflow_key, action_id, result_hash, expires_at) SELECT"
    " 'order-' || n, gen_random_uuid(), md5(n::text) || md5(n::text),"
    " now() + interval '1 day' FROM generate_series(1, :rows) n",
}

EXPIRED = (
    "(workflow_key, action_id, result_hash, expires_at) SELECT 'order-' || n,"
    " gen_random_uuid(), md5(n::text) || md5(n::text), now() - interval '1 hour'"
    " FROM generate_series(1, :rows) n"
)


def fill(engine: Engine, classes: Mapped) -> None:
    """Fill the tables of a size."""
    classes.base.metadata.create_all(engine)
    for name, rows in FILL.items():
        begin = time.perf_counter()
        with engine.begin() as connection:
            insert = f"INSERT INTO {name}_{classes.rows} {rows}"
            connection.execute(text(insert), {"rows": classes.rows})
        print(
            f"{name}: {classes.rows:,} rows in {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    run(engine, "VACUUM ANALYZE")
    run(engine, "CHECKPOINT")


def run(engine: Engine, statement: str) -> None:
    """Run a statement outside a transaction."""
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(statement))


class Sizes:
    """The contenders of one size; each returns the seconds of one call."""

    def __init__(self, engine: Engine, classes: Mapped) -> None:
        self._engine, self._classes = engine, classes
        self._orders = CanonicalStore(engine, classes.order)
        self._sales = CanonicalStore(engine, classes.sale)
        self._versions: dict[Any, dict[str, int]] = {self._orders: {}, self._sales: {}}
        self._rounds = 0
        self._worker = ProjectionWorker(
            engine, classes.projection, classes.watermarks, overlap=0.0
        )
        self._worker.follow()

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Return the contenders by name."""
        return {
            "get_state": lambda: timed(self._read, CALLS),
            "a page of 50": lambda: timed(self._page, CALLS // 4),
            "try_commit": lambda: timed(lambda: self._commit(self._orders, 1), CALLS),
            "with history and an index": lambda: timed(
                lambda: self._commit(self._sales, VERSIONS), CALLS
            ),
            "cleanup_expired, 1,000 rows": self._clean,
            "trim_history, 1,000 rows looked at": self._trim,
            "follow, 100 commits": self._follow,
        }

    def _key(self) -> str:
        return f"order-{random.randint(1, self._classes.rows)}"

    def _read(self) -> None:
        assert self._orders.get_state(self._key()).state.status

    def _page(self) -> None:
        order = self._classes.order
        with Session(self._engine) as session:
            page = select(order).where(order.workflow_key > self._key())
            for each in session.scalars(page.order_by(order.workflow_key).limit(50)):
                assert each.state.status

    def _commit(self, store: CanonicalStore[OrderState], first: int) -> None:
        key, versions = self._key(), self._versions[store]
        outcome = store.try_commit(
            workflow_key=key,
            expected_version=versions.get(key, first),
            state=OrderState(total=random.randint(1, 1000)),
            provenance=Provenance.now("bench"),
        )
        assert isinstance(outcome, StateCommitted)
        versions[key] = outcome.version

    def _clean(self) -> float:
        table = self._classes.log.__tablename__
        with self._engine.begin() as connection:
            insert = f"INSERT INTO {table} {EXPIRED}"
            connection.execute(text(insert), {"rows": 2000})
        begin = time.perf_counter()
        deleted = cleanup_expired(self._engine, self._classes.log, batch=1000)
        assert deleted == 2000
        return (time.perf_counter() - begin) / 2

    def _trim(self) -> float:
        """Trim one version of each workflow in the first pages."""
        self._rounds += 1
        batches = 5
        before = timedelta(days=VERSIONS - self._rounds)
        seen = iter(range(1, batches + 1))

        def stop(_: int) -> None:
            if next(seen) == batches:
                raise StopIteration

        begin = time.perf_counter()
        with suppress(StopIteration):
            trim_history(self._engine, self._classes.sale, before=before, progress=stop)
        return (time.perf_counter() - begin) / batches

    def _follow(self) -> float:
        keys = {self._key() for _ in range(100)}
        versions = self._versions[self._sales]
        with self._engine.begin() as connection:
            update = (
                f"UPDATE sales_{self._classes.rows} SET version = version + 1,"
                " updated_at = now() WHERE workflow_key = ANY(:keys)"
            )
            connection.execute(text(update), {"keys": list(keys)})
        for key in keys:
            versions[key] = versions.get(key, VERSIONS) + 1
        begin, applied = time.perf_counter(), 0
        while done := self._worker.follow():
            applied += done
        assert applied >= len(keys)
        return (time.perf_counter() - begin) / applied * 100


def timed(call: Callable[[], None], calls: int) -> float:
    """Return the seconds of one of *calls*."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def grow(engine: Engine, largest: int, index: str, *, keep: bool) -> None:
    """Measure all sizes, and print and keep the growth."""
    sizes = [rows for n in range(4, 9) if (rows := 10**n) <= largest]
    runs: dict[int, dict[str, Callable[[], float]]] = {}
    space: dict[str, list[float]] = {}
    for rows in sizes:
        classes = mapped(rows, index)
        fill(engine, classes)
        runs[rows] = Sizes(engine, classes).contenders()
        for name, each in bytes_per_row(engine, rows).items():
            space.setdefault(name, []).append(each)
    names = list(runs[sizes[0]])
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(ROUNDS + 1):
        for name in random.sample(names, len(names)):
            for rows in random.sample(sizes, len(sizes)):
                took = runs[rows][name]()
                if number:  # The first one warms up.
                    seconds.setdefault((name, rows), []).append(took)
        print(f"round {number} of {ROUNDS}", flush=True)
    series: dict[str, list[float]] = {}
    table = Table("", *(f"{rows:,}" for rows in sizes), title="Time by rows")
    for name in names:
        ratios = series[name] = [
            statistics.median(
                a / b
                for a, b in zip(
                    seconds[name, rows], seconds[name, sizes[0]], strict=True
                )
            )
            for rows in sizes
        ]
        medians = [statistics.median(seconds[name, rows]) for rows in sizes]
        pairs = zip(medians, ratios, strict=True)
        table.add_row(name, *(f"{m * 1e6:,.0f} µs ({r:.2f})" for m, r in pairs))
    Console(width=130).print(table)
    table = Table("", *(f"{rows:,}" for rows in sizes), title="Bytes per row")
    for name, figures in space.items():
        table.add_row(name, *(f"{figure:.0f}" for figure in figures))
    Console(width=130).print(table)
    if keep:
        save(series, {name: figures[-1] for name, figures in space.items()})


def bytes_per_row(engine: Engine, rows: int) -> dict[str, float]:
    """Return the size of each table of a size, and of its indexes."""
    found = {}
    with engine.connect() as connection:
        for name in FILL:
            for what, function in (("", "table"), (" indexes", "indexes")):
                size = text(f"SELECT pg_{function}_size('{name}_{rows}')")
                found[name + what] = connection.scalar(size) / rows
    return found


def save(series: dict[str, list[float]], space: dict[str, float]) -> None:
    """Keep the figures for the picture."""
    results = {
        "title": "Time as the tables grow",
        "x": [f"10{'⁴⁵⁶⁷⁸'[n]}" for n in range(len(next(iter(series.values()))))],
        "series": {name: [round(r, 3) for r in each] for name, each in series.items()},
        "unit": "Time, 10⁴ rows = 1, by the rows of each table",
        "bytes per row": {name: round(each) for name, each in space.items()},
    }
    path = Path(__file__).with_name("growth.json")
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def clean(engine: Engine, rows: int) -> None:
    """Clear an expired log while actions run, and print what both take."""
    classes = mapped(10_000)
    fill(engine, classes)
    table = classes.log.__tablename__
    begin = time.perf_counter()
    with engine.begin() as connection:
        insert = f"INSERT INTO {table} {EXPIRED}"
        connection.execute(text(insert), {"rows": rows})
    run(engine, f"VACUUM ANALYZE {table}")
    print(f"{rows:,} rows in {time.perf_counter() - begin:.0f} s", flush=True)
    latencies: dict[str, list[float]] = {"idle": [], "cleaning": []}
    phase, over = ["idle"], threading.Event()
    service = ReducerService(
        engine,
        classes.order,
        lambda state, _: state.model_copy(update={"total": state.total + 1}),
        initial=OrderState,
        dedup=classes.log,
    )

    def act() -> None:
        number = 0
        while not over.is_set():
            number += 1
            key = f"order-{random.randint(1, 10_000)}"
            begin = time.perf_counter()
            service.handle(Action(workflow_key=key, action_id=number, payload=None))
            latencies[phase[0]].append(time.perf_counter() - begin)

    actor = threading.Thread(target=act)
    actor.start()
    time.sleep(min(20.0, rows / 100_000))
    phase[0] = "cleaning"
    marks = [(0, time.perf_counter())]

    def note(deleted: int) -> None:
        if deleted - marks[-1][0] >= rows / 10:
            now = time.perf_counter()
            rate = (deleted - marks[-1][0]) / (now - marks[-1][1])
            print(f"{deleted:,} deleted, {rate:,.0f}/s", flush=True)
            marks.append((deleted, now))

    begin = time.perf_counter()
    deleted = cleanup_expired(engine, classes.log, progress=note)
    took = time.perf_counter() - begin
    over.set()
    actor.join()
    print(f"{deleted:,} rows in {took:.0f} s, {deleted / took:,.0f}/s")
    for name, each in latencies.items():
        each.sort()
        figures = [each[int(len(each) * part)] * 1e3 for part in (0.5, 0.99)]
        print(
            f"actions, {name}: {len(each)}, p50 {figures[0]:.2f} ms,"
            f" p99 {figures[1]:.2f} ms"
        )


CHURNED = 20_000
COUNTED = """
    SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup, autovacuum_count,
        pg_table_size(relid), pg_indexes_size(relid)
    FROM pg_stat_user_tables WHERE relname = :name
"""


TUNED = "fillfactor = 70"


def churn(engine: Engine, seconds: float) -> None:
    """Commit to random workflows, and print what becomes of the tables."""
    plain, tuned = mapped(CHURNED), mapped(CHURNED + 1, "updated")
    tuned.base.metadata.create_all(engine)
    run(engine, f"ALTER TABLE {tuned.order.__tablename__} SET ({TUNED})")
    tables: dict[str, tuple[str, Callable[[], float]]] = {}
    for classes, titles in (
        (plain, ("as it is", "BRIN index on updated_at")),
        (tuned, (TUNED, "B-tree on updated_at")),
    ):
        fill(engine, classes)
        runs = Sizes(engine, classes).contenders()
        order, sale = classes.order.__tablename__, classes.sale.__tablename__
        tables[order] = titles[0], runs["try_commit"]
        tables[sale] = titles[1], runs["with history and an index"]

    def look() -> dict[str, Any]:
        with engine.connect() as connection:
            return {
                name: connection.execute(text(COUNTED), {"name": name}).one()
                for name in tables
            }

    before, begin = look(), datetime.now(UTC)
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for _, commit in tables.values():
            commit()
        number += CALLS
    time.sleep(1.0)  # Statistics are reported with a delay.
    after = look()
    print(f"{number:,} commits to each table in {datetime.now(UTC) - begin}")
    table = Table("", "HOT", "table", "indexes", "dead rows", "autovacuums")
    for name, (title, _) in tables.items():
        old, new = before[name], after[name]
        table.add_row(
            title,
            f"{new[1] / new[0]:.0%}",
            f"x {new[4] / old[4]:.2f}",
            f"x {new[5] / old[5]:.2f}",
            f"{new[2]:,}",
            f"{new[3]}",
        )
    Console(width=120).print(table)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--index", choices=["recent", "updated"], default="recent")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--cleanup", type=int, metavar="ROWS")
    parser.add_argument("--churn", type=float, metavar="SECONDS")
    parser.add_argument("--durable", action="store_true")
    options = parser.parse_args()
    settings = SERVER | ({} if options.durable else {"fsync": "off"})
    with postgresql(**settings) as url:
        engine = create_engine(url, pool_size=5)
        if options.cleanup:
            clean(engine, options.cleanup)
        elif options.churn:
            churn(engine, options.churn)
        else:
            grow(engine, options.largest, options.index, keep=options.save)
        engine.dispose()


if __name__ == "__main__":
    main()
