"""What may happen to an order: three actions, and a pure function."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from sa_wfstate import Action, Intent, Reduction

from .models import OrderState


class Place(BaseModel):
    """The customer orders."""

    kind: Literal["place"] = "place"
    total: Annotated[int, Field(gt=0)]


class Pay(BaseModel):
    """The customer pays."""

    kind: Literal["pay"] = "pay"
    amount: Annotated[int, Field(gt=0)]


class Ship(BaseModel):
    """The shop ships."""

    kind: Literal["ship"] = "ship"


Payload = Annotated[Place | Pay | Ship, Field(discriminator="kind")]


class Refused(Exception):
    """An action that this order does not allow."""


def decide(
    state: OrderState, action: Action[Place | Pay | Ship]
) -> Reduction[OrderState]:
    """Return the next state, and what is to be done outside."""
    match action.payload:
        case Place(total=total) if state.status == "new":
            return Reduction(OrderState(status="placed", total=total))
        case Pay(amount=amount) if state.status == "placed":
            paid = state.paid + amount
            status = "paid" if paid >= state.total else "placed"
            receipt = Intent(
                intent_type="receipt",
                target=action.workflow_key,
                payload={"amount": amount},
            )
            update = {"paid": paid, "status": status}
            return Reduction(state.model_copy(update=update), [receipt])
        case Ship() if state.status == "paid":
            return Reduction(state.model_copy(update={"status": "shipped"}))
    raise Refused(f"an order that is {state.status} cannot {action.payload.kind}")
