"""JSON codecs that an application has set on its connections: none of them matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, func, insert, literal, select, text, update
from sqlalchemy.orm import Session

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    Intent,
    PayloadError,
    Provenance,
    PydanticJSON,
    ReducerService,
    Reduction,
    StateCommitted,
    try_commit,
    try_commit_many,
)
from sa_wfstate.history import get_version, keep_history
from sa_wfstate.outbox import store_intents
from sa_wfstate.projection import Projection

from .tasks import Base, Job, Task, TaskActions, TaskHistory, TaskIntents, TaskView

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..conftest import Driver

pytestmark = pytest.mark.contract


keep_history(Task, TaskHistory)
Projection(
    Task,
    TaskView,
    lambda task: {"tag": task.state.status, "namespace": "n", "indices": {"n": [1]}},
).keep_inline()


def encode_binary(value: Any) -> bytes:
    """Encode as asyncpg's binary format of JSONB wants it."""
    return b"\x01" + json.dumps(value).encode()


ASYNCPG: dict[str, dict[str, Any]] = {
    "text": {"encoder": json.dumps, "decoder": json.loads},
    "binary": {
        "encoder": encode_binary,
        "decoder": lambda data: json.loads(data[1:]),
        "format": "binary",
    },
    "untouched": {"encoder": str, "decoder": str},
}


def set_codec(engine: Engine, kind: str) -> None:
    """Give each connection of *engine* JSON codecs of the application's own."""

    @event.listens_for(engine, "connect")
    def connect(adapted: Any, _: object) -> None:
        if engine.driver == "asyncpg":
            for name in ("jsonb",) if kind == "binary" else ("jsonb", "json"):
                adapted.run_async(
                    lambda connection, name=name: connection.set_type_codec(
                        name, schema="pg_catalog", **ASYNCPG[kind]
                    )
                )
            return
        from psycopg.types import json as psycopg_json
        from psycopg.types.string import TextLoader

        connection = getattr(adapted, "driver_connection", adapted)
        if kind == "untouched":
            connection.adapters.register_loader("jsonb", TextLoader)
            connection.adapters.register_loader("json", TextLoader)
        else:
            psycopg_json.set_json_dumps(lambda value: json.dumps([value]), connection)
            psycopg_json.set_json_loads(lambda data: [json.loads(data)], connection)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


@pytest.fixture(params=list(ASYNCPG))
def engine(request: pytest.FixtureRequest, driver: Driver) -> Engine:
    """Connect through codecs."""
    engine = driver.create_engine()
    set_codec(engine, request.param)
    return engine


@pytest.fixture
def plain(driver: Driver) -> Engine:
    """Connect to the same database without codecs."""
    return driver.create_engine()


JOB = Job(status='say "x"', free={"a": [1, 2.5, None, {"b": "1"}]})


def kinds(engine: Engine, *columns: Any) -> set[str]:
    """Return what PostgreSQL says is in *columns*, over all rows."""
    with engine.connect() as connection:
        return {
            kind
            for column in columns
            for kind in connection.scalars(select(func.jsonb_typeof(column)))
        }


def test_flush_stores_objects(engine: Engine, plain: Engine) -> None:
    """An INSERT and an UPDATE by the unit of work store JSON objects, as read back."""
    with Session(engine) as session:
        session.add(Task(workflow_key="a", state=Job(), extra=[1]))
        session.add_all(Task(workflow_key=f"b{n}", state=JOB) for n in range(3))
        session.commit()
        session.get_one(Task, "a").state = JOB
        session.commit()
        task = session.get_one(Task, "a")
        task.state.free["more"] = 1
        session.commit()
        assert session.get_one(Task, "a").state.free == {**JOB.free, "more": 1}
    assert kinds(plain, Task.state, Task.provenance, TaskHistory.state) == {"object"}
    assert kinds(plain, TaskHistory.provenance) == {"object"}
    with Session(plain) as session:
        assert session.get_one(Task, "b1").state == JOB
        assert get_version(session, Task, "a", 2).state == JOB


def test_commits_store_objects(engine: Engine, plain: Engine) -> None:
    """So do single commits, batches, and the reads of a store."""
    store = CanonicalStore(engine, Task)
    with Session(engine) as session:
        for version in (0, 1):
            written = try_commit(
                session,
                Task,
                "a",
                expected_version=version,
                state=JOB,
                provenance=Provenance.now(),
            )
            assert isinstance(written, StateCommitted)
        for version in (0, 1):
            outcomes = try_commit_many(
                session,
                Task,
                [
                    Commit(
                        f"b{n}",
                        expected_version=version,
                        state=JOB,
                        provenance=Provenance.now(),
                    )
                    for n in range(3)
                ],
            )
            assert all(isinstance(each, StateCommitted) for each in outcomes)
        session.commit()
    assert store.get_state("b2").state == JOB
    assert kinds(plain, Task.state, Task.provenance) == {"object"}


def test_service_stores_objects(engine: Engine, plain: Engine) -> None:
    """So does a service, with its dedup log, its intents and an inline projection."""
    payload = {"to": ["x"]}

    def reduce(state: Job, action: Action[Any]) -> Reduction[Job]:
        intent = Intent(intent_type="mail", target="x", payload=action.payload)
        return Reduction(state.model_copy(update={"status": "done"}), [intent])

    service = ReducerService(
        engine,
        Task,
        reduce,
        initial=Job,
        dedup=TaskActions,
        writers=[store_intents(TaskIntents)],
    )
    action = Action(workflow_key="a", action_id=uuid4(), payload=payload)
    assert service.handle(action).snapshot.state.status == "done"
    assert service.handle(action).replayed
    columns = (Task.state, TaskIntents.payload, TaskView.indices)
    assert kinds(plain, *columns) == {"object"}
    with Session(engine) as session:
        assert session.scalar(select(TaskIntents.payload)) == payload


def test_statements_compare_and_store_objects(engine: Engine, plain: Engine) -> None:
    """So do statements of the application: values, criteria, literals, RETURNING."""
    doc: Any = Task.state
    with Session(engine) as session:
        session.execute(insert(Task).values(workflow_key="a", state=JOB, extra="12"))
        session.execute(
            insert(Task), [{"workflow_key": "b", "state": JOB, "extra": None}]
        )
        found = select(func.count()).select_from(Task)
        for criterion in (
            doc == JOB,
            doc.in_([JOB, Job()]),
            doc.contains({"free": {"a": [1]}}),
            doc["free"] == JOB.free,
            doc["free"]["a"] == [1, 2.5, None, {"b": "1"}],
        ):
            assert session.scalar(found.where(criterion)) == 2, criterion
        assert session.scalar(select(literal(JOB, PydanticJSON(Job)))) == JOB
        written = session.execute(
            update(Task.__table__)  # type: ignore[arg-type]
            .where(Task.__table__.c.workflow_key == "a")
            .values(extra={"x": 1})
            .returning(Task.__table__.c.extra)
        )
        assert written.scalar_one() == {"x": 1}
        session.commit()
    assert kinds(plain, Task.state, Task.provenance) == {"object"}


def store_twice(engine: Engine) -> None:
    """Store a task like a codec that encodes JSON text again."""
    with Session(engine) as session:
        session.add(Task(workflow_key="a", state=JOB))
        session.commit()
        twice = "state = to_jsonb(state::text), provenance = to_jsonb(provenance::text)"
        for table in ("tasks", "task_history"):
            session.execute(text(f"UPDATE {table} SET {twice}"))
        session.commit()


def documented_repair() -> str:
    """Return the statement that the reference of errors gives for the table tasks."""
    page = Path(__file__).parents[2] / "docs/reference/errors.md"
    _, _, statement = page.read_text().partition("```sql\n")
    return statement.partition("```")[0]


def test_what_was_stored_twice_is_named_and_repaired(plain: Engine) -> None:
    """The error names the row and the remedy, and the remedy in the docs works."""
    store_twice(plain)
    message = r"Task 'a' (state|provenance).*holds JSON.*#>> '\{\}'"
    with Session(plain) as session:
        for read in (
            lambda: CanonicalStore(plain, Task).get_state("a"),
            lambda: session.get_one(Task, "a").state,
            lambda: session.get_one(Task, "a").provenance,
            lambda: session.scalar(select(Task.state)),
        ):
            with pytest.raises(PayloadError, match=message) as caught:
                read()
            assert "say" not in str(caught.value)
    with plain.begin() as connection:
        for table in ("tasks", "task_history"):
            repair = documented_repair().replace("tasks", table)
            assert connection.exec_driver_sql(repair).rowcount == 1
            assert connection.exec_driver_sql(repair).rowcount == 0
    assert CanonicalStore(plain, Task).get_state("a").state == JOB
    with Session(plain) as session:
        assert get_version(session, Task, "a", 1).state == JOB
