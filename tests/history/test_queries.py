"""Contract: every version is kept, whichever way it was committed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonpatch import apply_patch
from sqlalchemy import StaticPool, create_engine, event, func, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    Provenance,
    ReducerService,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.errors import MappingError, VersionNotInHistory
from sa_wfstate.history import (
    HistoryMixin,
    diff_versions,
    get_state_as_of,
    get_version,
    keep_history,
    list_versions,
    restore_version,
    trim_history,
)
from sa_wfstate.history.queries import diff_json
from sa_wfstate.payload.canonical import canonical_json
from sa_wfstate.projection import Projection, ProjectionMixin

from ..orders import OrderState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"


class Invoice(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "invoices"


class Parcel(WorkflowStateMixin[OrderState], Base):
    """Its payload was a bare word once; subclasses share its table."""

    __tablename__ = "parcels"
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: {"status": data["word"]}}  # noqa: RUF012
    kind: Mapped[str] = mapped_column(default="parcel")
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "parcel",
    }


class Letter(Parcel):
    __mapper_args__ = {"polymorphic_identity": "letter"}  # noqa: RUF012


class ParcelHistory(HistoryMixin, Base):
    __tablename__ = "parcel_history"


class LetterProjection(ProjectionMixin, Base):
    __tablename__ = "letter_projection"


class OrderProjection(ProjectionMixin, Base):
    __tablename__ = "order_projection"


keep_history(Order, OrderHistory)
keep_history(Parcel, ParcelHistory)
Projection(
    Letter,
    LetterProjection,
    lambda letter: {"tag": letter.state.status, "namespace": "post"},
).keep_inline()
Projection(
    Order,
    OrderProjection,
    lambda order: {"tag": order.state.status, "namespace": "shop"},
).keep_inline()


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


def commit(
    session: Session, expected_version: int, status: str, key: str = "o-1"
) -> Any:
    """Write *status* over *expected_version*, without COMMIT."""
    return try_commit(
        session,
        Order,
        key,
        expected_version=expected_version,
        state=OrderState(status=status),
        provenance=Provenance.now(),
    )


def four_versions(engine: Engine) -> None:
    """Write versions 1 to 4 in four ways."""
    with Session(engine) as session:
        order = Order(workflow_key="o-1", state=OrderState())
        session.add(order)
        session.commit()
        order.state.status = "paid"
        session.commit()
        commit(session, 2, "packed")
        session.commit()
    outcome = CanonicalStore(engine, Order).try_commit(
        workflow_key="o-1",
        expected_version=3,
        state=OrderState(status="sent"),
        provenance=Provenance.now("effect-4"),
    )
    assert isinstance(outcome, StateCommitted)


def statuses(session: Session, key: str = "o-1") -> list[tuple[int, str]]:
    """List what is kept, the newest first."""
    return [(v.version, v.state.status) for v in list_versions(session, Order, key)]


@pytest.mark.contract
def test_every_way_to_commit_is_kept(engine: Engine) -> None:
    """A flush, try_commit and a store each add the version that they wrote."""
    four_versions(engine)
    with Session(engine) as session:
        assert statuses(session) == [
            (4, "sent"),
            (3, "packed"),
            (2, "paid"),
            (1, "new"),
        ]
        newest = get_version(session, Order, "o-1", 4)
        row = get_state(session, Order, "o-1")
        assert newest.state == row.state
        assert newest.provenance == row.provenance
        assert newest.provenance.effect_id == "effect-4"


@pytest.mark.contract
def test_many_at_once_are_kept(engine: Engine) -> None:
    """try_commit_many and a reducer service add what they wrote, and nothing else."""
    state, provenance = OrderState(status="paid"), Provenance.now()
    with Session(engine) as session:
        for versions in ((0, 0), (1, 0)):
            commits = [
                Commit(f"o-{n}", expected_version=v, state=state, provenance=provenance)
                for n, v in enumerate(versions)
            ]
            try_commit_many(session, Order, commits)
            session.commit()
        assert statuses(session, "o-0") == [(2, "paid"), (1, "paid")]
        assert statuses(session, "o-1") == [(1, "paid")]
    service = ReducerService(
        engine, Order, lambda _, action: OrderState(status=action.payload)
    )
    service.handle(Action(workflow_key="o-0", action_id=uuid4(), payload="sent"))
    service.handle_many(
        Action(workflow_key=f"o-{n}", action_id=uuid4(), payload="lost")
        for n in range(2)
    )
    with Session(engine) as session:
        assert statuses(session, "o-0")[:2] == [(4, "lost"), (3, "sent")]
        assert statuses(session, "o-1") == [(2, "lost"), (1, "paid")]


@pytest.mark.contract
def test_subclass_has_what_its_parent_has_and_more(engine: Engine) -> None:
    """Commit listeners of a class and of its subclass are each called once."""
    with Session(engine) as session:
        session.add(Parcel(workflow_key="p-1", state=OrderState()))
        session.add(Letter(workflow_key="l-1", state=OrderState()))
        session.commit()
        session.get_one(Letter, "l-1").state.status = "sent"
        session.commit()
        (only,) = session.scalars(select(LetterProjection))
        assert (only.workflow_key, only.version, only.tag) == ("l-1", 2, "sent")
        kept = list_versions(session, Letter, "l-1")
        assert [version.version for version in kept] == [2, 1]
        assert len(list_versions(session, Parcel, "p-1")) == 1


@pytest.mark.contract
def test_old_payload_is_upcast_on_read(engine: Engine) -> None:
    """A version that was written in an older shape is read in the current one."""
    with Session(engine) as session:
        session.add(Parcel(workflow_key="p-1", state=OrderState(status="paid")))
        session.commit()
        old = update(ParcelHistory).values(state={"word": "new"}, schema_version=1)
        session.execute(old)
        session.get_one(Parcel, "p-1").state.status = "sent"
        session.commit()
        then = get_version(session, Parcel, "p-1", 1)
        assert (then.state, then.schema_version) == (OrderState(status="new"), 1)
        assert diff_versions(session, Parcel, "p-1", 1, 2) == [
            {"op": "replace", "path": "/status", "value": "sent"}
        ]


def test_unit_tests_on_sqlite() -> None:
    """History and inline projections work on SQLite, for tests of one's own logic."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    four_versions(engine)
    with Session(engine) as session:
        assert [version for version, _ in statuses(session)] == [4, 3, 2, 1]
        assert get_version(session, Order, "o-1", 2).state.status == "paid"
        assert session.get_one(OrderProjection, "o-1").tag == "sent"
    engine.dispose()


@pytest.mark.contract
def test_a_rolled_back_or_lost_commit_is_not_kept(engine: Engine) -> None:
    """What the transaction loses, its history loses too."""
    four_versions(engine)
    with Session(engine) as session:
        session.get_one(Order, "o-1").state.status = "lost"
        session.flush()
        session.rollback()
        assert isinstance(commit(session, 3, "lost"), StateConflict)
        with session.begin_nested() as savepoint:
            assert isinstance(commit(session, 4, "lost"), StateCommitted)
            savepoint.rollback()
        session.commit()
        session.rollback()
        assert [version for version, _ in statuses(session)] == [4, 3, 2, 1]


@pytest.mark.contract
def test_failed_flush_leaves_no_trace_in_the_next(engine: Engine) -> None:
    """A conflict in one flush adds nothing to the history written by the next."""
    with Session(engine) as session:
        session.add_all(
            Order(workflow_key=key, state=OrderState()) for key in ("o-1", "o-2")
        )
        session.commit()
        for key in ("o-1", "o-2"):
            session.get_one(Order, key).state.status = "lost"
        with Session(engine) as other:
            commit(other, 1, "paid", "o-2")
            other.commit()
        with pytest.raises(StateConflict):
            session.flush()
        session.rollback()
        session.get_one(Order, "o-1").state.status = "paid"
        session.commit()
        assert statuses(session) == [(2, "paid"), (1, "new")]
        assert statuses(session, "o-2") == [(2, "paid"), (1, "new")]


@pytest.mark.contract
def test_one_flush_writes_its_history_at_once(engine: Engine) -> None:
    """Any number of rows of a flush costs one statement more."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        sent.append(args[2])

    with Session(engine) as session:
        session.add_all(
            Order(workflow_key=f"o-{n}", state=OrderState()) for n in range(20)
        )
        session.commit()
        written = [each for each in sent if "INSERT INTO order_history" in each]
        assert len(written) == 1
        assert session.scalar(select(func.count()).select_from(OrderHistory)) == 20
        sent.clear()
        session.add(Invoice(workflow_key="i-1", state=OrderState()))
        session.commit()
        assert not [each for each in sent if "history" in each]


@pytest.mark.contract
def test_state_as_of_a_time(engine: Engine) -> None:
    """The version that was the newest then, also where transactions overlapped."""
    with Session(engine) as early, Session(engine) as late:
        early.connection()
        assert early.scalar(select(func.now()))
        late.add(Order(workflow_key="o-1", state=OrderState()))
        late.commit()
        # This transaction began before version 1 was written: its now() is older.
        commit(early, 1, "paid")
        early.commit()
        two, one = list_versions(early, Order, "o-1")
        assert two.updated_at > one.updated_at
        found = get_state_as_of(early, Order, "o-1", one.updated_at)
        assert (found.version, found.state.status) == (1, "new")
        assert get_state_as_of(early, Order, "o-1", datetime.now(UTC)).version == 2
        with pytest.raises(VersionNotInHistory, match="'o-1' holds no version of that"):
            get_state_as_of(
                early, Order, "o-1", one.updated_at - timedelta(microseconds=1)
            )
        with pytest.raises(ValueError, match="time zone"):
            get_state_as_of(early, Order, "o-1", datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.contract
def test_restore_is_a_new_commit(engine: Engine) -> None:
    """An old state comes back as the next version, if the row has not moved."""
    four_versions(engine)
    with Session(engine) as session:
        arguments: dict[str, Any] = {"provenance": Provenance.now(reason="undo")}
        lost = restore_version(
            session, Order, "o-1", 2, expected_version=3, **arguments
        )
        assert isinstance(lost, StateConflict)
        restore_version(session, Order, "o-1", 2, expected_version=4, **arguments)
        session.commit()
        assert statuses(session)[0] == (5, "paid")
        assert get_version(session, Order, "o-1", 5).provenance.reason == "undo"  # type: ignore[attr-defined]


@pytest.mark.contract
def test_created_again_after_deletion(engine: Engine) -> None:
    """A deleted workflow keeps its history, and a new life begins at version 1."""
    four_versions(engine)
    with Session(engine) as session:
        session.delete(session.get_one(Order, "o-1"))
        session.commit()
        assert commit(session, 0, "reborn")
        session.commit()
        assert [version for version, _ in statuses(session)] == [1, 4, 3, 2, 1]
        assert get_version(session, Order, "o-1", 1).state.status == "reborn"


def test_diff_of_two_versions(engine: Engine) -> None:
    """The patch leads from the one to the other."""
    four_versions(engine)
    with Session(engine) as session:
        assert diff_versions(session, Order, "o-1", 1, 4) == [
            {"op": "replace", "path": "/status", "value": "sent"}
        ]
        with pytest.raises(VersionNotInHistory, match="holds no version 9"):
            diff_versions(session, Order, "o-1", 1, 9)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, "a"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "/~"]), inner)
    ),
    max_leaves=8,
)


@given(json_values, json_values)
def test_patch_leads_from_one_to_the_other(before: Any, after: Any) -> None:
    """Applying the patch gives the other value, to the type of each number."""
    patch = diff_json(json.dumps(before), json.dumps(after))
    assert canonical_json(json.dumps(apply_patch(before, patch))) == canonical_json(
        json.dumps(after)
    )


@pytest.mark.parametrize("wrap", [lambda engine: engine, sessionmaker])
def test_trim_keeps_the_newest(engine: Engine, wrap: Any) -> None:
    """Old versions go, in batches; the newest of each workflow stays."""
    four_versions(engine)
    counts: list[int] = []
    assert (
        trim_history(
            wrap(engine),
            Order,
            before=datetime.now(UTC) + timedelta(hours=1),
            batch_size=2,
            progress=counts.append,
        )
        == 3
    )
    assert counts == [2, 3, 3]
    with Session(engine) as session:
        assert statuses(session) == [(4, "sent")]


def test_age_is_measured_by_the_server(engine: Engine) -> None:
    """A timedelta counts back from the server's clock; a batch of none is refused."""
    four_versions(engine)
    assert trim_history(engine, Order, before=timedelta(minutes=1)) == 0
    assert trim_history(engine, Order, before=timedelta(0)) == 3
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        trim_history(engine, Order, before=timedelta(0), batch_size=0)


def test_class_without_history_says_so(engine: Engine) -> None:
    """Neither a missing history nor a second one passes silently."""
    with Session(engine) as session, pytest.raises(MappingError, match="keep_history"):
        list_versions(session, Invoice, "i-1")
    with pytest.raises(MappingError, match="has a history already"):
        keep_history(Order, OrderHistory)
