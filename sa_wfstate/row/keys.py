"""Which strings can be the key of a workflow."""

from __future__ import annotations

from ..errors import PayloadError
from ..payload.roundtrip import unstorable_text
from ..values.snapshot import MAX_KEY_LENGTH


def check_key(entity: str, workflow_key: object) -> None:
    """Raise PayloadError unless *workflow_key* can be the key of an *entity*."""
    if not isinstance(workflow_key, str):
        problem: str | None = f"must be a str, got {type(workflow_key).__name__}"
    elif not 1 <= len(workflow_key) <= MAX_KEY_LENGTH:
        found = len(workflow_key)
        problem = f"must have 1 to {MAX_KEY_LENGTH} characters, got {found}"
    else:
        problem = unstorable_text(workflow_key)
    if problem:
        raise PayloadError(entity, "workflow_key", problem)
