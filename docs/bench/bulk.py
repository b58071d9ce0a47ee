"""1,000 commits at once: try_commit_many against raw psycopg and against ORM flush.

*raw* is handed ready-made JSON; *raw + to_json* has to make it of the same models, as
whoever has models must. All run in a transaction on a connection that is at hand. The
rows of a batch share one provenance, or each has its own, as actions have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    Commit,
    Provenance,
    StateCommitted,
    WorkflowStateMixin,
    try_commit_many,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

ROWS = 1_000
SQL = """
UPDATE orders SET version = new.version + 1, state = new.state::jsonb,
    updated_at = now(), schema_version = new.schema, provenance = new.provenance::jsonb
FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::int[], %b::text[])
    AS new (key, version, state, schema, provenance)
WHERE orders.workflow_key = new.key AND orders.version = new.version
RETURNING orders.workflow_key, orders.updated_at
"""


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"
    notes: list[str] = []


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class OtherBase(DeclarativeBase):
    pass


class Unchecked(WorkflowStateMixin[OrderState], OtherBase):
    """The same rows without the round-trip check."""

    __tablename__ = "orders"
    __state_options__ = {"round_trip": False}  # noqa: RUF012


def contenders(engine: Engine, size: int) -> dict[str, Callable[[], object]]:
    """Make what is compared; each writes all rows once more."""
    keys = [f"order-{number:06}" for number in range(ROWS)]
    states = [OrderState(notes=["x" * 20] * (size // 24)) for _ in keys]
    shared = [Provenance.now()] * ROWS
    own = [Provenance.now() for _ in keys]
    texts = [state.model_dump_json() for state in states]
    ready = [provenance.model_dump_json() for provenance in shared]
    version = 1

    def commits(
        expected_version: int, provenances: list[Provenance]
    ) -> list[Commit[OrderState]]:
        return [
            Commit(
                key,
                expected_version=expected_version,
                state=state,
                provenance=provenance,
            )
            for key, state, provenance in zip(keys, states, provenances, strict=True)
        ]

    with Session(engine) as session, session.begin():
        try_commit_many(session, Order, commits(0, shared))
    raw_connection: Any = engine.raw_connection().driver_connection

    def send(texts: list[str], provenances: list[str]) -> None:
        nonlocal version
        with raw_connection.transaction():
            rows = raw_connection.execute(
                SQL, [keys, [version] * ROWS, texts, [1] * ROWS, provenances]
            ).fetchall()
        assert len(rows) == ROWS
        version += 1

    def raw() -> None:
        send(texts, ready)

    def raw_to_json(provenances: list[Provenance]) -> Callable[[], None]:
        def run() -> None:
            send(
                [state.model_dump_json() for state in states],
                [provenance.model_dump_json() for provenance in provenances]
                if provenances is own
                else [provenances[0].model_dump_json()] * ROWS,
            )

        return run

    def ours(
        entity: type[WorkflowStateMixin[OrderState]], provenances: list[Provenance]
    ) -> Callable[[], None]:
        def run() -> None:
            nonlocal version
            with Session(engine) as session, session.begin():
                outcomes = try_commit_many(
                    session, entity, commits(version, provenances)
                )
            assert all(isinstance(outcome, StateCommitted) for outcome in outcomes)
            version += 1

        return run

    def flush() -> None:
        nonlocal version
        with Session(engine) as session, session.begin():
            for order in session.scalars(select(Order)):
                order.state.status = f"at {version}"
        version += 1

    return {
        "raw": raw,
        "raw + to_json": raw_to_json(shared),
        "try_commit_many": ours(Order, shared),
        "try_commit_many, round_trip=False": ours(Unchecked, shared),
        "raw + to_json, own provenances": raw_to_json(own),
        "try_commit_many, own provenances": ours(Order, own),
        "the same, round_trip=False": ours(Unchecked, own),
        "ORM read and flush": flush,
    }


def main() -> None:
    """Compare at two sizes."""
    columns = {}
    for size in (300, 2_000):
        with postgresql(synchronous_commit="off") as url:
            engine = create_engine(url)
            Base.metadata.create_all(engine)
            columns[f"{size / 1000} kB"] = compare(
                contenders(engine, size), baseline="raw", rounds=7
            )
            engine.dispose()
    print_table(f"{ROWS} commits, ratio to raw", columns)


if __name__ == "__main__":
    main()
