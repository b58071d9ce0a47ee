"""What a type checker knows of services, their actions and their reducers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type
from uuid import uuid4

from mapped_classes import Order, OrderState
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    Provenance,
    ReducerService,
    Reduction,
    StateCommitted,
    WorkflowSnapshot,
    get_state,
    try_commit,
)
from sa_wfstate.testing import given
from sa_wfstate.versions import depends_on

if TYPE_CHECKING:
    from collections.abc import Sequence


class Place(BaseModel):
    item: str


class Pay(BaseModel):
    amount: int


class Ship(BaseModel):
    parcel: str


def reducer(state: OrderState, action: Action[Place | Pay]) -> OrderState:
    assert_type(action.payload, Place | Pay)
    return state


def of_any_payload(state: OrderState, _: Action[Any]) -> Reduction[OrderState]:
    return Reduction(state)


async def async_reducer(state: OrderState, _: Action[Pay]) -> OrderState:
    return state


def a_service_has_the_payload_of_its_reducer(
    engine: Engine, pay: Action[Pay], ship: Action[Ship]
) -> None:
    service = ReducerService(engine, Order, reducer)
    assert_type(service, ReducerService[OrderState, Place | Pay])
    assert_type(service.handle(pay), StateCommitted[OrderState])
    assert_type(
        service.handle_many([pay]), list[StateCommitted[OrderState] | Exception]
    )
    service.handle(ship)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    service.handle_many([ship])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def a_service_of_the_state_alone_takes_any_payload(
    engine: Engine, ship: Action[Ship]
) -> None:
    service: ReducerService[OrderState] = ReducerService(engine, Order, of_any_payload)
    service.handle(ship)
    ReducerService(engine, Order, lambda state, _: state).handle(ship)


def a_reducer_of_another_payload_is_refused(engine: Engine) -> None:
    service: ReducerService[OrderState, Ship] = ReducerService(engine, Order, reducer)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    service.handle(Action(workflow_key="o-1", action_id=1, payload=Ship(parcel="p")))


async def an_async_service_has_the_payload_of_its_reducer(
    engine: AsyncEngine, pay: Action[Pay], ship: Action[Ship]
) -> None:
    service = sa_wfstate.asyncio.ReducerService(engine, Order, async_reducer)
    assert_type(await service.handle(pay), StateCommitted[OrderState])
    await service.handle(ship)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain = sa_wfstate.asyncio.ReducerService(engine, Order, reducer)
    await plain.handle(pay)


def named(_: OrderState, action: Action[Pay]) -> list[tuple[type[Order], str]]:
    return [(Order, f"o-{action.payload.amount}")]


@depends_on(named)
def dependent(
    state: OrderState, _: Action[Pay], others: Sequence[WorkflowSnapshot[Any]]
) -> OrderState:
    return state if others else OrderState()


def a_reducer_that_depends_on_others_is_typed(
    engine: Engine, pay: Action[Pay], ship: Action[Ship]
) -> None:
    service = ReducerService(engine, Order, dependent)
    assert_type(service.handle(pay), StateCommitted[OrderState])
    service.handle(ship)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(dependent(OrderState(), pay, []), OrderState)
    given(OrderState(), reducer=dependent, others=[]).when(pay)


class LeasedAction(Action[Pay]):
    """Extra keys are declared in a subclass."""

    lease_id: int


class LeasedProvenance(Provenance):
    lease_id: int


def extra_keys_are_typed_by_subclassing(engine: Engine) -> None:
    action = LeasedAction(
        workflow_key="o-1", action_id=uuid4(), payload=Pay(amount=1), lease_id=7
    )
    assert_type(action.lease_id, int)
    assert_type(action.payload, Pay)
    ReducerService(engine, Order, reducer).handle(action)
    provenance = LeasedProvenance.now(lease_id=7)
    assert_type(provenance, LeasedProvenance)
    assert_type(provenance.lease_id, int)
    with Session(engine) as session:
        snapshot = get_state(session, Order, "o-1")
        order = session.get_one(Order, "o-1")
        order.provenance = provenance
        try_commit(
            session, Order, base=snapshot, state=snapshot.state, provenance=provenance
        )
    read = LeasedProvenance.of(snapshot.provenance)
    assert_type(read.lease_id, int)
    LeasedAction(workflow_key="o-1", action_id=uuid4(), payload=Pay(amount=1))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
