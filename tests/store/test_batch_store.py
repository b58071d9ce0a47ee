"""Contract: try_commit_many of a store, in a transaction of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker

from sa_wfstate import (
    CanonicalStore,
    Commit,
    PayloadError,
    Provenance,
    RetryPolicy,
    StateCommitted,
    StateConflict,
)
from sa_wfstate.errors import OutcomeUnknown
from sa_wfstate.merging import Rebase

from ..orders import Order, OrderState
from ..verbs import verbs_of
from .test_transactions import Faults, refuse_one_commit

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, MetaData


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(Order.metadata)


def commits(effect: str, **expected: int) -> list[Commit[OrderState]]:
    """Return a batch of commits, by key."""
    return [
        Commit(
            key,
            expected_version=version,
            state=OrderState(status=effect),
            provenance=Provenance.now(f"{effect} {key}"),
        )
        for key, version in expected.items()
    ]


def store_of(engine: Any) -> CanonicalStore[OrderState]:
    """Return a store that looks twice for a lost answer."""
    return CanonicalStore(engine, Order, resolve=RetryPolicy(max_attempts=2))


@pytest.mark.contract
@pytest.mark.parametrize("wrap", [lambda engine: engine, sessionmaker])
def test_store_commits_many_in_one_transaction(engine: Engine, wrap: Any) -> None:
    """One outcome each, in the order given, and one COMMIT."""
    store, sent, done = store_of(wrap(engine)), verbs_of(engine), []
    event.listen(engine, "commit", done.append)
    assert store.try_commit_many([]) == []
    created = store.try_commit_many(commits("new", b=0, a=0, c=0))
    assert [each.workflow_key for each in created] == ["b", "a", "c"]
    assert (sent, len(done)) == (["INSERT"], 1)
    outcomes = store.try_commit_many(commits("paid", c=1, b=7, d=3, a=1))
    kinds = [getattr(each, "reason", each.workflow_key) for each in outcomes]
    assert kinds == ["c", "moved", "missing", "a"]
    assert store.get_state("a").state.status == "paid"
    assert store.get_state("b").state.status == "new"
    with pytest.raises(PayloadError, match="is given twice"):
        store.try_commit_many(commits("x", a=2) * 2)


def test_batch_of_a_store_is_rebased(engine: Engine) -> None:
    """As a batch of a session is; each needs its base."""
    store = store_of(engine)
    store.try_commit_many(commits("new", a=0, b=0))
    bases = [store.get_state(key) for key in "ab"]
    store.try_commit_many(commits("paid", a=1))
    mine = [
        Commit(
            base=base,
            state=base.state.model_copy(update={"status": "sent"}),
            provenance=Provenance.now(),
        )
        for base in bases
    ]
    lost, won = store.try_commit_many(mine, rebase=True)
    assert isinstance(lost, StateConflict)
    assert lost.changes is not None
    assert lost.changes.overlapping == ("/status",)
    assert isinstance(won, StateCommitted)
    mine = mine[:1]
    (merged,) = store.try_commit_many(mine, rebase=Rebase({"status": max_of}))
    assert isinstance(merged, StateCommitted)
    assert (merged.version, merged.snapshot.state.status) == (3, "sent")


def max_of(_: str, mine: str, theirs: str) -> str:
    """Return the later status."""
    return max(mine, theirs)


@pytest.mark.contract
@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_of_a_batch_is_found_out(engine: Engine, done: bool) -> None:
    """Each commit is applied once; those that lost have lost."""
    store, faults = store_of(engine), Faults(engine)
    store.try_commit_many(commits("new", a=0, b=0))
    faults.times, faults.done = 1, done
    outcomes = store.try_commit_many(commits("paid", a=1, b=7, c=0))
    won = [outcomes[0], outcomes[2]]
    assert [getattr(each, "replayed", None) for each in won] == [done, done]
    assert isinstance(outcomes[1], StateConflict)
    for each in won:
        assert isinstance(each, StateCommitted)
        assert each.snapshot == store.get_state(each.workflow_key)
    assert store.get_state("a").version == 2


def test_one_row_of_a_batch_is_evidence_of_all(engine: Engine) -> None:
    """Another writer hides that of one row; where all are hidden, it is unknown."""
    store, faults = store_of(engine), Faults(engine)
    store.try_commit_many(commits("new", a=0, b=0))

    def write_on(**expected: int) -> Callable[[], None]:
        return lambda: [None, store.try_commit_many(commits("other", **expected))][0]

    faults.times, faults.meanwhile = 1, write_on(a=2)
    first, second = store.try_commit_many(commits("paid", a=1, b=1))
    assert isinstance(first, StateCommitted)
    assert isinstance(second, StateCommitted)
    assert (first.version, first.replayed, second.replayed) == (2, True, True)
    assert first.snapshot.state.status == "paid"
    assert store.get_state("a").version == 3

    faults.times, faults.meanwhile = 1, write_on(a=4, b=3)
    with pytest.raises(OutcomeUnknown, match="'a'"):
        store.try_commit_many(commits("sent", a=3, b=2))


def test_batch_that_the_database_refuses_is_sent_one_by_one(engine: Engine) -> None:
    """Each commit has an outcome of its own then."""
    store = store_of(engine)
    store.try_commit_many(commits("new", a=0, b=0))
    refuse_one_commit(engine)
    won, lost = store.try_commit_many(commits("paid", a=1, b=7))
    assert isinstance(won, StateCommitted)
    assert isinstance(lost, StateConflict)
    assert (won.replayed, lost.reason) == (False, "moved")


def test_other_errors_of_a_batch_write_nothing(engine: Engine) -> None:
    """They are raised as they are."""
    store = store_of(engine)

    @event.listens_for(engine, "commit")
    def fail(_: object) -> None:
        raise DBAPIError("COMMIT", {}, Exception("broken"))

    with pytest.raises(DBAPIError, match="broken"):
        store.try_commit_many(commits("new", a=0))
    event.remove(engine, "commit", fail)
    assert isinstance(store.try_commit_many(commits("new", a=0))[0], StateCommitted)
