"""Grouped commits: what arrives at a store while others commit is committed together.

A group is one transaction. It waits for locks for
:data:`~sa_wfstate.store.groups.LOCK_WAIT` seconds only; if it fails, it is rolled back,
and each member commits alone. If the answer to its COMMIT is lost, each member finds
its own outcome out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from .._concurrency import raised_by_signal_handler
from ..errors import StateConflict
from ..retry import leaves_unknown
from ..values.snapshot import StateCommitted
from ..values.write import Batch
from .bulk import commit_batch
from .connections import READ_COMMITTED, limit_lock_waits
from .groups import LOCK_WAIT, Groups

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._concurrency import Waiting
    from ..row.statements import Statements
    from ..values.write import Write
    from .connections import Connections
    from .groups import Member


StateT = TypeVar("StateT")
Outcome = StateCommitted[Any] | StateConflict[Any]

MOST: Final = 100
"""How many workflows are committed together at most."""


@dataclass(slots=True, eq=False)
class Sending:
    """A write, and the error of a group that may have committed it."""

    write: Write
    lost: BaseException | None = None


class GroupedCommits(Generic[StateT]):
    """Commit writes of one class, in groups if the connections are shared.

    *alone* commits one write by itself, *again* one whose answer was lost.
    """

    def __init__(
        self,
        statements: Statements[StateT],
        connections: Connections,
        waiting: Waiting,
        *,
        alone: Callable[[Write], Outcome],
        again: Callable[[Write, BaseException], Outcome],
    ) -> None:
        self._statements = statements
        self._connections = connections
        self._alone = alone
        self._again = again
        self._groups: Groups[Sending, Outcome] = Groups(
            waiting,
            self._process,
            most=MOST if connections.shared() else 1,
            weigh=_characters_of,
        )

    def send(self, write: Write) -> Outcome:
        """Commit *write*, and return its outcome."""
        return self._groups.submit(Sending(write))

    def _process(self, members: list[Member[Sending, Outcome]]) -> None:
        if len(members) == 1:
            (member,) = members
            write, lost = member.item.write, member.item.lost
            outcome = self._alone(write) if lost is None else self._again(write, lost)
            member.settle(outcome)
            return
        first: dict[Any, Member[Sending, Outcome]] = {}
        for member in members:  # Another write of the same key commits after it.
            first.setdefault(member.item.write.workflow_key, member)
        together = list(first.values())
        for member, outcome in zip(together, self._commit(together), strict=True):
            member.settle(outcome)

    def _commit(self, members: Sequence[Member[Sending, Outcome]]) -> list[Outcome]:
        batch = Batch.of([member.item.write for member in members])
        keys, outcomes = list(batch.workflow_keys), list[Outcome]()
        try:
            with self._connections.transaction(READ_COMMITTED, keys) as connection:
                limit_lock_waits(connection, LOCK_WAIT)
                outcomes += commit_batch(connection, self._statements, batch)
        except BaseException as error:
            stopped = not isinstance(error, Exception) or raised_by_signal_handler(
                error
            )
            if stopped or leaves_unknown(error):
                # After the statements: COMMIT may have been sent.
                for member, outcome in zip(members, outcomes, strict=False):
                    if isinstance(outcome, StateConflict):
                        member.settle(outcome)  # It has written nothing.
                    else:
                        member.item.lost = error
            raise
        return outcomes


def _characters_of(sending: Sending) -> int:
    return len(sending.write.state_text)
