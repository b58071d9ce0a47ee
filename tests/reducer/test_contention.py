"""Callers that want the same key take turns: threads and tasks, folded or not."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import ref

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    CanonicalStore,
    Intent,
    Provenance,
    ReducerService,
    Reduction,
)
from sa_wfstate._concurrency import Blocking
from sa_wfstate.errors import OutcomeUnknown
from sa_wfstate.hooks import Hooks
from sa_wfstate.reducer.contention import KeyQueues
from sa_wfstate.reducer.key_queue import MOST_LOCKED, STICKY, KeyQueue
from sa_wfstate.store.requests import Request

from ..orders import Base, Order, OrderActions, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine


class Refused(Exception):
    """What the reducer raises for a negative number."""


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


def note(state: OrderState, action: Action[int]) -> OrderState:
    """Append the payload in place; refuse a negative one after the change."""
    state.notes.append(action.payload)
    if action.payload < 0:
        raise Refused(action.payload)
    return state


def action(number: int, key: str = "o-1") -> Action[int]:
    """Make an action of the one order."""
    return Action(workflow_key=key, action_id=uuid4(), payload=number)


class Heard(Hooks):
    """Count what a service is told of conflicts and pauses."""

    def __init__(self) -> None:
        self.conflicts = self.pauses = 0

    def conflicted(self, *_: object) -> None:
        self.conflicts += 1

    def retried(self, *_: object) -> None:
        self.pauses += 1


class Gate:
    """Hold the first commit until enough requests wait."""

    def __init__(self, behind: int) -> None:
        self.behind = behind
        self.service: Any = None
        self.open = False

    def __call__(self, state: OrderState, action: Action[int]) -> OrderState:
        if not self.open:
            self.open = True
            queue = self.service._keys._busy["o-1"]
            while queue.waiting < self.behind:
                time.sleep(0.001)
        return note(state, action)


def gated(engine: Engine, behind: int, **options: Any) -> ReducerService[OrderState]:
    """Make a service whose first commit waits until *behind* others wait."""
    gate = Gate(behind)
    gate.service = ReducerService(engine, Order, gate, initial=OrderState, **options)
    return gate.service  # type: ignore[no-any-return]


def stored(engine: Engine) -> tuple[int, list[int]]:
    """Return the version of the order, and its notes in order."""
    snapshot = CanonicalStore(engine, Order).get_state("o-1")
    return snapshot.version, sorted(snapshot.state.notes)


@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_threads_of_one_process_do_not_conflict(engine: Engine, dedup: Any) -> None:
    """Twenty threads, two hundred actions, one attempt each."""
    service = ReducerService(engine, Order, note, initial=OrderState, dedup=dedup)
    with ThreadPoolExecutor(20) as threads:
        outcomes = list(threads.map(service.handle, map(action, range(200))))
    assert {outcome.attempts for outcome in outcomes} == {1}
    assert sorted(outcome.version for outcome in outcomes) == list(range(1, 201))
    assert stored(engine) == (200, list(range(200)))


def test_callers_have_their_turn_in_order(engine: Engine) -> None:
    """A queue is first in, first out."""
    service = gated(engine, 9)
    threads = []
    for number in range(10):
        threads.append(threading.Thread(target=service.handle, args=[action(number)]))
        threads[-1].start()
        while number and service._keys._busy["o-1"].waiting < number:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert CanonicalStore(engine, Order).get_state("o-1").state.notes == [*range(10)]


@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_actions_behind_a_commit_are_folded(engine: Engine, dedup: Any) -> None:
    """Nine that wait are one commit; each has its outcome, claim and provenance."""
    service = gated(engine, 9, fold=64, dedup=dedup)
    actions = [action(number) for number in range(10)]
    with ThreadPoolExecutor(10) as threads:
        outcomes = list(threads.map(service.handle, actions))
    assert sorted(outcome.version for outcome in outcomes) == [1] + [2] * 9
    last = CanonicalStore(engine, Order).get_state("o-1")
    assert (last.version, sorted(last.state.notes)) == (2, list(range(10)))
    extra = last.provenance.model_extra
    assert extra is not None
    folded = {each["action_id"] for each in extra["folded"]}
    assert len(folded) == 9
    assert folded < {str(each.action_id) for each in actions}
    assert {outcome.snapshot.state.notes == last.state.notes for outcome in outcomes}
    if dedup is not None:
        with Session(engine) as session:
            assert session.query(OrderActions).count() == 10
        for each, outcome in zip(actions, outcomes, strict=True):
            again = service.handle(each)
            assert (again.replayed, again.version) == (True, outcome.version)


def test_fold_is_bounded(engine: Engine) -> None:
    """Nine that wait, four at a time, are three commits."""
    service = gated(engine, 9, fold=4)
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(service.handle, map(action, range(10))))
    assert stored(engine) == (4, list(range(10)))


def test_handled_action_is_freed_at_once(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    """Nothing of a handled action is left to the garbage collector."""
    service = ReducerService(engine, Order, note, initial=OrderState)
    request.addfinalizer(gc.enable)
    gc.disable()
    handled = action(1)
    service.handle(handled)
    freed = ref(handled)
    del handled
    assert freed() is None


def test_failing_reducer_does_not_harm_its_neighbours(engine: Engine) -> None:
    """Of a folded batch only the action that is refused fails, without a trace."""
    service = gated(engine, 9, fold=64)

    def handle(each: Action[int]) -> object:
        try:
            return service.handle(each)
        except Refused as error:
            return error.args[0]

    with ThreadPoolExecutor(10) as threads:
        results = list(
            threads.map(handle, map(action, [0, 1, -2, 3, -4, 5, 6, 7, 8, 9]))
        )
    assert [result for result in results if isinstance(result, int)] == [-2, -4]
    assert stored(engine) == (2, [0, 1, 3, 5, 6, 7, 8, 9])


def test_same_action_twice_in_a_line(engine: Engine) -> None:
    """Concurrent duplicates: one runs, the others wait and replay."""
    for fold in (1, 64):
        one = action(fold)
        service = ReducerService(
            engine, Order, note, initial=OrderState, dedup=OrderActions, fold=fold
        )
        with ThreadPoolExecutor(8) as threads:
            outcomes = list(threads.map(service.handle, [one] * 8))
        assert sorted(outcome.replayed for outcome in outcomes) == [False] + [True] * 7
        assert len({outcome.version for outcome in outcomes}) == 1
    assert stored(engine) == (2, [1, 64])


def test_two_services_conflict(engine: Engine) -> None:
    """Concurrent duplicates in two processes: each action still has one effect."""
    services = [
        ReducerService(
            engine, Order, note, initial=OrderState, dedup=OrderActions, fold=fold
        )
        for fold in (1, 8)
    ]
    actions = [action(number) for number in range(100)]
    with ThreadPoolExecutor(16) as threads:
        results = [
            list(threads.map(service.handle, actions[:50])) for service in services
        ]
        futures = [
            threads.submit(service.handle, each)
            for each in actions[50:]
            for service in services
        ]
        outcomes = [future.result() for future in futures]
    assert {outcome.replayed for outcome in results[1]} == {True}
    assert sum(outcome.replayed for outcome in outcomes) == 50
    assert stored(engine)[1] == list(range(100))


def test_loser_locks_the_row(engine: Engine) -> None:
    """After the second conflict the row is locked, and the attempt is committed."""
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    store = CanonicalStore(engine, Order)
    calls: list[int] = []

    def reducer(state: OrderState, action: Action[int]) -> OrderState:
        calls.append(1)
        if len(calls) in (2, 3):
            store.try_commit(
                workflow_key="o-1",
                expected_version=len(calls) - 1,
                state=OrderState(notes=[-1]),
                provenance=Provenance.now(),
            )
        return note(state, action)

    service = ReducerService(engine, Order, reducer, initial=OrderState)
    service.handle(action(1))
    assert service.handle(action(2)).attempts == 3
    assert sum("FOR NO KEY UPDATE" in statement for statement in sent) == 1
    assert stored(engine) == (4, [-1, 2])


def test_crowd_behind_a_loser_locks_for_a_while() -> None:
    """A first loss is paused for, unless others wait behind; then the row is locked."""
    queue: KeyQueue[Any, Any, int] = KeyQueue("o-1")
    queue.note_commit(7, 6)
    queue.note_conflict(1)
    assert queue.locks == 0
    queue.note_conflict(2)
    assert queue.locks == 1
    queue.note_commit(9, 8)
    assert queue.locks == 0
    for number in range(3):
        queue.requests.append(Request(number, number, Blocking().turn()))
    queue.note_conflict(1)
    assert queue.locks == 1 + 3 * STICKY
    for number in range(100):
        queue.requests.append(Request(number, number, Blocking().turn()))
    queue.note_conflict(1)
    assert queue.locks == MOST_LOCKED
    queue.note_conflict(2, chains=True)
    assert queue.locks == 1  # They are one write.


def test_what_turned_out_old_is_not_offered_again() -> None:
    """It is, once the row was read as this process had left it."""
    queue: KeyQueue[Any, Any, int] = KeyQueue("o-1")
    queue.note_commit(7, 6)
    assert queue.cached == 7
    queue.note_conflict(1)
    assert queue.cached is None
    queue.note_commit(9, 8)
    assert queue.cached is None
    queue.note_commit(10, 9)
    assert queue.cached == 10


def test_lines_are_released() -> None:
    """A million distinct keys leave no more queues than the cache may hold."""

    def work(queue: Any, requests: Any) -> None:
        queue.note_commit("x", "x")
        requests[0].settle(None)

    keys: KeyQueues[int, None, str] = KeyQueues(
        Blocking(), work, lambda _: None, most=lambda _: 1, cache_size=10
    )
    for number in range(20_000):
        keys.submit(str(number), keys.request(number, number))
    assert (len(keys._busy), len(keys._idle)) == (0, 10)


def test_interrupted_caller_releases_the_queue(engine: Engine) -> None:
    """After Ctrl-C in one caller the requests behind it are processed."""
    gate = Gate(2)

    def reducer(state: OrderState, action: Action[int]) -> OrderState:
        if action.payload == 0:
            gate(state, action)
            raise KeyboardInterrupt
        return note(state, action)

    gate.service = service = ReducerService(engine, Order, reducer, initial=OrderState)
    results: list[object] = []

    def handle(number: int) -> None:
        try:
            results.append(service.handle(action(number)).version)
        except (KeyboardInterrupt, OutcomeUnknown) as error:
            results.append(type(error))

    threads = [threading.Thread(target=handle, args=[n]) for n in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert results == [KeyboardInterrupt, 1, 2]


def test_many_hold_the_queues(engine: Engine) -> None:
    """Batches in opposite orders and single actions: no conflict and no deadlock."""
    heard = Heard()
    service = ReducerService(engine, Order, note, initial=OrderState, hooks=heard)
    keys = [f"o-{n}" for n in range(6)]

    def batch(number: int) -> list[Any]:
        ordered = keys if number % 2 else keys[::-1]
        return service.handle_many([action(number, key) for key in ordered])

    def single(number: int) -> list[Any]:
        return [service.handle(action(number, keys[number % 6]))]

    with ThreadPoolExecutor(8) as threads:
        futures = [
            threads.submit(batch if number % 3 else single, number)
            for number in range(60)
        ]
        results = [each for future in futures for each in future.result(30)]
    assert len(results) == 40 * 6 + 20
    assert {type(each).__name__ for each in results} == {"StateCommitted"}
    assert heard.conflicts == 0
    assert (service._keys._busy, len(service._keys._idle)) == ({}, 6)
    batches = {number for number in range(60) if number % 3}
    for key in keys:
        notes = CanonicalStore(engine, Order).get_state(key).state.notes
        assert len(notes) == len(set(notes))
        assert batches <= set(notes)


def test_many_do_not_wait_for_one_busy_key(engine: Engine) -> None:
    """The keys that are free are committed while another is in use."""
    gate, seen = Gate(1), []

    def reducer(state: OrderState, each: Action[int]) -> OrderState:
        seen.append(each.payload)
        return gate(state, each)

    service = ReducerService(engine, Order, reducer, initial=OrderState)
    gate.service = service
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(service.handle, action(0))
        while not gate.open:
            time.sleep(0.001)
        given = [action(n, f"o-{n}") for n in (1, 2, 3)]
        results: list[Any] = threads.submit(service.handle_many, given).result(10)
    assert first.result().version == 1
    assert seen == [0, 2, 3, 1]
    assert [each.version for each in results] == [2, 1, 1]
    assert stored(engine) == (2, [0, 1])


async def test_cancelled_batch_releases_its_queues(async_engine: AsyncEngine) -> None:
    """Whether it waits for a queue or holds some."""
    reducing, go = asyncio.Event(), asyncio.Event()

    async def reducer(state: OrderState, each: Action[int]) -> OrderState:
        if each.payload == 1:
            reducing.set()
            await go.wait()
        return note(state, each)

    service = awaiting(async_engine, reducer)
    batch = [action(1), action(1, "o-2")]
    holds = asyncio.create_task(service.handle_many(batch))
    await reducing.wait()
    waits = asyncio.create_task(service.handle_many([action(2)]))
    single = asyncio.create_task(service.handle(action(3)))
    await asyncio.sleep(0.01)
    waits.cancel()
    holds.cancel()
    async with asyncio.timeout(5):
        assert (await single).version == 1
        (last,) = await service.handle_many([action(4, "o-2")])
    ended = await asyncio.gather(waits, holds, return_exceptions=True)
    assert [type(each) for each in ended] == [asyncio.CancelledError] * 2
    assert not isinstance(last, Exception)
    assert last.version == 1
    assert await read(async_engine) == (1, [3])


async def test_line_granted_to_a_cancelled_batch(async_engine: AsyncEngine) -> None:
    """It is cancelled after its turn has come: the next request has its turn."""
    reducing, go = asyncio.Event(), asyncio.Event()

    async def reducer(state: OrderState, each: Action[int]) -> OrderState:
        if each.payload == 1:
            reducing.set()
            await go.wait()
        return note(state, each)

    service = awaiting(async_engine, reducer)
    keys: Any = service._service._keys
    release = keys._release

    def release_and_cancel(*arguments: Any) -> Any:
        orphans = release(*arguments)
        batch.cancel()
        return orphans

    first = asyncio.create_task(service.handle(action(1)))
    await reducing.wait()
    batch = asyncio.create_task(service.handle_many([action(2)]))
    await asyncio.sleep(0.01)
    keys._release = release_and_cancel
    go.set()
    async with asyncio.timeout(5):
        await first
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert (await service.handle(action(3))).version == 2


def test_guess_that_was_old_costs_no_pause(engine: Engine) -> None:
    """Two processes in turn: who has seen that the other writes reads first."""
    heard = [Heard(), Heard()]
    services = [
        ReducerService(engine, Order, note, initial=OrderState, hooks=hooks)
        for hooks in heard
    ]
    for number in range(12):
        services[number % 2].handle(action(number))
        time.sleep(0.05)
    assert [hooks.conflicts for hooks in heard] == [1, 1]
    assert [hooks.pauses for hooks in heard] == [0, 0]
    assert stored(engine) == (12, list(range(12)))
    for number in range(12, 15):
        services[0].handle(action(number))
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    services[0].handle(action(15))
    assert len(sent) == 1


async def note_slowly(state: OrderState, action: Action[int]) -> OrderState:
    """Do as note() does, as a coroutine."""
    await asyncio.sleep(0.001)
    return note(state, action)


def awaiting(
    engine: AsyncEngine, reducer: Any = note_slowly, **options: Any
) -> sa_wfstate.asyncio.ReducerService[OrderState]:
    """Make an async service that creates what it does not find."""
    return sa_wfstate.asyncio.ReducerService(
        engine, Order, reducer, **{"initial": OrderState} | options
    )


async def read(engine: AsyncEngine) -> tuple[int, list[int]]:
    """Do as stored() does."""
    snapshot = await sa_wfstate.asyncio.CanonicalStore(engine, Order).get_state("o-1")
    return snapshot.version, sorted(snapshot.state.notes)


@pytest.mark.parametrize("fold", [1, 16])
@pytest.mark.parametrize("dedup", [None, OrderActions])
async def test_tasks_take_turns(
    async_engine: AsyncEngine, fold: int, dedup: Any
) -> None:
    """A hundred tasks on one key, one attempt each; the reducer is a coroutine."""
    service = awaiting(async_engine, fold=fold, dedup=dedup)
    actions = [action(number) for number in range(100)]
    outcomes = await asyncio.gather(*map(service.handle, actions))
    assert {outcome.attempts for outcome in outcomes} == {1}
    version, notes = await read(async_engine)
    assert notes == list(range(100))
    assert version == (100 if fold == 1 else 7)


async def test_cancelled_task_leaves_the_line(async_engine: AsyncEngine) -> None:
    """What waits is withdrawn; what is being committed is finished, for all of it."""
    handed: list[int] = []
    started = asyncio.Event()

    async def reducer(state: OrderState, action: Action[int]) -> Reduction[OrderState]:
        started.set()
        await asyncio.sleep(0.01)
        intents = [Intent(intent_type="m", target="t", payload=action.payload)]
        return Reduction(note(state, action), intents)

    async def on_intents(_: object, intents: Sequence[Intent]) -> None:
        await asyncio.sleep(0)
        handed.extend(intent.payload for intent in intents)

    service = awaiting(async_engine, reducer, fold=2, on_intents=on_intents)
    tasks = [asyncio.create_task(service.handle(action(n))) for n in range(6)]
    await started.wait()
    tasks[0].cancel()
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result).__name__ for result in results] == [
        "CancelledError",
        *["StateCommitted"] * 2,
        "CancelledError",
        *["StateCommitted"] * 2,
    ]
    assert await read(async_engine) == (3, [0, 1, 2, 4, 5])
    assert sorted(handed) == [0, 1, 2, 4, 5]


async def test_tasks_keep_their_context(async_engine: AsyncEngine) -> None:
    """The reducer sees the context variables of the action's own caller."""
    who: ContextVar[int] = ContextVar("who")
    seen: list[tuple[int, int]] = []

    async def reducer(state: OrderState, action: Action[int]) -> OrderState:
        seen.append((who.get(), action.payload))
        return note(state, action)

    service = awaiting(async_engine, reducer)

    async def handle(number: int) -> None:
        who.set(number)
        await service.handle(action(number))

    await asyncio.gather(*map(handle, range(10)))
    assert all(one == two for one, two in seen)


async def test_crowd_of_tasks_under_a_lock(async_engine: AsyncEngine) -> None:
    """They share a transaction, and each sees the context of its own caller."""
    who: ContextVar[int] = ContextVar("who")
    commits: list[object] = []

    def reducer(state: OrderState, action: Action[int]) -> OrderState:
        assert who.get() == action.payload
        return note(state, action)

    service = awaiting(async_engine, reducer, dedup=OrderActions)

    async def handle(number: int) -> int:
        who.set(number)
        return (await service.handle(action(number))).version

    assert await asyncio.create_task(handle(0)) == 1
    service._service._keys._idle["o-1"].locks = 9
    assert await asyncio.create_task(handle(1)) == 2
    event.listen(async_engine.sync_engine, "commit", commits.append)
    assert await asyncio.gather(*map(handle, range(2, 12))) == [*range(3, 13)]
    assert len(commits) == 1
    assert (await read(async_engine))[1] == [*range(12)]


def test_closing_loop_ends_all_callers(engine: Engine) -> None:
    """When asyncio.run() is left, no caller waits for a commit that does not come."""
    from sqlalchemy.ext.asyncio import create_async_engine

    async def main() -> None:
        ours = create_async_engine(engine.url)
        service = awaiting(ours)
        tasks = [asyncio.create_task(service.handle(action(n))) for n in range(20)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ours.dispose()

    asyncio.run(main())
