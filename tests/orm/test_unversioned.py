"""__unversioned__: columns whose changes alone check and count no version."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import DateTime, ForeignKey, create_engine, event, func, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
)

from sa_wfstate import PydanticJSON, StateConflict, WorkflowStateMixin
from sa_wfstate.errors import MappingError, WriteSuppressed
from sa_wfstate.history import HistoryMixin, keep_history, list_versions

from ..triggers import before_update

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine, MetaData


class Base(DeclarativeBase):
    pass


class Note(BaseModel):
    text: str = ""


class Reader(Base):
    __tablename__ = "readers"
    id: Mapped[int] = mapped_column(primary_key=True)


class Doc(WorkflowStateMixin[Note], Base):
    __tablename__ = "orders"
    __unversioned__ = frozenset({"seen", "hits", "hint", "reader_id", "touched_at"})
    kind: Mapped[str] = mapped_column(default="doc")
    title: Mapped[str | None]
    seen: Mapped[str | None]
    hits: Mapped[int] = mapped_column(default=0)
    hint: Mapped[Note] = mapped_column(PydanticJSON(Note), default=Note)
    touched_at: Mapped[datetime | None] = mapped_column(
        DateTime(timezone=True), onupdate=func.now()
    )
    audited: Mapped[int] = mapped_column(default=0, onupdate=lambda: 7)
    reader_id: Mapped[int | None] = mapped_column(ForeignKey("readers.id"))
    reader: Mapped[Reader | None] = relationship()
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "doc",
    }


class Sub(Doc):
    __tablename__ = "subs"
    __unversioned__ = Doc.__unversioned__ | {"sub_seen"}
    workflow_key: Mapped[str] = mapped_column(
        ForeignKey("orders.workflow_key"), primary_key=True
    )
    sub_seen: Mapped[str | None]
    sub_title: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "sub"}  # noqa: RUF012


class DocHistory(HistoryMixin, Base):
    __tablename__ = "doc_history"


keep_history(Doc, DocHistory)


class Keyed(WorkflowStateMixin[Note], Base):
    __tablename__ = "keyed"
    __unversioned__ = ("seen",)
    id: Mapped[int] = mapped_column(primary_key=True)
    seen: Mapped[str | None]


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None], database: URL) -> None:
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        session.add(Doc(workflow_key="d-1", state=Note()))
        session.add(Sub(workflow_key="s-1", state=Note()))
        session.add(Keyed(workflow_key="k-1", state=Note()))
        session.commit()
    plain.dispose()


def updates_of(engine: Engine) -> list[str]:
    """Return a list to which each UPDATE of *engine* is added."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        if args[2].startswith("UPDATE"):
            sent.append(" ".join(args[2].split()))

    return sent


def row_of(engine: Engine, key: str = "d-1") -> Any:
    """Read the row past the ORM."""
    with engine.connect() as connection:
        return connection.execute(
            text("SELECT * FROM orders WHERE workflow_key = :key"), {"key": key}
        ).one()


@pytest.mark.contract
@pytest.mark.parametrize("expires", [True, False])
def test_change_of_these_columns_alone_counts_nothing(
    engine: Engine, expires: bool
) -> None:
    """One UPDATE; version, time, provenance and history stay as they were."""
    before, sent = row_of(engine), updates_of(engine)
    with Session(engine, expire_on_commit=expires) as session:
        doc = session.get_one(Doc, "d-1")
        assert doc.state.text == ""  # Reading it makes no change.
        doc.seen = "x"
        doc.hint.text = "in place"
        session.commit()
        assert len(sent) == 1
        assert "version" not in sent[0]
        assert (doc.seen, doc.hint.text, doc.version) == ("x", "in place", 1)
        assert doc.touched_at is not None
        assert not session.dirty or expires
        assert len(list_versions(session, Doc, "d-1")) == 1
        session.commit()
        assert len(sent) == 1
        now = row_of(engine)
        assert (now.seen, now.hint) == ("x", {"text": "in place"})
        for name in ("version", "updated_at", "provenance", "audited"):
            assert getattr(now, name) == getattr(before, name), name
        # With any other change it is a commit.
        doc.state.text, doc.seen = "changed", "y"
        session.commit()
        assert (row_of(engine).version, row_of(engine).seen) == (2, "y")
        assert len(sent) == 2
        assert row_of(engine).audited == 7
        assert len(list_versions(session, Doc, "d-1")) == 2


@pytest.mark.contract
def test_stale_instance_writes_them_and_sets_no_version_back(engine: Engine) -> None:
    """The next versioned write is still checked against what was read."""
    with Session(engine, expire_on_commit=False) as session, Session(engine) as other:
        doc = session.get_one(Doc, "d-1")
        other.get_one(Doc, "d-1").state.text = "theirs"
        other.commit()
        doc.seen = "mine"
        session.commit()
        assert (row_of(engine).version, row_of(engine).seen) == (2, "mine")
        assert row_of(engine).state == {"text": "theirs"}
        assert doc.version == 1
        doc.state.text = "mine"
        with pytest.raises(StateConflict, match="expected version 1, found 2"):
            session.commit()


def test_savepoint_and_rollback(engine: Engine) -> None:
    """They take the values back, as those of any column."""
    with Session(engine) as session:
        doc = session.get_one(Doc, "d-1")
        with session.begin_nested() as savepoint:
            doc.seen = "undone"
            session.flush()
            savepoint.rollback()
        assert doc.seen is None
        with session.begin_nested():
            doc.seen = "kept"
        session.commit()
        assert doc.seen == row_of(engine).seen == "kept"
        doc.seen, doc.hint.text = "undone", "undone"
        session.flush()
        session.rollback()
        assert (doc.seen, doc.hint.text) == ("kept", "")


def test_foreign_key_that_the_unit_of_work_sets(engine: Engine) -> None:
    """Also that of a new object, which has its key only in the flush."""
    sent = updates_of(engine)
    with Session(engine) as session:
        doc = session.get_one(Doc, "d-1")
        doc.reader = Reader()
        session.commit()
        assert len(sent) == 1
        assert row_of(engine).reader_id == doc.reader.id
        doc.reader = None
        session.commit()
    assert (row_of(engine).version, row_of(engine).reader_id) == (1, None)


def test_sql_expression_comes_back_as_its_value(engine: Engine) -> None:
    """So a counter needs no read."""
    with Session(engine) as session:
        doc = session.get_one(Doc, "d-1")
        doc.hits = Doc.hits + 5  # type: ignore[assignment]
        session.flush()
        assert doc.hits == 5
        assert doc.version == 1


def test_joined_inheritance(engine: Engine) -> None:
    """Each table gets an UPDATE of its own columns; a versioned column counts."""
    sent = updates_of(engine)
    with Session(engine) as session:
        sub = session.get_one(Sub, "s-1")
        sub.sub_seen = "1"
        session.commit()
        assert [each.split()[1] for each in sent] == ["subs"]
        sub.sub_seen, sub.seen = "2", "2"
        session.commit()
        assert sorted(each.split()[1] for each in sent[1:]) == ["orders", "subs"]
        assert row_of(engine, "s-1").version == 1
        sub.sub_title, sub.sub_seen = "t", "3"
        session.commit()
        assert sub.version == 2


def test_surrogate_key(engine: Engine) -> None:
    """The row is found by its primary key."""
    with Session(engine) as session:
        keyed = session.query(Keyed).one()
        keyed.seen = "x"
        session.commit()
        assert (keyed.seen, keyed.version) == ("x", 1)


def test_row_that_is_gone(engine: Engine) -> None:
    """It is a conflict; where a trigger suppresses the write, it is not."""
    before_update(engine, "RETURN NULL")
    with Session(engine) as session:
        session.get_one(Doc, "d-1").seen = "x"
        with pytest.raises(WriteSuppressed):
            session.flush()
        session.rollback()
        doc = session.get_one(Doc, "d-1")
        doc.seen = "x"
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM orders WHERE workflow_key = 'd-1'"))
        with pytest.raises(StateConflict, match="the row is gone"):
            session.commit()


def test_moved_row_at_repeatable_read(engine: Engine) -> None:
    """The database refuses it, as any write."""
    level = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(level) as session, Session(engine) as other:
        doc = session.get_one(Doc, "d-1")
        other.get_one(Doc, "d-1").seen = "theirs"
        other.commit()
        doc.seen = "mine"
        with pytest.raises(StateConflict) as caught:
            session.commit()
        assert caught.value.reason == "serialization"


async def test_async_session(async_engine: AsyncEngine) -> None:
    """Everything is loaded afterwards: reading needs no query."""
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        doc = await session.get_one(Doc, "d-1")
        doc.seen = "x"
        await session.commit()
        assert (doc.seen, doc.version, doc.touched_at is None) == ("x", 1, False)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({"state"}, "columns of your own, and not one of the row: 'state'"),
        ({"version"}, "columns of your own"),
        ({"sene"}, "takes names of column attributes"),
        ({"id"}, "cannot hold a key"),
        ("seen", "must be a set of attribute names: 'seen'"),
    ],
)
def test_what_cannot_be_unversioned(names: Any, problem: str) -> None:
    """It is refused when the class is mapped; the state never can be."""

    class Other(DeclarativeBase):
        pass

    with pytest.raises(MappingError, match=f"__unversioned__ .*{problem}"):

        class Wrong(WorkflowStateMixin[Note], Other):
            __tablename__ = "wrong"
            __unversioned__ = names
            id: Mapped[int] = mapped_column(primary_key=True)
            seen: Mapped[str | None]
