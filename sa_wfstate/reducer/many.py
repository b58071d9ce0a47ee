"""ManyActions: commit the actions that one caller has, in few transactions."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import PayloadError
from ..row.chunks import CHUNK
from .action_batch import ActionBatch
from .nesting import refuse_nested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..payload.actions import Action
    from .action_batch import ActionQueue, ActionRequest, ActionResult, Baseline
    from .contention import KeyQueues
    from .loop import ReducerLoop


class ManyActions:
    """Hold the queues of many keys, and make one attempt for their actions.

    *with_key* returns an action with a key of the class.
    """

    def __init__(
        self,
        entity: str,
        keys: KeyQueues[Action[Any], ActionResult, Baseline],
        loop: ReducerLoop,
        with_key: Callable[[Action[Any]], Action[Any]],
    ) -> None:
        self._entity = entity
        self._keys = keys
        self._loop = loop
        self._with_key = with_key

    def commit(self, given: list[Action[Any]]) -> Iterator[tuple[int, ActionRequest]]:
        """Commit the actions *given*; return those that are settled, with a number.

        They get keys of the class. The others are to be handled one by one.
        """
        by_key = self._by_key(given)
        if given:
            refuse_nested(self._entity, given[0].workflow_key)
        pending = list(by_key)
        while pending:
            work = partial(self._commit_queues, given, by_key)
            requests = self._keys.hold(pending[:CHUNK], work)
            held = {request.item.workflow_key for request in requests.values()}
            pending = [key for key in pending if key not in held]
            yield from ((n, each) for n, each in requests.items() if each.settled)

    def _by_key(self, given: list[Action[Any]]) -> dict[Any, dict[Any, int]]:
        by_key: dict[Any, dict[Any, int]] = {}
        for number, action in enumerate(given):
            with suppress(PayloadError):
                given[number] = keyed = self._with_key(action)
                of_key = by_key.setdefault(keyed.workflow_key, {})
                of_key.setdefault(action.action_id, number)
        return by_key

    def _commit_queues(
        self,
        given: Sequence[Action[Any]],
        by_key: Mapping[Any, Mapping[Any, int]],
        queues: Sequence[ActionQueue],
    ) -> dict[int, ActionRequest]:
        """Commit the actions of *queues*; return requests by number in *given*."""
        requests = {
            number: self._keys.request(given[number], number)
            for queue in queues
            for number in by_key[queue.key].values()
        }
        batches = [
            ActionBatch(queue.key, [requests[n] for n in by_key[queue.key].values()])
            for queue in queues
        ]
        self._loop.commit_many(queues, batches)
        return requests
