"""A value that PostgreSQL cannot store raises a PayloadError with row and field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, func, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

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
    try_commit_many,
)
from sa_wfstate.dedup import remember, should_process
from sa_wfstate.outbox import store_intents
from sa_wfstate.projection import Projection

from .tasks import Job, Task, TaskActions, TaskIntents, TaskView

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.contract

TEXTS = ["a\0b", "a\ud800b"]
HUGE = 10**5000


class Base(DeclarativeBase):
    pass


class Pair(Base):
    __tablename__ = "pairs"

    one: Mapped[int] = mapped_column(primary_key=True)
    two: Mapped[str] = mapped_column(primary_key=True)
    doc: Mapped[Any] = mapped_column(PydanticJSON(Any))


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Task.metadata, Base.metadata)


def rows(engine: Engine) -> int | None:
    """Count the written rows."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Task))


@pytest.mark.parametrize("key", TEXTS)
def test_key_is_refused_wherever_it_is_given(engine: Engine, key: str) -> None:
    """No statement is sent with it."""
    store = CanonicalStore(engine, Task)
    service = ReducerService(engine, Task, lambda state, _: state, initial=Job)
    id_ = UUID(int=1)
    with Session(engine) as session:
        for attempt in (
            lambda: Task(workflow_key=key),
            lambda: store.get_state(key),
            lambda: service.handle(Action(workflow_key=key, action_id=id_, payload=1)),
            lambda: should_process(session, TaskActions, key, id_),
            lambda: remember(session, TaskActions, key, id_, result="1"),
        ):
            with pytest.raises(PayloadError, match=r"workflow_key.*(NUL|unicode|surr)"):
                attempt()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        *(({"payload": {"s3cret": [text]}}, "payload, at '*.0'") for text in TEXTS),
        *(({"target": text}, ", at 'target'") for text in TEXTS),
        *(({"intent_type": text}, ", at 'intent_type'") for text in TEXTS),
        ({"payload": HUGE}, "payload: holds an integer of more than 4,300 digits"),
    ],
    ids=range(7),
)
def test_intent_is_refused_with_its_row(
    engine: Engine, fields: dict[str, Any], path: str
) -> None:
    """The commit that it belongs to is not made."""
    intent = Intent(**{"intent_type": "i", "target": "t"} | fields)
    service = ReducerService(
        engine,
        Task,
        lambda state, _: Reduction(state, [intent]),
        initial=Job,
        writers=[store_intents(TaskIntents)],
    )
    with pytest.raises(PayloadError) as caught:
        service.handle(Action(workflow_key="j", action_id=uuid4(), payload=1))
    message = str(caught.value)
    assert message.startswith("TaskIntents 'j'")
    assert path in message
    assert "s3cret" not in message
    assert rows(engine) == 0


@pytest.mark.parametrize("extra", [*TEXTS, {"x": TEXTS}, HUGE], ids=range(4))
def test_provenance_is_refused_with_its_row(engine: Engine, extra: Any) -> None:
    """Of one commit, of each of a batch, and of an action's further keys."""
    store = CanonicalStore(engine, Task)
    service = ReducerService(engine, Task, lambda state, _: state, initial=Job)

    def commit(key: str, **more: Any) -> Commit[Job]:
        return Commit(
            key, expected_version=0, state=Job(), provenance=Provenance.now(**more)
        )

    with Session(engine) as session:
        for key, attempt in {
            "a": lambda: store.try_commit(
                workflow_key="a",
                expected_version=0,
                state=Job(),
                provenance=Provenance.now(lease=extra),
            ),
            "b": lambda: try_commit_many(
                session, Task, [commit("a"), commit("b", lease=extra)]
            ),
            "c": lambda: service.handle(
                Action(workflow_key="c", action_id=uuid4(), payload=1, lease=extra)
            ),
            "d": lambda: (
                session.add(
                    Task(
                        workflow_key="d",
                        state=Job(),
                        provenance=Provenance.now(lease=extra),
                    )
                ),
                session.flush(),
            ),
        }.items():
            with pytest.raises(PayloadError, match=f"Task '{key}' provenance"):
                attempt()
            session.rollback()
    assert rows(engine) == 0


@pytest.mark.parametrize("text", TEXTS)
def test_projection_is_refused_with_its_row(engine: Engine, text: str) -> None:
    """A text in a column, and one in JSON."""
    store = CanonicalStore(engine, Task)
    for values, where in (
        ({"tag": text}, "TaskView 'v', at 'tag'"),
        ({"extras": {"x": text}}, r"TaskView 'v' extras, at '\*'"),
    ):
        row = {"tag": "", "namespace": ""} | values
        view = Projection(Task, TaskView, lambda _, row=row: row)
        store.try_commit(
            workflow_key="v",
            expected_version=0,
            state=Job(),
            provenance=Provenance.now(),
        )
        with (
            engine.begin() as connection,
            pytest.raises(PayloadError, match=where),
        ):
            view.write(connection, [view.row(store.get_state("v"))], over="any")


@pytest.mark.parametrize("bad", [*TEXTS, HUGE, float("nan")], ids=range(4))
def test_flush_names_the_row(engine: Engine, bad: Any) -> None:
    """Of a class without a state, too."""
    with Session(engine) as session:
        session.add(Pair(one=1, two="x", doc=[bad]))
        with pytest.raises(PayloadError, match=r"Pair \(1, 'x'\) doc"):
            session.flush()


@pytest.mark.parametrize("bad", [*TEXTS, HUGE, float("nan")], ids=range(4))
def test_statement_of_the_application_names_the_column(
    engine: Engine, bad: Any
) -> None:
    """In Core and in the ORM, of one row and of many; a type does not know its row."""
    intent = {
        "version": 1,
        "position": 0,
        "intent_id": UUID(int=1),
        "intent_type": "i",
        "target": "t",
    }
    table: Any = TaskIntents.__table__
    state = Job().model_copy(update={"free": {"x": bad}})
    one = {"workflow_key": "i", "payload": 1} | intent
    two = {"workflow_key": "j", "payload": {"x": bad}} | intent
    states = [
        {"workflow_key": "a", "state": Job()},
        {"workflow_key": "b", "state": state},
    ]
    attempts: list[tuple[Any, Any, str]] = [
        (insert(TaskIntents), [one, two], r"TaskIntents payload, at '\*'"),
        (insert(table), [one, two], r"TaskIntents payload, at '\*'"),
        (insert(table).values(two), None, r"TaskIntents payload, at '\*'"),
        (insert(TaskIntents).values(**two), None, r"TaskIntents payload, at '\*'"),
        (insert(Task), states, r"Task state, at 'free\.\*'"),
        (insert(Pair).values(one=1, two="x", doc=[bad]), None, "Pair doc, at '0'"),
        (update(Pair).values(doc=[bad]), None, "Pair doc, at '0'"),
    ]
    for statement, parameters, where in attempts:
        with Session(engine) as session:
            if type(bad) is int:
                where = where.partition(", at")[0]  # noqa: PLW2901
            with pytest.raises(PayloadError, match=where):
                session.execute(statement, parameters)
            assert session.scalar(select(1)) == 1
