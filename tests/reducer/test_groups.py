"""What arrives while a commit is under way is committed together, each for itself."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

import sa_wfstate.asyncio
from sa_wfstate import (
    Action,
    CanonicalStore,
    Intent,
    PayloadError,
    Provenance,
    ReducerService,
    Reduction,
    StateCommitted,
    WorkflowStateMixin,
)
from sa_wfstate._concurrency import Blocking
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.errors import ActionIdReused, QueueFull
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.hooks import Hooks
from sa_wfstate.outbox import IntentMixin, store_intents
from sa_wfstate.store.groups import FLIGHTS, HEAVIEST, PATIENCE, Groups

from .. import crowds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import URL, Connection, MetaData

    from sa_wfstate import WorkflowSnapshot


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    notes: list[int] = []


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class OrderHistory(HistoryMixin, Base):
    __tablename__ = "order_history"


class OrderActions(ActionDedupMixin, Base):
    __tablename__ = "order_actions"


class OrderIntents(IntentMixin, Base):
    __tablename__ = "order_intents"


keep_history(Order, OrderHistory)


class Refused(Exception):
    pass


class Groupings(Hooks):
    """Note the size of each group."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def grouped(self, entity: str, size: int, waiting: int, seconds: float) -> None:
        assert (entity, seconds >= 0, waiting >= 0) == ("Order", True, True)
        self.sizes.append(size)


def note(state: OrderState, action: Action[int]) -> Reduction[OrderState]:
    """Append the payload; refuse a negative one."""
    if action.payload < 0:
        raise Refused
    state.notes.append(action.payload)
    return Reduction(state, [Intent(intent_type="tell", target=str(action.payload))])


def actions(*payloads: int) -> list[Action[int]]:
    """Make an action for each payload, of a key of its own."""
    return [
        Action(workflow_key=f"o-{abs(n)}", action_id=uuid4(), payload=n)
        for n in payloads
    ]


class Crowd(crowds.Crowd):
    """Callers of a service, and what its hooks and intents have told."""

    def __init__(self, url: URL, kind: str) -> None:
        super().__init__(url, kind)
        self.hooks = Groupings()
        self.told: list[str] = []

    def service(self, reducer: Any = note, **options: Any) -> Any:
        """Make a service with everything that a commit can have."""
        options = {
            "initial": OrderState,
            "dedup": OrderActions,
            "on_intents": lambda _, given: self.told.extend(i.target for i in given),
            "hooks": self.hooks,
        } | options
        if self.kind == "threads":
            return ReducerService(self.plain, Order, reducer, **options)
        return self.runner.run(self._make(reducer, options))

    async def _make(self, reducer: Any, options: dict[str, Any]) -> Any:
        return sa_wfstate.asyncio.ReducerService(
            self.awaiting, Order, reducer, **options
        )

    def handle(
        self,
        service: Any,
        given: Sequence[Action[int]],
        *,
        waiting: int | None = None,
        then: Callable[[], object] = lambda: None,
    ) -> list[Any]:
        """Handle all at once; let no commit start until *waiting* of them wait."""
        core = getattr(service, "_service", service)
        calls = [partial(service.handle, each) for each in given]
        groups = core._loop._attempts._commit
        return self.call_together(groups, calls, waiting=waiting, then=then)

    def run(self, service: Any, given: Sequence[Action[int]]) -> list[Any]:
        """Handle all at once, as they come."""
        if self.kind == "threads":
            with ThreadPoolExecutor(len(given)) as threads:
                futures = [threads.submit(service.handle, each) for each in given]
                return [each.exception(30) or each.result() for each in futures]

        async def main() -> list[Any]:
            calls = map(service.handle, given)
            return await asyncio.gather(*calls, return_exceptions=True)

        return self.runner.run(main())

    def stored(self) -> dict[str, list[int]]:
        """Read the notes of all orders."""
        with Session(self.plain) as session:
            rows = session.execute(select(Order.workflow_key, Order.state))
            return {key: state.notes for key, state in rows}

    def count(self, table: Any) -> int:
        with Session(self.plain) as session:
            return session.query(table).count()

    def commits(self) -> list[object]:
        """Return a list to which each COMMIT of a transaction adds something."""
        done: list[object] = []
        event.listen(self.engine, "commit", done.append)
        return done


@pytest.fixture(params=["threads", "tasks"])
def crowd(
    request: pytest.FixtureRequest,
    database: URL,
    create_tables: Callable[[MetaData], None],
) -> Iterator[Crowd]:
    """Make callers of each kind."""
    create_tables(Base.metadata)
    crowd = Crowd(database, request.param)
    yield crowd
    crowd.close()


def test_what_queued_up_is_one_transaction(crowd: Crowd) -> None:
    """Rows, history, claims and intents of twenty keys, and each has its outcome."""
    service = crowd.service(writers=[store_intents(OrderIntents)])
    commits = crowd.commits()
    for number in (1, 2):
        results = crowd.handle(service, actions(*range(20)))
        assert [each.version for each in results] == [number] * 20
        assert len(commits) == number
    assert crowd.hooks.sizes.count(20) >= 2
    assert crowd.stored() == {f"o-{n}": [n, n] for n in range(20)}
    for table in (OrderHistory, OrderActions, OrderIntents):
        assert crowd.count(table) == 40
    assert sorted(crowd.told) == sorted(str(n) for n in range(20) for _ in (1, 2))


def test_without_other_tables(crowd: Crowd) -> None:
    """It needs a transaction then, too: all members or none."""
    service = crowd.service(dedup=None)
    results = crowd.handle(service, actions(1, 2, 3))
    assert [each.version for each in results] == [1] * 3
    assert crowd.stored() == {"o-1": [1], "o-2": [2], "o-3": [3]}


def test_single_action_is_committed_at_once(crowd: Crowd) -> None:
    """An idle service waits for no company."""
    service = crowd.service()
    for n in range(3):
        assert crowd.run(service, actions(n))[0].version == 1
    assert crowd.hooks.sizes == []


def test_each_member_has_its_own_outcome(crowd: Crowd) -> None:
    """A refusal, a bad state, a duplicate, a reused id and a conflict harm no other."""

    def reducer(state: OrderState, action: Action[int]) -> Any:
        return {"notes": "x"} if action.payload == 4 else note(state, action)

    service = crowd.service(reducer)
    before = actions(5, 6)
    assert all(each.version == 1 for each in crowd.run(service, before))
    first, second = before
    reused = Action(workflow_key="o-6", action_id=second.action_id, payload=7)

    def interfere() -> None:
        outcome = CanonicalStore(crowd.plain, Order).try_commit(
            workflow_key="o-1",
            expected_version=0,
            state=OrderState(notes=[99]),
            provenance=Provenance.now(),
        )
        assert isinstance(outcome, StateCommitted)

    # The service has the state of the duplicate's key: its claim is what finds it.
    given = [*actions(1, 2, -3, 4), first, reused, *actions(8)]
    results = crowd.handle(service, given, waiting=5, then=interfere)
    assert [type(each).__name__ for each in results] == [
        "StateCommitted",
        "StateCommitted",
        "Refused",
        "PayloadError",
        "StateCommitted",
        "ActionIdReused",
        "StateCommitted",
    ]
    assert isinstance(results[3], PayloadError)
    assert isinstance(results[5], ActionIdReused)
    assert [results[n].attempts for n in (1, 6)] == [1, 1]
    assert (results[0].version, results[0].attempts) == (2, 2)
    assert (results[4].version, results[4].replayed) == (1, True)
    assert crowd.stored() == {
        "o-1": [99, 1],
        "o-2": [2],
        "o-5": [5],
        "o-6": [6],
        "o-8": [8],
    }
    assert sorted(crowd.told) == ["1", "2", "5", "6", "8"]


def test_writer_that_raises_harms_no_other(crowd: Crowd) -> None:
    """The others are committed together all the same."""

    def writer(_: Connection, snapshot: WorkflowSnapshot[Any], __: object) -> None:
        if snapshot.workflow_key == "o-3":
            raise Refused

    service = crowd.service(writers=[writer])
    commits = crowd.commits()
    results = crowd.handle(service, actions(*range(6)))
    assert [type(each) for each in results if each is not results[3]] == [
        StateCommitted
    ] * 5
    assert isinstance(results[3], Refused)
    assert len(commits) == 1
    assert crowd.stored() == {f"o-{n}": [n] for n in (0, 1, 2, 4, 5)}


@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_writer_that_hides_an_error(crowd: Crowd, dedup: Any) -> None:
    """COMMIT would roll back and say nothing (25P02): only its own action fails."""

    def writer(
        connection: Connection, snapshot: WorkflowSnapshot[Any], _: object
    ) -> None:
        if snapshot.workflow_key == "o-3":
            with pytest.raises(DBAPIError):
                connection.execute(text("SELECT 1 / 0"))

    service = crowd.service(writers=[writer], dedup=dedup)
    for given in (actions(*range(6)), actions(6, 7, 3)):
        results = crowd.handle(service, given)
        assert isinstance(results.pop(3 if len(given) == 6 else 2), DBAPIError)
        assert [type(each) for each in results] == [StateCommitted] * len(results)
    assert isinstance(crowd.run(service, actions(3))[0], DBAPIError)
    assert crowd.stored() == {f"o-{n}": [n] for n in (0, 1, 2, 4, 5, 6, 7)}


def test_locked_row_holds_up_no_other(crowd: Crowd) -> None:
    """The others of its group are committed while it waits for the lock."""
    service = crowd.service(retry=sa_wfstate.RetryPolicy(max_attempts=9))
    crowd.run(service, actions(2))
    with crowd.plain.connect() as other:
        other.execute(text("SELECT FROM orders WHERE workflow_key = 'o-2' FOR UPDATE"))

        def unlock() -> None:
            deadline = time.monotonic() + 20
            while len(crowd.stored()) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(len(crowd.stored()))
            other.rollback()

        seen: list[int] = []
        thread = threading.Thread(target=unlock)
        results = crowd.handle(service, actions(*range(5)), then=thread.start)
        thread.join()
    assert seen == [5]
    assert [each.version for each in results] == [1, 1, 2, 1, 1]


def test_stuck_reducer_holds_up_no_other(crowd: Crowd) -> None:
    """Reducers run before a group is made, each in the thread or task of its caller."""
    go = threading.Event()

    def stuck(state: OrderState, action: Action[int]) -> Any:
        if action.payload == 2:
            assert go.wait(20)
        return note(state, action)

    async def stuck_task(state: OrderState, action: Action[int]) -> Any:
        while action.payload == 2 and not go.is_set():  # noqa: ASYNC110 - of threads
            await asyncio.sleep(0.001)
        return note(state, action)

    service = crowd.service(stuck if crowd.kind == "threads" else stuck_task)

    def watch() -> None:
        while len(crowd.stored()) < 7:
            time.sleep(0.01)
        go.set()

    thread = threading.Thread(target=watch)
    thread.start()
    results = crowd.run(service, actions(*range(8)))
    thread.join()
    assert [each.version for each in results] == [1] * 8


@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_killed_group_is_committed_after_all(crowd: Crowd, dedup: Any) -> None:
    """Its connection is terminated before COMMIT: nothing was done, and it is again."""
    kills = [1]

    def writer(connection: Connection, _: object, __: object) -> None:
        if kills:
            kills.pop()
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            with crowd.plain.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    service = crowd.service(writers=[writer], dedup=dedup)
    results = crowd.handle(service, actions(*range(6)))
    assert [each.version for each in results] == [1] * 6
    assert crowd.stored() == {f"o-{n}": [n] for n in range(6)}


class LostConnection(Exception):
    """As libpq reports it: without a code."""

    sqlstate = None


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_lost_answer_is_looked_up_for_each(
    crowd: Crowd, dedup: Any, done: bool
) -> None:
    """Each member learns whether it was committed, and is not committed twice."""
    service = crowd.service(dedup=dedup)
    dialect: Any = crowd.engine.dialect
    commit, roll_back, losses = dialect.do_commit, dialect.do_rollback, [1]

    def lose(connection: Any) -> None:
        if not losses:
            return commit(connection)
        losses.pop()
        (commit if done else roll_back)(connection)
        raise OperationalError("COMMIT", None, LostConnection())

    def arm() -> None:
        dialect.do_commit = lose

    results = crowd.handle(service, actions(*range(6)), then=arm)
    assert [each.version for each in results] == [1] * 6
    assert {each.replayed for each in results} == {done}
    assert crowd.stored() == {f"o-{n}": [n] for n in range(6)}
    assert sorted(crowd.told) == sorted(map(str, range(6)))


def test_keys_keep_their_order(crowd: Crowd) -> None:
    """A hundred and sixty actions of eight keys, folded or not: one attempt each."""
    for fold in (1, 4):
        service = crowd.service(fold=fold)
        given = [
            Action(workflow_key=f"k-{fold}-{n % 8}", action_id=uuid4(), payload=n)
            for n in range(80)
        ]
        results = crowd.run(service, given)
        assert {each.attempts for each in results} == {1}
        assert all(
            sorted(crowd.stored()[f"k-{fold}-{k}"]) == list(range(k, 80, 8))
            for k in range(8)
        )
    assert max(crowd.hooks.sizes) > 1


def test_two_services_share_the_keys(crowd: Crowd) -> None:
    """Groups of two processes overlap: each action takes effect once."""
    patient = sa_wfstate.RetryPolicy.for_contention()
    services = [crowd.service(retry=patient) for _ in range(2)]
    given = [
        Action(workflow_key=f"o-{n % 10}", action_id=uuid4(), payload=n)
        for n in range(60)
    ]
    if crowd.kind == "threads":
        with ThreadPoolExecutor(24) as threads:
            futures = [
                threads.submit(service.handle, each)
                for each in given
                for service in services
            ]
            results = [each.result(60) for each in futures]
    else:

        async def main() -> list[Any]:
            return await asyncio.gather(
                *(service.handle(each) for each in given for service in services)
            )

        results = crowd.runner.run(main())
    assert sum(each.replayed for each in results) == 60
    stored = crowd.stored()
    assert {key: sorted(notes) for key, notes in stored.items()} == {
        f"o-{k}": list(range(k, 60, 10)) for k in range(10)
    }


def test_groups_can_be_bounded_or_turned_off(crowd: Crowd) -> None:
    """With group=4 six keys are two groups; with group=1 there is none."""
    crowd.handle(crowd.service(group=4), actions(*range(6)))
    assert max(crowd.hooks.sizes) == 4
    crowd.hooks.sizes.clear()
    crowd.run(crowd.service(group=1), actions(*range(6)))
    assert crowd.hooks.sizes == []


def test_sessions_are_not_shared(crowd: Crowd) -> None:
    """A sessionmaker may give each caller another engine or other criteria."""
    service: Any = ReducerService(
        sessionmaker(crowd.plain), Order, lambda s, _: s, initial=OrderState
    )
    assert service._loop._attempts._commit._most == 1


def test_queue_has_a_limit(crowd: Crowd) -> None:
    """The action that comes when it is full is refused at once."""
    service = crowd.service(queue_limit=5)
    results: list[Any] = []

    def one_more() -> None:
        core = getattr(service, "_service", service)
        with pytest.raises(QueueFull, match="5 actions wait") as caught:
            core.handle(actions(9)[0])
        results.append(caught.value.waiting)

    crowd.handle(service, actions(*range(5)), then=one_more)
    assert results == [5]
    assert crowd.run(service, actions(9))[0].version == 1


def test_cancelled_caller_leaves_its_group_alone(
    database: URL, create_tables: Callable[[MetaData], None]
) -> None:
    """What is being committed is finished, for it and for the others."""
    create_tables(Base.metadata)
    crowd = Crowd(database, "tasks")
    service = crowd.service()

    def cancel() -> None:
        (task,) = [t for t in asyncio.all_tasks() if t.get_name() == "o-2"]
        task.cancel()

    class Named:
        """The service, in tasks that can be told apart."""

        _service = service._service

        async def handle(self, each: Action[int]) -> Any:
            task = asyncio.current_task()
            assert task is not None
            task.set_name(each.workflow_key)
            return await service.handle(each)

    results = crowd.handle(Named(), actions(*range(4)), then=cancel)
    assert isinstance(results.pop(2), asyncio.CancelledError)
    assert [each.version for each in results] == [1] * 3
    assert crowd.stored() == {f"o-{n}": [n] for n in range(4)}
    assert sorted(crowd.told) == ["0", "1", "2", "3"]
    crowd.close()


def run_threads(count: int, target: Callable[[int], object]) -> None:
    """Call *target* in *count* threads."""
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(target, range(count)))


def test_stuck_group_holds_up_the_others_for_a_moment() -> None:
    """As many groups as may be in progress are stuck; another one starts."""
    go = threading.Event()
    done: list[int] = []

    def process(members: Any) -> None:
        for member in members:
            if member.item < FLIGHTS:
                assert go.wait(20)
            done.append(member.item)
            member.settle(None)

    groups: Groups[int, None] = Groups(Blocking(), process, most=1 + FLIGHTS)

    def submit(number: int) -> None:
        if number >= FLIGHTS:
            time.sleep(PATIENCE / 2)
        groups.submit(number)
        if len(done) == 6:
            go.set()

    run_threads(6 + FLIGHTS, submit)
    assert set(done[:6]) == set(range(FLIGHTS, FLIGHTS + 6))


def test_groups_have_a_weight() -> None:
    """What is too heavy together goes by itself, in the order of arrival."""
    sizes: list[int] = []
    go = threading.Event()

    def process(members: Any) -> None:
        assert go.wait(20)
        sizes.append(len(members))
        for member in members:
            member.settle(None)

    groups: Groups[int, None] = Groups(
        Blocking(), process, most=100, weigh=lambda item: item
    )
    flights = [object() for _ in range(FLIGHTS)]
    groups._flights.update(dict.fromkeys(flights, float("inf")))

    def submit(number: int) -> None:
        if number == 5:
            while len(groups._pending) < 5:
                time.sleep(0.001)
            go.set()
            groups._flights.clear()
            groups._wake_next()
        else:
            groups.submit(HEAVIEST // 2)

    run_threads(6, submit)
    assert sorted(sizes) == [1, 2, 2]


def settling(sizes: list[int]) -> Callable[[Any], None]:
    """Settle all members, and note how many they are."""

    def process(members: Any) -> None:
        sizes.append(len(members))
        for member in members:
            member.settle(None)

    return process


@pytest.mark.parametrize("together", [False, True])
def test_second_group_is_no_smaller(together: bool) -> None:
    """It starts once as many wait as the last one had, or as have come together."""
    sizes: list[int] = []
    groups: Groups[int, None] = Groups(Blocking(), settling(sizes), most=100)
    groups._flights[object()] = float("inf")
    groups._enough = 3

    def submit(number: int) -> None:
        while len(groups._pending) < number:
            time.sleep(0.001)
        groups.submit(number)

    if together:
        groups.submit_all([1, 2])
        assert sizes == [2]
    else:
        run_threads(3, submit)
        assert sizes == [3]


def test_threads_that_are_woken_together_are_a_group() -> None:
    """After a group of several the first one lets those run that arrive with it."""
    sizes: list[int] = []
    threads = ThreadPoolExecutor(4)

    class Waking(Blocking):
        """Others arrive whenever this one lets them."""

        def step_aside(self) -> None:
            waiting = len(groups._pending)
            if waiting < 4:
                threads.submit(groups.submit, waiting)
                while len(groups._pending) == waiting:
                    time.sleep(0.001)

    groups: Groups[int, None] = Groups(Waking(), settling(sizes), most=100)
    groups._enough = 2
    with threads:
        threads.submit(groups.submit, 0).result(20)
    assert sizes == [4]
