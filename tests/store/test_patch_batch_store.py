"""Contract: try_patch_many of a store, in a transaction of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sa_wfstate import (
    CanonicalStore,
    PayloadError,
    Provenance,
    RetryPolicy,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    field_of,
)
from sa_wfstate.errors import OutcomeUnknown
from sa_wfstate.patching import Patch, append

from ..orders import Order, OrderState
from ..verbs import verbs_of
from .test_batch_store import commits
from .test_transactions import Faults, refuse_one_commit

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, MetaData

NOTES = field_of(Order.state, lambda state: state.notes)
STATUS = field_of(Order.state, lambda state: state.status)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Order.metadata)


def patches(note: int, field: Any = NOTES, **expected: int | None) -> list[Patch]:
    """Return a batch of patches, by key."""
    return [
        Patch(
            key,
            [append(field, note)],
            provenance=Provenance.now(f"{note} {key}"),
            expected_version=version,
        )
        for key, version in expected.items()
    ]


def store_of(bind: Any, entity: Any = Order, **created: int) -> Any:
    """Return a store that looks twice for a lost answer, with workflows."""
    store = CanonicalStore(bind, entity, resolve=RetryPolicy(max_attempts=2))
    store.try_commit_many(commits("new", **created))
    return store


@pytest.mark.contract
@pytest.mark.parametrize("wrap", [lambda engine: engine, sessionmaker])
def test_store_patches_many_in_one_transaction(engine: Engine, wrap: Any) -> None:
    """One outcome each, in the order given, and one COMMIT."""
    store = store_of(wrap(engine), a=0, b=0, c=0)
    assert store.try_patch_many(patches(7, d=None, e=None))[0].reason == "missing"
    sent, done = verbs_of(engine), list[object]()
    event.listen(engine, "commit", done.append)
    assert store.try_patch_many([]) == []
    outcomes = store.try_patch_many(patches(7, c=1, b=5, a=None))
    assert [getattr(each, "reason", each.workflow_key) for each in outcomes] == [
        "c",
        "moved",
        "a",
    ]
    assert (sent[:2], len(done)) == (["SELECT", "UPDATE"], 1)
    assert outcomes[2].snapshot == store.get_state("a")
    assert store.get_state("c").state.notes == [7]
    (lost,) = store.try_patch_many(patches(8, a=None), when=STATUS == "paid")
    assert lost.reason == "condition"
    with pytest.raises(PayloadError, match="is given twice"):
        store.try_patch_many(patches(9, a=None) * 2)


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_of_patches_is_found_out(engine: Engine, done: bool) -> None:
    """Each patch is applied once; one that lost has lost."""
    store, faults = store_of(engine, a=0, b=0, c=0), Faults(engine)
    faults.times, faults.done = 1, done
    first, lost, third = store.try_patch_many(patches(7, a=None, b=5, c=1))
    assert isinstance(lost, StateConflict)
    for each in (first, third):
        assert (each.version, each.replayed) == (2, done)
        assert each.snapshot == store.get_state(each.workflow_key)
        assert each.snapshot.state.notes == [7]


def test_one_patched_row_is_evidence_of_all(engine: Engine) -> None:
    """Another writer hides that of one row; where all are hidden, it is unknown."""
    store, faults = store_of(engine, a=0, b=0), Faults(engine)

    def write_on(**expected: int) -> Callable[[], None]:
        return lambda: [None, store.try_commit_many(commits("other", **expected))][0]

    faults.times, faults.meanwhile = 1, write_on(a=2)
    outcomes = store.try_patch_many(patches(7, a=None, b=None))
    assert [(each.version, each.replayed) for each in outcomes] == [(2, True)] * 2
    faults.times, faults.meanwhile = 1, write_on(a=4, b=3)
    with pytest.raises(OutcomeUnknown, match="'a'"):
        store.try_patch_many(patches(8, a=None, b=None))


class Base(DeclarativeBase):
    """The declarative base of the class below."""


class Counted(WorkflowStateMixin[OrderState], Base):
    """A workflow whose patches are sent one by one: its onupdate is called for each."""

    __tablename__ = "counted"

    number: Mapped[int | None] = mapped_column(onupdate=lambda: 7)


def test_patch_that_was_done_before_is_no_evidence(
    engine: Engine, create_tables: Callable[[MetaData], None]
) -> None:
    """Its row has its effect, whether or not the transaction was committed."""
    create_tables(Counted.metadata)
    store, faults = store_of(engine, Counted, a=0, b=0), Faults(engine)
    notes = field_of(Counted.state, lambda state: state.notes)
    again = patches(7, notes, a=1, b=1)
    store.try_patch_many(again[:1])
    faults.times, faults.done = 1, False
    outcomes = store.try_patch_many(again)
    assert [each.replayed for each in outcomes] == [True, False]
    assert store.get_state("b").state.notes == [7]


def test_patches_that_the_database_refuses_are_sent_one_by_one(engine: Engine) -> None:
    """Each patch has an outcome of its own then."""
    store = store_of(engine, a=0, b=0)
    refuse_one_commit(engine)
    won, lost = store.try_patch_many(patches(7, a=None, b=5))
    assert isinstance(won, StateCommitted)
    assert (won.version, lost.reason) == (2, "moved")
