"""The input and output of a reducer: Action, Reduction, Intent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic
from uuid import UUID, uuid5

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import (
    PydanticCustomError,
    PydanticSerializationError,
    to_json,
    to_jsonable_python,
)
from typing_extensions import TypeVar  # That of typing has no default before 3.13.

from ..errors import PayloadError
from ..values.keys import Key, WorkflowKey
from .canonical import canonical_dump, canonical_json, in_one_order, read_json
from .codec import Codec
from .texts import first_problem, shown
from .traits import names_in

StateT = TypeVar("StateT")
PayloadT = TypeVar("PayloadT", default=Any)
PayloadT_co = TypeVar("PayloadT_co", covariant=True)

ACTION_IDS: Final = UUID("8f2a5d0e-6c0b-5e57-9a3e-3f0b7b0f6d51")
"""The namespace of the ids of actions that are no UUID; it never changes."""

_OWN = {"workflow_key", "action_id", "payload"}
_WRITTEN_BY_THE_SERVICE = frozenset({"effect_id", "timestamp", "folded"})


def action_uuid(action_id: object) -> UUID:
    """Return the UUID of an action's id: of a text that is none, and of a number.

    It is UUID version 5 in the namespace ACTION_IDS, of the name ``str:order-1`` or
    ``int:1``; so ``1`` and ``"1"`` differ.
    """
    if isinstance(action_id, UUID):
        return action_id
    if type(action_id) is int:
        return uuid5(ACTION_IDS, f"int:{action_id}")
    if not isinstance(action_id, str) or not action_id:
        raise PydanticCustomError("action_id", "must be a UUID, a text or a number")
    try:
        return UUID(action_id)
    except ValueError:
        return uuid5(ACTION_IDS, f"str:{action_id}")


def uuid_of(action_id: UUID | str | int) -> UUID:
    """Return the UUID of an action's id; PayloadError if it can be none."""
    try:
        return action_uuid(action_id)
    except PydanticCustomError as error:
        raise PayloadError("action", "action_id", error.message()) from None


class Action(BaseModel, Generic[PayloadT_co]):
    """A request to change a workflow.

    *action_id* is the idempotency key: it identifies the action in each delivery. A
    UUID, or its text, is kept; any other text, and a number, becomes a UUID of
    version 5, always the same; ``1`` and ``"1"`` differ.
    *payload* is the input of the reducer. Further keys (epoch, lease_id, …) are copied
    into the provenance of the commit; "effect_id", "timestamp" and "folded" are
    refused, because the service writes them there. A subclass may declare further keys
    with their types.

    Raises PayloadError, which names the field and shows no payload.

    >>> Action(
    ...     workflow_key="order-42",
    ...     action_id="4f0e3d0a-6f4e-4f39-9f2c-2b8a3a4b5c6d",
    ...     payload={"paid": 30},
    ...     lease_id=7,
    ... ).lease_id
    7
    """

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    workflow_key: WorkflowKey
    action_id: Annotated[UUID, BeforeValidator(action_uuid)]
    payload: PayloadT_co

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            workflow_key: Key,
            action_id: UUID | str | int,
            payload: PayloadT_co,
            **more: Any,
        ) -> None: ...

    else:

        def __init__(self, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                path, problem = first_problem(error)
                declared = names_in(dict(type(self).__pydantic_core_schema__))
                raise PayloadError("action", shown(path, declared), problem) from None
            fields, more = type(self).__pydantic_fields__, self.__pydantic_extra__
            for name in _WRITTEN_BY_THE_SERVICE:
                if name in fields or (more and name in more):
                    problem = "is written by the service, not by an action"
                    raise PayloadError("action", name, problem)

    def payload_hash(self) -> str:
        """Return a digest of the payload's JSON; PayloadError if it has none.

        It does not depend on the order of an object's keys or of a set.
        """
        try:
            data = read_json(to_json(self.payload))
        except (PydanticSerializationError, ValueError) as error:
            where = f"action {self.action_id} of {self.workflow_key!r}"
            path, problem = _why_no_json(self.payload)
            raise PayloadError(where, path, problem) from error.__cause__
        return _sha256(canonical_dump(in_one_order(self.payload, data)))


def _why_no_json(payload: Any) -> tuple[str, str]:
    codec: Codec[Any] = Codec(Any)
    try:
        codec.encode(payload)
    except PayloadError as error:
        path = f"payload.{error.path}" if error.path else "payload"
        return path, f"cannot be JSON: {error.problem.removeprefix('is of type ')}"
    return "payload", f"cannot be JSON: {type(payload).__name__}"


def further_keys(action: Action[Any]) -> dict[str, Any]:
    """Return the further keys as JSON, those that a subclass declares among them."""
    if len(type(action).__pydantic_fields__) == len(_OWN):
        more = action.__pydantic_extra__
        return to_jsonable_python(more) if more else {}
    return action.model_dump(mode="json", exclude=_OWN)


class Intent(BaseModel):
    """A side effect to be carried out after the commit of its state."""

    model_config = ConfigDict(frozen=True)

    intent_type: str
    target: str
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Reduction(Generic[StateT]):
    """The result of a reducer: the new state, and *intents*."""

    state: StateT
    intents: Sequence[Intent] = ()


Reducer = Callable[[StateT, Action[PayloadT]], StateT | Reduction[StateT]]
"""A pure function; after a conflict it is called again, with the newer state."""


def digest(text: str) -> str:
    """Return the SHA-256 of a JSON text, whatever the order of its keys."""
    return _sha256(canonical_json(text))


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()
