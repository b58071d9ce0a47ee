"""One attempt: read, reduce, compare and set.

The database is read, and written, for this batch alone or together with those of other
keys (:mod:`sa_wfstate.store.groups`); the reducer runs in between, in the thread or
task of the batch.

A decision on a stale state is discarded, an exception of the reducer too: it is raised
only if its state was read for this attempt or has been committed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

from .._concurrency import raised_by_signal_handler
from ..errors import (
    PayloadError,
    SchemaVersionAhead,
    StateConflict,
    WorkflowNotFound,
)
from ..store.connections import READ_COMMITTED, limit_idle_time
from ..store.groups import Groups
from ..values.snapshot import StateCommitted
from .commits import Commits
from .nesting import attempt_on
from .readings import Readings
from .reductions import Awaits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._concurrency import Waiting
    from ..row.claims import DedupLog
    from ..row.statements import Statements
    from ..store.connections import Connections
    from .action_batch import ActionBatch, Baseline
    from .claimed_commits import Outcome
    from .commits import Writer
    from .dependencies import Dependencies
    from .readings import Reading
    from .reductions import Reductions


StateT = TypeVar("StateT")


class Attempts(Generic[StateT]):
    """Make attempts for the workflows of one class.

    *lock_limit* is the number of seconds for which the reducer or a writer may hold the
    lock of a row. *group* is the largest number of keys that are read, or committed,
    together, if the connections are shared; *departing* is called with each such group
    of commits.
    """

    def __init__(
        self,
        statements: Statements[StateT],
        connections: Connections,
        reductions: Reductions[StateT],
        waiting: Waiting,
        *,
        dependencies: Dependencies,
        log: DedupLog | None,
        writers: tuple[Writer, ...],
        lock_limit: float,
        group: int,
        departing: Callable[[int, int, float], None],
    ) -> None:
        self._entity = statements.entity
        self._connections = connections
        self._reductions = reductions
        self._lock_limit = lock_limit
        self._has_locked = False  # And may do so for several batches.
        group = group if connections.shared() else 1
        self.most = group
        self._may_crowd = group > 1 and log is not None and not writers
        self._readings = Readings(statements, connections, reductions, log)
        self._commits = Commits(
            statements,
            connections,
            reductions,
            dependencies=dependencies,
            log=log,
            writers=writers,
            lock_limit=lock_limit,
        )
        self.was_committed = self._commits.was_committed
        self._read: Groups[ActionBatch, Reading] = Groups(
            waiting, self._readings.read_group, most=group
        )
        self._commit: Groups[ActionBatch, Outcome] = Groups(
            waiting,
            self._commits.commit_group,
            most=group,
            weigh=_characters_of,
            departing=departing,
        )

    @property
    def waits(self) -> bool:
        """Whether the reducer is awaited, or waits for what it depends on."""
        return self._reductions.waits

    @property
    def chains(self) -> bool:
        """Whether a batch may be a chain."""
        return self.most > 1 and not self.waits and self._commits.chains

    @property
    def crowds(self) -> bool:
        """Whether :meth:`make_locked` takes several batches."""
        return self._may_crowd and self._has_locked and not self.waits

    def make(
        self, batch: ActionBatch, *, cached: Baseline | None = None, lock: bool = False
    ) -> StateConflict | None:
        """Make one attempt; return its conflict, None if *batch* is settled.

        Starts from *cached*, if given; with *lock*, locks the row before reading it.
        """
        resume, batch.resume = batch.resume, None
        if resume is not None:
            outcome: Outcome = resume()
        elif lock:
            (outcome,) = self.make_locked([batch])
        else:
            batch.begin()
            if cached is None or self._connections.filters():
                # Its row may be hidden from the next session.
                cached = self._readings.baseline(batch, self._read.submit(batch))
            self._reductions.reduce(batch, cached)
            outcome = self._complete(batch)
        if not isinstance(outcome, StateConflict):
            batch.settle(outcome)
            return None
        return outcome

    def begin_together(
        self, batches: Sequence[ActionBatch], cached: Sequence[Baseline | None]
    ) -> list[bool]:
        """Begin the first attempts of *batches*, of different keys, in one task.

        Returns which of them are settled, or settled by :meth:`make` without waiting.
        *cached* are their baselines, None where the row is to be read.
        """
        at_once = [False] * len(batches)
        accepted = []
        readings = self._read_unread(batches, cached)
        for number, (batch, reading) in enumerate(zip(batches, readings, strict=True)):
            if cached[number] is None and reading is None:
                continue
            batch.began = monotonic()
            try:
                turn = batch.requests[0].turn
                turn.run(self._reduce, batch, cached[number], reading)
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                batch.resume = None if isinstance(error, Awaits) else _raising(error)
            else:
                batch.resume = partial(self._complete, batch)
                at_once[number] = not (batch.accepted or batch.baseline.cached)
                accepted += [number] * bool(batch.accepted)
        members = self._commit.submit_all([batches[number] for number in accepted])
        for number, member in zip(accepted, members, strict=True):
            batch, outcome = batches[number], member.succeeded and member.result()
            batch.resume = partial(self._commit.complete, member)
            if isinstance(outcome, StateCommitted):
                batch.attempts += 1
                batch.settle(outcome)
                batch.resume = None  # It has the batch: a cycle, for the GC to find.
                at_once[number] = True
        return at_once

    def _read_unread(
        self, batches: Sequence[ActionBatch], cached: Sequence[Baseline | None]
    ) -> list[Reading | None]:
        readings: list[Reading | None] = [None] * len(batches)
        unread = [n for n, baseline in enumerate(cached) if baseline is None]
        if unread:
            try:
                read = self._readings.read_all([batches[n] for n in unread])
            except Exception as error:
                # Each of them reads by itself, and has its own error.
                if raised_by_signal_handler(error):
                    raise
            else:
                for number, reading in zip(unread, read, strict=True):
                    readings[number] = reading
        return readings

    def _reduce(
        self, batch: ActionBatch, baseline: Baseline | None, reading: Reading | None
    ) -> None:
        def reduce() -> None:
            start = baseline
            if reading is not None:
                start = self._readings.baseline(batch, reading)
            assert start is not None  # noqa: S101
            self._reductions.reduce(batch, start, awaits=False)

        attempt_on(self._entity, batch.key, reduce)

    def _complete(self, batch: ActionBatch) -> Outcome:
        if batch.baseline.cached and not batch.accepted:
            # An error counts only if its state is known to be current.
            reading = self._read.submit(batch)
            baseline = self._readings.baseline(batch, reading)
            self._reductions.reduce(batch, baseline)
        if not batch.accepted:
            return None
        # What it guards would have to be locked in one order for all members.
        return self._commit.submit(batch, alone=bool(batch.guards))

    def make_many(self, batches: list[ActionBatch]) -> list[StateConflict | None]:
        """Make one attempt for *batches* of different keys; return their conflicts.

        A batch that cannot be reduced is settled with its error.
        """
        conflicts: list[StateConflict | None] = [None] * len(batches)
        for shard in self._connections.by_shard([batch.key for batch in batches]):
            outcomes = self._commit_many([batches[index] for index in shard])
            for index, outcome in zip(shard, outcomes, strict=True):
                if isinstance(outcome, StateConflict):
                    conflicts[index] = outcome
                else:
                    batches[index].settle(outcome)
        return conflicts

    def _commit_many(self, batches: list[ActionBatch]) -> list[Outcome]:
        readings = self._readings.read_all(batches)
        for batch, reading in zip(batches, readings, strict=True):
            batch.begin()
            try:
                baseline = self._readings.baseline(batch, reading)
                self._reductions.reduce(batch, baseline)
            except (WorkflowNotFound, PayloadError, SchemaVersionAhead) as error:
                batch.fail(error)
        return self._commits.commit(batches)

    def make_locked(self, batches: Sequence[ActionBatch]) -> list[Outcome]:
        """Make an attempt for *batches* of one key, one after the other, under a lock.

        Returns their outcomes, up to the first conflict. Each is a version of its own,
        and all are one transaction: what waits for the key waits for one COMMIT.
        """
        plain = self._connections.plain()
        outcomes: list[Outcome] = []
        # At a stricter level the lock would end in a serialization failure.
        with self._connections.transaction(
            READ_COMMITTED, [batches[0].key]
        ) as connection:
            if plain:
                reading = self._readings.read_locked(
                    connection, batches, self._lock_limit
                )
            else:
                limit_idle_time(connection, self._lock_limit)
                (reading,) = self._readings.read(connection, batches, lock=True)
            baseline: Baseline | None = None
            for batch in batches:
                batch.begin()
                baseline = self._reduce_locked(batch, baseline, reading)
                outcomes.append(self._commits.write_locked(connection, batch))
                if isinstance(outcomes[-1], StateConflict):
                    break
                if batch.accepted:
                    baseline = replace(batch.next_baseline, cached=False)
            for batch in batches[: len(outcomes)]:
                batch.committing = True
        self._has_locked = plain
        return outcomes

    def _reduce_locked(
        self, batch: ActionBatch, baseline: Baseline | None, reading: Reading
    ) -> Baseline:
        """Reduce *batch* on *baseline*, that of the batch before it if there is one."""
        if baseline is None:
            baseline = self._readings.baseline(batch, reading)
            self._reductions.reduce(batch, baseline)
            return baseline
        self._readings.replay(batch, reading)
        if batch.requests:
            batch.requests[0].turn.run(self._reduce, batch, baseline, None)
        return baseline


def _raising(error: Exception) -> Callable[[], Outcome]:
    def resume() -> Outcome:
        raise error

    return resume


def _characters_of(batch: ActionBatch) -> int:
    return len(batch.accepted[-1].text)
