"""Contract: what was not seen is not written over, unless it is asked for by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import (
    Engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    load_only,
    mapped_column,
    sessionmaker,
)

from sa_wfstate import (
    ConflictReason,
    PayloadError,
    Provenance,
    StateConflict,
    WorkflowStateMixin,
)
from sa_wfstate.errors import (
    MappingError,
    UnversionedWrite,
    VersionNotAssignable,
    VersionNotSeen,
)
from sa_wfstate.orm.session_state import state_of
from sa_wfstate.versions import version_trigger

from ..orders import OrderState

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"

    note: Mapped[str | None] = mapped_column()

    def default_provenance(self) -> Provenance:
        return Provenance.now(f"of an order {uuid4()}")


class Plain(Base):
    """No workflow."""

    __tablename__ = "plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column()


@pytest.fixture
def winner(
    sessions: sessionmaker[Session], create_tables: Callable[..., None]
) -> sessionmaker[Session]:
    """Orders at version 1, and the sessions of the one who wins."""
    create_tables(Base.metadata)
    with sessions.begin() as session:
        session.add(Order(workflow_key="o-1", state=OrderState()))
        session.add(Order(workflow_key="o-2", state=OrderState()))
    return sessions


def pay(winner: sessionmaker[Session], key: str = "o-1") -> None:
    """Commit the next version of *key*."""
    with winner.begin() as session:
        order = session.get_one(Order, key)
        order.state = OrderState(status=f"paid {order.version}")


def write(session: Session, order: Order) -> None:
    """Write a decision that was made before."""
    order.state = OrderState(status="decided")
    session.commit()


def assert_moved(session: Session, order: Order) -> None:
    """Check that writing is refused until the row has been read again."""
    for _ in range(2):
        with pytest.raises(StateConflict) as caught:
            write(session, order)
        assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
        session.rollback()
    assert order.state.status == "paid 1"
    write(session, order)
    assert order.version == 3


def test_version_that_was_refreshed_alone(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """refresh(["version"]) does not make an old state a new one."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        assert order.state.status == "new"
        pay(winner)
        session.refresh(order, ["version"])
        assert order.version == 2
        assert_moved(session, order)


def test_version_that_was_expired_alone(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """expire(["version"]) neither, whether it is read again or not."""
    for read in (False, True):
        key = "o-2" if read else "o-1"
        with Session(engine) as session:
            order = session.get_one(Order, key)
            session.expire(order, ["version"])
            pay(winner, key)
            if read:
                assert order.version == 2
            assert_moved(session, order)


def test_assignment_after_a_commit(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """What a commit has expired is written on the version that the code knows."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        session.commit()
        order.state = OrderState(status="nobody else wrote")
        session.commit()
        order.state = OrderState(status="again")
        session.commit()
        assert order.version == 3
        order = session.get_one(Order, "o-2")
        session.commit()
        pay(winner, "o-2")
        assert_moved(session, order)


def test_deletion_after_a_commit(engine: Engine, winner: sessionmaker[Session]) -> None:
    """Deleting loads nothing either: it is based on what the code knows."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        session.commit()
        pay(winner)
        session.delete(order)
        with pytest.raises(StateConflict) as caught:
            session.commit()
        assert caught.value.expected_version == 1
        session.rollback()
        session.refresh(order)
        session.delete(order)
        session.commit()


def test_row_that_vanished_after_a_commit(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """An expired object whose row is gone is a conflict when it is written."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        session.commit()
        with winner.begin() as other:
            other.delete(other.get_one(Order, "o-1"))
        with pytest.raises(StateConflict) as caught:
            write(session, order)
        assert caught.value.reason is ConflictReason.MISSING


@pytest.mark.usefixtures("winner")
def test_state_without_its_version(engine: Engine) -> None:
    """A state that was loaded alone cannot be written, before or after its version."""
    for read in (False, True):
        with Session(engine) as session:
            order = session.scalars(
                select(Order)
                .options(load_only(Order.state))
                .filter_by(workflow_key="o-1")
            ).one()
            if read:
                assert order.version
            with pytest.raises(VersionNotSeen) as caught:
                write(session, order)
            assert caught.value.workflow_key == "o-1"
            session.rollback()
            session.refresh(order, ["state", "version"])
            order.note = "refreshed"
            session.commit()
            order.note = None
            session.delete(order)
            session.flush()
            session.rollback()


def test_version_without_its_state(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """A version that was loaded alone is what the write is checked against."""
    with Session(engine) as session:
        order = session.scalars(
            select(Order)
            .options(load_only(Order.version))
            .filter_by(workflow_key="o-1")
        ).one()
        pay(winner)
        assert_moved(session, order)


@pytest.mark.usefixtures("winner")
def test_what_was_rolled_back_was_not_seen(engine: Engine) -> None:
    """After a rollback, also of a savepoint, the base is what it was before."""
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state.status = "one"
        session.flush()
        savepoint = session.begin_nested()
        order.state.status = "two"
        session.flush()
        savepoint.rollback()
        order.state = OrderState(status="three")
        session.flush()
        session.rollback()
        write(session, order)
        assert order.version == 2
        session.close()
    with Session(engine) as session:
        created = Order(workflow_key="o-3", state=OrderState())
        session.add(created)
        session.flush()
        session.rollback()
        session.add(created)
        session.commit()
        write(session, created)
        assert created.version == 2


UNVERSIONED: list[Any] = [
    update(Order).values(note="x"),
    delete(Order),
    postgresql.insert(Order)
    .values(workflow_key="o-1", note="x")
    .on_conflict_do_update(index_elements=["workflow_key"], set_={"note": "x"}),
]


UNVERSIONED += [
    select(Order).from_statement(UNVERSIONED[0].returning(Order)),
    select(Order).from_statement(UNVERSIONED[2].returning(Order)),
]


@pytest.mark.parametrize("statement", UNVERSIONED, ids=range(len(UNVERSIONED)))
@pytest.mark.usefixtures("winner")
def test_unversioned_statement_is_refused(engine: Engine, statement: Any) -> None:
    """Statements that check no version are refused, and say what to use instead."""
    with Session(engine) as session:
        with pytest.raises(UnversionedWrite, match="try_commit_many") as caught:
            session.execute(statement)
        assert "wfstate_unversioned" in str(caught.value)
        assert session.scalars(select(Order.version)).all() == [1, 1]


@pytest.mark.usefixtures("winner")
def test_unversioned_statement_by_name_counts(engine: Engine) -> None:
    """By name they are sent; an UPDATE counts, so that holders of the old row lose."""
    options = {"wfstate_unversioned": True}
    with Session(engine) as session, Session(engine) as holder:
        held = holder.get_one(Order, "o-1")
        session.execute(UNVERSIONED[0], execution_options=options)
        session.commit()
        with pytest.raises(StateConflict) as caught:
            write(holder, held)
        assert caught.value.actual_version == 2
        holder.rollback()
        with pytest.raises(UnversionedWrite, match=r"Order\.version \+ 1"):
            session.execute(UNVERSIONED[2], execution_options=options)
        with pytest.raises(UnversionedWrite, match="by itself"):
            session.execute(UNVERSIONED[3], execution_options=options)
        upsert = postgresql.insert(Order).values(
            workflow_key="o-1", state=OrderState(), provenance=Provenance.now()
        )
        counting = {"note": "y", "version": Order.version + 1}
        session.execute(
            upsert.on_conflict_do_update(
                index_elements=["workflow_key"], set_=counting
            ),
            execution_options=options,
        )
        assert session.scalar(select(Order.version).filter_by(workflow_key="o-1")) == 3
        session.execute(UNVERSIONED[1].execution_options(**options))
        session.commit()
        assert session.scalars(select(Order)).all() == []


def save_held(session: Session) -> None:
    """Change an order, and save it past the unit of work."""
    order = session.get_one(Order, "o-1")
    order.state.status = "saved"
    session.bulk_save_objects([Plain(id=1), order])


def save_detached(session: Session) -> None:
    """Save an order of a session that is closed."""
    order = session.get_one(Order, "o-1")
    session.expunge(order)
    order.note = "saved"
    session.bulk_save_objects([order])


def update_by_key(**more: Any) -> Callable[[Session], None]:
    """Return a bulk UPDATE as of SQLAlchemy 2."""
    rows = [{"workflow_key": "o-1", "note": "x", **more}]
    options = {"wfstate_unversioned": True}
    return lambda session: session.execute(
        update(Order), rows, execution_options=options
    )


def update_mappings(**more: Any) -> Callable[[Session], None]:
    """Return a bulk UPDATE as of SQLAlchemy 1."""
    row = {"workflow_key": "o-1", "note": "x", **more}
    return lambda session: session.bulk_update_mappings(Order, [row])


BULK_UPDATES = {
    "save_held": (save_held, "add_all"),
    "save_detached": (save_detached, "merge"),
    "by_key": (update_by_key(), "try_commit_many"),
    "by_key_and_version": (update_by_key(version=1), "try_commit_many"),
    "mappings": (update_mappings(), "try_commit_many"),
    "mappings_with_version": (update_mappings(version=1), "try_commit_many"),
}


@pytest.mark.parametrize("how", BULK_UPDATES)
@pytest.mark.usefixtures("winner")
def test_bulk_update_is_refused(engine: Engine, how: str) -> None:
    """Whether its rows bring a version or not; nothing is sent, not even the rest."""
    write, instead = BULK_UPDATES[how]
    with Session(engine) as session:
        with pytest.raises(UnversionedWrite, match=instead) as caught:
            write(session)
        assert caught.value.entity == "Order"
        assert "execution option" not in str(caught.value)
        session.expire_all()
        assert session.scalars(select(Order.version)).all() == [1, 1]
        assert not session.scalars(select(Plain)).all()


@pytest.mark.usefixtures("winner")
def test_bulk_insert_creates(engine: Engine) -> None:
    """Payload and key are checked, provenance is stamped; it is never an update."""

    def inserts(key: str, **more: Any) -> list[Callable[[Session], object]]:
        row = {"workflow_key": key, "state": OrderState(), **more}
        return [
            lambda session: session.execute(insert(Order), [row]),
            lambda session: session.bulk_insert_mappings(Order, [row]),
            lambda session: session.bulk_save_objects([Order(**row)]),
        ]

    with Session(engine) as session:
        for n, create in enumerate(inserts("o-3")):
            create(session)
            order = session.get_one(Order, "o-3")
            assert (order.version, order.state.status) == (1, "new")
            own = order.provenance.effect_id.startswith("of an order")
            assert own is (n == 2)  # The others know only the class.
            session.rollback()
        for create in inserts("o-1"):
            with pytest.raises(IntegrityError):
                create(session)
            session.rollback()
        for create in [*inserts("k" * 256), *inserts("o-3", state={"status": 1})]:
            with pytest.raises(PayloadError):
                create(session)
            session.rollback()
        session.bulk_save_objects([Plain(id=1)], return_defaults=True)
        session.bulk_insert_mappings(Plain, [{"id": 2}], render_nulls=True)
        session.bulk_update_mappings(Plain, [{"id": 2, "name": "x"}])
        assert session.scalars(select(Plain.name)).all() == [None, "x"]


REFUSED = [
    ({"workflow_key": "k" * 256}, PayloadError),
    ({"workflow_key": ""}, PayloadError),
    ({"workflow_key": "a\0"}, PayloadError),
    ({"workflow_key": "o-3", "version": 7}, VersionNotAssignable),
]


@pytest.mark.usefixtures("winner")
@pytest.mark.parametrize(("values", "error"), REFUSED)
def test_insert_of_values_is_checked(
    engine: Engine, values: dict[str, Any], error: type[Exception]
) -> None:
    """However an INSERT is given its rows, it creates them at version 1."""
    new = {"state": OrderState(), "provenance": Provenance.now()}
    good, bad = {**new, "workflow_key": "o-4"}, {**new, **values}
    statements: list[tuple[Any, Any]] = [
        (insert(Order).values(**bad), None),
        (insert(Order).values({getattr(Order, n): v for n, v in bad.items()}), None),
        (insert(Order).values([good, bad]), None),
        (insert(Order).values(bad).returning(Order), None),
        (postgresql.insert(Order).values(bad).on_conflict_do_nothing(), None),
        (insert(Order), [good, bad]),
        (insert(Order), bad),
    ]
    with Session(engine) as session:
        for statement, parameters in statements:
            with pytest.raises(error):
                session.execute(statement, parameters)
            session.rollback()
        with pytest.raises(error):
            session.bulk_insert_mappings(Order, [bad])
        session.execute(insert(Order).values([good, {**good, "workflow_key": "o-5"}]))


@pytest.mark.usefixtures("winner")
def test_rows_can_be_copied_with_their_versions(engine: Engine) -> None:
    """An INSERT that is allowed to by name brings versions of its own."""
    row = {"workflow_key": "o-3", "version": 7, "state": OrderState()}
    with Session(engine) as session:
        session.execute(
            insert(Order).values(row), execution_options={"wfstate_unversioned": True}
        )
        assert session.get_one(Order, "o-3").version == 7


@pytest.mark.usefixtures("winner")
def test_plain_inserts_and_other_entities_are_not_refused(engine: Engine) -> None:
    """An INSERT can only create; what is no workflow is not looked at."""
    with Session(engine) as session:
        new = {"workflow_key": "o-3", "state": OrderState()}
        session.execute(insert(Order), [{**new, "provenance": Provenance.now()}])
        session.execute(text("UPDATE orders SET note = 'x'"))
        session.commit()
        assert session.get_one(Order, "o-3").version == 1


def test_dialect_without_row_counts_is_checked_by_returning(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """What SQLAlchemy would only warn of is checked, or refused."""
    engine.dialect.supports_sane_rowcount = False
    engine.dialect.supports_sane_multi_rowcount = False
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        pay(winner)
        order.note = "x"
        with (
            pytest.warns(match="versioning cannot be verified"),
            pytest.raises(StateConflict) as caught,
        ):
            session.commit()
        assert caught.value.reason is ConflictReason.MOVED
        session.rollback()
        session.refresh(order)
        pay(winner)
        session.delete(order)
        with pytest.raises(StateConflict) as caught:
            session.commit()
        assert caught.value.actual_version == 3
    with Session(engine) as session:
        order = session.get_one(Order, "o-2")
        engine.dialect.update_returning = False
        order.note = "x"
        with pytest.raises(MappingError, match="row counts"):
            session.commit()


def test_trigger_guards_what_goes_around(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """The optional trigger refuses raw SQL that does not count by one."""
    with winner.begin() as session:
        for ddl in version_trigger(Order.__table__):
            session.execute(ddl)
    pay(winner)
    with Session(engine) as session:
        for statement in (
            "UPDATE orders SET note = 'x'",
            "UPDATE orders SET version = version + 2",
            "UPDATE orders SET workflow_key = 'o-0', version = version + 1",
        ):
            with pytest.raises(DBAPIError, match="version"):
                session.execute(text(statement))
            session.rollback()
        session.execute(text("UPDATE orders SET version = version + 1"))
        session.commit()
    with winner.begin() as session:
        for ddl in version_trigger(Order.__table__, drop=True):
            session.execute(ddl)
        session.execute(text("UPDATE orders SET note = 'x'"))


@pytest.mark.usefixtures("winner")
def test_flush_without_workflows_sends_and_hears_nothing(engine: Engine) -> None:
    """A session that writes no workflow row holds no instance and logs no write."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        sent.append(args[2].split()[0])

    with Session(engine) as session:
        session.add(Plain(id=1))
        session.commit()
        assert sent == ["INSERT"]
        known = state_of(session)
        assert not known.touched
        assert not known.log.written


def test_row_without_an_effect_id(
    engine: Engine, winner: sessionmaker[Session]
) -> None:
    """What was written by hand, and not as it should be, can be put right."""
    with winner.begin() as session:
        session.execute(text('UPDATE orders SET provenance = \'{"by": "hand"}\''))
    with Session(engine) as session:
        order = session.get_one(Order, "o-1")
        order.state = OrderState(status="paid")
        session.commit()
        assert (order.version, order.provenance.effect_id[:8]) == (2, "of an or")
