"""Versions that the application names: of a flush, and of a deletion."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy import ForeignKey, create_engine, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sa_wfstate.asyncio
from sa_wfstate import (
    PayloadError,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
)
from sa_wfstate.errors import MappingError, UnflushedChanges
from sa_wfstate.history import HistoryMixin, keep_history, list_versions
from sa_wfstate.versions import RowVersion, expect_version, try_delete, try_delete_many

from .verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine, MetaData


class Base(DeclarativeBase):
    pass


class Note(BaseModel):
    text: str = ""


class Doc(WorkflowStateMixin[Note], Base):
    __tablename__ = "docs"
    __unversioned__ = ("seen",)
    id: Mapped[int] = mapped_column(primary_key=True)
    seen: Mapped[str | None]


class DocHistory(HistoryMixin, Base):
    __tablename__ = "doc_history"


keep_history(Doc, DocHistory)


class Whole(WorkflowStateMixin[Note], Base):
    __tablename__ = "wholes"
    kind: Mapped[str] = mapped_column(default="whole")
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "whole",
    }


class Part(Whole):
    __tablename__ = "parts"
    workflow_key: Mapped[str] = mapped_column(
        ForeignKey("wholes.workflow_key"), primary_key=True
    )
    __mapper_args__ = {"polymorphic_identity": "part"}  # noqa: RUF012


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None], database: URL) -> None:
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        for number in range(1, 6):
            session.add(Doc(workflow_key=f"d-{number}", state=Note()))
        session.commit()
        # The first one is at version 2.
        session.query(Doc).filter_by(workflow_key="d-1").one().state.text = "second"
        session.commit()
    plain.dispose()


def doc_of(session: Session, key: str = "d-1") -> Doc:
    """Load a document."""
    return session.query(Doc).filter_by(workflow_key=key).one()


@pytest.mark.contract
def test_flush_checks_the_expected_version(engine: Engine) -> None:
    """Not the one that was loaded, also if it is loaded again meanwhile."""
    with Session(engine) as session:
        doc = doc_of(session)
        expect_version(doc, 1)
        session.refresh(doc)
        doc.state.text = "based on the first"
        with pytest.raises(StateConflict, match="version 1, found 2") as caught:
            session.commit()
        assert caught.value.current.state.text == "second"
        session.rollback()
        # Told once, the session checks what it reads again.
        doc.state.text = "decided again"
        session.commit()
        assert doc.version == 3
        for expected in (3, RowVersion(4, "known"), RowVersion(5, None)):
            expect_version(doc, expected)
            doc.state.text += "!"
            doc.provenance = Provenance.now("known")
            session.commit()
        expect_version(doc, RowVersion(6, "of another row"))
        doc.state.text += "!"
        with pytest.raises(StateConflict) as caught:
            session.flush()
        assert caught.value.reason == "recreated"


def test_expected_version_waits_for_a_write(engine: Engine) -> None:
    """Nothing is checked if nothing is written; an unversioned column counts then."""
    with Session(engine) as session:
        doc = doc_of(session)
        expect_version(doc, 1)
        doc.state = Note(text="second")
        session.commit()
        doc.seen = "x"
        with pytest.raises(StateConflict, match="expected version 1, found 2"):
            session.commit()
        session.rollback()
        expect_version(doc, 1)
        session.delete(doc)
        with pytest.raises(StateConflict, match="expected version 1, found 2"):
            session.commit()


def test_pickled_draft_keeps_it(engine: Engine) -> None:
    """So a draft is based on the version that its author has seen."""
    with Session(engine) as session:
        draft = doc_of(session)
        expect_version(draft, 1)
        _ = draft.state, draft.seen
        session.expunge(draft)
    with Session(engine) as session:
        again = pickle.loads(pickle.dumps(draft))
        session.add(again)
        again.state.text = "draft"
        with pytest.raises(StateConflict, match="expected version 1, found 2"):
            session.commit()


def test_what_cannot_be_expected(engine: Engine) -> None:
    """A version is an int from 1 on, of a row that is stored."""
    new = Doc(workflow_key="d-9", state=Note())
    with pytest.raises(InvalidRequestError, match="takes a stored Doc"):
        expect_version(new, 1)
    wrong: list[Any] = [0, -1, True, "1", None]
    with Session(engine) as session:
        doc = doc_of(session)
        for version in wrong:
            with pytest.raises(PayloadError, match="must be a version that was read"):
                expect_version(doc, version)
            with pytest.raises(PayloadError, match="expected_version"):
                try_delete(session, Doc, "d-1", expected_version=version)


@pytest.mark.contract
def test_delete_at_a_version(engine: Engine) -> None:
    """The outcome has the deleted row; a loss is returned."""
    with Session(engine) as session:
        lost = try_delete(session, Doc, "d-1", expected_version=1)
        assert isinstance(lost, StateConflict)
        assert (lost.reason, lost.current.state.text) == ("moved", "second")
        sent = verbs_of(engine)
        won = try_delete(session, Doc, "d-1", expected_version=2)
        assert sent == ["SELECT", "DELETE"]
        assert isinstance(won, StateCommitted)
        assert (won.version, won.snapshot.state.text) == (2, "second")
        assert pickle.loads(pickle.dumps(won)).snapshot == won.snapshot
        gone = try_delete(session, Doc, "d-1", expected_version=2)
        assert isinstance(gone, StateConflict)
        assert gone.reason == "missing"
        session.commit()
        assert session.scalar(text("SELECT count(*) FROM docs")) == 4
        # As after a deletion by the unit of work.
        assert len(list_versions(session, Doc, "d-1")) == 2


def test_instance_of_a_deleted_row(engine: Engine) -> None:
    """It is expired: found gone, and there again after a rollback."""
    with Session(engine) as session:
        doc = doc_of(session)
        doc.state.text = "changed"
        with pytest.raises(UnflushedChanges):
            try_delete(session, Doc, "d-1", expected_version=2)
        session.rollback()
        with session.begin_nested() as savepoint:
            try_delete(session, Doc, "d-1", expected_version=2)
            assert session.get(Doc, 1) is None
            savepoint.rollback()
        assert doc_of(session).state.text == "second"


@pytest.mark.contract
def test_delete_many(engine: Engine) -> None:
    """Each wins or loses by itself, in the order given."""
    with Session(engine) as session:
        effect_id = doc_of(session, "d-5").provenance.effect_id
        expected: dict[str, int | RowVersion] = {
            "d-4": 1,
            "d-9": 1,
            "d-1": 1,
            "d-3": RowVersion(1, "another"),
            "d-5": RowVersion(1, effect_id),
        }
        outcomes = try_delete_many(session, Doc, expected)
        assert [each.workflow_key for each in outcomes] == list(expected)
        reasons = [getattr(each, "reason", "") for each in outcomes]
        assert reasons == ["", "missing", "moved", "recreated", ""]
        session.commit()
        left = session.scalars(text("SELECT workflow_key FROM docs ORDER BY 1")).all()
        assert left == ["d-1", "d-2", "d-3"]
        assert try_delete_many(session, Doc, {}) == []


def test_row_that_moved_at_repeatable_read(engine: Engine) -> None:
    """The database refuses the transaction, as for try_commit."""
    level = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(level) as session, Session(engine) as other:
        doc_of(session)
        doc_of(other).provenance = Provenance.now()
        other.commit()
        with pytest.raises(StateConflict) as caught:
            try_delete(session, Doc, "d-1", expected_version=2)
        assert caught.value.reason == "serialization"


def test_class_with_two_tables_is_refused(engine: Engine) -> None:
    """Its rows are deleted through a session."""
    with Session(engine) as session, pytest.raises(MappingError, match="second table"):
        try_delete(session, Part, "p-1", expected_version=1)


async def test_async_counterparts(async_engine: AsyncEngine) -> None:
    """They take an AsyncSession."""
    async with AsyncSession(async_engine) as session:
        outcome = await sa_wfstate.asyncio.try_delete(
            session, Doc, "d-1", expected_version=2
        )
        assert isinstance(outcome, StateCommitted)
        (outcome,) = await sa_wfstate.asyncio.try_delete_many(session, Doc, {"d-2": 7})
        assert isinstance(outcome, StateConflict)
