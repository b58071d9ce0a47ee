"""Provenance: which effect wrote a version, when, and for which action."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from os import urandom
from typing import TYPE_CHECKING, Annotated, Any, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticSerializationError, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator


def _text_of_uuid(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value


def _aware(value: datetime) -> datetime:
    # Rows older than this library hold the text of utcnow().isoformat().
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


class Provenance(BaseModel):
    """Who wrote a version; stored in the column ``provenance`` of every workflow row.

    *effect_id* identifies the write: each attempt has its own, so that the outcome of
    an uncertain COMMIT can be looked up. *timestamp* is the time of the writer's clock;
    without an offset it is taken as UTC. *action_id* identifies the action that caused
    the write, if there was one. Further keys are kept unchanged. A subclass may declare
    them with their types: it is stored as it is, and read as a Provenance, from which
    :meth:`of` makes one of the subclass.

    >>> Provenance(
    ...     effect_id="effect-1", timestamp="2026-01-01T00:00:00Z", lease=7
    ... ).lease
    7
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    effect_id: Annotated[str, BeforeValidator(_text_of_uuid), Field(min_length=1)]
    timestamp: Annotated[datetime, AfterValidator(_aware)]
    action_id: Annotated[UUID | str | None, Field(union_mode="left_to_right")] = None

    @classmethod
    def now(
        cls,
        effect_id: str | UUID | None = None,
        action_id: UUID | str | None = None,
        **more: Any,
    ) -> Self:
        """Make the provenance of a write that happens now.

        *effect_id* is a random UUID by default.
        """
        return cls.model_validate(
            {
                **more,
                "effect_id": new_effect_id() if effect_id is None else effect_id,
                "timestamp": datetime.now(UTC),
                "action_id": action_id,
            }
        )

    @classmethod
    def of(cls, provenance: Provenance) -> Self:
        """Return *provenance*, which was read from a row, as one of this class.

        Raises pydantic's ValidationError if it lacks a key that the class declares.

        >>> class Leased(Provenance):
        ...     lease: int
        >>> Leased.of(Provenance.now(lease=7)).lease
        7
        """
        return cls.model_validate(provenance.model_dump(round_trip=True))


def texts_of_now() -> Iterator[tuple[str, str]]:
    """Yield random effect ids, each with the JSON of :meth:`Provenance.now` with it.

    Without Pydantic, because a flush makes one for each row. All have the same time,
    and the system is asked for randomness once for many.
    """
    time, many = datetime.now(UTC).isoformat().removesuffix("+00:00"), 1
    while True:
        digits = urandom(16 * many).hex()
        for start in range(0, 32 * many, 32):
            effect_id = _effect_id(digits[start : start + 32])
            yield (
                effect_id,
                f'{{"effect_id":"{effect_id}","timestamp":"{time}Z","action_id":null}}',
            )
        many = _MANY


def new_effect_id() -> str:
    """Return a random UUID as text, in less than half the time of uuid4()."""
    return _effect_id(urandom(16).hex())


def _effect_id(x: str) -> str:
    return f"{x[:8]}-{x[8:12]}-4{x[13:16]}-8{x[17:20]}-{x[20:]}"


_MANY = 64
_PLAIN = frozenset({str, int, bool, type(None)})
_BITS = 14_000
_IDS = frozenset({UUID, type(None)})
_IN_UTC = timedelta(0)


def survives(provenance: Provenance) -> bool:
    """Return whether *provenance* surely makes the round trip by JSON.

    Then it need not be read back. It may still hold a text that cannot be stored.
    """
    # Not by attribute: an instance made without validation may lack some.
    fields, more = provenance.__dict__, provenance.__pydantic_extra__
    timestamp = fields.get("timestamp")
    return (
        type(provenance) is Provenance
        and type(fields.get("effect_id")) is str
        and fields["effect_id"] != ""
        and type(timestamp) is datetime
        and timestamp.utcoffset() == _IN_UTC
        and type(fields.get("action_id")) in _IDS
        and (not more or all(map(_is_plain, more.values())))
    )


def text_of(provenance: Provenance) -> str | None:
    """Return the JSON of *provenance*, None unless it surely makes the round trip.

    It is what Pydantic makes of the model, in a third of the time.
    """
    if not survives(provenance):
        return None
    fields, more = provenance.__dict__, provenance.__pydantic_extra__
    try:
        return to_json({**fields, **more} if more else fields).decode()
    except PydanticSerializationError:  # A text with half a surrogate pair.
        return None


def _is_plain(value: object) -> bool:
    # Python parses no integer of more than 4,300 digits.
    return type(value) in _PLAIN and not (
        type(value) is int and value.bit_length() > _BITS
    )
