"""ActionBatch: the actions of one key that are committed together.

They are *folded* into one version, or *chained*: each is a version of its own, but the
row is only written once, as the last one leaves it. A transaction that wrote them one
after the other would leave the same row and claims.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import OutcomeUnknown, ReducerGaveUp, VersionNotKept
from ..payload.actions import Action
from ..store.requests import Request
from ..values.row_version import NOTHING, RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from .key_queue import KeyQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from ..errors import StateConflict
    from ..payload.actions import Intent
    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.write import Write


StateT = TypeVar("StateT")


@dataclass(frozen=True, slots=True)
class Baseline:
    """The row version that an attempt starts from, and its state as JSON *text*.

    If *cached*, it was not read for this attempt.
    """

    row: RowVersion = NOTHING
    text: str = field(default="", compare=False)
    cached: bool = field(default=False, compare=False)


class ActionResult(NamedTuple):
    """The result of a request."""

    outcome: StateCommitted[Any]
    intents: Sequence[Intent]


ActionRequest = Request[Action[Any], ActionResult]
ActionQueue = KeyQueue[Action[Any], ActionResult, Baseline]


class ReducedAction(NamedTuple):
    """An action with the state that it led to and its intents, or with its error."""

    request: ActionRequest
    text: str
    intents: Sequence[Intent]
    error: Exception | None


class Step(NamedTuple):
    """One of the versions that a chain writes."""

    effect_id: str
    outcome_of: Callable[[StateCommitted[Any]], StateCommitted[Any]]
    """Returns the outcome of this version, given that of the last one."""


class ActionBatch:
    """The actions of one key that are committed together, in one or more attempts."""

    def __init__(
        self, key: str, requests: Sequence[ActionRequest], *, chained: bool = False
    ) -> None:
        self.key = key
        self.chained = chained
        self.caller = requests[0]  # The attempts are made in its context.
        self.requests = list(requests)
        self.attempts = 0
        self.baseline = Baseline()
        self.reduced: list[ReducedAction] = []
        self.guards: dict[tuple[Statements[Any], Key], RowVersion] = {}  # Of reads.
        self.accepted: list[ReducedAction] = []  # Those that led to a state.
        self.conflict: StateConflict | None = None  # Of the last lost attempt.
        # What is left to do of an attempt that began at this time, in a round.
        self.resume: Callable[[], StateCommitted[Any] | StateConflict | None] | None
        self.resume = None
        self.began = 0.0
        self.apart = False  # Row and claims are written by a statement each.
        self.begin()

    def begin(self) -> None:
        """Forget what the last attempt has sent."""
        self.write: Write | None = None
        self.steps: Sequence[Step] = ()  # Of the accepted actions, if chained.
        self.answer: StateCommitted[Any] | None = None  # Of the write, before COMMIT.
        self.claimed: Mapping[tuple[str, UUID], datetime] = {}
        self.committing = False  # Whether COMMIT may have been sent.
        self.one_statement = False  # The times of its claims come with its answer.
        self.spoils = False  # Whether it made the transaction of its group fail.

    @property
    def settled(self) -> bool:
        """Whether each request has its result."""
        return all(request.settled for request in self.requests)

    @property
    def is_chain(self) -> bool:
        """Whether several actions led to a version each."""
        return self.chained and len(self.accepted) > 1

    @property
    def next_baseline(self) -> Baseline:
        """The baseline that this batch leaves once it is committed."""
        assert self.write is not None  # noqa: S101
        # A trigger may have counted otherwise.
        version = self.write.version if self.answer is None else self.answer.version
        row = RowVersion(version, self.write.provenance.effect_id)
        return Baseline(row, self.write.state_text, cached=True)

    def settle(self, outcome: StateCommitted[Any] | None) -> None:
        """Settle each request, with *outcome* unless its reducer raised.

        *outcome* is None if there was nothing to commit.
        """
        shared = len(self.accepted) > 1
        steps = iter(self.steps)
        for request, _, intents, error in self.reduced:
            if error is not None:
                request.fail(error)
            elif outcome is not None and self.steps:
                own = next(steps).outcome_of(outcome)
                own.attempts = self.attempts
                request.settle(ActionResult(own, intents))
            elif outcome is not None and not shared:
                outcome.attempts = self.attempts
                request.settle(ActionResult(outcome, intents))
            elif outcome is not None:
                own = StateCommitted(
                    self.key,
                    outcome.version,
                    partial(_copy_of, outcome),
                    replayed=outcome.replayed,
                    attempts=self.attempts,
                )
                request.settle(ActionResult(own, intents))

    def unknown(self, entity: str, cause: BaseException) -> OutcomeUnknown:
        """Return the error if *cause* leaves open whether this is committed."""
        effects = tuple(step.effect_id for step in self.steps)
        if self.write and not effects:
            effects = (self.write.provenance.effect_id,)
        unknown = OutcomeUnknown(entity, self.key, effects)
        unknown.__cause__ = cause
        return unknown

    def give_up(self, entity: str, cause: Exception | None, seconds: float) -> None:
        """Fail after the last attempt, which had a conflict or was lost by *cause*."""
        gave_up = ReducerGaveUp(entity, self.key, self.conflict, self.attempts, seconds)
        gave_up.__cause__ = cause or self.conflict
        self.fail(gave_up)

    def fail(self, error: BaseException) -> None:
        """Settle each request that has no result yet with *error*."""
        for request in self.requests:
            request.fail(error)


def _copy_of(outcome: StateCommitted[StateT]) -> WorkflowSnapshot[StateT]:
    """Copy the snapshot: of several folded actions each caller gets its own."""
    return outcome.snapshot.model_copy(deep=True)


def replayed(
    entity: str,
    key: str,
    version: int | None,
    snapshot: WorkflowSnapshot[StateT] | None,
) -> StateCommitted[StateT]:
    """Return the outcome of an action that was processed before, as *version*.

    *snapshot* is the row as it is now, of any version.
    """
    if version is None:  # The writer of the dedup log did not give it.
        version = 0 if snapshot is None else snapshot.version

    def first() -> WorkflowSnapshot[StateT]:
        if snapshot is None or snapshot.version != version:
            raise VersionNotKept(entity, key, version)
        return snapshot

    return StateCommitted(key, version, first, replayed=True)
