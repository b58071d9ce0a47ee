"""Workflow keys: text, numbers and UUIDs, each with one canonical text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias
from uuid import UUID

from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler


Key: TypeAlias = str | int | UUID
"""What can be the key of a workflow; its class has keys of one of these types."""

MAX_KEY_LENGTH: Final = 255
_LIMIT: Final = 2**63


def key_text(workflow_key: Any) -> str:
    """Return the canonical text of a key, as the tables beside the row store it.

    A number is in decimal, a UUID in lower case with hyphens.

    >>> key_text(42), key_text("order-42")
    ('42', 'order-42')
    """
    return workflow_key if isinstance(workflow_key, str) else str(workflow_key)


def key_from_text(text: str, type_: type[Any]) -> Any:
    """Return the key of *type_* whose canonical text is *text*; ValueError if none."""
    key = type_(text)
    if key_text(key) != text:
        raise ValueError(text)
    return key


class _KeySchema:
    """Validate a key as one of its types, with one error for all of them.

    A text of JSON stays a text: only the class knows whether its keys are UUIDs.
    """

    @staticmethod
    def __get_pydantic_core_schema__(_: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        types = [
            core_schema.str_schema(
                min_length=1, max_length=MAX_KEY_LENGTH, strict=True
            ),
            core_schema.int_schema(ge=-_LIMIT, lt=_LIMIT, strict=True),
            core_schema.uuid_schema(strict=True),
        ]
        return core_schema.union_schema(
            list(types),
            mode="left_to_right",
            custom_error_type="workflow_key",
            custom_error_message=(
                f"must be a str of 1 to {MAX_KEY_LENGTH} characters without a lone "
                "surrogate, an int or a UUID"
            ),
        )


if TYPE_CHECKING:
    WorkflowKey: TypeAlias = Any
else:
    WorkflowKey = Annotated[Any, _KeySchema]
