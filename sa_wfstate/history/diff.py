"""Diffs of JSON documents, as JSON Patch (RFC 6902), made by jsonpatch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..payload.canonical import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator


def diff_json(before: str, after: str) -> list[dict[str, Any]]:
    """Return the JSON Patch that leads from the JSON text *before* to *after*."""
    try:
        from jsonpatch import JsonPatch
    except ImportError as error:
        message = "a diff needs jsonpatch: pip install 'sa-wfstate[history]'"
        raise ImportError(message, name="jsonpatch") from error
    old, new = json.loads(before), json.loads(after)
    patch = JsonPatch.from_diff(old, new)
    if canonical_json(json.dumps(patch.apply(old))) != canonical_json(after):
        # For Python True is 1, so an optimised patch may move the one for the other.
        return [{"op": "replace", "path": "", "value": new}]
    operations: list[dict[str, Any]] = patch.patch
    return operations


def follow_patch(
    before: str, operations: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """Yield each of *operations* with the JSON texts of what it replaces and writes.

    A text is None where there is nothing.
    """
    from jsonpatch import JsonPatch
    from jsonpointer import resolve_pointer

    document = json.loads(before)
    for operation in operations:
        path = operation["path"]
        old = new = None
        if operation["op"] in {"replace", "remove"}:
            old = json.dumps(resolve_pointer(document, path))
        document = JsonPatch([operation]).apply(document)
        if operation["op"] in {"replace", "add", "move", "copy"}:
            new = json.dumps(operation.get("value", operation.get("from")))
        yield operation, old, new
