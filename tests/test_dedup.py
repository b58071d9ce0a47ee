"""Contract: the functions of the dedup log, for those who have a loop of their own."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from sa_wfstate import ActionIdReused, cleanup_expired, remember, should_process
from sa_wfstate.canonical import ActionDedupLog, CanonicalBase

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, MetaData

ID = UUID(int=1)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[[MetaData], None]) -> None:
    create_tables(CanonicalBase.metadata)


def count(engine: Engine) -> int | None:
    """Count the rows of the log."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(ActionDedupLog))


@pytest.mark.contract
def test_remembered_action_is_not_processed_again(engine: Engine) -> None:
    """Only the first remember() is True, and only where it was committed."""
    with Session(engine) as session:
        assert should_process(session, ActionDedupLog, "o-1", ID)
        assert remember(session, ActionDedupLog, "o-1", ID, result="{}")
        session.rollback()
    with Session(engine) as session, session.begin():
        assert remember(session, ActionDedupLog, "o-1", ID, result="{}", version=7)
        assert not remember(session, ActionDedupLog, "o-1", ID, result="{}")
    with Session(engine) as session:
        assert not should_process(session, ActionDedupLog, "o-1", ID)
        assert should_process(session, ActionDedupLog, "o-2", ID)
        assert session.get_one(ActionDedupLog, ("o-1", ID)).version == 7


@pytest.mark.contract
def test_other_payload_is_refused(engine: Engine) -> None:
    """The id of an action that was remembered stands for its payload."""
    with Session(engine) as session:
        remember(session, ActionDedupLog, "o-1", ID, result="1", payload='{"a":1}')
        assert not should_process(session, ActionDedupLog, "o-1", ID)
        assert not should_process(
            session, ActionDedupLog, "o-1", ID, payload='{"a": 1}'
        )
        with pytest.raises(ActionIdReused):
            should_process(session, ActionDedupLog, "o-1", ID, payload="[]")


@pytest.mark.contract
def test_expired_rows_are_deleted_in_batches(engine: Engine) -> None:
    """Each batch is a transaction, progress is told, and what is valid stays."""
    with Session(engine) as session, session.begin():
        for number in range(25):
            ttl = timedelta(hours=-1 if number < 23 else 1)
            key = f"o-{number}"
            remember(session, ActionDedupLog, key, uuid4(), result="1", ttl=ttl)
    seen: list[int] = []
    assert cleanup_expired(engine, ActionDedupLog, batch=10, progress=seen.append) == 23
    assert seen == [10, 20, 23]
    assert count(engine) == 2
    assert cleanup_expired(engine, ActionDedupLog) == 0


@pytest.mark.contract
def test_clock_of_the_host_does_not_matter(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An action lives as long as the server says, however wrong the host's clock is."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=1)

    monkeypatch.setattr("sa_wfstate.dedup.datetime", Ahead)
    with Session(engine) as session, session.begin():
        remember(session, ActionDedupLog, "o-1", ID, result="1")
        row = session.get_one(ActionDedupLog, ("o-1", ID))
        assert row.expires_at - row.processed_at == timedelta(hours=6)
    assert cleanup_expired(engine, ActionDedupLog) == 0
    assert count(engine) == 1


@pytest.mark.parametrize("batch", [0, -1])
def test_batch_of_none_is_refused(engine: Engine, batch: int) -> None:
    """It would be deleted again for ever."""
    with pytest.raises(ValueError, match=f"batch must be 1 or more, got {batch}"):
        cleanup_expired(engine, ActionDedupLog, batch=batch)


def test_locked_rows_are_passed_over(engine: Engine) -> None:
    """Cleaning up waits for nobody."""
    with Session(engine) as session, session.begin():
        for key in ("o-1", "o-2"):
            remember(
                session, ActionDedupLog, key, ID, result="1", ttl=timedelta(hours=-1)
            )
    with Session(engine) as session:
        session.get_one(ActionDedupLog, ("o-1", ID), with_for_update=True)
        assert cleanup_expired(engine, ActionDedupLog) == 1
    assert cleanup_expired(engine, ActionDedupLog) == 1


def test_second_delivery_waits_for_the_first(engine: Engine) -> None:
    """A claim that is under way is waited for; it counts if it is committed."""
    answers: list[bool] = []

    def deliver() -> None:
        with Session(engine) as session, session.begin():
            answers.append(remember(session, ActionDedupLog, "o-1", ID, result="1"))

    with Session(engine) as session:
        assert remember(session, ActionDedupLog, "o-1", ID, result="1")
        other = threading.Thread(target=deliver)
        other.start()
        other.join(0.2)
        assert not answers
        session.commit()
        other.join()
    assert answers == [False]


def test_sqlite_is_enough_for_unit_tests() -> None:
    """The log works on SQLite, for tests of an application's own loop."""
    engine = create_engine("sqlite://")
    ActionDedupLog.metadata.create_all(
        engine,
        tables=[ActionDedupLog.__table__],  # type: ignore[list-item]
    )
    with Session(engine) as session:
        assert remember(session, ActionDedupLog, "o-1", ID, result="1")
        assert not remember(session, ActionDedupLog, "o-1", ID, result="1")
    engine.dispose()
