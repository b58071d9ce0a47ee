"""Contract: what listeners of a flush change is written, by that flush if it can be."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, field_validator
from sqlalchemy import Engine, create_engine, event, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, Session, mapped_column

from sa_wfstate import PayloadError, Provenance, WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

pytestmark = pytest.mark.contract

READ = pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
EXPIRE = pytest.mark.parametrize("expire", [False, True], ids=["kept", "expired"])
KEY = "d-1"


class Notes(BaseModel):
    """A state that listeners write into."""

    log: list[str] = []
    extra: dict[str, Any] = {}

    @field_validator("log")
    @classmethod
    def _not_bad(cls, log: list[str]) -> list[str]:
        if "unreadable" in log:
            raise ValueError
        return log


@pytest.fixture
def documents(create_tables: Callable[..., None], database: URL) -> Any:
    """Map the classes anew, so that a listener ends with its test; make two rows."""

    class Base(DeclarativeBase):
        pass

    class Document(WorkflowStateMixin[Notes], Base):
        __tablename__ = "documents"

        title: Mapped[str | None]
        stamps: int = 0

        def default_provenance(self) -> Provenance:
            self.stamps += 1
            return Provenance.now()

    class Ticket(Base):
        __tablename__ = "tickets"

        id: Mapped[int] = mapped_column(primary_key=True)

    create_tables(Base.metadata)
    plain = create_engine(database)
    with Session(plain) as session:
        session.add_all(
            [
                Document(workflow_key=KEY, state=Notes()),
                Document(workflow_key="d-2", state=Notes()),
            ]
        )
        session.commit()
    plain.dispose()
    classes: Any = type("Classes", (), {"Document": Document, "Ticket": Ticket})
    return classes


def row(engine: Engine, key: str = KEY) -> tuple[int, list[str]]:
    """Return version and log as the database has them."""
    query = text("SELECT version, state FROM documents WHERE workflow_key = :key")
    with engine.connect() as connection:
        version, state = connection.execute(query, {"key": key}).one()
    log = Notes.model_validate(state).log if isinstance(state, dict) else state
    return version, log if isinstance(log, list) else Notes.model_validate_json(log).log


def note(document: Any, what: str = "seen") -> None:
    """Change the state of *document* in place."""
    document.state.log.append(what)


@contextmanager
def listening(
    target: Any, name: str, function: Callable[..., object]
) -> Iterator[None]:
    """Listen for the length of a block: on Session or Mapper it would go on."""
    event.listen(target, name, function)
    try:
        yield
    finally:
        event.remove(target, name, function)


@EXPIRE
@pytest.mark.parametrize("kept", [False, True], ids=["instance", "reference"])
def test_before_insert_is_written_by_the_insert(
    engine: Engine, documents: Any, *, expire: bool, kept: bool
) -> None:
    """The row is created with it, once, and watched from then on."""
    state = Notes()
    event.listen(
        documents.Document,
        "before_insert",
        lambda *args: (state if kept else args[2].state).log.append("made"),
    )
    with Session(engine, expire_on_commit=expire) as session:
        document = documents.Document(workflow_key="new", state=state)
        session.add(document)
        session.commit()
        assert row(engine, "new") == (1, ["made"])
        assert document.state.log == ["made"]
        note(document)
        session.commit()
    assert row(engine, "new") == (2, ["made", "seen"])


def test_before_insert_may_assign(engine: Engine, documents: Any) -> None:
    """The state that it assigns is the one that is written and watched."""
    event.listen(
        documents.Document,
        "before_insert",
        lambda *args: setattr(args[2], "state", Notes(log=["other"])),
    )
    with Session(engine, expire_on_commit=False) as session:
        document = documents.Document(workflow_key="new", state=Notes())
        session.add(document)
        session.commit()
        note(document)
        session.commit()
    assert row(engine, "new") == (2, ["other", "seen"])


def test_after_insert_is_written_by_the_next_flush(
    engine: Engine, documents: Any
) -> None:
    """The INSERT was sent; the same commit sends an UPDATE for it."""
    event.listen(documents.Document, "after_insert", lambda *args: note(args[2]))
    with Session(engine) as session:
        session.add(documents.Document(workflow_key="new", state=Notes()))
        session.commit()
    assert row(engine, "new") == (2, ["seen"])


@READ
@EXPIRE
@pytest.mark.parametrize("on_class", [False, True], ids=["session", "Session"])
def test_before_flush_is_written_by_that_flush(
    engine: Engine, documents: Any, *, read: bool, expire: bool, on_class: bool
) -> None:
    """Also if the listener is the first to read the state."""
    with Session(engine, expire_on_commit=expire) as session:
        document = session.get_one(documents.Document, KEY)
        if read:
            assert document.state.log == []
        document.title = "x"

        def change(flushed: Session, *_: object) -> None:
            for each in flushed.dirty:
                note(each)

        with listening(Session if on_class else session, "before_flush", change):
            session.commit()
        assert (document.version, document.state.log) == (2, ["seen"])
    assert row(engine) == (2, ["seen"])


@READ
def test_before_flush_may_change_another_instance(
    engine: Engine, documents: Any, *, read: bool
) -> None:
    """An instance that was not to be flushed is flushed."""
    with Session(engine) as session:
        first = session.get_one(documents.Document, KEY)
        second = session.get_one(documents.Document, "d-2")
        if read:
            assert second.state.log == []

        def change(*_: object) -> None:
            if not second.state.log:
                note(second)

        event.listen(session, "before_flush", change)
        first.title = "x"
        session.flush()
        session.commit()
    assert (row(engine), row(engine, "d-2")) == ((2, []), (2, ["seen"]))


def test_before_flush_may_change_through_a_reference(
    engine: Engine, documents: Any
) -> None:
    """In the second flush of a commit, too, of which the instance is no part."""
    with Session(engine) as session:
        first = session.get_one(documents.Document, KEY)
        state = session.get_one(documents.Document, "d-2").state
        flushes = []

        def change(*_: object) -> None:
            flushes.append(1)
            state.log.append(str(len(flushes)))

        event.listen(session, "before_flush", change)
        event.listen(
            documents.Document,
            "after_update",
            lambda *args: (
                setattr(args[2], "state", Notes(log=["late"]))
                if args[2] is first and len(flushes) == 1
                else None
            ),
        )
        first.title = "x"
        session.commit()
    assert row(engine) == (3, ["late"])
    assert row(engine, "d-2") == (3, ["1", "2"])


def test_before_flush_may_change_a_new_object(engine: Engine, documents: Any) -> None:
    """Its INSERT writes the change."""
    with Session(engine) as session:
        event.listen(session, "before_flush", lambda s, *_: list(map(note, s.new)))
        session.add(documents.Document(workflow_key="new", state=Notes()))
        session.commit()
    assert row(engine, "new") == (1, ["seen"])


def test_before_flush_may_add_an_object(engine: Engine, documents: Any) -> None:
    """An object that it adds is checked, written and watched like any other."""
    with Session(engine) as session:
        made = documents.Document(workflow_key="new", state=Notes())
        event.listen(session, "before_flush", lambda s, *_: s.add(made))
        session.get_one(documents.Document, KEY).title = "x"
        session.flush()
        note(made)
        session.commit()
    assert row(engine, "new") == (2, ["seen"])


@READ
@EXPIRE
@pytest.mark.parametrize("on_mapper", [False, True], ids=["class", "Mapper"])
def test_before_update_is_written_by_that_update(
    engine: Engine, documents: Any, *, read: bool, expire: bool, on_mapper: bool
) -> None:
    """Once, as one version."""

    def change(_: object, __: object, target: object) -> None:
        if isinstance(target, documents.Document):
            note(target)

    with (
        listening(Mapper if on_mapper else documents.Document, "before_update", change),
        Session(engine, expire_on_commit=expire) as session,
    ):
        document = session.get_one(documents.Document, KEY)
        if read:
            assert document.state.log == []
        document.title = "x"
        session.commit()
        assert row(engine) == (2, ["seen"])
        assert (document.version, document.state.log) == (2, ["seen"])
        note(document, "more")
        session.commit()
        assert row(engine) == (3, ["seen", "more", "seen"])


def test_before_update_ahead_of_all_others_is_written(
    engine: Engine, documents: Any
) -> None:
    """The place of the listener among the others is of no matter."""
    event.listen(
        documents.Document, "before_update", lambda *args: note(args[2]), insert=True
    )
    with Session(engine) as session:
        session.get_one(documents.Document, KEY).title = "x"
        session.commit()
    assert row(engine) == (2, ["seen"])


def test_before_update_may_change_through_a_reference(
    engine: Engine, documents: Any
) -> None:
    """No attribute need be read for it."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)
        state = document.state
        event.listen(
            documents.Document, "before_update", lambda *_: state.log.append("seen")
        )
        document.title = "x"
        session.commit()
        assert row(engine) == (2, ["seen"])
        document.state = state = Notes()
        session.commit()
    assert row(engine) == (3, ["seen"])


@READ
def test_before_update_may_assign(
    engine: Engine, documents: Any, *, read: bool
) -> None:
    """The state that it assigns is written and watched."""
    event.listen(
        documents.Document,
        "before_update",
        lambda *args: setattr(args[2], "state", Notes(log=["other"])),
    )
    with Session(engine, expire_on_commit=False) as session:
        document = session.get_one(documents.Document, KEY)
        if read:
            assert document.state.log == []
        document.title = "x"
        session.commit()
        assert row(engine) == (2, ["other"])
        document.title = "y"
        session.commit()
    assert row(engine) == (3, ["other"])


def test_before_update_may_take_the_change_back(engine: Engine, documents: Any) -> None:
    """Nothing is left to write: no version, no provenance."""
    event.listen(
        documents.Document, "before_update", lambda *args: args[2].state.log.clear()
    )
    with Session(engine, expire_on_commit=False) as session:
        document = session.get_one(documents.Document, KEY)
        provenance = document.provenance
        note(document)
        session.commit()
        assert row(engine) == (1, [])
        assert (document.version, document.provenance) == (1, provenance)
        assert type(document.version) is int
        document.state.extra["more"] = 1
        session.commit()
    assert row(engine) == (2, [])


def test_flush_that_writes_nothing_keeps_what_is_expired_expired(
    engine: Engine, documents: Any
) -> None:
    """Neither a provenance nor a version is left of the attempt."""
    event.listen(
        documents.Document, "before_update", lambda *args: args[2].state.log.clear()
    )
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)
        provenance = document.provenance
        note(document)
        session.expire(document, ["provenance"])
        session.flush()
        assert document.provenance == provenance


@READ
def test_before_update_may_change_another_of_the_flush(
    engine: Engine, documents: Any, *, read: bool
) -> None:
    """Which comes later in it."""
    with Session(engine) as session:
        first = session.get_one(documents.Document, KEY)
        second = session.get_one(documents.Document, "d-2")
        if read:
            assert second.state.log == []
        event.listen(
            documents.Document,
            "before_update",
            lambda *args: note(second) if args[2] is first else None,
        )
        first.title = second.title = "x"
        session.commit()
    assert (row(engine), row(engine, "d-2")) == ((2, []), (2, ["seen"]))


@READ
@pytest.mark.parametrize("assign", [False, True], ids=["in place", "assigned"])
def test_mapper_listener_may_change_an_instance_outside_of_the_flush(
    engine: Engine, documents: Any, *, read: bool, assign: bool
) -> None:
    """The next flush of the same commit writes it."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, "d-2")
        if read:
            assert document.state.log == []

        def change(*_: object) -> None:
            if assign:
                document.state = Notes(log=["seen"])
            else:
                note(document)

        event.listen(documents.Ticket, "before_insert", change)
        session.add(documents.Ticket())
        session.commit()
    assert row(engine, "d-2") == (2, ["seen"])


@EXPIRE
@pytest.mark.parametrize("name", ["before_insert", "after_insert", "after_flush"])
def test_commit_writes_what_a_listener_changed_through_a_reference(
    engine: Engine, documents: Any, name: str, *, expire: bool
) -> None:
    """The listener is that of another row, or of the session."""
    with Session(engine, expire_on_commit=expire) as session:
        kept = session.get_one(documents.Document, KEY).state
        target = session if name == "after_flush" else documents.Ticket
        listener = lambda *_: kept.log.append("seen")  # noqa: E731
        event.listen(target, name, listener, once=True)
        session.add(documents.Ticket())
        session.commit()
    assert row(engine) == (2, ["seen"])


@READ
@pytest.mark.parametrize("assign", [False, True], ids=["in place", "assigned"])
@pytest.mark.parametrize(
    "name", ["after_update", "after_flush", "after_flush_postexec"]
)
def test_after_the_write_the_next_flush_writes_it(
    engine: Engine, documents: Any, *, read: bool, assign: bool, name: str
) -> None:
    """In the same commit, as a second version."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)

        def change(*_: object) -> None:
            if "late" in document.state.log:
                return
            if assign:
                document.state = Notes(log=["late"])
            else:
                note(document, "late")

        target = documents.Document if name == "after_update" else session
        event.listen(target, name, change)
        if read:
            assert document.state.log == []
        document.title = "x"
        session.commit()
    assert row(engine) == (3, ["late"])


@pytest.mark.parametrize("names", [None, ["state"]], ids=["row", "state"])
@pytest.mark.parametrize("commit", [False, True], ids=["flush", "commit"])
@pytest.mark.parametrize("name", ["before_update", "after_update", "after_flush"])
def test_assignment_to_an_expired_row_is_written_by_the_next_flush(
    engine: Engine, documents: Any, *, names: Any, commit: bool, name: str
) -> None:
    """The row that it differs from was never read."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)
        other = session.get_one(documents.Document, "d-2")
        done = []

        def assign(*_: object) -> None:
            if not done:
                done.append(True)
                other.state = Notes(log=["late"])

        target = documents.Document if name != "after_flush" else session
        event.listen(target, name, assign)
        session.expire(other, names)
        document.title = "x"
        if not commit:
            session.flush()
            session.flush()
        session.commit()
    assert row(engine, "d-2") == (2, ["late"])


@pytest.mark.parametrize(
    "name", ["before_flush", "after_flush", "after_flush_postexec"]
)
def test_listener_that_only_reads_ends(
    engine: Engine, documents: Any, name: str
) -> None:
    """It writes nothing, and does not keep a commit from ending."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)
        event.listen(session, name, lambda s, *_: s.get(documents.Document, KEY).state)
        for title, version in (("x", 2), ("y", 3)):
            document.title = title
            session.commit()
            assert row(engine) == (version, [])


def test_listener_that_reads_all_ends(engine: Engine, documents: Any) -> None:
    """Whatever else the commit holds."""
    with Session(engine) as session:
        event.listen(
            session,
            "after_flush_postexec",
            lambda s, *_: [d.state for d in s.scalars(select(documents.Document))],
        )
        session.add(documents.Ticket())
        session.commit()
    assert (row(engine), row(engine, "d-2")) == ((1, []), (1, []))


def test_readers_stay_silent(engine: Engine, documents: Any) -> None:
    """Of an instance that was only read, the events of the mapper tell nothing."""
    heard = []
    event.listen(
        documents.Document,
        "before_update",
        lambda *args: heard.append(args[2].workflow_key),
    )
    with Session(engine) as session:
        first, second = session.scalars(
            select(documents.Document).order_by(documents.Document.workflow_key)
        )
        assert first.state.log == second.state.log == []
        first.title = "x"
        session.commit()
    assert heard == [KEY]
    assert (row(engine), row(engine, "d-2")) == ((2, []), (1, []))


def test_refused_insert_keeps_its_place(engine: Engine, documents: Any) -> None:
    """What a before_insert listener made of a state is checked, and names its row."""
    event.listen(
        documents.Document, "before_insert", lambda *args: note(args[2], "unreadable")
    )
    with Session(engine) as session:
        session.add(documents.Document(workflow_key="new", state=Notes()))
        with pytest.raises(PayloadError, match="Document 'new' state, at 'log'"):
            session.commit()


@pytest.mark.parametrize("assign", [False, True], ids=["in place", "assigned"])
def test_refused_update_names_its_row(
    engine: Engine, documents: Any, *, assign: bool
) -> None:
    """What a before_update listener made of a state is checked as well."""

    def spoil(_: object, __: object, target: Any) -> None:
        if assign:
            target.state = Notes.model_construct(log=["unreadable"])
        else:
            note(target, "unreadable")

    event.listen(documents.Document, "before_update", spoil)
    with Session(engine) as session:
        session.get_one(documents.Document, KEY).title = "x"
        with pytest.raises(PayloadError, match="Document 'd-1' state, at 'log'"):
            session.commit()
    assert row(engine) == (1, [])


def test_refused_before_flush_leaves_the_transaction(
    engine: Engine, documents: Any
) -> None:
    """Nothing was sent, and the session goes on."""
    with Session(engine) as session:
        session.get_one(documents.Document, "d-2").title = "x"
        session.flush()
        document = session.get_one(documents.Document, KEY)
        spoil = [True]

        def change(*_: object) -> None:
            if spoil.pop():
                note(document, "unreadable")

        with listening(session, "before_flush", change):
            document.title = "x"
            with pytest.raises(PayloadError, match="Document 'd-1' state"):
                session.flush()
        document.state.log.clear()
        note(document, "fine")
        session.commit()
    assert (row(engine), row(engine, "d-2")) == ((2, ["fine"]), (2, []))


@pytest.mark.parametrize("name", ["before_flush", "before_update", "before_insert"])
def test_vetoed_flush_leaves_no_text(engine: Engine, documents: Any, name: str) -> None:
    """It is not bound later, and what it would have written is let go."""

    def veto(*_: object) -> None:
        raise ZeroDivisionError

    with Session(engine, expire_on_commit=False) as session:
        if name == "before_insert":
            document = documents.Document(workflow_key="new", state=Notes())
            session.add(document)
        else:
            document = session.get_one(documents.Document, KEY)
        state = document.state
        note(document, "vetoed")
        target = session if name == "before_flush" else documents.Document
        with listening(target, name, veto), pytest.raises(ZeroDivisionError):
            session.flush()
        session.rollback()
        session.expunge_all()
        state.log[:] = ["later"]
        session.add(documents.Document(workflow_key="later", state=state))
        session.commit()
        assert row(engine, "later") == (1, ["later"])
        watched = weakref.ref(state)
        session.expunge_all()
        del document, state
        gc.collect()
        assert watched() is None
    assert row(engine) == (1, [])


def test_flush_after_a_vetoed_one_writes(engine: Engine, documents: Any) -> None:
    """A before_flush listener that raises takes no change away."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)
        note(document)
        with (
            listening(session, "before_flush", lambda *_: 1 / 0),
            pytest.raises(ZeroDivisionError),
        ):
            session.flush()
        note(document, "more")
        session.commit()
    assert row(engine) == (2, ["seen", "more"])


def test_session_goes_on_after_an_update_was_vetoed(
    engine: Engine, documents: Any
) -> None:
    """Its rollback undoes the change in place."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)
        note(document, "vetoed")
        with (
            listening(documents.Document, "before_update", lambda *_: 1 / 0),
            pytest.raises(ZeroDivisionError),
        ):
            session.commit()
        session.rollback()
        note(document)
        session.commit()
    assert row(engine) == (2, ["seen"])


def test_savepoint_of_a_listener_ends_no_flush(engine: Engine, documents: Any) -> None:
    """What is rolled back before the flush executes is not the flush."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)

        def change(flushed: Session, *_: object) -> None:
            flushed.begin_nested().rollback()
            note(document)

        event.listen(session, "before_flush", change)
        document.title = "x"
        session.commit()
    assert row(engine) == (2, ["seen"])


def test_bulk_insert_of_a_listener_begins_no_flush(
    engine: Engine, documents: Any
) -> None:
    """What changes behind it is written all the same."""
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)
        assert document.state.log == []
        event.listen(
            session,
            "before_flush",
            lambda s, *_: s.bulk_insert_mappings(documents.Ticket, [{}]),
        )
        event.listen(session, "before_flush", lambda *_: note(document))
        document.title = "x"
        session.commit()
    assert row(engine) == (2, ["seen"])


def test_history_in_a_listener_decides_nothing(engine: Engine, documents: Any) -> None:
    """A listener may ask what has changed, and change it after that."""

    def change(_: object, __: object, target: Any) -> None:
        history = inspect(target).attrs.state.history
        assert not history.has_changes()
        assert not inspect(target).attrs.schema_version.history.has_changes()
        note(target)
        added, _, deleted = inspect(target).attrs.state.history
        assert (added, deleted) == ([Notes(log=["seen"])], [Notes()])

    event.listen(documents.Document, "before_update", change)
    with Session(engine) as session:
        document = session.get_one(documents.Document, KEY)
        assert document.state.log == []
        document.title = "x"
        session.commit()
    assert row(engine) == (2, ["seen"])


def test_listener_may_write_the_state_elsewhere(engine: Engine, documents: Any) -> None:
    """A statement of its own binds what the state is then, and the flush its own."""

    def copy(key: str) -> Callable[..., None]:
        def listen(_: object, connection: Any, target: Any) -> None:
            values = {"workflow_key": key, "state": target.state}
            connection.execute(documents.Document.__table__.insert().values(values))
            note(target)

        return listen

    event.listen(documents.Document, "before_update", copy("early"))
    event.listen(documents.Document, "after_update", copy("late"))
    with Session(engine) as session:
        session.get_one(documents.Document, KEY).title = "x"
        session.flush()
        assert session.get_one(documents.Document, KEY).version == 2
        session.connection().commit()
    assert row(engine) == (2, ["seen"])
    assert (row(engine, "early"), row(engine, "late")) == ((1, []), (1, ["seen"]))


def test_listener_that_makes_the_write_gets_a_provenance(
    engine: Engine, documents: Any
) -> None:
    """It is new if and only if an UPDATE was sent, and stamped once."""
    with Session(engine, expire_on_commit=False) as session:
        document = session.get_one(documents.Document, KEY)
        first = document.provenance
        event.listen(documents.Document, "before_update", lambda *args: note(args[2]))
        note(document, "x")
        session.commit()
        assert (document.version, document.stamps) == (2, 1)
        assert document.provenance != first
        stored = session.scalar(
            select(documents.Document.provenance).where(
                documents.Document.workflow_key == KEY
            )
        )
        assert stored == document.provenance


def test_assigned_provenance_alone_is_a_write(engine: Engine, documents: Any) -> None:
    """Also if a listener behind ours assigns it."""
    with Session(engine, expire_on_commit=False) as session:
        document = session.get_one(documents.Document, KEY)

        def assign(_: object, __: object, target: Any) -> None:
            target.state.log.clear()
            target.provenance = Provenance.now("by hand")

        event.listen(documents.Document, "before_update", assign)
        note(document)
        session.commit()
        assert document.version == 2
        assert document.provenance.effect_id == "by hand"


def test_shared_state_is_written_to_each_row(engine: Engine, documents: Any) -> None:
    """Two instances may hold one object; each row gets what it is when it is sent."""
    shared = Notes()
    with Session(engine, expire_on_commit=False) as session:
        made = [documents.Document(workflow_key=f"s-{n}", state=shared) for n in (1, 2)]
        session.add_all(made)
        session.commit()
        shared.log.append("both")
        session.commit()
        session.commit()
    assert (row(engine, "s-1"), row(engine, "s-2")) == ((2, ["both"]), (2, ["both"]))


def test_partial_flush_leaves_the_others(engine: Engine, documents: Any) -> None:
    """Only what it was given is written, and the rest by the next one."""
    with Session(engine) as session:
        first = session.get_one(documents.Document, KEY)
        second = session.get_one(documents.Document, "d-2")
        note(first)
        note(second)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            session.flush([first])
        assert (first.version, second.version) == (2, 1)
        session.commit()
    assert (row(engine), row(engine, "d-2")) == ((2, ["seen"]), (2, ["seen"]))
