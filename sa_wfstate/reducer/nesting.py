"""What runs within an attempt must not hand in actions: it would wait for itself.

The reducer, the writers and whatever else is called between the first look at a row and
its commit hold the line of a key. From there an action of the same key would wait for a
place that only its own return makes free; one of another key may wait for somebody who
waits for this one. And all of it would happen again after a conflict. So it is refused,
for every key and every service, in the thread or task of the attempt and in the tasks
that it starts, until the attempt is over.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from ..errors import NestedHandle

if TYPE_CHECKING:
    from collections.abc import Callable


ResultT = TypeVar("ResultT")


class _Attempt:
    """The attempt that is under way; tasks that it starts may see it end."""

    __slots__ = ("over", "where")

    def __init__(self, where: str) -> None:
        self.where = where
        self.over = False


_current: ContextVar[_Attempt | None] = ContextVar("wfstate_attempt", default=None)


def attempt_on(entity: str, workflow_key: str, make: Callable[[], ResultT]) -> ResultT:
    """Call *make*, and refuse meanwhile what is handed in from within it."""
    attempt = _Attempt(f"{entity} {workflow_key!r}")
    # Twice, as a signal handler may raise in the inner clause. What is over need not be
    # taken out of the context.
    try:
        try:
            _current.set(attempt)
            return make()
        finally:
            attempt.over = True
    finally:
        attempt.over = True


def refuse_nested(entity: str, workflow_key: str) -> None:
    """Raise NestedHandle if the caller is part of an attempt."""
    attempt = _current.get()
    if attempt is not None and not attempt.over:
        raise NestedHandle(entity, workflow_key, attempt.where)
