"""A scoped_session, as Flask-SQLAlchemy's ``db.session``, stands for its session."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import scoped_session, sessionmaker

from sa_wfstate import (
    Commit,
    Provenance,
    StateCommitted,
    field_of,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.dedup import should_process
from sa_wfstate.patching import set_to, try_patch
from sa_wfstate.versions import expect_version, require_version, try_delete

from ..orders import Base, Order, OrderActions, OrderState


def test_each_function_takes_one(engine: Engine, create_tables: Any) -> None:
    """All that take a session, in one transaction after the other."""
    create_tables(Base.metadata)
    session: Any = scoped_session(sessionmaker(engine))
    session.add_all(
        Order(workflow_key=key, state=OrderState()) for key in ("o-1", "o-2")
    )
    session.commit()
    now = Provenance.now()
    state = get_state(session, Order, "o-1", min_version=1).state
    won = try_commit(
        session, Order, "o-1", expected_version=1, state=state, provenance=now
    )
    commit = Commit(workflow_key="o-1", expected_version=2, state=state, provenance=now)
    (many,) = try_commit_many(session, Order, [commit])
    edit = set_to(field_of(Order.state, lambda state: state.status), "paid")
    patched = try_patch(session, Order, "o-1", [edit], provenance=now)
    assert [type(each) for each in (won, many, patched)] == [StateCommitted] * 3
    assert should_process(session, OrderActions, "o-1", "a-1")
    session.commit()
    order = session.get_one(Order, "o-1")
    expect_version(order, 4)
    require_version(session, session.get_one(Order, "o-2"))
    order.state.status = "sent"
    session.commit()
    deleted = try_delete(session, Order, "o-1", expected_version=5)
    assert isinstance(deleted, StateCommitted)
    assert deleted.snapshot.state.status == "sent"
    session.commit()
    session.remove()
