"""What goes into a reducer and what comes out: Action, Reduction, Intent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Generic, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticSerializationError, to_json

from .codec import canonical_json
from .errors import PayloadError
from .snapshots import WorkflowKey

StateT = TypeVar("StateT")
PayloadT = TypeVar("PayloadT")

_WRITTEN_BY_THE_SERVICE = frozenset({"effect_id", "timestamp", "folded"})


class Action(BaseModel, Generic[PayloadT]):
    """Something that is to happen to a workflow.

    *action_id* identifies the action, however often it is delivered. *payload* is
    whatever the reducer needs to know. Further keys (epoch, lease_id, …) are kept and
    go into the provenance of the commit; "effect_id", "timestamp" and "folded" are
    written there by the service and refused here.

    >>> Action(
    ...     workflow_key="order-42",
    ...     action_id="4f0e3d0a-6f4e-4f39-9f2c-2b8a3a4b5c6d",
    ...     payload={"paid": 30},
    ...     lease_id=7,
    ... ).lease_id
    7
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    workflow_key: WorkflowKey
    action_id: UUID
    payload: PayloadT

    @model_validator(mode="after")
    def _refuse_reserved(self) -> Self:
        reserved = _WRITTEN_BY_THE_SERVICE & (self.model_extra or {}).keys()
        if reserved:
            names = ", ".join(sorted(reserved))
            raise ValueError(f"written by the service, not by an action: {names}")
        return self

    def payload_hash(self) -> str:
        """Return a digest of the payload; PayloadError if it cannot be JSON."""
        try:
            text = to_json(self.payload).decode()
        except (PydanticSerializationError, ValueError) as error:
            problem = f"cannot be JSON: {type(self.payload).__name__}"
            raise PayloadError(
                f"action {self.action_id}", "payload", problem
            ) from error
        return digest(text)


class Intent(BaseModel):
    """Something to be done outside, once the state that asks for it is committed."""

    model_config = ConfigDict(frozen=True)

    intent_type: str
    target: str
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Reduction(Generic[StateT]):
    """What a reducer returns when it has *intents* too."""

    state: StateT
    intents: Sequence[Intent] = ()


Reducer = Callable[[StateT, Action[Any]], StateT | Reduction[StateT]]
"""A pure function; it is called again, with another state, after a conflict."""


def digest(text: str) -> str:
    """Return the SHA-256 of JSON, the same for every order of its keys."""
    return sha256(canonical_json(text).encode()).hexdigest()
