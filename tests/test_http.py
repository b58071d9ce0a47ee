"""ETag and If-Match name one version; each error has a status and a document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import Session

from sa_wfstate import (
    Action,
    CanonicalStore,
    Commit,
    ConflictReason,
    PayloadError,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowNotFound,
    WorkflowStateError,
    errors,
    get_state,
    try_commit,
    try_commit_many,
)
from sa_wfstate.errors import IfMatchRefused, OutcomeUnknown, UnflushedChanges
from sa_wfstate.http import STATUS, etag, if_match, problem
from sa_wfstate.versions import RowVersion, expect_version

from .orders import Base, Order, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, MetaData


@pytest.mark.parametrize(
    "version",
    [
        RowVersion(7, "0b6f7f4e-0d8c-4b51-9d0e-7b1f3f3f2a11"),
        RowVersion(1, 'quotes " and spaces, commas, 100% and ümläuts\n'),
        RowVersion(2**63 - 1, "-"),
        RowVersion(3, None),
    ],
)
def test_etag_comes_back_as_the_same_version(version: RowVersion) -> None:
    """Any effect id survives; the tag has the characters that a header may have."""
    tag = etag(version)
    assert tag.isascii()
    assert tag.isprintable()
    assert tag[0] == tag[-1] == '"'
    assert '"' not in tag[1:-1]
    assert " " not in tag
    assert if_match(tag) == version


@pytest.mark.parametrize(
    "header",
    [
        '"7-a"',
        ' "7-a" ',
        'W/"7-a", "7-a"',
        '"of-another-origin","7-a"',
        ', "7-a" ,, "7-a",',
    ],
)
def test_the_one_version_that_can_match_is_taken(header: str) -> None:
    """Weak tags and tags of others match no row, so they are passed over."""
    assert if_match(header) == RowVersion(7, "a")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 428),
        ("", 428),
        ("*", 428),
        ('W/"7-a"', 412),
        ('"of-another-origin"', 412),
        ('""', 412),
        ('"0-a"', 412),
        ('"07"', 412),
        ('"9999999999999999999"', 412),
        ('"7-a", "8-b"', 412),
        ('"7", "7-a"', 412),
        ("7", 400),
        ('"7', 400),
        ('"7" "8"', 400),
        ('*, "7"', 400),
        ('w/"7"', 400),
        ('"7 8"', 400),
    ],
)
def test_other_answers_of_if_match(header: str | None, status: int) -> None:
    """Each header that names no single version has its status; none is a success."""
    with pytest.raises(IfMatchRefused) as refused:
        if_match(header)
    assert refused.value.status == status
    assert problem(refused.value)[0] == status


def test_each_public_error_has_a_status() -> None:
    """Also those that only a mistake of the program can raise."""
    public = {
        error
        for name in errors.__all__
        if isinstance(error := getattr(errors, name), type)
        if issubclass(error, WorkflowStateError)
    }
    assert public - {WorkflowStateError} == STATUS.keys()


def conflict(**changes: Any) -> StateConflict:
    """Make a conflict."""
    return StateConflict(
        **{
            "entity": "Order",
            "workflow_key": "o-1",
            "expected_version": 7,
            "actual_version": 8,
            "reason": ConflictReason.MOVED,
            **changes,
        }
    )


def test_conflict_is_412_if_the_client_named_a_version() -> None:
    """Otherwise the server lost a race of its own: 409."""
    assert problem(conflict())[0] == 409
    status, body = problem(conflict(), if_match='"7-a"')
    assert (status, body["status"], body["title"]) == (412, 412, "Precondition Failed")
    assert body["code"] == "state-conflict"
    assert (body["expected_version"], body["actual_version"]) == (7, 8)
    assert body["reason"] == "moved"
    others = conflict(workflow_key="o-2", actual_version=None)
    _, body = problem(conflict().together_with((others,)))
    assert [each["workflow_key"] for each in body["conflicts"]] == ["o-1", "o-2"]


def test_a_mistake_of_the_program_is_not_explained_to_clients() -> None:
    """An unknown error of the library is one too; the type can name your pages."""

    class Odd(UnflushedChanges):
        pass

    status, body = problem(Odd("Order", "o-1"), type_base="https://example.com/#")
    assert status == 500
    assert body == {
        "type": "https://example.com/#unflushed-changes",
        "title": "Internal Server Error",
        "status": 500,
        "code": "unflushed-changes",
    }


def test_each_document_is_json() -> None:
    """Ids and versions are plain values."""
    _, body = problem(WorkflowNotFound("Order", "o-1"))
    assert json.loads(json.dumps(body))["workflow_key"] == "o-1"
    status, body = problem(OutcomeUnknown("Order", "o-1", ("effect-1",)))
    assert status == 504
    assert "effect-1" in body["detail"]


class Labels(BaseModel):
    labels: dict[str, int]


def test_document_names_declared_fields_only() -> None:
    """A key of a dict is payload, not a field."""
    with pytest.raises(PayloadError) as refused:
        Action[Labels](
            workflow_key="o-1",
            action_id="4f0e3d0a-6f4e-4f39-9f2c-2b8a3a4b5c6d",  # type: ignore[arg-type]
            payload={"labels": {"Jane Doe": "ill"}},  # type: ignore[arg-type]
        )
    status, body = problem(refused.value)
    assert (status, body["path"]) == (422, "payload.labels.*")
    assert "Jane" not in json.dumps(body)


@pytest.fixture
def rows(create_tables: Callable[[MetaData], None], engine: Engine) -> Engine:
    """Create an order at version 2."""
    create_tables(Base.metadata)
    store = CanonicalStore(engine, Order)
    for version, status in enumerate(("new", "paid")):
        store.try_commit(
            workflow_key="o-1",
            expected_version=version,
            state=OrderState(status=status),
            provenance=Provenance.now(f"effect-{version + 1}"),
        )
    return engine


def test_etag_of_snapshot_instance_and_outcome(rows: Engine) -> None:
    """They have one tag, which is the token of the commit."""
    with Session(rows) as session:
        snapshot = get_state(session, Order, "o-1")
        order = session.get_one(Order, "o-1")
        assert etag(snapshot) == etag(order) == '"2-effect-2"'
        order.state.status = "sent"
        session.flush()
        now = get_state(session, Order, "o-1")
        assert etag(order) == etag(now) != etag(snapshot)
        outcome = try_commit(
            session,
            Order,
            "o-1",
            expected_version=if_match(etag(order)),
            state=OrderState(),
            provenance=Provenance.now("effect-4"),
        )
    assert isinstance(outcome, StateCommitted)
    assert outcome.token == RowVersion(4, "effect-4")
    assert etag(outcome) == '"4-effect-4"'


def write(rows: Engine, header: str) -> StateCommitted[OrderState] | StateConflict:
    """Commit what a request with this If-Match wants."""
    return CanonicalStore(rows, Order).try_commit(
        workflow_key="o-1",
        expected_version=if_match(header),
        state=OrderState(status="sent"),
        provenance=Provenance.now("effect-3"),
    )


def test_row_created_again_is_no_match(rows: Engine) -> None:
    """The tag names the effect, too; in a batch as well."""
    lost = write(rows, '"2-effect-of-a-deleted-row"')
    assert isinstance(lost, StateConflict)
    assert lost.reason is ConflictReason.RECREATED
    commit = Commit(
        "o-1",
        expected_version=RowVersion(2, "effect-of-a-deleted-row"),
        state=OrderState(status="sent"),
        provenance=Provenance.now(),
    )
    with Session(rows) as session:
        (lost,) = try_commit_many(session, Order, [commit])
    assert isinstance(lost, StateConflict)
    assert lost.reason is ConflictReason.RECREATED
    assert isinstance(write(rows, '"2-effect-2"'), StateCommitted)


@pytest.mark.parametrize("header", ['"1-effect-1"', '"3-effect-3"', '"9-effect-9"'])
@pytest.mark.parametrize("own_transaction", [True, False])
def test_state_read_at_another_version_than_the_header_is_not_written(
    rows: Engine,
    header: str,
    own_transaction: bool,
) -> None:
    """The handler reads, changes, and commits with the version of the header.

    What it has read may be older than what the client has seen, from a standby or a
    cache: the version of the header alone would let it overwrite that.
    """
    store = CanonicalStore(rows, Order)
    snapshot = store.get_state("o-1")
    if header == '"3-effect-3"':
        assert isinstance(write(rows, '"2-effect-2"'), StateCommitted)
    before = store.get_state("o-1")
    arguments: dict[str, Any] = {
        "expected_version": if_match(header),
        "state": snapshot.state.model_copy(update={"status": "cancelled"}),
        "provenance": Provenance.now(),
        "base": snapshot,
    }
    if own_transaction:
        lost = store.try_commit(workflow_key="o-1", **arguments)
    else:
        with Session(rows) as session:
            lost = try_commit(session, Order, "o-1", **arguments)
            session.commit()
    assert isinstance(lost, StateConflict)
    assert lost.current == store.get_state("o-1") == before
    stale = 2 if header == '"3-effect-3"' else if_match(header).version
    assert (lost.expected_version, lost.actual_version) == (stale, before.version)
    assert problem(lost, if_match=header)[0] == 412


@pytest.mark.parametrize("header", ['"1-effect-1"', '"2-other"', '"9-effect-9"'])
def test_handler_of_a_unit_of_work_cannot_lose_an_update(
    rows: Engine, header: str
) -> None:
    """It reads, changes, and commits an instance with the version of the header."""
    with Session(rows) as session:
        order = session.get_one(Order, "o-1")
        expect_version(order, if_match(header))
        order.state.status = "cancelled"
        with pytest.raises(StateConflict) as lost:
            session.commit()
    assert problem(lost.value, if_match=header)[0] == 412
    with Session(rows) as session:
        assert session.get_one(Order, "o-1").version == 2
        order = session.get_one(Order, "o-1")
        expect_version(order, if_match(etag(order)))
        order.state.status = "cancelled"
        session.commit()
        assert etag(order).startswith('"3-')
