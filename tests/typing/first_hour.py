"""Mistakes of the first hour that a type checker finds."""

from __future__ import annotations

from typing import assert_type
from uuid import UUID

from mapped_classes import Base, Order, OrderState
from pydantic import BaseModel
from sqlalchemy import BigInteger
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
)

from sa_wfstate import (
    Action,
    Provenance,
    StateCommitted,
    StateConflict,
    WorkflowStateMixin,
    http,
    try_commit,
)
from sa_wfstate.versions import RowVersion


class Pay(BaseModel):
    amount: int


class Ship(BaseModel):
    parcel: str


class LeasedAction(Action[Pay]):
    lease_id: int = 0


def handles(action: Action[Pay | Ship]) -> None: ...


def an_action_of_one_payload_is_one_of_several(action: Action[Pay]) -> None:
    handles(action)
    handles(
        LeasedAction(workflow_key="o-1", action_id=UUID(int=1), payload=Pay(amount=1))
    )
    handles(Action[int](workflow_key="o-1", action_id=1, payload=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def an_action_id_is_a_uuid_a_text_or_a_number() -> None:
    Action(workflow_key="o-1", action_id="order-1", payload=None, epoch=3)
    Action(workflow_key="o-1", action_id=1.5, payload=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def the_version_is_read_only(order: Order) -> None:
    assert_type(order.version, int)
    order.version = 3  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


def an_outcome_has_no_truth_value(
    outcome: StateCommitted[OrderState] | StateConflict,
) -> None:
    if outcome:  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        pass


def parameters_of_a_class_are_known() -> None:
    Order(workflow_key="o-1", state=OrderState(), customer="kim")
    Order(workflow_key="o-1", state={"status": "new"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class WithInit(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "with_init"

    def __init__(self, number: int) -> None:
        super().__init__(workflow_key=f"o-{number}", state=OrderState())


class Renamed(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "renamed"

    version: Mapped[int] = mapped_column("lock_version", BigInteger)  # pyright: ignore[reportIncompatibleVariableOverride]


class DataBase(MappedAsDataclass, DeclarativeBase):
    pass


def own_constructors_stay(renamed: Renamed) -> None:
    assert_type(WithInit(3).version, int)
    assert_type(renamed.version, int)
    WithInit(workflow_key="o-1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_header_names_a_version(session: Session, header: str | None) -> None:
    version = http.if_match(header)
    assert_type(version, RowVersion)
    outcome = try_commit(
        session,
        Order,
        "o-1",
        expected_version=version,
        state=OrderState(),
        provenance=Provenance.now(),
    )
    assert_type(http.etag(session.get_one(Order, "o-1")), str)
    assert not isinstance(outcome, StateConflict)
    assert_type(outcome.token, RowVersion)
