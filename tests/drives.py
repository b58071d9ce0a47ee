"""Drives: each does one thing of the public API by itself, and checks what came of it.

They use keys of their own, so that all of them can run in one database, in any order.
"""

# ruff: noqa: D103 - the name of a drive says what it does

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, Table, func, inspect, select
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    Intent,
    Provenance,
    ReducerService,
    Reduction,
    StateCommitted,
    StateConflict,
    WorkflowSnapshot,
    WorkflowStateMixin,
    field_of,
    get_state,
    run_transaction,
    try_commit,
    try_commit_many,
)
from sa_wfstate.dedup import ActionDedupMixin, cleanup_expired, remember, should_process
from sa_wfstate.history import (
    HistoryMixin,
    diff_versions,
    keep_history,
    list_versions,
    restore_version,
    trim_history,
)
from sa_wfstate.outbox import IntentDispatcher, IntentMixin, revive_dead, store_intents
from sa_wfstate.patching import (
    Patch,
    append,
    increment,
    remove,
    set_to,
    try_patch,
    try_patch_many,
)
from sa_wfstate.projection import (
    Projection,
    ProjectionMixin,
    ProjectionStore,
    ProjectionWorker,
    WatermarkMixin,
    measure_lag,
    rebuild,
)
from sa_wfstate.upcasting import count_schema_versions, upcast_all


class Base(DeclarativeBase):
    """The declarative base of these classes."""


class State(BaseModel):
    """The state of each of these workflows."""

    status: str = "new"
    count: int = 0


class Inner(BaseModel):
    """A part of RichState."""

    name: str | None = None


class RichState(BaseModel):
    """A state with a field of each kind that a patch knows."""

    tags: list[str] = ["a"]
    total: Decimal = Decimal(1)
    ratio: float = 1.0
    inner: Inner = Inner()


class Rich(WorkflowStateMixin[RichState], Base):
    """A workflow that is patched."""

    __tablename__ = "rich"


class Job(WorkflowStateMixin[State], Base):
    """A workflow with nothing beside it."""

    __tablename__ = "jobs"


class Kept(WorkflowStateMixin[State], Base):
    """A workflow with a history."""

    __tablename__ = "kept"


class KeptHistory(HistoryMixin, Base):
    """The history of Kept."""

    __tablename__ = "kept_history"


class Shown(WorkflowStateMixin[State], Base):
    """A workflow with an inline projection."""

    __tablename__ = "shown"


class ShownRow(ProjectionMixin, Base):
    """The projection of Shown."""

    __tablename__ = "shown_rows"


class JobRow(ProjectionMixin, Base):
    """The projection of Job, kept by a worker."""

    __tablename__ = "job_rows"


class Watermark(WatermarkMixin, Base):
    """The watermarks of the projections."""

    __tablename__ = "watermarks"


class Done(ActionDedupMixin, Base):
    """The log of processed actions."""

    __tablename__ = "done"


class Mail(IntentMixin, Base):
    """The outbox."""

    __tablename__ = "mail"


class Aged(WorkflowStateMixin[State], Base):
    """A workflow whose rows have been upcast once."""

    __tablename__ = "aged"
    __schema_version__ = 2
    __upcasters__ = {1: lambda data: data | {"count": 1}}  # noqa: RUF012


def row_of(snapshot: WorkflowSnapshot[State]) -> dict[str, Any]:
    """Make the row of a projection."""
    return {"tag": snapshot.state.status, "namespace": "all"}


keep_history(Kept, KeptHistory)
SHOWN = Projection(Shown, ShownRow, row_of)
SHOWN.keep_inline()
JOBS = Projection(Job, JobRow, row_of)

DRIVES: dict[str, Callable[[Engine], None]] = {}


def drive(function: Callable[[Engine], None]) -> Callable[[Engine], None]:
    """Note *function* as a drive."""
    DRIVES[function.__name__] = function
    return function


def stamp() -> dict[str, Any]:
    """Return the provenance of a write."""
    return {"provenance": Provenance.now()}


def make(engine: Engine, key: str, entity: type[Any] = Job, **values: Any) -> str:
    """Create a row by a flush; return its key."""
    with Session(engine) as session, session.begin():
        session.add(entity(workflow_key=key, state=State(**values)))
    return key


def version_of(engine: Engine, key: str, entity: type[Any] = Job) -> int:
    """Return the version of a row."""
    with Session(engine) as session:
        return get_state(session, entity, key).version


def count(state: State, _: Action[Any]) -> State:
    """Count on."""
    return state.model_copy(update={"count": state.count + 1})


def action(key: str) -> Action[Any]:
    """Make an action."""
    return Action(workflow_key=key, action_id=uuid4(), payload=None)


@drive
def flush_inserts_and_updates(engine: Engine) -> None:
    key = make(engine, "flush")
    with Session(engine) as session, session.begin():
        session.get_one(Job, key).state.count = 1
    assert version_of(engine, key) == 2


@drive
def flush_of_several_rows(engine: Engine) -> None:
    keys = [f"several-{number}" for number in range(4)]
    with Session(engine) as session, session.begin():
        session.add_all(Job(workflow_key=key, state=State()) for key in keys)
    with Session(engine) as session, session.begin():
        for key in keys:
            session.get_one(Job, key).state.count = 1
    assert [version_of(engine, key) for key in keys] == [2] * 4


@drive
def flush_raises_the_conflict(engine: Engine) -> None:
    key = make(engine, "lost")
    with Session(engine) as one, Session(engine) as two:
        job = one.get_one(Job, key)
        two.get_one(Job, key).state.count = 1
        two.commit()
        job.state.count = 2
        with pytest.raises(StateConflict) as caught:
            one.commit()
    assert caught.value.actual_version == 2


@drive
def second_insert_is_a_conflict(engine: Engine) -> None:
    key = make(engine, "twice")
    with pytest.raises(StateConflict):
        make(engine, key)


@drive
def delete_of_one_row(engine: Engine) -> None:
    key = make(engine, "gone")
    with Session(engine) as session, session.begin():
        session.delete(session.get_one(Job, key))
    with pytest.raises(LookupError):
        version_of(engine, key)


@drive
def delete_of_several_rows(engine: Engine) -> None:
    keys = [make(engine, f"gone-{number}") for number in range(3)]
    with Session(engine) as session, session.begin():
        jobs = [session.get_one(Job, key) for key in keys]
        for job in jobs:
            session.delete(job)
    with pytest.raises(LookupError):
        version_of(engine, keys[0])


@drive
def merge_of_a_stale_object(engine: Engine) -> None:
    key = make(engine, "merge")
    with Session(engine) as session:
        detached = session.get_one(Job, key)
        session.expunge(detached)
    with Session(engine) as session, session.begin():
        session.get_one(Job, key).state.count = 1
    with Session(engine) as session, pytest.raises(StateConflict):
        session.merge(detached)


@drive
def locked_load(engine: Engine) -> None:
    key = make(engine, "locked")
    with Session(engine) as session, session.begin():
        job = session.get_one(Job, key, with_for_update={"key_share": True})
        job.state.count = 1
    assert version_of(engine, key) == 2


@drive
def savepoint_is_rolled_back(engine: Engine) -> None:
    key = make(engine, "savepoint")
    with Session(engine) as session, session.begin():
        job = session.get_one(Job, key)
        with session.begin_nested() as savepoint:
            job.state.count = 1
            session.flush()
            savepoint.rollback()
        job.state.count = 5
    assert version_of(engine, key) == 2


@drive
def try_commit_creates(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        outcome = try_commit(
            session, Job, "created", expected_version=0, state=State(), **stamp()
        )
    assert isinstance(outcome, StateCommitted)


@drive
def try_commit_of_an_existing_key_loses(engine: Engine) -> None:
    key = make(engine, "exists")
    with Session(engine) as session, session.begin():
        outcome = try_commit(
            session, Job, key, expected_version=0, state=State(), **stamp()
        )
        assert isinstance(outcome, StateConflict)
        assert outcome.actual_version == 1
        session.add(Job(workflow_key="exists-2", state=State()))
    assert version_of(engine, "exists-2") == 1


@drive
def try_commit_swaps(engine: Engine) -> None:
    key = make(engine, "swapped")
    with Session(engine) as session, session.begin():
        base = get_state(session, Job, key)
        for number in (1, 2):
            outcome = try_commit(
                session,
                Job,
                key,
                expected_version=1,
                base=base,
                state=State(count=number),
                **stamp(),
            )
    assert isinstance(outcome, StateConflict)
    assert version_of(engine, key) == 2


@drive
def try_commit_many_creates_and_swaps(engine: Engine) -> None:
    keys = [make(engine, f"many-{number}") for number in range(20)]
    commits = [
        Commit(key, expected_version=1, state=State(count=1), **stamp()) for key in keys
    ]
    commits[3].expected_version = 7
    commits += [
        Commit(f"many-{number}", expected_version=0, state=State(), **stamp())
        for number in range(19, 30)
    ][1:]
    with Session(engine) as session, session.begin():
        outcomes = try_commit_many(session, Job, commits)
    lost = [each for each in outcomes if isinstance(each, StateConflict)]
    assert [each.workflow_key for each in lost] == ["many-3"]
    assert version_of(engine, "many-4") == 2
    assert version_of(engine, "many-29") == 1


@drive
def store_reads_and_commits(engine: Engine) -> None:
    store = CanonicalStore(engine, Job)
    for version in (0, 1, 1):
        outcome = store.try_commit(
            workflow_key="store",
            expected_version=version,
            state=State(count=version),
            **stamp(),
        )
    assert isinstance(outcome, StateConflict)
    assert store.get_state("store").version == 2


@drive
def run_transaction_commits(engine: Engine) -> None:
    key = make(engine, "run")

    def fn(session: Session) -> None:
        session.get_one(Job, key).state.count += 1

    run_transaction(sessionmaker(engine), fn)
    assert version_of(engine, key) == 2


@drive
def service_handles(engine: Engine) -> None:
    service = ReducerService(engine, Job, count, initial=State)
    for _ in range(3):
        outcome = service.handle(action("handled"))
    assert outcome.version == 3


@drive
def service_handles_once(engine: Engine) -> None:
    service = ReducerService(engine, Job, count, initial=State, dedup=Done)
    one = action("once")
    assert not service.handle(one).replayed
    assert service.handle(one).replayed
    assert version_of(engine, "once") == 1


@drive
def service_handles_many(engine: Engine) -> None:
    service = ReducerService(engine, Job, count, initial=State, dedup=Done)
    actions = [action(f"batch-{number % 5}") for number in range(20)]
    assert all(isinstance(r, StateCommitted) for r in service.handle_many(actions))


@drive
def service_locks_a_contended_row(engine: Engine) -> None:
    key = make(engine, "contended")
    other = CanonicalStore(engine, Job)
    moved: list[int] = []

    def reduce(state: State, given: Action[Any]) -> State:
        if len(moved) < 2:
            moved.append(len(moved) + 1)
            other.try_commit(
                workflow_key=key,
                expected_version=len(moved),
                state=State(count=10),
                **stamp(),
            )
        return count(state, given)

    service = ReducerService(engine, Job, reduce)
    assert service.handle(action(key)).version == 4


@drive
def dedup_remembers(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        given = UUID(int=7)
        assert should_process(session, Done, "remembered", given)
        assert remember(session, Done, "remembered", given, result="{}")
        assert not remember(session, Done, "remembered", given, result="{}")


@drive
def dedup_is_cleaned_up(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        expired = timedelta(seconds=-1)
        remember(session, Done, "old", uuid4(), result="{}", ttl=expired)
    assert cleanup_expired(engine, Done) == 1


@drive
def outbox_is_delivered(engine: Engine) -> None:
    def send(state: State, given: Action[Any]) -> Reduction[State]:
        intents = [Intent(intent_type="mail", target=str(n)) for n in range(2)]
        return Reduction(count(state, given), intents=intents)

    service = ReducerService(
        engine, Job, send, initial=State, writers=[store_intents(Mail)]
    )
    service.handle(action("mailed"))
    delivered: list[str] = []
    dispatcher = IntentDispatcher(
        engine, Mail, lambda intent: delivered.append(intent.target)
    )
    while dispatcher.dispatch():
        pass
    assert delivered == ["0", "1"]


@drive
def dead_letters_are_revived(engine: Engine) -> None:
    assert revive_dead(engine, Mail) == 0


@drive
def history_is_kept(engine: Engine) -> None:
    key = make(engine, "kept", Kept)
    with Session(engine) as session, session.begin():
        session.get_one(Kept, key).state.count = 1
    with Session(engine) as session, session.begin():
        try_commit(
            session, Kept, key, expected_version=2, state=State(count=2), **stamp()
        )
    with Session(engine) as session:
        assert len(list_versions(session, Kept, key)) == 3
        assert diff_versions(session, Kept, key, 1, 2)


@drive
def history_is_restored(engine: Engine) -> None:
    key = make(engine, "restored", Kept)
    with Session(engine) as session, session.begin():
        assert isinstance(
            restore_version(session, Kept, key, 1, expected_version=1, **stamp()),
            StateCommitted,
        )
    assert version_of(engine, key, Kept) == 2


@drive
def history_is_trimmed(engine: Engine) -> None:
    key = make(engine, "trimmed", Kept)
    with Session(engine) as session, session.begin():
        session.get_one(Kept, key).state.count = 1
    trim_history(engine, Kept, before=timedelta(0))
    with Session(engine) as session:
        assert len(list_versions(session, Kept, key)) == 1


@drive
def projection_is_kept_inline(engine: Engine) -> None:
    key = make(engine, "shown", Shown)
    with Session(engine) as session, session.begin():
        session.get_one(Shown, key).state.status = "paid"
    store = ProjectionStore(engine, SHOWN)
    assert store.get(key, 2, fallback="raise").values["tag"] == "paid"


@drive
def projection_follows(engine: Engine) -> None:
    key = make(engine, "followed")
    worker = ProjectionWorker(engine, JOBS, Watermark)
    worker.follow()
    worker.sweep()
    assert ProjectionStore(engine, JOBS).get_version(key) == 1


@drive
def projection_is_rebuilt(engine: Engine) -> None:
    make(engine, "rebuilt", Shown)
    assert rebuild(engine, SHOWN) >= 1


@drive
def projection_lag_is_measured(engine: Engine) -> None:
    assert measure_lag(engine, JOBS).keys >= 0


@drive
def projection_falls_back_to_the_row(engine: Engine) -> None:
    key = make(engine, "behind")
    store = ProjectionStore(engine, JOBS)
    assert store.get(key, 1, 0.0).version == 1


@drive
def rows_are_upcast(engine: Engine) -> None:
    key = make(engine, "aged", Aged)
    table = inspect(Aged).local_table
    assert isinstance(table, Table)
    with engine.begin() as connection:
        connection.execute(
            table.update()
            .where(table.c.workflow_key == key)
            .values(schema_version=1, version=1)
        )
    upcast_all(engine, Aged)
    with Session(engine) as session:
        assert count_schema_versions(session.connection(), Aged) == {2: 1}


@drive
def states_are_queried(engine: Engine) -> None:
    make(engine, "queried", status="queried")
    status = field_of(Job.state, lambda state: state.status)
    with Session(engine) as session:
        found = session.scalar(
            select(func.count()).select_from(Job).where(status == "queried")
        )
    assert found == 1


@drive
def patch_of_one_row(engine: Engine) -> None:
    key = make(engine, "patched")
    edits = [increment(field_of(Job.state, lambda state: state.count), 1)]
    with Session(engine) as session, session.begin():
        assert isinstance(
            try_patch(session, Job, key, edits, **stamp()), StateCommitted
        )
    assert version_of(engine, key) == 2


@drive
def patches_of_each_kind(engine: Engine) -> None:
    keys = ["patched-kinds-1", "patched-kinds-2"]
    with Session(engine) as session, session.begin():
        session.add_all(Rich(workflow_key=key, state=RichState()) for key in keys)
    edits = [
        append(field_of(Rich.state, lambda state: state.tags), "b"),
        increment(field_of(Rich.state, lambda state: state.total), Decimal("0.1")),
        increment(field_of(Rich.state, lambda state: state.ratio), 0.5),
        set_to(field_of(Rich.state, lambda state: state.inner.name), "x"),
        remove(field_of(Rich.state, lambda state: state.tags[0])),
    ]
    with Session(engine) as session, session.begin():
        for key in keys:
            outcome = try_patch(session, Rich, key, edits, **stamp())
            assert isinstance(outcome, StateCommitted)
        patches = [Patch(key, edits[:-1], **stamp()) for key in keys]
        many = try_patch_many(session, Rich, patches)
        assert all(isinstance(each, StateCommitted) for each in many)
    with Session(engine) as session:
        state = get_state(session, Rich, keys[1]).state
    assert state == RichState(
        tags=["b", "b"], total=Decimal("1.2"), ratio=2.0, inner=Inner(name="x")
    )


@drive
def patches_of_many_rows(engine: Engine) -> None:
    keys = [make(engine, f"patched-{number}") for number in range(20)]
    edits = [set_to(field_of(Job.state, lambda state: state.status), "done")]
    with Session(engine) as session, session.begin():
        patches = [Patch(key, edits, **stamp()) for key in keys]
        try_patch_many(session, Job, patches)
    assert [version_of(engine, key) for key in keys] == [2] * 20


def lose_a_race(engine: Engine) -> None:
    """Check that the second writer of a row learns that it has moved."""
    with Session(engine) as session, session.begin():
        session.add(Job(workflow_key="raced", state=State()))
    with Session(engine) as one, Session(engine) as two:
        job = one.get_one(Job, "raced")
        two.get_one(Job, "raced").state.count = 1
        two.commit()
        job.state.count = 2
        with pytest.raises(StateConflict) as caught:
            one.commit()
    assert caught.value.actual_version == 2
