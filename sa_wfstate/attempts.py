"""One attempt of a ReducerService: read, reduce, compare and set, all in one place.

A state is handed to the reducer freshly built from its JSON each time, so what a
reducer does to the object it was given reaches nobody else. And what was decided on a
state that then turns out to be old counts for nothing, an exception of the reducer
included: it comes out when the state that it is based on has been read or committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from uuid import uuid4

from pydantic_core import to_jsonable_python
from sqlalchemy import Connection

from .actions import Action, Intent, Reducer, Reduction, digest
from .bulk import commit_writes
from .dedup import Claim, DedupLog, Processed, refuse_reuse
from .errors import (
    ActionIdReused,
    OutcomeUnknown,
    PayloadError,
    SchemaVersionAhead,
    StateConflict,
    VersionNotKept,
    WorkflowNotFound,
)
from .hotkeys import Line, Ticket
from .provenance import Provenance
from .snapshots import StateCommitted, WorkflowSnapshot
from .statements import Statements, Write

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .connections import Connections
    from .waiting import Waiting

StateT = TypeVar("StateT")

Writer = Callable[[Connection, WorkflowSnapshot[Any], Sequence[Intent]], None]
"""Called in the transaction of each commit, with its snapshot and all its intents."""


class Base(NamedTuple):
    """The state that an attempt starts from; version 0 is a row that is to be created.

    *effect_id* is the effect that wrote it, *text* its JSON. *kept* says that it was
    not read for this attempt.
    """

    version: int = 0
    text: str = ""
    effect_id: str | None = None
    kept: bool = False


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


class Doubt(NamedTuple):
    """A write of which nobody knows whether it is committed, and what led to it."""

    write: Write
    steps: list[Step]


class Run:
    """The actions of one key that are committed together; may take several attempts."""

    def __init__(self, key: str, tickets: Sequence[ActionTicket]) -> None:
        self.key = key
        self.tickets = list(tickets)
        self.attempts = 0
        self.base = Base()
        self.steps: list[Step] = []
        self.write: Write | None = None
        self.doubt: Doubt | None = None

    @property
    def done(self) -> list[Step]:
        """The steps that led to a state."""
        return [step for step in self.steps if step.error is None]


class ClaimedBefore(Exception):
    """One of the actions was processed by somebody else meanwhile."""


class Attempts(Generic[StateT]):
    """Make attempts for the workflows of one class."""

    def __init__(
        self,
        statements: Statements[StateT],
        connections: Connections,
        waiting: Waiting,
        reducer: Reducer[StateT],
        *,
        initial: Callable[[], StateT] | None,
        log: DedupLog | None,
        writers: tuple[Writer, ...],
    ) -> None:
        self._statements = statements
        self._connections = connections
        self._waiting = waiting
        self._reducer = reducer
        self._initial = initial
        self._log = log
        self._writers = writers

    def make(
        self, run: Run, *, kept: Base | None = None, lock: bool = False
    ) -> StateConflict | None:
        """Make one attempt; None if each action of *run* is settled.

        Starts from *kept*, if that is given, or locks the row before it is read. That
        is also what settles a doubt: under the lock no commit is still under way.
        """
        run.write = None
        if lock or run.doubt is not None:
            # At a stricter level the lock would end in a serialization failure.
            with self._connections.transaction("READ COMMITTED") as connection:
                self._reduce(run, self._read(connection, run, lock=True))
                (outcome,) = self._write(connection, [run])
        else:
            self._reduce(run, kept or self._read_alone(run))
            if run.base.kept and not run.done:
                # An error is no answer before its state is known to be the newest.
                self._reduce(run, self._read_alone(run))
            with self._transaction() as connection:
                (outcome,) = self._write(connection, [run])
        return self._settle(run, outcome)

    def make_many(self, runs: list[Run]) -> list[Run]:
        """Make one attempt for *runs*, of different keys; return those that lost."""
        with self._connections.autocommit() as connection:
            keys = [run.key for run in runs]
            rows = self._statements.read_many(connection, keys)
            if self._log is not None:
                ids = [t.item.action_id for run in runs for t in run.tickets]
                found = self._log.lookup(connection, keys, ids)
        for run in runs:
            try:
                snapshot = rows.get(run.key)
                if self._log is not None:
                    self._replay_found(run, found, snapshot)
                self._reduce(run, self._base(run, snapshot))
            except (WorkflowNotFound, PayloadError, SchemaVersionAhead) as error:
                for ticket in run.tickets:
                    ticket.fail(error)
        with self._transaction() as connection:
            outcomes = self._write(connection, runs)
        return [
            run
            for run, outcome in zip(runs, outcomes, strict=True)
            if self._settle(run, outcome) is not None
        ]

    def _transaction(self) -> AbstractContextManager[Connection]:
        if self._log is None and not self._writers:
            return self._connections.commit()
        return self._connections.transaction()

    def _read_alone(self, run: Run) -> Base:
        with self._connections.autocommit() as connection:
            return self._read(connection, run)

    def _read(self, connection: Connection, run: Run, *, lock: bool = False) -> Base:
        """Read the row, and settle the actions that are in the dedup log."""
        snapshot = self._statements.read(connection, run.key, lock=lock)
        if run.doubt is not None:
            self._settle_doubt(run, run.doubt, snapshot)
        if self._log is not None:
            ids = [ticket.item.action_id for ticket in run.tickets]
            found = self._log.lookup(connection, [run.key], ids)
            self._replay_found(run, found, snapshot)
        return self._base(run, snapshot)

    def _base(self, run: Run, snapshot: WorkflowSnapshot[StateT] | None) -> Base:
        if snapshot is not None:
            text = self._dump(run.key, snapshot.state)
            return Base(snapshot.version, text, snapshot.provenance.effect_id)
        if self._initial is None:
            if run.tickets:
                raise WorkflowNotFound(self._statements.entity, run.key)
            return run.base
        return Base(0, self._dump(run.key, self._initial()))

    def _settle_doubt(
        self, run: Run, doubt: Doubt, snapshot: WorkflowSnapshot[StateT] | None
    ) -> None:
        """Find out whether *doubt* was committed; if it was, settle its actions."""
        version, effect_id = doubt.write.version, doubt.write.provenance.effect_id
        if snapshot is not None and snapshot.provenance.effect_id == effect_id:
            run.steps, run.tickets = doubt.steps, []
            outcome = StateCommitted(run.key, version, snapshot, replayed=True)
            self._settle(run, outcome)
        elif (snapshot.version if snapshot else 0) != version - 1:
            raise OutcomeUnknown(self._statements.entity, run.key, (effect_id,))

    def _dump(self, key: str, state: Any) -> str:
        where = f"{self._statements.entity} {key!r} state"
        if state is None:
            raise PayloadError(where, "", "is None; a reducer returns the next state")
        return self._statements.state_type.codec.encode(state, where=where)

    def _replay_found(
        self,
        run: Run,
        found: dict[tuple[str, Any], Processed],
        snapshot: WorkflowSnapshot[StateT] | None,
    ) -> None:
        for ticket in list(run.tickets):
            processed = found.get((run.key, ticket.item.action_id))
            if processed is None:
                continue
            run.tickets.remove(ticket)
            try:
                request_hash = ticket.item.payload_hash()
                refuse_reuse(run.key, ticket.item.action_id, processed, request_hash)
            except (ActionIdReused, PayloadError) as error:
                ticket.fail(error)
            else:
                outcome = _replayed(
                    self._statements.entity, run.key, processed.version, snapshot
                )
                ticket.settle(Handled(outcome, ()))

    def _reduce(self, run: Run, base: Base) -> None:
        """Run the reducer over the actions, each on the state the last one left."""
        run.base = base
        run.steps = []
        text = base.text
        for ticket in run.tickets:
            intents: Sequence[Intent] = ()
            error = None
            try:
                state = self._statements.state_type.load(text)
                result = self._waiting.call(self._reducer, state, ticket.item)
                if isinstance(result, Reduction):
                    result, intents = result.state, tuple(result.intents)
                text = self._dump(run.key, result)
            except Exception as raised:  # noqa: BLE001 - it goes to the caller
                error = raised
            run.steps.append(Step(ticket, text, intents, error))

    def _write(
        self, connection: Connection, runs: list[Run]
    ) -> list[StateCommitted[StateT] | StateConflict | None]:
        """Write what the actions have led to; None for those that led to nothing."""
        active = [run for run in runs if run.done]
        for run in active:
            run.write = Write(
                run.key,
                run.base.version + 1,
                run.done[-1].text,
                _provenance([step.ticket.item for step in run.done]),
                self._statements.schema.write_version,
                run.base.effect_id,
            )
        writes = [run.write for run in active if run.write is not None]
        outcomes = dict(
            zip(
                [run.key for run in active],
                commit_writes(connection, self._statements, writes),
                strict=True,
            )
        )
        won = [run for run in active if isinstance(outcomes[run.key], StateCommitted)]
        self._claim(connection, won)
        for run in won if self._writers else ():
            outcome = outcomes[run.key]
            assert isinstance(outcome, StateCommitted)  # noqa: S101
            intents = [intent for step in run.done for intent in step.intents]
            for writer in self._writers:
                writer(connection, outcome.snapshot, intents)
        return [outcomes.get(run.key) for run in runs]

    def _claim(self, connection: Connection, runs: list[Run]) -> None:
        if self._log is None or not runs:
            return
        claims = [
            Claim(
                run.key,
                step.ticket.item.action_id,
                digest(step.text),
                step.ticket.item.payload_hash(),
                run.base.version + 1,
            )
            for run in runs
            for step in run.done
        ]
        if not self._log.claim(connection, claims):
            raise ClaimedBefore

    def _settle(
        self, run: Run, outcome: StateCommitted[StateT] | StateConflict | None
    ) -> StateConflict | None:
        """Give each caller what became of its action; return a conflict instead."""
        if isinstance(outcome, StateConflict):
            return outcome
        for ticket, _, intents, error in run.steps:
            if error is not None:
                ticket.fail(error)
            elif outcome is not None:
                own = StateCommitted(
                    run.key,
                    outcome.version,
                    partial(_copy_of, outcome),
                    replayed=outcome.replayed,
                    attempts=run.attempts,
                )
                ticket.settle(Handled(own, intents))
        return None


def _copy_of(outcome: StateCommitted[StateT]) -> WorkflowSnapshot[StateT]:
    """Copy the snapshot: of several folded actions each caller gets its own."""
    return outcome.snapshot.model_copy(deep=True)


def _replayed(
    entity: str,
    key: str,
    version: int | None,
    snapshot: WorkflowSnapshot[StateT] | None,
) -> StateCommitted[StateT]:
    if version is None:  # Written by someone who did not note it.
        version = 0 if snapshot is None else snapshot.version

    def first() -> WorkflowSnapshot[StateT]:
        if snapshot is None or snapshot.version != version:
            raise VersionNotKept(entity, key, version)
        return snapshot

    return StateCommitted(key, version, first, replayed=True)


def _provenance(actions: list[Action[Any]]) -> Provenance:
    """Make the provenance of one attempt; folded, each action has its own in it."""
    effect_id, timestamp = str(uuid4()), datetime.now(UTC)
    each = [
        {
            **(to_jsonable_python(action.model_extra) or {}),
            "effect_id": effect_id,
            "timestamp": timestamp.isoformat(),
            "action_id": str(action.action_id),
        }
        for action in actions
    ]
    if len(each) == 1:
        return Provenance.model_validate(each[0])
    return Provenance.model_validate({**each[-1], "folded": each})
