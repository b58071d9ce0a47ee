"""Workflows of several tenants on Citus, distributed by the tenant."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import NotSupportedError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

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
    TenantKey,
    WorkflowSnapshot,
    WorkflowStateMixin,
    field_of,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.history import (
    HistoryMixin,
    keep_history,
    list_versions,
    restore_version,
    trim_history,
)
from sa_wfstate.outbox import IntentDispatcher, IntentMixin, store_intents
from sa_wfstate.patching import Patch, increment, try_patch, try_patch_many
from sa_wfstate.projection import (
    Projection,
    ProjectionMixin,
    ProjectionStore,
    ProjectionWorker,
    WatermarkMixin,
    rebuild,
)
from sa_wfstate.sharding import distribute
from sa_wfstate.upcasting import upcast_all
from sa_wfstate.versions import try_delete_many

from ..drives import State
from .test_citus import URL_OF_COORDINATOR, write
from .test_citus import pytestmark as _marks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

pytestmark = _marks


class Base(DeclarativeBase):
    """The declarative base of these classes."""


class Ticket(WorkflowStateMixin[State], Base):
    """A workflow whose key is unique within its shop."""

    __tablename__ = "tickets"

    shop: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    workflow_key: Mapped[str] = mapped_column(primary_key=True)


class TicketHistory(HistoryMixin, Base):
    """The history of the tickets."""

    __tablename__ = "ticket_history"


class TicketRow(ProjectionMixin, Base):
    """The inline projection of the tickets."""

    __tablename__ = "ticket_rows"


class TicketWatermark(WatermarkMixin, Base):
    """The watermark of a worker."""

    __tablename__ = "ticket_watermarks"


class TicketActions(ActionDedupMixin, Base):
    """The dedup log."""

    __tablename__ = "ticket_actions"


class TicketMail(IntentMixin, Base):
    """The outbox."""

    __tablename__ = "ticket_mail"


def row_of(snapshot: WorkflowSnapshot[State]) -> dict[str, Any]:
    """Make the row of the projection."""
    return {"tag": snapshot.state.status, "namespace": "all"}


keep_history(Ticket, TicketHistory)
ROWS = Projection(Ticket, TicketRow, row_of)
ROWS.keep_inline()

OURS, THEIRS = TenantKey(7, "t-1"), TenantKey(8, "t-1")
KEYS = [TenantKey(shop, f"t-{number}") for shop in range(6, 10) for number in range(5)]
COUNT = field_of(Ticket.state, lambda state: state.count)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Create the workflows, in tables that are distributed by the shop."""
    engine = create_engine(make_url(URL_OF_COORDINATOR or ""))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in distribute(Base, column="shop"):
            connection.execute(statement)
    with Session(engine) as session, session.begin():
        new = [Commit(key, expected_version=0, **write(0)) for key in KEYS]
        outcomes = try_commit_many(session, Ticket, new)
        assert all(isinstance(each, StateCommitted) for each in outcomes)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


def version_of(engine: Engine, key: TenantKey) -> int:
    """Return the version of a row."""
    return CanonicalStore(engine, Ticket).get_state(key).version


def test_workflows_are_at_their_tenant(engine: Engine) -> None:
    """What is beside them is distributed by its own key, and on another shard."""
    with engine.connect() as connection:
        columns = connection.execute(
            text(
                "SELECT CAST(table_name AS text), distribution_column FROM citus_tables"
                " WHERE CAST(table_name AS text) LIKE 'ticket%'"
            )
        ).all()
        plan = connection.execute(
            text("EXPLAIN SELECT * FROM tickets WHERE shop = 7 AND version > 0")
        ).scalars()
        assert "  Task Count: 1" in set(plan)
    by_key = {"ticket_history", "ticket_rows", "ticket_actions", "ticket_mail"}
    expected = dict.fromkeys(by_key, "workflow_key") | {"tickets": "shop"}
    assert dict(map(tuple, columns)) == expected


def test_sessions_and_batches_keep_tenants_apart(engine: Engine) -> None:
    """Flushes, conflicts, commits, patches and deletions name both columns."""
    with Session(engine) as session, Session(engine) as other:
        mine = session.get_one(Ticket, (7, "t-1"))
        other.get_one(Ticket, (8, "t-1")).state.count = 5
        other.commit()
        other.get_one(Ticket, (7, "t-1")).state.count = 6
        other.commit()
        mine.state.count = 7
        with pytest.raises(StateConflict) as caught:
            session.commit()
    assert (caught.value.workflow_key, caught.value.actual_version) == (OURS, 2)
    with Session(engine) as session, session.begin():
        lost = try_commit(session, Ticket, OURS, expected_version=1, **write(8))
        assert isinstance(lost, StateConflict)
        swaps = [Commit(key, expected_version=1, **write(9)) for key in KEYS]
        outcomes = try_commit_many(session, Ticket, swaps)
        conflicts = [each for each in outcomes if isinstance(each, StateConflict)]
        assert {each.workflow_key for each in conflicts} == {OURS, THEIRS}
        one = [increment(COUNT, 1)]
        assert try_patch(session, Ticket, OURS, one, provenance=Provenance.now())
        try_patch_many(
            session,
            Ticket,
            [Patch(key, one, provenance=Provenance.now()) for key in KEYS],
        )
    assert [version_of(engine, key) for key in (OURS, THEIRS, KEYS[0])] == [4, 3, 3]
    with Session(engine) as session, session.begin():
        session.delete(session.get_one(Ticket, (7, "t-1")))
        session.delete(session.get_one(Ticket, (9, "t-1")))
        gone = try_delete_many(session, Ticket, {KEYS[0]: 3, THEIRS: 1})
    assert [type(each) for each in gone] == [StateCommitted, StateConflict]
    with Session(engine) as session, pytest.raises(LookupError):
        get_state(session, Ticket, OURS)
    assert version_of(engine, THEIRS) == 3


def test_what_is_beside_the_rows_keeps_tenants_apart(engine: Engine) -> None:
    """Service, dedup log, outbox, history and inline projection.

    A projection worker joins the rows by the text of their keys, which Citus refuses.
    """

    def send(state: State, _: Action[Any]) -> Reduction[State]:
        intents = [Intent(intent_type="mail", target="kim")]
        changed = state.model_copy(update={"count": state.count + 1, "status": "sent"})
        return Reduction(changed, intents=intents)

    service = ReducerService(
        engine, Ticket, send, dedup=TicketActions, writers=[store_intents(TicketMail)]
    )
    action_id = uuid4()
    actions = [
        Action(workflow_key=key, action_id=action_id, payload=None)
        for key in (OURS, THEIRS)
    ]
    assert [service.handle(each).replayed for each in actions] == [False, False]
    assert [service.handle(each).replayed for each in actions] == [True, True]
    more = [Action(workflow_key=key, action_id=uuid4(), payload=None) for key in KEYS]
    assert all(isinstance(r, StateCommitted) for r in service.handle_many(more))
    assert version_of(engine, OURS) == 3

    delivered: list[str] = []
    dispatcher = IntentDispatcher(
        engine, TicketMail, lambda intent: delivered.append(str(intent.workflow_key))
    )
    while dispatcher.dispatch():
        pass
    assert sorted(delivered) == sorted(map(str, [*KEYS, OURS, THEIRS]))

    store = ProjectionStore(engine, ROWS)
    assert store.get(OURS, 3, fallback="raise").values["tag"] == "sent"
    worker = ProjectionWorker(engine, ROWS, TicketWatermark)
    for look in (worker.follow, worker.sweep, partial(rebuild, engine, ROWS)):
        with pytest.raises(NotSupportedError, match="complex joins"):
            look()
    with Session(engine) as session, session.begin():
        versions = list_versions(session, Ticket, OURS)
        assert [each.version for each in versions] == [3, 2, 1]
        stamp = {"provenance": Provenance.now()}
        restore_version(session, Ticket, THEIRS, 1, expected_version=3, **stamp)
    assert [version_of(engine, key) for key in (OURS, THEIRS)] == [3, 4]
    assert trim_history(engine, Ticket, before=timedelta(0)) > 0
    assert upcast_all(engine, Ticket).upcast == 0
