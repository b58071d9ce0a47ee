"""A pinned fingerprint tells that a model has changed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field, create_model
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin
from sa_wfstate.testing import assert_schema_pinned, schema_fingerprint


def entity_of(fields: dict[str, Any], **attributes: Any) -> Any:
    """Map a workflow whose state has *fields*."""

    class Base(DeclarativeBase):
        pass

    state: Any = create_model("OrderState", **fields)

    class Order(WorkflowStateMixin[state], Base):
        __tablename__ = "orders"

        locals().update(attributes)

    return Order


class Line(BaseModel):
    sku: str


FIELDS: dict[str, Any] = {"title": (str, "new"), "lines": (list[Line], ...)}


def test_same_model_has_the_same_fingerprint() -> None:
    """It depends on nothing but the model, the order of its fields aside."""
    backwards = dict(reversed(FIELDS.items()))
    assert schema_fingerprint(entity_of(FIELDS)) == schema_fingerprint(
        entity_of(backwards)
    )


def test_description_does_not_count() -> None:
    """A field that is explained better is the same field."""
    described = FIELDS | {"title": (str, Field("new", description="of the order"))}
    assert schema_fingerprint(entity_of(FIELDS)) == schema_fingerprint(
        entity_of(described)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"title": (str, "old")},
        {"title": (str, ...)},
        {"title": (int, 0)},
        {"vip": (bool, False)},
        {"title": (str, Field("new", max_length=3))},
    ],
)
def test_change_of_a_field_counts(change: dict[str, Any]) -> None:
    """Types, defaults, limits and new fields do, a field called title too."""
    assert schema_fingerprint(entity_of(FIELDS)) != schema_fingerprint(
        entity_of(FIELDS | change)
    )


def test_unpinned_change_fails_with_what_to_do() -> None:
    """The message has the fingerprint to pin, and asks for a new schema version."""
    order = entity_of(FIELDS)
    fingerprint = schema_fingerprint(order)
    assert_schema_pinned(order, {1: fingerprint})
    changed = entity_of(FIELDS | {"vip": (bool, False)})
    with pytest.raises(AssertionError, match=r"still 1; .* raise __schema_version__"):
        assert_schema_pinned(changed, {1: fingerprint})
    next_version = entity_of(
        FIELDS | {"vip": (bool, False)},
        __schema_version__=2,
        __upcasters__={1: lambda data: data},
    )
    with pytest.raises(AssertionError, match="version 2 is not pinned yet"):
        assert_schema_pinned(next_version, {1: fingerprint})
