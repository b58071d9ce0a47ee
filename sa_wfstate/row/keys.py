"""What can be the key of a workflow."""

from __future__ import annotations

from ..errors import PayloadError
from ..payload.roundtrip import unstorable_text

_MAX_KEY_LENGTH = 255


def check_key(entity: str, workflow_key: object) -> None:
    """Raise PayloadError unless *workflow_key* can be the key of an *entity*."""
    problem = None
    if not isinstance(workflow_key, str):
        problem = f"must be a str, got {type(workflow_key).__name__}"
    elif not 1 <= len(workflow_key) <= _MAX_KEY_LENGTH:
        problem = f"must have 1 to 255 characters, got {len(workflow_key)}"
    elif "\0" in workflow_key:
        problem = "must not contain NUL, PostgreSQL cannot store it"
    else:
        problem = unstorable_text(workflow_key)
    if problem:
        raise PayloadError(entity, "workflow_key", problem)
