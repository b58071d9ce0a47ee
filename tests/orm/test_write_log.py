"""The write log of a transaction follows savepoints once a row is written in one."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.orm import Session

from sa_wfstate.orm.write_log import written_on

from ..orders import Base, Order, OrderState

if TYPE_CHECKING:
    from sqlalchemy import Engine


def write(session: Session, *keys: str) -> None:
    """Create orders."""
    session.add_all(Order(workflow_key=key, state=OrderState()) for key in keys)
    session.flush()


def written(session: Session) -> list[str]:
    """Return the keys of what the transaction has written."""
    return [each.workflow_key for each in written_on(session.connection())]


@pytest.mark.parametrize("inner_released", [True, False])
def test_rollback_of_savepoints_begun_before_the_first_write_in_them(
    engine: Engine, *, inner_released: bool
) -> None:
    """What was written outside stays in the log, at any depth; later ones count too."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        write(session, "o-1")
        outer = session.connection().begin_nested()
        inner = session.connection().begin_nested()
        write(session, "o-2")
        assert written(session) == ["o-1", "o-2"]
        if inner_released:
            inner.commit()
            assert written(session) == ["o-1", "o-2"]
        else:
            inner.rollback()
            assert written(session) == ["o-1"]
        outer.rollback()
        assert written(session) == ["o-1"]
        with session.connection().begin_nested():
            write(session, "o-3")
        again = session.connection().begin_nested()
        write(session, "o-4")
        again.rollback()
        assert written(session) == ["o-1", "o-3"]


def test_what_was_written_needs_no_garbage_collector(engine: Engine) -> None:
    """Log and operations go with the transaction, of a commit or of a rollback."""
    Base.metadata.create_all(engine)
    for key, end in (("o-1", Session.commit), ("o-2", Session.rollback)):
        gc.collect()
        gc.disable()
        try:
            with Session(engine) as session:
                write(session, key)
                entries = weakref.WeakSet(written_on(session.connection()))
                assert len(entries) == 1
                end(session)
                assert not entries
        finally:
            gc.enable()


def test_engine_without_savepoints_has_no_listeners(engine: Engine) -> None:
    """They would make each statement of the engine more expensive."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        write(session, "o-1")
        assert not engine.dispatch.savepoint
        with session.begin_nested():
            write(session, "o-2")
        assert engine.dispatch.savepoint
