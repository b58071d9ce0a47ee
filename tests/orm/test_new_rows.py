"""New rows are checked together; what changes after that is neither lost nor unchecked.

No listener of the application hears of a row here, so the texts that were checked are
sent. The listeners of these tests hear of a session, a connection or a column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Connection, Engine, event, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import PayloadError, PydanticJSON, WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 20
"""More than it takes for the states to be encoded at once."""
COUNTS = pytest.mark.parametrize("count", [1, MANY])


class Notes(BaseModel):
    """A state that can be changed in place."""

    log: list[str] = []
    extra: dict[str, Any] = {}


class Base(DeclarativeBase):
    pass


def title() -> str:
    """Return the default of a column; a test puts more into it."""
    for change in title_changes:
        change()
    return "untitled"


title_changes: list[Callable[[], object]] = []


class Document(WorkflowStateMixin[Notes], Base):
    __tablename__ = "documents"

    title: Mapped[str] = mapped_column(default=title)


class Plain(WorkflowStateMixin[Notes], Base):
    """A class for whose rows a flush calls no code of the application."""

    __tablename__ = "plain_documents"


class Copy(Base):
    """Another table that holds such a state."""

    __tablename__ = "copies"

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[Notes] = mapped_column(PydanticJSON(Notes))


@pytest.fixture(autouse=True)
def tables(create_tables: Callable[..., None]) -> Any:
    """Create the tables, and leave no change behind for the next test."""
    create_tables(Base.metadata)
    yield
    title_changes.clear()


def documents(count: int) -> list[Document]:
    """Make new documents."""
    return [
        Document(workflow_key=str(number), state=Notes()) for number in range(count)
    ]


def rows(engine: Engine) -> dict[str, tuple[int, list[str]]]:
    """Return version and log of each row that is not as it was created, by key."""
    with Session(engine) as session:
        found = session.scalars(select(Document)).all()
        all_rows = {row.workflow_key: (row.version, row.state.log) for row in found}
    return {key: row for key, row in all_rows.items() if row != (1, [])}


@COUNTS
def test_a_refused_state_names_its_row(engine: Engine, count: int) -> None:
    """No row of the flush is sent, and the session can go on."""
    with Session(engine) as session:
        made = documents(count)
        made[-1].state.extra["pair"] = (1, 2)
        session.add_all(made)
        refused = rf"Document '{count - 1}' state.*holds a tuple"
        with pytest.raises(PayloadError, match=refused):
            session.flush()
        made[-1].state.extra.clear()
        session.commit()
        assert session.scalar(select(func.count()).select_from(Document)) == count
    assert rows(engine) == {}


@COUNTS
@pytest.mark.parametrize("name", ["after_flush", "after_flush_postexec"])
def test_what_changes_after_the_insert_is_written(
    engine: Engine, name: str, count: int
) -> None:
    """By the next flush of the same commit, or in the next transaction."""
    with Session(engine, expire_on_commit=False) as session:
        made = documents(count)
        session.add_all(made)
        states, done = [each.state for each in made], []

        def change(*_: object) -> None:
            if not done:
                done.append(states[0].log.append(name))

        event.listen(session, name, change)
        session.commit()
        session.begin()
        session.commit()
    assert rows(engine) == {"0": (2, [name])}


@COUNTS
@pytest.mark.parametrize("kept", [False, True], ids=["instance", "reference"])
def test_what_changes_when_the_connection_begins_is_written(
    engine: Engine, count: int, *, kept: bool
) -> None:
    """By the INSERT if the attribute is read for it, or by the same commit."""
    with Session(engine) as session:
        made = documents(count)
        session.add_all(made)
        state = made[0].state

        def change(*_: object) -> None:
            (state if kept else made[0].state).log.append("begun")

        event.listen(session, "after_begin", change)
        session.commit()
        event.remove(session, "after_begin", change)
    assert rows(engine) == {"0": (1 + kept, ["begun"])}


@COUNTS
def test_what_a_default_changes_is_written(engine: Engine, count: int) -> None:
    """It runs when the changes are collected: the same commit writes it."""
    with Session(engine) as session:
        made = documents(count)
        session.add_all(made)
        log = made[0].state.log
        title_changes.append(lambda: None if log else log.append("default"))
        session.commit()
    assert rows(engine)["0"][1] == ["default"]


@COUNTS
def test_what_a_default_breaks_is_refused(engine: Engine, count: int) -> None:
    """It has no row to be written to: the transaction is rolled back."""
    with Session(engine) as session:
        made = documents(count)
        session.add_all(made)
        extra = made[0].state.extra
        title_changes.append(lambda: extra.setdefault("pair", (1, 2)))
        with pytest.raises(PayloadError, match=r"Document '0' state.*holds a tuple"):
            session.commit()
        session.rollback()
    with Session(engine) as session:
        assert session.scalars(select(Document)).all() == []


@COUNTS
def test_a_listener_may_bind_the_changed_state(engine: Engine, count: int) -> None:
    """What its own statement binds is not taken for what the row holds."""
    with Session(engine) as session:
        made = documents(count)
        session.add_all(made)
        state = made[0].state

        @event.listens_for(engine, "after_cursor_execute")
        def change(connection: Any, _: object, statement: str, *__: object) -> None:
            if "INSERT INTO documents" in statement and not state.log:
                state.log.append("copied")
                connection.execute(insert(Copy).values(id=1, state=state))

        session.commit()
        event.remove(engine, "after_cursor_execute", change)
        assert session.get_one(Copy, 1).state.log == ["copied"]
    assert rows(engine) == {"0": (2, ["copied"])}


@COUNTS
def test_rows_may_share_a_state(engine: Engine, count: int) -> None:
    """Each holds it, and each is watched."""
    with Session(engine, expire_on_commit=False) as session:
        made, state = documents(count), Notes()
        for each in made:
            each.state = state
        session.add_all(made)
        session.commit()
        state.log.append("all")
        session.commit()
    assert rows(engine) == {str(number): (2, ["all"]) for number in range(count)}


@COUNTS
@pytest.mark.parametrize("name", ["before_insert", "after_insert"])
def test_a_listener_of_the_rows_is_heard(engine: Engine, name: str, count: int) -> None:
    """Also if it was registered after rows were written without one."""
    with Session(engine) as session:
        session.add(Document(workflow_key="first", state=Notes()))
        session.commit()
        made = documents(count)
        session.add_all(made)
        log = made[0].state.log

        def change(*_: object) -> None:
            if not log:
                log.append(name)

        event.listen(Document, name, change)
        session.commit()
        event.remove(Document, name, change)
    assert rows(engine) == {"0": (1 + (name == "after_insert"), [name])}


PLACES: dict[str, Callable[[Session, Engine], Any]] = {
    "after_begin": lambda session, _: session,
    "after_transaction_create": lambda session, _: session,
    "pending_to_persistent": lambda session, _: session,
    "after_flush": lambda session, _: session,
    "refresh_flush": lambda _, __: Plain,
    "begin": lambda _, engine: engine,
    "before_cursor_execute": lambda _, engine: engine,
    "after_execute": lambda _, engine: engine,
    "do_execute": lambda _, engine: engine.dialect,
    "checkout": lambda _, engine: engine.pool,
}
"""What a listener of each event may hang on."""


@pytest.mark.parametrize("name", PLACES)
def test_what_a_listener_changes_in_a_commit_is_written(
    engine: Engine, name: str
) -> None:
    """By the same commit, also if it was done by a kept reference, to any row."""
    with Session(engine) as session:
        made = [Plain(workflow_key=str(n), state=Notes()) for n in range(MANY)]
        session.add_all(made)
        log, target = made[0].state.log, PLACES[name](session, engine)

        def change(*_: object) -> None:
            if not log:
                log.append(name)

        event.listen(target, name, change)
        try:
            session.commit()
        finally:
            event.remove(target, name, change)
    with Session(engine) as session:
        assert session.get_one(Plain, "0").state.log == [name]


def test_what_changes_between_a_flush_and_the_commit_is_written(engine: Engine) -> None:
    """Also in a listener of the commit that flushes, by a kept reference."""
    with Session(engine) as session:
        made = [Plain(workflow_key=str(n), state=Notes()) for n in range(MANY)]
        session.add_all(made)
        log = made[0].state.log

        def change(_: object) -> None:
            session.flush()
            if not log:
                log.append("before_commit")
            assert made[0].state.log is log

        event.listen(session, "before_commit", change)
        session.commit()
    with Session(engine) as session:
        changed = session.get_one(Plain, "0")
        assert (changed.version, changed.state.log) == (2, ["before_commit"])


@COUNTS
def test_row_is_written_again_if_its_state_was_sent_elsewhere_as_another_text(
    engine: Engine, count: int
) -> None:
    """Which of the texts the row holds is not known; what the object holds is."""
    with Session(engine) as session:
        made = documents(count)
        session.add_all(made)
        state = made[0].state

        def copy(_: object, __: object, connection: Connection) -> None:
            connection.execute(insert(Copy).values(state=state))
            state.log.append("for a moment")

        event.listen(session, "after_begin", copy)
        event.listen(session, "after_flush", lambda *_: state.log.clear())
        session.commit()
    with Session(engine) as session:
        row = session.get_one(Document, "0")
        assert (row.version, row.state.log) == (2, [])
