"""Requests: what a caller wants of those who process the requests of many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .._concurrency import Turn


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Request(Generic[ItemT, ResultT]):
    """What one caller wants of a key, and later its result.

    Two requests of one *identity* are not put in one batch. With *wants_queue* there is
    nothing to process: the caller wants to hold the queue.
    """

    __slots__ = (
        "_error",
        "_result",
        "abandoned",
        "batch",
        "finished",
        "identity",
        "item",
        "settled",
        "started",
        "turn",
        "wants_queue",
    )

    def __init__(
        self,
        item: ItemT,
        identity: Hashable,
        turn: Turn,
        *,
        wants_queue: bool = False,
    ) -> None:
        self.item = item
        self.identity = identity
        self.turn = turn
        self.wants_queue = wants_queue
        self.settled = False
        self.started = False  # It is being processed, or holds its queue.
        self.batch: list[Request[ItemT, ResultT]] = []  # Processed by its caller.
        self.abandoned = False  # Its caller left before it was finished.
        self.finished = False
        self._result: ResultT | None = None
        self._error: BaseException | None = None

    def settle(self, result: ResultT) -> None:
        """Set the result; the first one stands."""
        if not self.settled:
            self._result, self.settled = result, True

    def fail(self, error: BaseException) -> None:
        """Make *error* the result, to be raised in the caller."""
        if not self.settled:
            self._error, self.settled = error, True

    @property
    def succeeded(self) -> bool:
        """Whether there is a result."""
        return self.settled and self._error is None

    def result(self) -> ResultT:
        """Return the result, or raise the error."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]
