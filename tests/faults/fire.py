"""Writers that go on while servers and connections die, and note what they are told."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, Engine, NullPool, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    CanonicalStore,
    ErrorKind,
    Provenance,
    ReducerService,
    RetryPolicy,
    StateCommitted,
    StateConflict,
    classify,
    field_of,
    run_transaction,
)
from sa_wfstate.errors import OutcomeUnknown, ReducerGaveUp
from sa_wfstate.patching import Patch, increment

from .ledgers import Claims, Count, Line, LineActions, Tally, TallyActions

KEYS = [f"hot-{n}" for n in range(2)] + [f"cold-{n}" for n in range(48)]
RETRY = RetryPolicy(max_attempts=4)
LINES = Line, LineActions
DELIVERIES = 3
RESOLVE = RetryPolicy(max_attempts=None, base_delay=0.05, max_delay=0.5, deadline=40)


class Fire:
    """Runs writers until there are enough commits, and the chaos beside them."""

    def __init__(self, commits: int) -> None:
        self.claims = Claims()
        self.errors: list[BaseException] = []
        self._commits = commits
        self._stop = threading.Event()

    @property
    def acknowledged(self) -> int:
        claims = self.claims
        return len(claims.done) + len(claims.handled) + len(claims.lined)

    @property
    def burning(self) -> bool:
        return self.acknowledged < self._commits and not self._stop.is_set()

    def run(self, *targets: Callable[[], object]) -> None:
        def guarded(target: Callable[[], object]) -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001 - told below
                self.errors.append(error)
                self._stop.set()

        threads = [threading.Thread(target=guarded, args=[t]) for t in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def store(self, engine: Engine, seed: int) -> None:
        """Commit by a CanonicalStore, each with an effect of its own."""
        rng = random.Random(seed)
        store = CanonicalStore(engine, Tally, resolve=RESOLVE)
        while self.burning:
            key = rng.choice(KEYS)
            try:
                read = store.get_state(key)
            except (DBAPIError, OSError) as error:
                pause(error)
                continue
            provenance = Provenance.now()
            effect = provenance.effect_id
            try:
                outcome = store.try_commit(
                    workflow_key=key,
                    expected_version=read.version,
                    state=Count(value=read.state.value + 1),
                    provenance=provenance,
                )
            except OutcomeUnknown:
                self.claims.unknown.add(effect)
            except (DBAPIError, OSError) as error:
                self.claims.not_done.add(effect)
                pause(error)
            else:
                self.tell(effect, key, outcome)

    def patches(self, engine: Engine, seed: int) -> None:
        """Count on by patches of a CanonicalStore, one or three at once."""
        rng = random.Random(seed)
        store = CanonicalStore(engine, Tally, resolve=RESOLVE)
        value = field_of(Tally.state, lambda state: state.value)
        edits = [increment(value, 1)]
        while self.burning:
            patches = [
                Patch(key, edits, provenance=Provenance.now())
                for key in rng.sample(KEYS, rng.choice([1, 3]))
            ]
            effects = {each.provenance.effect_id for each in patches}
            (first, *more) = patches
            try:
                outcomes = (
                    store.try_patch_many(patches)
                    if more
                    else [
                        store.try_patch(
                            workflow_key=first.workflow_key,
                            edits=edits,
                            provenance=first.provenance,
                        )
                    ]
                )
            except OutcomeUnknown:
                self.claims.unknown |= effects
            except (DBAPIError, OSError) as error:
                self.claims.not_done |= effects
                pause(error)
            else:
                for each, outcome in zip(patches, outcomes, strict=True):
                    effect = each.provenance.effect_id
                    self.tell(effect, str(each.workflow_key), outcome)

    def tell(self, effect: str, key: str, outcome: Any) -> None:
        if isinstance(outcome, StateCommitted):
            self.claims.done[effect] = key, outcome.version
            self.claims.replayed += outcome.replayed
        else:
            assert isinstance(outcome, StateConflict)
            self.claims.not_done.add(effect)

    def transactions(self, engine: Engine, seed: int) -> None:
        """Commit two rows by the unit of work, in run_transaction."""
        rng = random.Random(seed)
        sessions = sessionmaker(engine)
        while self.burning:
            attempts: list[dict[str, str]] = []

            def fn(session: Session, attempts: Any = attempts) -> dict[str, Any]:
                attempts.append({})
                return count(session, rng.sample(KEYS, 2), attempts[-1])

            try:
                done = run_transaction(sessions, fn, retry=RETRY, resolve=RESOLVE)
            except Exception as error:  # noqa: BLE001 - judged there
                self.failed(error, attempts)
            else:
                self.succeeded(done, attempts)

    def async_transactions(self, url: URL, seed: int) -> None:
        asyncio.run(self._async_transactions(url, seed))

    async def _async_transactions(self, url: URL, seed: int) -> None:
        rng = random.Random(seed)
        engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
        sessions = async_sessionmaker(engine)

        async def writer() -> None:
            while self.burning:
                attempts: list[dict[str, str]] = []

                async def fn(session: Any, attempts: Any = attempts) -> dict[str, Any]:
                    attempts.append({})
                    keys = rng.sample(KEYS, 2)
                    return await session.run_sync(count, keys, attempts[-1])

                try:
                    done = await sa_wfstate.asyncio.run_transaction(
                        sessions, fn, retry=RETRY, resolve=RESOLVE
                    )
                except Exception as error:  # noqa: BLE001 - judged there
                    self.failed(error, attempts)
                else:
                    self.succeeded(done, attempts)

        await asyncio.gather(*(writer() for _ in range(4)))
        await engine.dispose()

    def service(
        self, engine: Engine, seed: int, classes: Any = (Tally, TallyActions)
    ) -> None:
        """Handle actions in eight threads, whose commits are groups."""
        entity, log = classes
        service = ReducerService(
            engine, entity, add, initial=Count, dedup=log, retry=RETRY
        )

        def caller(number: int) -> None:
            rng = random.Random(seed + number)
            while self.burning:
                action = next_action(rng, entity)
                for _ in range(DELIVERIES):
                    try:
                        outcome = service.handle(action)
                    except Exception as error:  # noqa: BLE001 - judged there
                        self.undelivered(action, error)
                    else:
                        self.delivered(action, outcome, entity)
                        break

        with ThreadPoolExecutor(8) as threads:
            for each in [threads.submit(caller, 100 * n) for n in range(8)]:
                each.result()

    def async_service(
        self, url: URL, seed: int, classes: Any = (Tally, TallyActions)
    ) -> None:
        asyncio.run(self._async_service(url, seed, *classes))

    async def _async_service(self, url: URL, seed: int, entity: Any, log: Any) -> None:
        """Handle actions in thirty tasks, whose commits are groups."""
        engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
        service = sa_wfstate.asyncio.ReducerService(
            engine, entity, add, initial=Count, dedup=log, retry=RETRY
        )

        async def caller(number: int) -> None:
            rng = random.Random(seed + number)
            while self.burning:
                action = next_action(rng, entity)
                for _ in range(DELIVERIES):
                    try:
                        outcome = await service.handle(action)
                    except Exception as error:  # noqa: BLE001 - judged there
                        self.undelivered(action, error)
                    else:
                        self.delivered(action, outcome, entity)
                        break

        await asyncio.gather(*(caller(100 * n) for n in range(30)))
        await engine.dispose()

    def delivered(self, action: Action[int], outcome: Any, entity: Any) -> None:
        key = str(action.action_id)
        self.claims.unhandled.discard(key)
        told = self.claims.handled if entity is Tally else self.claims.lined
        told[key] = action.workflow_key, outcome.version
        self.claims.replayed += outcome.replayed

    def undelivered(self, action: Action[int], error: Exception) -> None:
        """Note that it may be there or not; it is delivered again, as by a queue."""
        lost = isinstance(error, OutcomeUnknown | ReducerGaveUp | PoolTimeout)
        if not lost and classify(error) is ErrorKind.FATAL:
            raise error
        self.claims.unhandled.add(str(action.action_id))

    def succeeded(self, done: dict[str, Any], attempts: list[dict[str, str]]) -> None:
        self.claims.done.update(done)
        self.claims.not_done |= {e for a in attempts for e in a} - done.keys()

    def failed(self, error: Exception, attempts: list[dict[str, str]]) -> None:
        effects = {effect for attempt in attempts for effect in attempt}
        if isinstance(error, OutcomeUnknown):
            self.claims.unknown |= set(error.effect_ids)
        elif classify(error) is ErrorKind.FATAL:
            raise error
        self.claims.not_done |= effects - self.claims.unknown
        pause(error)

    def terminate_backends(self, url: URL, every: float) -> None:
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        victim = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " ORDER BY state LIKE 'idle in%' DESC, random() LIMIT 1"
        )
        while self.burning:
            time.sleep(random.uniform(0, 2) * every)
            with suppress(DBAPIError), engine.connect() as connection:
                connection.execute(victim)


def add(state: Count, _: Action[int]) -> Count:
    """Count on."""
    return Count(value=state.value + 1)


def next_action(rng: random.Random, entity: Any) -> Action[int]:
    """Make an action of one of the keys; lines have few, which many wait for."""
    keys = KEYS if entity is Tally else KEYS[:5]
    return Action(workflow_key=rng.choice(keys), action_id=uuid4(), payload=1)


def pause(error: BaseException) -> None:
    """Give a server that is away some time."""
    if not isinstance(error, (StateConflict, OutcomeUnknown)):
        time.sleep(0.02)


def count(session: Session, keys: list[str], effects: dict[str, str]) -> dict[str, Any]:
    """Count each of *keys* on, and return where each effect will be found."""
    done = {}
    for row in session.scalars(select(Tally).where(Tally.workflow_key.in_(keys))):
        provenance = Provenance.now()
        effects[provenance.effect_id] = row.workflow_key
        row.state.value += 1
        row.provenance = provenance
        done[provenance.effect_id] = row.workflow_key, row.version + 1
    return done


def create_counters(engine: Engine, claims: Claims) -> None:
    """Create each key, and claim it."""
    with Session(engine) as session, session.begin():
        for key in KEYS:
            provenance = Provenance.now()
            row = Tally(workflow_key=key, state=Count(), provenance=provenance)
            session.add(row)
            claims.done[provenance.effect_id] = key, 1
