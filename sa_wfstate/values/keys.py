"""Workflow keys: text, numbers, UUIDs, and keys within a tenant.

Each has one canonical text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler


class TenantKey(NamedTuple):
    """The key of a workflow that is unique only within its *tenant*.

    A class has such keys if its table has a unique constraint, or a primary key, over
    the workflow key and one other column: the *tenant*, by which a database may be
    distributed. Its text is the tenant, a slash and the workflow key; ``~`` and ``/``
    in the tenant are written ``~0`` and ``~1``, so each key has one text.

    >>> key = TenantKey(7, "order-42")
    >>> str(key)
    '7/order-42'
    >>> str(TenantKey("a/b", "order-42"))
    'a~1b/order-42'
    """

    tenant: str | int | UUID
    workflow_key: str | int | UUID

    def __str__(self) -> str:
        tenant = key_text(self.tenant)
        if isinstance(self.tenant, str):
            tenant = tenant.replace("~", "~0").replace("/", "~1")
        return f"{tenant}/{key_text(self.workflow_key)}"

    def __repr__(self) -> str:
        return f"TenantKey({self.tenant!r}, {self.workflow_key!r})"


Key: TypeAlias = str | int | UUID | TenantKey
"""What can be the key of a workflow; its class has keys of one of these types."""

MAX_KEY_LENGTH: Final = 255
_LIMIT: Final = 2**63


def key_text(workflow_key: Any) -> str:
    """Return the canonical text of a key, as the tables beside the row store it.

    A number is in decimal, a UUID in lower case with hyphens; see TenantKey.

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


def parts_of(workflow_key: Any) -> tuple[Any, ...]:
    """Return the values of the columns of a key: the tenant, if it has one, and it."""
    return workflow_key if isinstance(workflow_key, TenantKey) else (workflow_key,)


def key_of_parts(*parts: Any) -> Any:
    """Return the key of which *parts* are the values of its columns."""
    return parts[0] if len(parts) == 1 else TenantKey(*parts)


def split_text(text: str) -> tuple[str, str]:
    """Return tenant and workflow key, as texts, of which *text* is that of the key."""
    tenant, slash, workflow_key = text.partition("/")
    if not slash:
        raise ValueError(text)
    return tenant.replace("~1", "/").replace("~0", "~"), workflow_key


class _KeySchema:
    """Validate a key as one of its types, with one error for all of them.

    A text of JSON stays a text: only the class knows whether its keys are UUIDs.
    """

    @staticmethod
    def __get_pydantic_core_schema__(_: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        types: list[CoreSchema] = [
            core_schema.str_schema(
                min_length=1, max_length=MAX_KEY_LENGTH, strict=True
            ),
            core_schema.int_schema(ge=-_LIMIT, lt=_LIMIT, strict=True),
            core_schema.uuid_schema(strict=True),
        ]
        part = core_schema.union_schema(list(types), mode="left_to_right")
        tenant_key = core_schema.chain_schema(
            [
                core_schema.is_instance_schema(TenantKey),
                core_schema.tuple_schema([part, part]),
                core_schema.no_info_plain_validator_function(TenantKey._make),
            ]
        )
        text = core_schema.str_schema()
        types.append(
            core_schema.json_or_python_schema(
                json_schema=text,
                python_schema=tenant_key,
                serialization=core_schema.plain_serializer_function_ser_schema(
                    str, return_schema=text, when_used="json"
                ),
            )
        )
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
