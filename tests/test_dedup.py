"""Contract: the functions of the dedup log, for those who have a loop of their own."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field, RootModel
from pydantic_core import to_json
from sqlalchemy import create_engine, event, func, select
from sqlalchemy.orm import Session

from sa_wfstate import Action, PayloadError
from sa_wfstate.canonical import ActionDedupLog, CanonicalBase
from sa_wfstate.dedup import cleanup_expired, remember, should_process
from sa_wfstate.errors import ActionIdReused
from sa_wfstate.payload.actions import digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

ID = UUID(int=1)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
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
@pytest.mark.parametrize("off", ["", "hashjoin hashagg sort material"])
def test_expired_rows_are_deleted_in_batches(engine: Engine, off: str) -> None:
    """Each batch is a transaction, whatever the plan; progress is told."""

    @event.listens_for(engine, "begin")
    def plan(connection: Connection) -> None:
        for each in off.split():
            connection.exec_driver_sql(f"SET LOCAL enable_{each} = off")

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
    """Cleaning up waits for no lock."""
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


class Order(BaseModel):
    tags: set[int] = Field(alias="Tags")
    parts: list[frozenset[int]] = []


@dataclass
class Parcel:
    tags: set[int]


# In a set of this size 0 and 8 have one place, so that the first one comes first.
ONE, OTHER = [0, 8], [8, 0]


@pytest.mark.parametrize(
    "make",
    [
        set,
        lambda items: {"x": [frozenset(items)]},
        lambda items: {frozenset({1}), frozenset(items)},
        lambda items: Order(Tags=set(items), parts=[frozenset(items)]),
        lambda items: [Parcel(set(items))],
        lambda items: RootModel[set[int]](set(items)),
        lambda items: dict.fromkeys(map(str, items)),
    ],
    ids=["set", "nested", "sets", "model", "dataclass", "root", "dict"],
)
def test_order_of_sets_and_keys_is_no_difference(make: Callable[[Any], Any]) -> None:
    """The same payload has the same digest, in whatever order it was put together."""
    one, other, less = (
        Action(workflow_key="o-1", action_id=ID, payload=make(items)).payload_hash()
        for items in (ONE, OTHER, ONE[:1])
    )
    assert one == other != less


@pytest.mark.parametrize(
    ("one", "other"), [([0, 8], [8, 0]), ((0, 8), (8, 0)), (1, 1.0), (1, True)]
)
def test_order_of_lists_and_kind_of_numbers_is_a_difference(
    one: Any, other: Any
) -> None:
    """Two payloads are the same if their JSON is."""
    hashes = {
        Action(workflow_key="o-1", action_id=ID, payload=payload).payload_hash()
        for payload in (one, other)
    }
    assert len(hashes) == 2


def test_digest_of_a_payload_stays_what_it_was() -> None:
    """A log is older than the program that reads it."""
    payload = {"b": [1, 2.5, None], "a": "é"}
    action = Action(workflow_key="o-1", action_id=ID, payload=payload)
    text = '{"a": "\\u00e9", "b": [1, 2.5, null]}'
    assert action.payload_hash() == sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "payload", [1, None, 1e23, -0.0, 10**30, "\u0000é", [[{"b": [], "a": 1.0}] * 2]]
)
def test_digest_of_a_payload_is_that_of_its_canonical_json(payload: Any) -> None:
    """As the standard library reads and writes it, whatever reads it here."""
    action = Action(workflow_key="o-1", action_id=ID, payload=payload)
    text = json.dumps(json.loads(to_json(payload)), sort_keys=True)
    assert action.payload_hash() == sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("text", ["[" * 300 + "]" * 300, '"\\ud800"'], ids=range(2))
def test_text_that_only_the_standard_library_reads_has_a_digest(text: str) -> None:
    """Deeply nested, or with half a surrogate pair."""
    assert digest(text) == sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (object(), "at 'payload': cannot be JSON: object"),
        ({"s3cret": "\ud800"}, r"at 'payload\.\*': cannot be JSON: contains a lone"),
        ({"s3cret": object()}, r"at 'payload\.\*': cannot be JSON: object"),
        ({"n": 10**5000}, "cannot be JSON: holds an integer of more than 4,300 digits"),
    ],
    ids=range(4),
)
def test_payload_without_json_is_refused_with_its_path(
    payload: Any, message: str
) -> None:
    """The error names the action, its workflow and the place, and shows no payload."""
    action = Action(workflow_key="o-1", action_id=ID, payload=payload)
    with pytest.raises(PayloadError, match=message) as caught:
        action.payload_hash()
    assert f"action {ID} of 'o-1'" in str(caught.value)
    assert "s3cret" not in str(caught.value)
