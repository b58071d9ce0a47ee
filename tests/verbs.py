"""What an engine sends, word for word the first that counts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Engine

_VERB = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE)\b")


def verbs_of(engine: Engine) -> list[str]:
    """Return a list to which each statement of *engine* adds what it does.

    An UPDATE whose answer is selected is an UPDATE.
    """
    verbs: list[str] = []

    def note(*args: object) -> None:
        found = _VERB.search(str(args[2]))
        verbs.append(found[0] if found else str(args[2]))

    event.listen(engine, "before_cursor_execute", note)
    return verbs
