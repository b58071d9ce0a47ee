"""Refuse actions that are handled from within an attempt: they would deadlock.

The reducer, the writers and all other code that an attempt calls hold the queue of its
key. An action of the same key would wait there for its own caller; one of another key
may wait for a request that waits for this one. Also, a conflict would repeat it. So
handle() is refused, for every key and every service, in the thread or task of the
attempt and in the tasks that it starts, until the attempt is over.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from ..errors import NestedHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..values.keys import Key


ResultT = TypeVar("ResultT")


class _Attempt:
    """An attempt in progress; tasks that it starts may outlive it."""

    __slots__ = ("entity", "key", "over")

    def __init__(self, entity: str, key: Key) -> None:
        self.entity = entity
        self.key = key
        self.over = False


_current: ContextVar[_Attempt | None] = ContextVar("wfstate_attempt", default=None)


def attempt_on(entity: str, workflow_key: Key, make: Callable[[], ResultT]) -> ResultT:
    """Call *make*; refuse nested actions until it returns."""
    attempt = _Attempt(entity, workflow_key)
    # Twice, as a signal handler may raise in the inner clause. An attempt that is over
    # may stay in the context.
    try:
        try:
            _current.set(attempt)
            return make()
        finally:
            attempt.over = True
    finally:
        attempt.over = True


def refuse_nested(entity: str, workflow_key: Key) -> None:
    """Raise NestedHandle if the caller is part of an attempt."""
    attempt = _current.get()
    if attempt is not None and not attempt.over:
        where = f"{attempt.entity} {attempt.key!r}"
        raise NestedHandle(entity, workflow_key, where)
