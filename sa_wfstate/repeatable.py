"""Whether a payload reads the same each time, told from its Pydantic core schema.

If it does, what was read need not be dumped when it is handed out, in case that it is
changed later: its text can be read again then. A default that is made at each reading,
or a function of the application, may give another value the second time.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

_PLAIN = {
    *("any", "none", "bool", "int", "float", "decimal", "str", "bytes", "uuid"),
    *("date", "time", "datetime", "timedelta", "literal", "enum"),
    *("list", "tuple", "set", "frozenset", "dict", "nullable", "union", "tagged-union"),
    *("model", "model-fields", "model-field", "typed-dict", "typed-dict-field"),
    *("dataclass", "dataclass-args", "dataclass-field"),
    *("default", "definitions", "definition-ref"),
}
_CODE = {"default_factory", "post_init", "custom_init", "function", "now_op"}
_NOT_SCHEMAS = {"metadata", "config", "computed_fields", "default", "cls", "expected"}
_CONSTANTS = (
    *(type(None), bool, int, float, str, bytes, Enum),
    *(Decimal, UUID, date, time, datetime, timedelta),
)


def reads_alike(part: Any) -> bool:
    """Say whether each text of a schema, or a *part* of one, always reads the same."""
    if isinstance(part, (list, tuple)):
        return all(reads_alike(child) for child in part)
    if not isinstance(part, dict):
        return True
    if not isinstance(part.get("type"), str):  # Not a schema, but schemas by name.
        return all(reads_alike(child) for child in part.values())
    return (
        part["type"] in _PLAIN
        and not any(part.get(key) for key in _CODE)
        and not callable(part.get("discriminator"))
        and (part["type"] != "enum" or not _finds_missing(part["cls"]))
        and _is_constant(part.get("default"))
        and "function" not in (part.get("serialization") or {})
        and all(
            reads_alike(child)
            for key, child in part.items()
            if key not in _NOT_SCHEMAS and key != "serialization"
        )
    )


def _finds_missing(enum: Any) -> bool:
    return enum._missing_.__func__ is not Enum._missing_.__func__  # type: ignore[attr-defined]


def _is_constant(default: Any) -> bool:
    """Say whether no change of a value can reach the *default* that it came from."""
    if isinstance(default, _CONSTANTS):
        return True
    try:
        hash(default)
    except TypeError:
        return True  # Pydantic copies what has no hash.
    return isinstance(default, (tuple, frozenset)) and all(map(_is_constant, default))
