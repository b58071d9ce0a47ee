"""The effect of the base is compared by those statements that write workflow rows."""

from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    event,
    func,
    inspect,
    select,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    registry,
    sessionmaker,
)

from sa_wfstate import (
    ConflictReason,
    Provenance,
    PydanticJSON,
    StateConflict,
    WorkflowStateMixin,
    try_commit,
)
from sa_wfstate.errors import MappingError
from sa_wfstate.payload.schema_versions import schema_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


event.listen(
    Base.metadata,
    "before_create",
    DDL("CREATE SCHEMA IF NOT EXISTS other").execute_if(dialect="postgresql"),
)


class Job(WorkflowStateMixin[dict[str, int]], Base):
    __tablename__ = "jobs"


class InSchema(WorkflowStateMixin[dict[str, int]], Base):
    __tablename__ = "jobs"
    __table_args__ = {"schema": "other"}  # noqa: RUF012


class Single(WorkflowStateMixin[dict[str, int]], Base):
    __tablename__ = "single"
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "base",
    }

    kind: Mapped[str]


class SingleChild(Single):
    __mapper_args__ = {"polymorphic_identity": "child"}  # noqa: RUF012


class Joined(WorkflowStateMixin[dict[str, int]], Base):
    __tablename__ = "joined"
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "base",
    }

    kind: Mapped[str]


class JoinedChild(Joined):
    __tablename__ = "joined_child"
    __mapper_args__ = {"polymorphic_identity": "child"}  # noqa: RUF012

    workflow_key: Mapped[str] = mapped_column(
        ForeignKey("joined.workflow_key"), primary_key=True
    )
    more: Mapped[int] = mapped_column(default=0)


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Archived(WorkflowStateMixin[dict[str, int]], Note):
    __tablename__ = "archived"
    __mapper_args__ = {"concrete": True}  # noqa: RUF012


def table(name: str, metadata: MetaData, counter: Any = BigInteger) -> Table:
    """Return the table of a workflow as an application declares it by hand."""
    made = Table(
        name,
        metadata,
        Column("workflow_key", Text, primary_key=True),
        Column("version", counter, nullable=False, server_default="1"),
        Column("state", PydanticJSON(dict[str, int]), nullable=False),
        Column(
            "updated_at",
            DateTime(timezone=True),
            nullable=False,
            server_default=func.now(),
            onupdate=func.now(),
        ),
        Column("schema_version", Integer, nullable=False, default=1),
        Column(
            "provenance",
            PydanticJSON(Provenance, mutable=False),
            nullable=False,
            default=Provenance.now,
        ),
    )
    # A comparison that was made before the class is mapped.
    made.append_constraint(CheckConstraint(made.c.version > 0, name=f"{name}_own"))
    return made


class ByTable(WorkflowStateMixin[dict[str, int]], Base):
    __table__ = table("by_table", Base.metadata)


class ByInteger(WorkflowStateMixin[dict[str, int]], Base):
    __table__ = table("by_integer", Base.metadata, Integer)


class ByVariant(WorkflowStateMixin[dict[str, int]], Base):
    __table__ = table(
        "by_variant", Base.metadata, BigInteger().with_variant(Integer(), "sqlite")
    )


class Imperative(WorkflowStateMixin[dict[str, int]]):
    pass


def map_imperatively() -> None:
    """Map a class without a declarative base."""
    own = table("imperative", Base.metadata)
    own.c.state.type = own.c.state.type.with_schema(schema_of(Imperative))
    registry(metadata=Base.metadata).map_imperatively(Imperative, own)


map_imperatively()

KINDS: list[Any] = [
    Job,
    InSchema,
    Single,
    SingleChild,
    Joined,
    JoinedChild,
    Archived,
    ByTable,
    ByInteger,
    ByVariant,
    Imperative,
]


@pytest.fixture
def rival(
    create_tables: Callable[..., None], sessions: sessionmaker[Session]
) -> sessionmaker[Session]:
    """Return the sessions of a rival, and the tables."""
    create_tables(Base.metadata)
    return sessions


def place(rival: sessionmaker[Session], kind: Any, keys: str) -> None:
    """Create workflows."""
    with rival.begin() as session:
        for key in keys:
            session.add(kind(workflow_key=key, state={"n": 1}))


def create_again(rival: sessionmaker[Session], kind: Any, key: str) -> None:
    """Delete a workflow, and create another one of its key and version."""
    with rival.begin() as session:
        session.delete(session.get_one(kind, key))
    place(rival, kind, key)


def change(session: Session, kind: Any, key: str) -> None:
    """Change the state that is held."""
    session.get_one(kind, key).state["n"] += 1


def delete(session: Session, kind: Any, key: str) -> None:
    """Delete what is held."""
    session.delete(session.get_one(kind, key))


@pytest.mark.contract
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [change, delete])
def test_row_that_was_created_again_is_not_written_over(
    engine: Engine, rival: sessionmaker[Session], kind: Any, write: Any
) -> None:
    """However the class is mapped, alone and among others, and nothing else is lost."""
    place(rival, kind, "abc")
    for keys in ("b", "abc"):
        with Session(engine) as session:
            held = [session.get_one(kind, key) for key in keys]
            create_again(rival, kind, "b")
            for key in keys:
                write(session, kind, key)
            with pytest.raises(StateConflict) as caught:
                session.commit()
            (conflict,) = caught.value.conflicts
            assert conflict.reason is ConflictReason.RECREATED
            assert conflict.workflow_key == "b"
            session.rollback()
            assert [type(each.version) for each in held] == [int] * len(held)
            for key in keys:
                change(session, kind, key)
                session.flush()
                write(session, kind, key)
            session.commit()
        with rival.begin() as session:
            for row in session.scalars(select(kind)).all():
                session.delete(row)
        place(rival, kind, "abc")


@pytest.mark.contract
@pytest.mark.parametrize("kind", KINDS)
def test_try_commit_compares_the_effect(
    engine: Engine, rival: sessionmaker[Session], kind: Any
) -> None:
    """The same of a write that is no flush."""
    place(rival, kind, "a")
    with Session(engine) as session:
        held = session.get_one(kind, "a")
        effect_id = held.provenance.effect_id
        create_again(rival, kind, "a")
        outcome = try_commit(
            session,
            kind,
            "a",
            expected_version=1,
            expected_effect_id=effect_id,
            state={"n": 2},
            provenance=Provenance.now(),
        )
        assert isinstance(outcome, StateConflict)
        assert outcome.reason is ConflictReason.RECREATED


@pytest.mark.contract
def test_reflected_table_compares_the_effect(
    engine: Engine, rival: sessionmaker[Session]
) -> None:
    """The type that reflection gives the version is compared too."""
    place(rival, Job, "a")
    reflected = Table(
        "jobs",
        MetaData(),
        Column("state", PydanticJSON(dict[str, int])),
        Column("provenance", PydanticJSON(Provenance, mutable=False)),
        autoload_with=engine,
    )

    class Own(DeclarativeBase):
        pass

    class Reflected(WorkflowStateMixin[dict[str, int]], Own):
        __table__ = reflected

    with Session(engine) as session:
        held = session.get_one(Reflected, "a")
        create_again(rival, Job, "a")
        held.state["n"] = 2
        with pytest.raises(StateConflict) as caught:
            session.commit()
        assert caught.value.reason is ConflictReason.RECREATED


@pytest.fixture
def sent(engine: Engine) -> list[str]:
    """Return the statements that are sent from now on."""
    statements: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        statements.append(f"{args[2]} {args[3]}")

    return statements


@pytest.mark.contract
@pytest.mark.parametrize("kind", KINDS)
def test_update_and_delete_compare_the_effect(
    engine: Engine, rival: sessionmaker[Session], sent: list[str], kind: Any
) -> None:
    """What writes over a row, one or several, names the effect that wrote it."""
    place(rival, kind, "abc")
    with Session(engine) as session:
        held = session.scalars(select(kind).order_by(kind.workflow_key)).all()
        bases = [each.provenance.effect_id for each in held]
        held[0].state = {"n": 2}
        session.delete(held[1])
        session.flush()
        session.delete(held[0])
        session.delete(held[2])
        bases += [held[0].provenance.effect_id]
        session.commit()
    writes = [
        sql for sql in sent if sql[:6] in {"UPDATE", "DELETE"} and "version" in sql
    ]
    assert all("effect_id" in sql for sql in writes)
    for version, effect_id in zip([1, 1, 1, 2], bases, strict=True):
        assert any(f"{version}:{effect_id}" in sql for sql in writes)


def test_own_statements_compare_the_version_alone() -> None:
    """What the application compares is a number, whatever it is compared with."""
    for kind in KINDS:
        version, column = kind.version, inspect(kind).version_id_col
        for criterion in (
            version == 1,
            column == 1,
            column.in_([1, 2]),
            column > 1,
            column == bindparam("version", 1),
            version == bindparam("version", 1, type_=version.type),
            column == kind.schema_version,
        ):
            assert "effect_id" not in str(select(version + 1).where(criterion))


def test_statement_is_compiled_once(
    engine: Engine, rival: sessionmaker[Session]
) -> None:
    """The comparison of the effect does not keep the UPDATE out of the cache."""
    place(rival, Job, "a")
    sizes = []
    with Session(engine) as session:
        for number in (2, 3, 4):
            session.get_one(Job, "a").state["n"] = number
            session.commit()
            sizes.append(len(engine._compiled_cache))
    assert sizes[1] == sizes[2]


def assert_plain(instance: Any) -> None:
    """Check that the version is an int, wherever it is looked at."""
    copies = [instance, pickle.loads(pickle.dumps(instance)), copy.deepcopy(instance)]
    for each in copies:
        version = each.__dict__.get("version", 1)
        assert type(version) is int
        assert json.loads(json.dumps(version)) == version
        assert "Expected" not in repr(version)
    history = inspect(instance).attrs.version.history
    for part in (history.added, history.unchanged, history.deleted):
        assert all(type(version) is int for version in part or ())


def test_version_stays_a_number(engine: Engine, rival: sessionmaker[Session]) -> None:
    """After what is written, lost, undone or replaced, it is an int."""
    place(rival, Job, "abcdef")
    with Session(engine) as session:
        job = session.get_one(Job, "a")
        job.state["n"] = 2
        session.flush()
        assert_plain(job)
        session.commit()
        assert job.version == 2
        assert_plain(job)
        with session.begin_nested() as savepoint:
            job.state["n"] = 3
            session.flush()
            savepoint.rollback()
        assert_plain(job)
        session.delete(job)
        session.flush()
        assert_plain(job)
        session.commit()
        assert_plain(job)


@pytest.mark.parametrize("write", [change, delete])
@pytest.mark.parametrize("nested", [False, True])
def test_version_of_a_lost_write_is_a_number(
    engine: Engine, rival: sessionmaker[Session], write: Any, *, nested: bool
) -> None:
    """Also that of the others in the flush, and where only a savepoint is undone."""
    place(rival, Job, "abc")
    with Session(engine) as session:
        held = [session.get_one(Job, key) for key in "abc"]
        create_again(rival, Job, "b")
        if nested:
            session.begin_nested()
        for key in "abc":
            write(session, Job, key)
        with pytest.raises(StateConflict):
            session.flush()
        for job in held:
            assert_plain(job)
        session.rollback()
        for job in held:
            assert_plain(job)
            assert job.version == 1


def test_version_of_a_replaced_object_is_a_number(
    engine: Engine, rival: sessionmaker[Session]
) -> None:
    """A DELETE and an INSERT of one key are one UPDATE; neither object shows it."""
    place(rival, Job, "a")
    with Session(engine) as session:
        old, new = session.get_one(Job, "a"), Job(workflow_key="a", state={"n": 2})
        session.delete(old)
        session.add(new)
        session.commit()
        assert_plain(old)
        assert_plain(new)
        assert new.version == 2


def test_version_that_a_listener_vetoes_is_a_number(
    engine: Engine, rival: sessionmaker[Session]
) -> None:
    """A flush may fail by what is not ours, after the version was prepared."""
    place(rival, Job, "ab")
    with Session(engine) as session:
        jobs = [session.get_one(Job, key) for key in "ab"]

        def veto(*_: Any) -> None:
            raise RuntimeError("not today")

        event.listen(Job, "before_delete", veto)
        savepoint = session.begin_nested()
        for job in jobs:
            session.delete(job)
        with pytest.raises(RuntimeError, match="not today"):
            session.flush()
        event.remove(Job, "before_delete", veto)
        savepoint.rollback()
        for job in jobs:
            assert_plain(job)


class Counter(TypeDecorator[int]):
    impl = BigInteger
    cache_ok = True


class Tally(BigInteger):
    class Comparator(BigInteger.Comparator):
        pass

    comparator_factory = Comparator


@pytest.mark.parametrize("counter", [Counter(), Tally(), Numeric(), Text()])
def test_version_column_of_another_type_is_refused(counter: Any) -> None:
    """Where the effect could not be compared, the class is not mapped."""

    class Own(DeclarativeBase):
        pass

    with pytest.raises(MappingError, match=r"'version' of table 'x' must be a BigInt"):

        class Order(WorkflowStateMixin[dict[str, int]], Own):
            __table__ = table("x", Own.metadata, counter)
