"""The actions of one key on their way to a commit: a Run, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import VersionNotKept
from ..payload.actions import Action
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from .key_queue import Line, Ticket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from ..errors import StateConflict
    from ..payload.actions import Intent
    from ..values.write import Write


StateT = TypeVar("StateT")


@dataclass(frozen=True, slots=True)
class Base:
    """The state that an attempt starts from; version 0 is a row that is to be created.

    *effect_id* is the effect that wrote it, *text* its JSON. *kept* says that it was
    not read for this attempt.
    """

    version: int = 0
    effect_id: str | None = None
    text: str = field(default="", compare=False)
    kept: bool = field(default=False, compare=False)


class Handled(NamedTuple):
    """What a ticket is settled with."""

    outcome: StateCommitted[Any]
    intents: Sequence[Intent]


ActionTicket = Ticket[Action[Any], Handled]
ActionLine = Line[Action[Any], Handled, Base]


class Step(NamedTuple):
    """What became of one action: the state after it and its intents, or an error."""

    ticket: ActionTicket
    text: str
    intents: Sequence[Intent]
    error: Exception | None


class Run:
    """The actions of one key that are committed together; may take several attempts."""

    def __init__(self, key: str, tickets: Sequence[ActionTicket]) -> None:
        self.key = key
        self.tickets = list(tickets)
        self.attempts = 0
        self.base = Base()
        self.steps: list[Step] = []
        self.conflict: StateConflict | None = None  # The last one that was lost.
        self.begin()

    def begin(self) -> None:
        """Forget what an earlier attempt has sent."""
        self.write: Write | None = None
        self.answer: StateCommitted[Any] | None = None  # To the write, before COMMIT.
        self.claimed: Mapping[tuple[str, UUID], datetime] = {}
        self.committing = False  # Whether its COMMIT may be sent by now.

    @property
    def settled(self) -> bool:
        """Whether each caller has its result."""
        return all(ticket.settled for ticket in self.tickets)

    @property
    def done(self) -> list[Step]:
        """The steps that led to a state."""
        return [step for step in self.steps if step.error is None]

    @property
    def written(self) -> Base:
        """What the next run may start from, once this one is committed."""
        assert self.write is not None  # noqa: S101
        effect_id = self.write.provenance.effect_id
        return Base(self.write.version, effect_id, self.write.state_text, kept=True)

    def settle(self, outcome: StateCommitted[Any] | None) -> None:
        """Give each caller what became of its action; None: nothing was to commit."""
        for ticket, _, intents, error in self.steps:
            if error is not None:
                ticket.fail(error)
            elif outcome is not None:
                own = StateCommitted(
                    self.key,
                    outcome.version,
                    partial(_copy_of, outcome),
                    replayed=outcome.replayed,
                    attempts=self.attempts,
                )
                ticket.settle(Handled(own, intents))

    def fail(self, error: BaseException) -> None:
        """Raise *error* in each caller that has no result yet."""
        for ticket in self.tickets:
            ticket.fail(error)


def _copy_of(outcome: StateCommitted[StateT]) -> WorkflowSnapshot[StateT]:
    """Copy the snapshot: of several folded actions each caller gets its own."""
    return outcome.snapshot.model_copy(deep=True)


def replayed(
    entity: str,
    key: str,
    version: int | None,
    snapshot: WorkflowSnapshot[StateT] | None,
) -> StateCommitted[StateT]:
    """Make the outcome of an action that was processed before, as *version*.

    *snapshot* is the row as it is now, of whatever version.
    """
    if version is None:  # Written by someone who did not note it.
        version = 0 if snapshot is None else snapshot.version

    def first() -> WorkflowSnapshot[StateT]:
        if snapshot is None or snapshot.version != version:
            raise VersionNotKept(entity, key, version)
        return snapshot

    return StateCommitted(key, version, first, replayed=True)
