"""Pinned schemas: a state that has changed without its schema version fails a test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import inspect

from ..orm.mixin import WorkflowStateMixin

_DESCRIPTIONS = {"title", "description", "examples"}
_NAMED = {"properties", "$defs", "patternProperties"}


def schema_fingerprint(entity: type[WorkflowStateMixin[Any]]) -> str:
    """Return a hash of the JSON Schema of the state of *entity*.

    Titles, descriptions and examples are not part of it.
    """
    state_type: Any = inspect(entity).columns["state"].type
    adapter = TypeAdapter(state_type.type_)
    schemas = [adapter.json_schema(mode=m) for m in ("validation", "serialization")]
    text = json.dumps(_without_descriptions(schemas), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def assert_schema_pinned(
    entity: type[WorkflowStateMixin[Any]], fingerprints: Mapping[int, str]
) -> None:
    """Assert that *fingerprints* has that of *entity* at its current schema version.

    Keep those of older versions in the test, as a record of released shapes.
    """
    version = entity.__schema_version__
    actual, pinned = schema_fingerprint(entity), fingerprints.get(version)
    if actual == pinned:
        return
    who = f"the state of {entity.__name__}"
    if pinned is None:
        problem = f"{who} at schema version {version} is not pinned yet"
    else:
        problem = (
            f"{who} has changed, and its schema version is still {version}; if that is "
            "released, raise __schema_version__ and add an upcaster"
        )
    raise AssertionError(f"{problem}; pin {{{version}: {actual!r}}}")


def _without_descriptions(schema: Any, *, names: bool = False) -> Any:
    """Drop the keywords that only describe; *names*: the keys are those of fields."""
    if isinstance(schema, list):
        return [_without_descriptions(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_descriptions(value, names=not names and key in _NAMED)
        for key, value in schema.items()
        if names or key not in _DESCRIPTIONS
    }
