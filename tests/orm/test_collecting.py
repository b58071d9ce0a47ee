"""What an UPDATE writes is decided before the flush sends anything, and stays true.

No listener of the application hears of a row here, so a state is compared, checked and
sent as it was when the flush began. What changes it after that is neither lost nor
unchecked. The listeners of these tests hear of a session or of a connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_wfstate import PayloadError, WorkflowStateMixin
from sa_wfstate.errors import SchemaVersionAhead

if TYPE_CHECKING:
    from collections.abc import Callable


class Notes(BaseModel):
    """A state that can be changed in place."""

    log: list[str] = []
    extra: dict[str, Any] = {}


class Base(DeclarativeBase):
    pass


def editor() -> str:
    """Return the onupdate of a column; a test puts more into it."""
    for change in editor_changes:
        change()
    return "editor"


editor_changes: list[Callable[[], object]] = []


class Page(WorkflowStateMixin[Notes], Base):
    __tablename__ = "pages"

    title: Mapped[str] = mapped_column(default="untitled")
    editor: Mapped[str | None] = mapped_column(onupdate=editor)


@pytest.fixture(autouse=True)
def page(engine: Engine, create_tables: Callable[..., None]) -> Any:
    """Create one row, and leave no change behind for the next test."""
    create_tables(Base.metadata)
    with Session(engine) as session:
        session.add(Page(workflow_key="1", state=Notes()))
        session.commit()
    yield
    editor_changes.clear()


def stored(engine: Engine) -> tuple[int, list[str]]:
    """Return the version of the row, and the log in its state."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        return row.version, row.state.log


def change_state(row: Page) -> None:
    """Assign another state."""
    row.state = Notes(log=[*row.state.log, "first"])


def change_in_place(row: Page) -> None:
    """Change the state that is there."""
    row.state.log.append("first")


def when_the_savepoint_begins(session: Session, call: Callable[[], object]) -> None:
    """Call *call* when the transaction of a flush has begun."""

    def begun(_: object, transaction: Any) -> None:
        if transaction.parent is not None:
            call()

    event.listen(session, "after_transaction_create", begun)


CHANGES = pytest.mark.parametrize("change", [change_state, change_in_place])


@CHANGES
@pytest.mark.parametrize("kept", [False, True], ids=["instance", "reference"])
def test_what_changes_when_the_savepoint_begins_is_written(
    engine: Engine, change: Callable[[Page], None], *, kept: bool
) -> None:
    """By the UPDATE if the attribute is read for it, or by the same commit."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        change(row)
        state = row.state

        def change_again() -> None:
            if len(state.log) == 1:
                (state if kept else row.state).log.append("begun")

        when_the_savepoint_begins(session, change_again)
        session.commit()
    assert stored(engine) == (2 + kept, ["first", "begun"])


@CHANGES
def test_what_is_assigned_when_the_flush_begins_is_written(
    engine: Engine, change: Callable[[Page], None]
) -> None:
    """In place of what was there, by the same UPDATE."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        change(row)
        assigned = Notes(log=["assigned"])
        when_the_savepoint_begins(session, lambda: setattr(row, "state", assigned))
        session.commit()
    assert stored(engine) == (2, ["assigned"])


@CHANGES
def test_what_is_taken_back_when_the_flush_begins_is_no_write(
    engine: Engine, change: Callable[[Page], None]
) -> None:
    """The row keeps its version."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        change(row)

        def take_back() -> None:
            row.state.log.clear()

        when_the_savepoint_begins(session, take_back)
        session.commit()
        assert row.version == 1
    assert stored(engine) == (1, [])


@CHANGES
def test_what_an_onupdate_changes_is_written(
    engine: Engine, change: Callable[[Page], None]
) -> None:
    """It runs when the changes were collected: the same commit writes it."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        change(row)
        log = row.state.log
        editor_changes.append(lambda: log[1:] or log.append("onupdate"))
        session.commit()
    assert stored(engine) == (3, ["first", "onupdate"])


@CHANGES
def test_what_an_onupdate_breaks_is_refused(
    engine: Engine, change: Callable[[Page], None]
) -> None:
    """By the next flush of the same commit, which writes nothing then."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        change(row)
        extra = row.state.extra
        editor_changes.append(lambda: extra.setdefault("pair", (1, 2)))
        with pytest.raises(PayloadError, match=r"Page '1' state.*holds a tuple"):
            session.commit()
        session.rollback()
    assert stored(engine) == (1, [])


def test_state_that_changes_while_another_column_is_written_is_kept(
    engine: Engine,
) -> None:
    """It was the same when the flush began, so another UPDATE writes it."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        log, row.title = row.state.log, "titled"
        editor_changes.append(lambda: log or log.append("onupdate"))
        session.commit()
    assert stored(engine) == (3, ["onupdate"])


@CHANGES
def test_what_changes_after_the_flush_is_written(
    engine: Engine, change: Callable[[Page], None]
) -> None:
    """By the next flush of the same commit."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        change(row)
        log = row.state.log
        event.listen(
            session, "after_flush", lambda *_: log[1:] or log.append("flushed")
        )
        session.commit()
    assert stored(engine) == (3, ["first", "flushed"])


@CHANGES
@pytest.mark.parametrize("name", ["before_update", "after_update"])
def test_a_listener_of_the_rows_is_heard(
    engine: Engine, name: str, change: Callable[[Page], None]
) -> None:
    """Also if it was registered after the row was written without one."""
    with Session(engine) as session:
        row = session.get_one(Page, "1")
        change(row)
        session.flush()
        row.state.log.append("second")
        log = row.state.log

        def heard(*_: object) -> None:
            if len(log) == 2:
                log.append(name)

        event.listen(Page, name, heard)
        session.commit()
        event.remove(Page, name, heard)
    version = 3 + (name == "after_update")
    assert stored(engine) == (version, ["first", "second", name])


def test_newer_row_is_not_written_over_by_a_quiet_flush(engine: Engine) -> None:
    """A state that newer code wrote is refused when it is assigned, unread."""
    with Session(engine) as session:
        session.execute(text("UPDATE pages SET schema_version = 2"))
        session.commit()
        session.get_one(Page, "1").state = Notes(log=["over"])
        with pytest.raises(SchemaVersionAhead, match=r"'1'.*schema version 2"):
            session.commit()


def test_state_of_two_rows_that_changes_between_their_updates_is_in_both(
    engine: Engine,
) -> None:
    """One of them was sent as it was before, or as it was for a moment."""
    with Session(engine) as session:
        session.add(Page(workflow_key="2", state=Notes()))
        session.commit()
        state = session.get_one(Page, "1").state
        session.get_one(Page, "2").state = state
        state.log.append("first")

        def change(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("UPDATE") and len(state.log) == 1:
                state.log.append("for a moment")

        def clear(*_: object) -> None:
            del state.log[1:]

        event.listen(engine, "before_cursor_execute", change)
        event.listen(session, "after_flush", clear)
        try:
            session.flush()
            session.commit()
        finally:
            event.remove(engine, "before_cursor_execute", change)
    with Session(engine) as session:
        assert [session.get_one(Page, key).state.log for key in "12"] == [["first"]] * 2


def test_history_follows_what_changes_after_a_refused_flush(engine: Engine) -> None:
    """What that flush had found out about the other rows is forgotten."""
    with Session(engine) as session:
        session.add(Page(workflow_key="2", state=Notes()))
        session.commit()
        row, broken = session.get_one(Page, "1"), session.get_one(Page, "2")
        row.state.log.append("first")
        broken.state.log.append("\0")
        with pytest.raises(PayloadError):
            session.flush()
        row.state.log.clear()
        assert not inspect(row).attrs.state.history.has_changes()
        row.state.log.append("second")
        assert inspect(row).attrs.state.history.has_changes()
        broken.state.log.clear()
        session.commit()
    assert stored(engine) == (2, ["second"])
