"""Provenance, WorkflowSnapshot, StateCommitted: field rules, round trip, equality."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ValidationError

from sa_wfstate import Provenance, StateCommitted, WorkflowSnapshot
from sa_wfstate.values.provenance import survives, text_of
from sa_wfstate.values.snapshot import source_of, with_source

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NAIVE = NOW.replace(tzinfo=None)
AMSTERDAM_1900 = NOW.astimezone(timezone(timedelta(minutes=19, seconds=32)))


class OrderState(BaseModel):
    status: str = "new"


def snapshot(**changes: Any) -> WorkflowSnapshot[Any]:
    """Make a snapshot that differs in *changes*."""
    fields: dict[str, Any] = {
        "workflow_key": "order-42",
        "version": 3,
        "state": {"status": "new", "lines": [1, 2]},
        "updated_at": NOW,
        "schema_version": 2,
        "provenance": {"effect_id": "effect-1", "timestamp": NOW, "lease": 7},
    }
    return WorkflowSnapshot(**(fields | changes))


def test_all_fields() -> None:
    """A snapshot holds what it was given."""
    made = snapshot()
    assert (made.workflow_key, made.version, made.schema_version) == ("order-42", 3, 2)
    assert made.state["lines"] == [1, 2]
    assert made.updated_at == NOW
    assert made.provenance.effect_id == "effect-1"


def test_required_fields_only() -> None:
    """The schema version is 1 unless it is given."""
    made = WorkflowSnapshot(
        workflow_key="order-42",
        version=1,
        state={"a": 1},
        updated_at=NOW,
        provenance=Provenance(effect_id="e", timestamp=NOW),
    )
    assert made.schema_version == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workflow_key", ""),
        ("workflow_key", "x" * 256),
        ("workflow_key", None),
        ("version", 0),
        ("version", -1),
        ("version", 2**63),
        ("updated_at", "yesterday"),
        ("schema_version", 0),
        ("schema_version", 2**31),
        ("provenance", None),
        ("provenance.effect_id", {"timestamp": NOW}),
        ("provenance.effect_id", {"effect_id": "", "timestamp": NOW}),
        ("provenance.timestamp", {"effect_id": "e"}),
        ("provenance.timestamp", {"effect_id": "e", "timestamp": "soon"}),
    ],
)
def test_bad_value_names_its_field(field: str, value: Any) -> None:
    """Whatever is wrong is said of the field it is wrong in."""
    with pytest.raises(ValidationError) as caught:
        snapshot(**{field.partition(".")[0]: value})
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [
        field
    ]


@pytest.mark.parametrize(
    "field", ["workflow_key", "version", "state", "updated_at", "provenance"]
)
def test_missing_field_is_named(field: str) -> None:
    """A field without a default must be given."""
    fields = snapshot().model_dump()
    del fields[field]
    with pytest.raises(ValidationError) as caught:
        WorkflowSnapshot(**fields)
    assert caught.value.errors()[0]["loc"] == (field,)


def test_round_trip() -> None:
    """Dumped to Python or to JSON and read again, a snapshot is the same."""
    made = snapshot()
    assert WorkflowSnapshot(**made.model_dump()) == made
    assert WorkflowSnapshot[Any].model_validate_json(made.model_dump_json()) == made


def test_round_trip_of_a_typed_state() -> None:
    """A parametrised snapshot reads its state as the model."""
    made = snapshot(state=OrderState(status="paid"))
    text = made.model_dump_json()
    read = WorkflowSnapshot[OrderState].model_validate_json(text)
    assert read.state == OrderState(status="paid")
    assert read == made


def test_equality_and_copy() -> None:
    """Equal fields make equal snapshots; a copy may change some of them."""
    made = snapshot()
    assert made == snapshot()
    assert made != snapshot(version=4)
    moved = made.model_copy(update={"version": 4})
    assert (moved.version, made.version) == (4, 3)
    assert copy.deepcopy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_snapshot_is_frozen() -> None:
    """A snapshot cannot be changed."""
    with pytest.raises(ValidationError):
        snapshot().version = 4


def test_provenance_keeps_further_keys() -> None:
    """Keys that the library does not know come back as they were."""
    made = snapshot().provenance
    assert made.model_dump()["lease"] == 7
    assert Provenance.model_validate_json(made.model_dump_json()) == made


def test_provenance_of_older_writers_is_read() -> None:
    """A time without an offset is UTC, an action id need not be a UUID."""
    made = Provenance.model_validate(
        {"effect_id": "e", "timestamp": "2026-01-02T03:04:05", "action_id": "ship-1"}
    )
    assert made.timestamp == NOW
    assert made.action_id == "ship-1"


def test_provenance_takes_uuids() -> None:
    """UUIDs are taken for ids; an action id that is one comes back as one."""
    effect, action = uuid4(), uuid4()
    made = Provenance.now(effect, action, epoch=3)
    assert made.effect_id == str(effect)
    assert made.action_id == action
    read = Provenance.model_validate_json(made.model_dump_json())
    assert read.action_id == UUID(str(action))
    assert read == made
    assert abs(datetime.now(UTC) - made.timestamp) < timedelta(minutes=1)
    effects = {Provenance.now().effect_id for _ in range(100)}
    assert len(effects) == 100
    assert {each for each in effects if str(UUID(each)) == each} == effects
    assert {UUID(each).version for each in effects} == {4}


@pytest.mark.parametrize(
    ("made", "plain"),
    [
        (Provenance.now("e", uuid4(), lease=7, epoch=None, last=True, by="Kim"), True),
        (Provenance(effect_id="e", timestamp=NOW), True),
        (Provenance.now(more=(1, 2)), False),
        (Provenance.now(more=NOW), False),
        (Provenance.now(more=1.5), False),
        (Provenance.now(action_id="ship-1"), False),
        (Provenance.now().model_copy(update={"timestamp": NAIVE}), False),
        (Provenance.now().model_copy(update={"timestamp": AMSTERDAM_1900}), False),
        (Provenance.now().model_copy(update={"effect_id": ""}), False),
        (Provenance.model_construct(), False),
    ],
)
def test_provenance_that_survives_is_known_at_a_glance(
    made: Provenance, plain: bool
) -> None:
    """Only a provenance that is not plain is read back."""
    assert survives(made) is plain
    assert text_of(made) == (made.model_dump_json() if plain else None)
    if plain:
        assert Provenance.model_validate_json(made.model_dump_json()) == made


def test_snapshot_forgets_its_text_in_a_copy() -> None:
    """A copy may hold another state than the row."""
    made = with_source(snapshot(), "orders", '{"a": 1}')
    assert made == snapshot()
    assert source_of(made) == ("orders", '{"a": 1}')
    for copied in (
        copy.copy(made),
        copy.deepcopy(made),
        made.model_copy(),
        pickle.loads(pickle.dumps(made)),
        snapshot(),
    ):
        assert source_of(copied) is None


def test_committed_makes_its_snapshot_once_and_survives_pickle() -> None:
    """The snapshot is made when it is asked for; pickle takes it along."""
    calls: list[int] = []

    def make() -> WorkflowSnapshot[Any]:
        calls.append(1)
        return snapshot()

    outcome = StateCommitted("order-42", 3, make, attempts=2)
    assert calls == []
    assert outcome.snapshot is outcome.snapshot
    restored = pickle.loads(pickle.dumps(outcome))
    assert (restored.version, restored.attempts, restored.replayed) == (3, 2, False)
    assert restored.snapshot == snapshot()
    assert len(calls) == 1
    assert repr(outcome) == "<StateCommitted 'order-42' version 3>"


def test_empty_dict_is_a_state() -> None:
    """That it must not be empty is said by the type of a state, if at all."""
    assert snapshot(state={}).state == {}


def test_errors_show_no_payload() -> None:
    """An error in another field does not show the state."""
    with pytest.raises(ValidationError) as caught:
        WorkflowSnapshot(workflow_key="o-1", state={"pin": "s3cret"})  # type: ignore[call-arg]
    assert "s3cret" not in str(caught.value)
