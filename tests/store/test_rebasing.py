"""Contract: a commit with a base knows its changes, and is rebased when asked."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ValidationError, model_validator
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    CanonicalStore,
    Commit,
    ConflictReason,
    PayloadError,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.history import HistoryMixin, keep_history, list_versions
from sa_wfstate.merging import Changes, Rebase, add, mine, union

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import MetaData

pytestmark = pytest.mark.contract


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    status: str = "new"
    tags: set[str] = set()
    visits: int = 0
    paid: int = 0
    limit: int = 100

    @model_validator(mode="after")
    def check_limit(self) -> OrderState:
        if self.paid > self.limit:
            raise ValueError(f"{self.paid} is too much")
        return self


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"
    __rebase__ = Rebase({"tags": union, "visits": add})


class Plain(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "plain"


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"


keep_history(Order, OrderHistory)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Base.metadata)


@pytest.fixture(params=["session", "store"])
def commit(request: pytest.FixtureRequest, engine: Engine) -> Any:
    """Commit with a base, by either of the two ways."""

    def in_session(entity: Any = Order, **options: Any) -> Any:
        with Session(engine) as session:
            outcome = try_commit(session, entity, **options)
            session.commit()
            return outcome

    def in_store(entity: Any = Order, **options: Any) -> Any:
        return CanonicalStore(engine, entity).try_commit(**options)

    function = in_session if request.param == "session" else in_store

    def commit(base: Any, entity: Any = Order, **options: Any) -> Any:
        change = {k: v for k, v in options.items() if k in OrderState.model_fields}
        options = {k: v for k, v in options.items() if k not in change}
        options.setdefault("provenance", Provenance.now())
        state = base.state.model_copy(update=change)
        return function(entity, base=base, state=state, **options)

    return commit


def create(engine: Engine, entity: Any = Order, **values: Any) -> Any:
    """Create a workflow and read it."""
    with Session(engine) as session:
        session.add(entity(workflow_key="k", state=OrderState(**values)))
        session.commit()
        return get_state(session, entity, "k")


def test_base_has_key_and_version(engine: Engine, commit: Any) -> None:
    """They need not be given; a row that has moved on from it is a conflict."""
    base = create(engine)
    assert commit(base, status="paid").version == 2
    lost = commit(base, visits=1)
    assert (lost.reason, lost.expected_version) == (ConflictReason.MOVED, 1)
    assert lost.changes == Changes(["/visits"], ["/status"])


def test_base_without_its_source_is_compared_too(engine: Engine, commit: Any) -> None:
    """A snapshot that was pickled, as by a queue, has only its state."""
    base = create(engine)
    commit(base, status="paid")
    lost = commit(pickle.loads(pickle.dumps(base)), tags={"a"}, status="sent")
    assert lost.changes == Changes(["/tags", "/status"], ["/status"])


def test_base_contradicts_what_is_given(engine: Engine, commit: Any) -> None:
    """A snapshot of another row, version or table stays an error."""
    base = create(engine)
    for options in ({"workflow_key": "other"}, {"expected_version": 2}):
        with pytest.raises(PayloadError) as caught:
            commit(base, **options)
        assert caught.value.path == "base"
    with pytest.raises(PayloadError, match="must be a snapshot of this row"):
        commit(base, Plain)


def test_neither_base_nor_version(engine: Engine) -> None:
    """A commit without both has nothing to be checked against."""
    untyped: Any = try_commit
    provenance = Provenance.now()
    with Session(engine) as session:
        for options in ({}, {"workflow_key": "k"}, {"expected_version": 1}):
            with pytest.raises(TypeError, match="workflow_key and expected_version"):
                untyped(session, Order, state=1, provenance=provenance, **options)
        commits = [Commit("k", state=OrderState(), provenance=provenance)]
        with pytest.raises(TypeError, match="workflow_key and expected_version"):
            try_commit_many(session, Order, commits)


def test_changes_of_a_batch(engine: Engine) -> None:
    """Of each commit with a base that lost, by its own."""
    base = create(engine)
    with Session(engine) as session:
        won, lost = (
            try_commit_many(
                session,
                Order,
                [
                    Commit(
                        base=base,
                        state=OrderState(status="paid"),
                        provenance=Provenance.now(),
                    )
                ],
            )[0]
            for _ in range(2)
        )
        assert isinstance(won, StateCommitted)
        assert isinstance(lost, StateConflict)
        assert lost.changes == Changes(["/status"], ["/status"])


def test_without_a_base_there_are_no_changes(engine: Engine) -> None:
    """The version alone does not say what the state was made from."""
    create(engine)
    with Session(engine) as session:
        outcome = try_commit(
            session,
            Order,
            "k",
            expected_version=7,
            state=OrderState(),
            provenance=Provenance.now(),
        )
    assert isinstance(outcome, StateConflict)
    assert outcome.changes is None


def test_disjoint_changes_both_win(engine: Engine, commit: Any) -> None:
    """The rebased version names its base, and the history holds both."""
    base = create(engine)
    commit(base, status="paid", provenance=Provenance.now("theirs"))
    won = commit(base, limit=90, rebase=True, provenance=Provenance.now("mine", by=1))
    assert isinstance(won, StateCommitted)
    assert won.version == 3
    assert won.snapshot.state == OrderState(status="paid", limit=90)
    with Session(engine) as session:
        assert get_state(session, Order, "k").state == won.snapshot.state
        newest, previous, _ = list_versions(session, Order, "k")
    assert previous.provenance.effect_id == "theirs"
    assert newest.provenance.effect_id == "mine"
    assert newest.provenance.model_extra == {"by": 1, "rebased_from": 1}


def test_overlapping_changes_are_the_conflict_as_before(
    engine: Engine, commit: Any
) -> None:
    """It has the base's version as the expected one, and knows the row."""
    base = create(engine)
    commit(base, status="paid")
    lost = commit(base, status="sent", limit=90, rebase=True)
    assert isinstance(lost, StateConflict)
    assert (lost.expected_version, lost.actual_version) == (1, 2)
    assert lost.changes is not None
    assert lost.changes.overlapping == ("/status",)
    assert lost.current is not None
    assert lost.current.state == OrderState(status="paid")


def test_rules_of_the_class_and_of_the_call(engine: Engine, commit: Any) -> None:
    """A class that declares none has the default ones; a call may bring others."""
    base = create(engine, tags={"a", "b"}, visits=1)
    commit(base, tags={"b", "c"}, visits=3)
    won = commit(base, tags={"a", "b", "d"}, visits=2, rebase=True)
    assert won.snapshot.state == OrderState(tags={"b", "c", "d"}, visits=4)
    lost = commit(base, visits=2, rebase=Rebase())
    assert isinstance(lost, StateConflict)
    won = commit(base, visits=9, rebase=Rebase({"visits": mine}))
    assert won.snapshot.state.visits == 9


def test_class_without_rules_is_rebased_when_asked(engine: Engine, commit: Any) -> None:
    """Disjoint changes both win, and nothing else."""
    base = create(engine, Plain)
    commit(base, Plain, status="paid")
    assert commit(base, Plain, visits=1, rebase=True).version == 3
    assert isinstance(commit(base, Plain, visits=1, rebase=True), StateConflict)


def test_result_that_the_model_refuses(engine: Engine, commit: Any) -> None:
    """The row stays as it was, and the conflict has the validator's error."""
    base = create(engine)
    won = commit(base, paid=80)
    lost = commit(base, limit=50, rebase=True)
    assert isinstance(lost, StateConflict)
    assert isinstance(lost.__cause__, PayloadError)
    assert not isinstance(lost.__cause__.__cause__, ValidationError)
    assert "too much" not in f"{lost}{lost.__cause__}"
    with Session(engine) as session:
        found = get_state(session, Order, "k")
    assert (found.version, found.state) == (2, won.snapshot.state)


def test_row_that_is_gone_or_recreated_is_not_rebased(
    engine: Engine, commit: Any
) -> None:
    """It is another workflow, although nothing of it overlaps."""
    base = create(engine)
    commit(base, status="paid")
    newer = commit(base, visits=1, rebase=True).snapshot
    with Session(engine) as session:
        session.delete(session.get_one(Order, "k"))
        session.commit()
    lost = commit(newer, limit=90, rebase=True)
    assert lost.reason is ConflictReason.MISSING
    for _ in range(3):  # At an older version, then at the same one.
        if lost.reason is ConflictReason.MISSING:
            create(engine)
        lost = commit(newer, limit=90, rebase=True)
        assert isinstance(lost, StateConflict)
        commit(lost.current, visits=lost.current.state.visits + 1)
    assert lost.reason is ConflictReason.RECREATED


def test_row_of_newer_code_is_not_rebased(engine: Engine, commit: Any) -> None:
    """Its fields are not known here."""
    base = create(engine)
    with Session(engine) as session:
        values = {"version": 2, "schema_version": 2}
        session.execute(Order.__table__.update().values(values))
        session.commit()
    lost = commit(base, limit=90, rebase=True)
    assert (lost.actual_version, lost.current) == (2, None)


def test_row_that_moves_on_meanwhile(engine: Engine, commit: Any) -> None:
    """The changes are applied again, to what is there by then."""
    base = create(engine)
    commit(base, visits=1)
    rivals = [5, 7]

    def slowly(before: int, own: int, other: int) -> int:
        if rivals:
            with Session(engine) as session:
                newest = get_state(session, Order, "k")
            commit(newest, visits=newest.state.visits + rivals.pop())
        return own - before + other

    won = commit(base, visits=100, rebase=Rebase({"visits": slowly}))
    assert (won.version, won.snapshot.state.visits) == (5, 113)


def test_instance_of_the_session_has_the_merged_state(engine: Engine) -> None:
    """As after any commit of its row."""
    base = create(engine)
    with Session(engine) as session, Session(engine) as other:
        order = session.get_one(Order, "k")
        other.get_one(Order, "k").state.status = "paid"
        other.commit()
        won = try_commit(
            session,
            Order,
            base=base,
            state=OrderState(visits=1),
            provenance=Provenance.now(),
            rebase=True,
        )
        assert isinstance(won, StateCommitted)
        assert order.state == OrderState(status="paid", visits=1)
        order.state.visits += 1
        session.commit()
        assert order.version == 4


def test_rebase_without_a_base_is_refused(engine: Engine) -> None:
    """There would be nothing to compare with."""
    create(engine)
    with Session(engine) as session, pytest.raises(TypeError, match="needs base="):
        try_commit(
            session,
            Order,
            "k",
            expected_version=1,
            state=OrderState(),
            provenance=Provenance.now(),
            rebase=True,
        )


def test_batch_is_rebased_as_a_whole(engine: Engine) -> None:
    """Those that lost are sent again together; what cannot be merged is a conflict."""
    keys = [f"k-{number}" for number in range(5)]
    with Session(engine) as session:
        session.add_all(Order(workflow_key=key, state=OrderState()) for key in keys)
        session.commit()
        bases = [get_state(session, Order, key) for key in keys]
    with Session(engine) as other:
        for key in keys[1:4]:
            other.get_one(Order, key).state.visits = 5
        other.get_one(Order, "k-3").state.status = "sent"
        other.delete(other.get_one(Order, "k-4"))
        other.commit()
    rival(engine, "k-2")

    def slowly(before: int, own: int, other: int) -> int:
        # All rows are held by then: no other writer comes in between.
        with Session(engine) as late:
            late.execute(text("SET LOCAL lock_timeout = '10ms'"))
            with pytest.raises(DBAPIError, match="lock timeout"):
                late.get_one(Order, "k-0", with_for_update={"key_share": True})
        return own - before + other

    commits = [
        Commit(
            base=base,
            state=OrderState(status="paid", visits=1),
            provenance=Provenance.now(),
        )
        for base in bases
    ]
    new = Commit(
        "new", expected_version=0, state=OrderState(), provenance=Provenance.now()
    )
    with Session(engine) as session:
        held = session.get_one(Order, "k-1")
        made = try_commit_many(
            session, Order, [*commits, new], rebase=Rebase({"visits": slowly})
        )
        assert held.state == OrderState(status="paid", visits=6)
        session.commit()
        assert [
            get_state(session, Order, key).state.visits for key in (*keys[:4], "new")
        ] == [1, 6, 106, 5, 0]
    won = [each.version for each in made if isinstance(each, StateCommitted)]
    assert won == [2, 3, 4, 1]
    lost = [each for each in made if isinstance(each, StateConflict)]
    assert [each.reason for each in lost] == ["moved", "missing"]
    assert (lost[0].expected_version, lost[0].actual_version) == (1, 2)
    assert lost[0].changes is not None
    assert lost[0].changes.overlapping == ("/status", "/visits")
    assert made[1].snapshot.provenance.model_extra == {"rebased_from": 1}  # type: ignore[union-attr]
    commit = Commit(
        "new", expected_version=1, state=OrderState(), provenance=Provenance.now()
    )
    with Session(engine) as session, pytest.raises(TypeError, match="needs base="):
        try_commit_many(session, Order, [commit], rebase=True)


def rival(engine: Engine, key: str) -> None:
    """Add a hundred visits."""
    with Session(engine) as session:
        session.get_one(Order, key).state.visits += 100
        session.commit()
