"""Contract: relationships that write past before_update, or write no column at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, ForeignKey, create_engine, event, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    mapped_column,
    relationship,
)

from sa_wfstate import (
    ConflictReason,
    Provenance,
    StateConflict,
    WorkflowStateMixin,
)
from sa_wfstate.history import HistoryMixin, keep_history

from ..versions import KEEPS_POST_UPDATED_VERSIONS, POST_UPDATES_BEFORE_DELETE

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

pytestmark = pytest.mark.contract

KEY = "c-1"


class Base(DeclarativeBase):
    pass


class Progress(BaseModel):
    log: list[str] = []


class Case(WorkflowStateMixin[Progress], Base):
    """Points to one of the notes that point to it: one of two columns comes later."""

    __tablename__ = "cases"

    latest_id: Mapped[int | None] = mapped_column(
        ForeignKey("notes.id", use_alter=True, name="latest_note")
    )
    latest: Mapped[Note | None] = relationship(
        foreign_keys=[latest_id], post_update=True
    )
    cover: Mapped[Cover | None] = relationship(back_populates="case", uselist=False)


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    case_key: Mapped[str] = mapped_column(ForeignKey("cases.workflow_key"))
    case: Mapped[Case] = relationship(foreign_keys=[case_key])


class Cover(Base):
    """One to one with a case; the key is here."""

    __tablename__ = "covers"

    id: Mapped[int] = mapped_column(primary_key=True)
    case_key: Mapped[str | None] = mapped_column(ForeignKey("cases.workflow_key"))
    case: Mapped[Case | None] = relationship(back_populates="cover")


class Node(WorkflowStateMixin[Progress], Base):
    """Points to a row of its own table."""

    __tablename__ = "nodes"

    favourite_key: Mapped[str | None] = mapped_column(ForeignKey("nodes.workflow_key"))
    favourite: Mapped[Node | None] = relationship(
        remote_side="Node.workflow_key", post_update=True
    )


class Parent(Base):
    """No workflow; it writes the rows of its children after its own."""

    __tablename__ = "parents"

    id: Mapped[int] = mapped_column(primary_key=True)
    children: Mapped[list[Child]] = relationship(post_update=True)


class Child(WorkflowStateMixin[Progress], Base):
    __tablename__ = "children"

    parent_id: Mapped[int | None] = mapped_column(ForeignKey("parents.id"))


class CaseHistory(HistoryMixin, Base):
    __tablename__ = "case_history"


keep_history(Case, CaseHistory)


@pytest.fixture(autouse=True)
def _cases(create_tables: Callable[..., None], database: URL) -> None:
    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        case = Case(workflow_key=KEY, state=Progress())
        session.add_all([case, Node(workflow_key="n-1", state=Progress())])
        session.flush()
        session.add(Note(id=100, case=case))
        session.commit()
    plain.dispose()


def version_of(engine: Engine, table: str, key: str) -> int | None:
    """Return the version as the database has it."""
    query = text(f"SELECT version FROM {table} WHERE workflow_key = :key")
    with engine.connect() as connection:
        version: int | None = connection.scalar(query, {"key": key})
    return version


def kept(engine: Engine) -> list[int]:
    """Return the versions of the case that its history has."""
    query = text("SELECT version FROM case_history ORDER BY version")
    with engine.connect() as connection:
        return list(connection.scalars(query))


def test_post_update_alone_counts_a_version(engine: Engine) -> None:
    """The session knows it, and goes on from it."""
    with Session(engine, expire_on_commit=False) as session:
        case = session.get_one(Case, KEY)
        first = case.provenance
        case.latest = Note(case=case)
        session.commit()
        assert case.version == version_of(engine, "cases", KEY) == 2
        assert type(case.version) is int
        assert case.provenance != first
        case.state.log.append("more")
        session.commit()
        assert case.version == version_of(engine, "cases", KEY) == 3
    assert kept(engine) == [1, 2, 3]


def test_update_and_post_update_count_two(engine: Engine) -> None:
    """As SQLAlchemy sends two statements; one provenance stands for both."""
    with Session(engine, expire_on_commit=False) as session:
        case = session.get_one(Case, KEY)
        case.state.log.append("x")
        case.latest = Note(case=case)
        session.flush()
        assert case.version == 3
        case.state.log.append("y")
        session.commit()
        assert case.version == version_of(engine, "cases", KEY) == 4
    assert kept(engine) == [1, 2, 3, 4]
    with Session(engine) as session:
        written = session.query(CaseHistory).order_by(CaseHistory.version).all()
        effects = [each.provenance.effect_id for each in written]
        assert effects[1] == effects[2] != effects[3]


def test_created_row_has_one_version(engine: Engine) -> None:
    """The statement after its INSERT belongs to the creation."""
    with Session(engine, expire_on_commit=False) as session:
        node = Node(workflow_key="n-2", state=Progress())
        node.favourite = session.get_one(Node, "n-1")
        session.add(node)
        session.commit()
        assert node.version == version_of(engine, "nodes", "n-2")
        node.state.log.append("more")
        session.commit()
        assert node.version == version_of(engine, "nodes", "n-2")
    assert version_of(engine, "nodes", "n-1") == 1


def test_relationship_that_did_not_change_writes_nothing(engine: Engine) -> None:
    """To have read it is no reason for a version."""
    with Session(engine) as session:
        case = session.get_one(Case, KEY)
        case.latest = session.get_one(Note, 100)
        session.commit()
        assert case.latest is not None
        case.state.log.append("x")
        session.commit()
        assert case.version == 3
    assert version_of(engine, "cases", KEY) == 3


def test_rows_of_one_table_may_point_to_each_other(engine: Engine) -> None:
    """Each is written, and its version known."""
    with Session(engine, expire_on_commit=False) as session:
        first = session.get_one(Node, "n-1")
        second = Node(workflow_key="n-2", state=Progress())
        session.add(second)
        session.flush()
        first.favourite, second.favourite = second, first
        session.commit()
        for node in (first, second):
            node.state.log.append("x")
        session.commit()
        for node in (first, second):
            assert node.version == version_of(engine, "nodes", node.workflow_key) == 3


@pytest.mark.skipif(not KEEPS_POST_UPDATED_VERSIONS, reason="SQLAlchemy before 2.0.43")
def test_row_with_post_update_is_deleted(engine: Engine) -> None:
    """What is written before the DELETE is no other's write."""
    with Session(engine) as session:
        first = session.get_one(Node, "n-1")
        first.favourite = first
        session.add(Node(workflow_key="n-2", state=Progress(), favourite=first))
        session.commit()
    with Session(engine) as session:
        nodes = [session.get_one(Node, key) for key in ("n-1", "n-2")]
        for node in nodes:
            session.delete(node)
        session.commit()
    assert version_of(engine, "nodes", "n-1") is None
    assert version_of(engine, "nodes", "n-2") is None


def test_deletion_can_be_rolled_back(engine: Engine) -> None:
    """The row is at the version that it had, and the session knows that."""
    with Session(engine) as session:
        node = session.get_one(Node, "n-1")
        node.favourite = node
        session.commit()
        savepoint = session.begin_nested()
        session.delete(node)
        session.flush()
        savepoint.rollback()
        node.state.log.append("x")
        session.commit()
        assert node.version == version_of(engine, "nodes", "n-1") == 3


def test_savepoint_undoes_both_versions(engine: Engine) -> None:
    """What the session has seen is what the row is back at."""
    with Session(engine, expire_on_commit=False) as session:
        case = session.get_one(Case, KEY)
        note = session.get_one(Note, 100)
        savepoint = session.begin_nested()
        case.state.log.append("x")
        case.latest = note
        session.flush()
        assert case.version == 3
        savepoint.rollback()
        case.state.log.append("y")
        session.commit()
        assert case.version == version_of(engine, "cases", KEY) == 2


@pytest.mark.parametrize("delete", [False, True], ids=["update", "delete"])
def test_stale_row_is_a_conflict(engine: Engine, *, delete: bool) -> None:
    """Another's write is seen by the statement of post_update, too."""
    with Session(engine) as session:
        node = session.get_one(Node, "n-1")
        node.favourite = node
        session.commit()
        assert node.favourite is node
        with Session(engine) as other:
            other.get_one(Node, "n-1").state.log.append("other")
            other.commit()
        if delete:
            session.delete(node)
        else:
            node.favourite = None
        with pytest.raises(StateConflict) as caught:
            session.commit()
    conflict = caught.value
    assert (conflict.expected_version, conflict.actual_version) == (2, 3)
    assert len(conflict.conflicts) == 1


@pytest.mark.parametrize("delete", [False, True], ids=["update", "delete"])
def test_recreated_row_is_a_conflict(engine: Engine, *, delete: bool) -> None:
    """Version 1 again, but another workflow's."""
    with Session(engine) as session:
        session.get_one(Node, "n-1").favourite_key = "n-1"
        session.commit()
    with Session(engine) as session:
        node = session.get_one(Node, "n-1")
        assert node.favourite is node
        with engine.begin() as connection:
            provenance = Provenance.now("other").model_dump_json()
            connection.execute(
                text("UPDATE nodes SET provenance = CAST(:new AS jsonb)"),
                {"new": provenance},
            )
        if delete:
            session.delete(node)
        else:
            node.favourite = None
        with pytest.raises(StateConflict) as caught:
            session.commit()
    assert caught.value.reason is ConflictReason.RECREATED


@pytest.mark.skipif(not POST_UPDATES_BEFORE_DELETE, reason="SQLAlchemy before 2.0.58")
def test_parent_writes_its_children(engine: Engine) -> None:
    """The relationship that says post_update may be another class's."""
    with Session(engine, expire_on_commit=False) as session:
        child = Child(workflow_key="k-1", state=Progress())
        session.add(child)
        session.commit()
        first = child.provenance
        parent = Parent(children=[child])
        session.add(parent)
        session.commit()
        assert child.version == version_of(engine, "children", "k-1") == 2
        assert child.provenance != first
        child.state.log.append("x")
        session.commit()
        parent.children.remove(child)
        session.delete(parent)
        session.commit()
        child.state.log.append("y")
        session.commit()
        assert child.version == version_of(engine, "children", "k-1") == 5


def test_one_to_one_with_the_key_elsewhere_is_no_version(engine: Engine) -> None:
    """No column of the workflow is written, so nothing is counted."""
    with Session(engine, expire_on_commit=False) as session:
        case = session.get_one(Case, KEY)
        provenance = case.provenance
        case.cover = Cover()
        session.commit()
        assert (case.version, version_of(engine, "cases", KEY)) == (1, 1)
        assert type(case.version) is int
        assert case.provenance == provenance
        case.state.log.append("x")
        session.commit()
        assert (case.version, version_of(engine, "cases", KEY)) == (2, 2)
        case.cover = None
        session.commit()
        case.state.log.append("y")
        session.commit()
        assert (case.version, version_of(engine, "cases", KEY)) == (3, 3)
    assert kept(engine) == [1, 2, 3]


def test_one_to_one_of_a_stale_case_is_no_conflict(engine: Engine) -> None:
    """A flush that loses elsewhere does not name it, either."""
    with Session(engine) as session:
        case, node = session.get_one(Case, KEY), session.get_one(Node, "n-1")
        assert case.cover is None
        with Session(engine) as other:
            other.get_one(Case, KEY).state.log.append("other")
            other.get_one(Node, "n-1").state.log.append("other")
            other.commit()
        case.cover = Cover()
        session.flush()
        node.state.log.append("mine")
        case.cover = Cover()
        with pytest.raises(StateConflict) as caught:
            session.commit()
    assert [each.workflow_key for each in caught.value.conflicts] == ["n-1"]


def test_backref_of_a_column_is_a_version(engine: Engine) -> None:
    """Where the key is in the workflow's own row, the UPDATE is counted."""
    with Session(engine, expire_on_commit=False) as session:
        child = Child(workflow_key="k-1", state=Progress())
        session.add_all([child, Parent(id=7)])
        session.commit()
        child.parent_id = 7
        session.commit()
        assert (child.version, version_of(engine, "children", "k-1")) == (2, 2)


def test_unseen_version_is_no_obstacle_where_nothing_is_written(
    engine: Engine,
) -> None:
    """An instance of which the version is not loaded may be the other end."""
    with Session(engine) as session:
        session.add(Cover(id=1, case=session.get_one(Case, KEY)))
        session.commit()
    with Session(engine) as session:
        cover = session.get_one(Cover, 1, options=[joinedload(Cover.case)])
        event.listen(session, "before_flush", lambda *_: None)
        cover.case = None
        session.commit()
    assert version_of(engine, "cases", KEY) == 1
