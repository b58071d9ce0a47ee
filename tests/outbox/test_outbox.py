"""Contract: intents are stored with their commit, and delivered once it is final."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import event, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sa_wfstate import (
    Action,
    Intent,
    Provenance,
    PydanticJSON,
    ReducerService,
    Reduction,
    RetryPolicy,
    StateCommitted,
    WorkflowStateMixin,
    try_commit,
)
from sa_wfstate.hooks import Hooks
from sa_wfstate.outbox import (
    DueIntent,
    IntentDispatcher,
    IntentMixin,
    add_intents,
    revive_dead,
    store_intents,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


class OrderState(BaseModel):
    paid: int = 0


class Order(WorkflowStateMixin[OrderState], Base):
    __tablename__ = "orders"


class OrderIntent(IntentMixin, Base):
    __tablename__ = "order_intents"


AT_ONCE = RetryPolicy(max_attempts=3, base_delay=0.0, max_delay=0.0)


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


def pay(state: OrderState, action: Action[int]) -> Reduction[OrderState]:
    """Pay, and say so twice."""
    paid = state.paid + action.payload
    intents = [
        Intent(intent_type="mail", target="kim", payload={"paid": paid}),
        Intent(intent_type="book", target="bookkeeping"),
    ]
    return Reduction(OrderState(paid=paid), intents=intents)


def handle(engine: Engine, *keys: str) -> None:
    """Pay 10 for each of *keys*, which makes two intents."""
    service = ReducerService(
        engine, Order, pay, initial=OrderState, writers=[store_intents(OrderIntent)]
    )
    for key in keys:
        service.handle(Action(workflow_key=key, action_id=uuid4(), payload=10))


def dispatcher(engine: Any, handler: Any, **options: Any) -> IntentDispatcher:
    """Make one that tries again at once."""
    return IntentDispatcher(
        engine, OrderIntent, handler, **{"retry": AT_ONCE, **options}
    )


def places(given: list[DueIntent]) -> list[tuple[str, int, int]]:
    """Say where in the order of intents each of *given* stands."""
    return [(intent.workflow_key, intent.version, intent.position) for intent in given]


@pytest.mark.contract
def test_intents_are_handed_over_in_order(engine: Engine) -> None:
    """Each once, by version and position, with an id of its own; then it is gone."""
    handle(engine, "o-1", "o-1")
    given: list[DueIntent] = []
    one = dispatcher(engine, given.append)
    assert [one.dispatch() for _ in range(5)] == [1, 1, 1, 1, 0]
    assert places(given) == [
        ("o-1", 1, 0),
        ("o-1", 1, 1),
        ("o-1", 2, 0),
        ("o-1", 2, 1),
    ]
    assert len({intent.intent_id for intent in given}) == 4
    first, second, *_ = given
    assert (first.intent_type, first.target, first.payload) == (
        "mail",
        "kim",
        {"paid": 10},
    )
    assert (second.payload, second.attempt) == (None, 1)
    with Session(engine) as session:
        assert session.scalars(select(OrderIntent)).all() == []


@pytest.mark.contract
def test_nothing_of_a_rolled_back_commit(engine: Engine) -> None:
    """In a loop of one's own, too, the intents share the fate of the commit."""
    given: list[DueIntent] = []
    with Session(engine) as session:
        for end in (session.rollback, session.commit):
            outcome = try_commit(
                session,
                Order,
                "o-1",
                expected_version=0,
                state=OrderState(paid=1),
                provenance=Provenance.now(),
            )
            assert isinstance(outcome, StateCommitted)
            add_intents(
                session,
                OrderIntent,
                outcome,
                [Intent(intent_type="mail", target=end.__name__)],
            )
            assert dispatcher(engine, given.append).dispatch() == 0
            end()
    assert dispatcher(engine, given.append).dispatch() == 1
    assert [intent.target for intent in given] == ["commit"]


@pytest.mark.contract
def test_failing_intent_holds_back_its_workflow_only(engine: Engine) -> None:
    """Those behind it wait, other workflows go on; with the same id it comes again."""
    handle(engine, "o-1", "o-2")
    given: list[DueIntent] = []

    def fail_once(intent: DueIntent) -> None:
        given.append(intent)
        if intent.workflow_key == "o-1" and intent.attempt == 1:
            raise ConnectionError("no route")

    one = dispatcher(engine, fail_once)
    for _ in range(5):
        one.dispatch()
    assert places([i for i in given if i.workflow_key == "o-1"]) == [
        ("o-1", 1, 0),
        ("o-1", 1, 0),
        ("o-1", 1, 1),
        ("o-1", 1, 1),
    ]
    assert places([i for i in given if i.workflow_key == "o-2"]) == [
        ("o-2", 1, 0),
        ("o-2", 1, 1),
    ]
    again = [i for i in given if places([i]) == [("o-1", 1, 0)]]
    assert again[0].intent_id == again[1].intent_id
    assert [intent.attempt for intent in again] == [1, 2]


@pytest.mark.contract
def test_dead_letter_is_set_aside(engine: Engine) -> None:
    """When the policy is exhausted the next one follows; revived, it is due again."""
    told: list[Any] = []

    class Told(Hooks):
        def not_delivered(
            self, intent: DueIntent, error: Exception, delay: float | None
        ) -> None:
            told.append(delay)

    handle(engine, "o-1")
    given: list[str] = []

    def handler(intent: DueIntent) -> None:
        if intent.intent_type == "mail":
            raise ValueError("no such address\0" + 1000 * "!")
        given.append(intent.intent_type)

    one = dispatcher(engine, handler, hooks=Told())
    assert [one.dispatch() for _ in range(5)] == [1, 1, 1, 1, 0]
    assert given == ["book"]
    assert told == [0.0, 0.0, None]
    with Session(engine) as session:
        (dead,) = session.scalars(select(OrderIntent))
        assert dead.dead_at is not None
        assert str(dead.last_error).startswith("ValueError: no such address!!")
        assert (dead.attempts, len(str(dead.last_error))) == (3, 500)
    assert revive_dead(engine, OrderIntent, workflow_key="o-2") == 0
    assert revive_dead(engine, OrderIntent) == 1
    mails: list[DueIntent] = []
    assert dispatcher(engine, mails.append).dispatch() == 1
    assert mails[0].attempt == 1


@pytest.mark.contract
def test_lease_keeps_others_away_until_it_ends(engine: Engine) -> None:
    """An intent leased by a dispatcher that died is delivered after its lease."""
    handle(engine, "o-1")
    given: list[DueIntent] = []
    other = dispatcher(engine, given.append)

    def die(_: DueIntent) -> None:
        assert other.dispatch() == 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dispatcher(engine, die).dispatch()
    assert other.dispatch() == 0
    with Session(engine) as session:
        session.execute(update(OrderIntent).values(due_at=OrderIntent.created_at))
        session.commit()
    assert other.dispatch() == 1
    assert [intent.attempt for intent in given] == [2]


@pytest.mark.contract
@pytest.mark.parametrize("error", [None, ValueError("late")])
def test_late_finisher_does_not_settle_the_lease_of_another(
    engine: Engine, error: Exception | None
) -> None:
    """A handler that outlived its lease neither deletes nor sets back the intent."""
    handle(engine, "o-1")

    def slow(_: DueIntent) -> None:
        with Session(engine) as session:
            session.execute(update(OrderIntent).values(attempts=7))
            session.commit()
        if error is not None:
            raise error

    assert dispatcher(engine, slow).dispatch() == 1
    with Session(engine) as session:
        first = session.scalars(select(OrderIntent).filter_by(position=0)).one()
        assert (first.attempts, first.last_error) == (7, None)


def test_batch_ends_with_its_lease(engine: Engine) -> None:
    """What is left when the lease ends, or at a stop, is given back as it was."""
    handle(engine, "o-1", "o-2", "o-3")
    given: list[DueIntent] = []
    assert dispatcher(engine, given.append, lease=0.0).dispatch() == 0
    stop = Event()

    def handler(intent: DueIntent) -> None:
        given.append(intent)
        stop.set()

    dispatcher(engine, handler).run(stop)
    assert len(given) == 1
    assert dispatcher(engine, given.append).dispatch() == 3
    assert {intent.attempt for intent in given} == {1}


@pytest.mark.parametrize("wrap", [lambda engine: engine, sessionmaker])
def test_several_dispatchers_share_the_work(engine: Engine, wrap: Any) -> None:
    """Concurrent dispatchers deliver each intent once, each workflow in order."""
    keys = [f"o-{number}" for number in range(10)]
    given: list[DueIntent] = []
    stop = Event()
    threads = [
        Thread(
            target=dispatcher(wrap(engine), given.append, batch_size=2, poll=0.01).run,
            args=(stop,),
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    try:
        handle(engine, *keys, *keys)
        with Session(engine) as session:
            while session.scalars(select(OrderIntent)).first() is not None:
                session.rollback()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(Counter(places(given)).values()) == {1}
    for key in keys:
        mine = [place for place in places(given) if place[0] == key]
        assert mine == sorted(mine)
        assert len(mine) == 4


class _WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


class _Nameless(type):
    @property
    def __name__(cls) -> str:
        raise RuntimeError


class _WithoutName(Exception, metaclass=_Nameless):
    pass


class _Timeout(BaseException):
    """What gevent raises is no Exception either."""


ODD = [
    FileNotFoundError("/data/\udcff.txt"),
    ValueError("\0"),
    ValueError("!" * 10_000_000),
    ExceptionGroup("several", [ValueError()]),
    _WithoutText(),
    _WithoutName(),
    _Timeout(),
]


@pytest.mark.contract
@pytest.mark.parametrize("error", ODD, ids=range(len(ODD)))
def test_no_error_of_a_handler_stops_the_dispatcher(
    engine: Engine, error: BaseException
) -> None:
    """The intent becomes a dead letter, and the others are delivered."""
    handle(engine, "bad", "good")
    given: list[DueIntent] = []

    class Odd(Hooks):
        def not_delivered(self, *_: object) -> None:
            raise error

    def handler(intent: DueIntent) -> None:
        if intent.workflow_key == "bad":
            raise error
        given.append(intent)

    once = RetryPolicy(max_attempts=1)
    one = dispatcher(engine, handler, retry=once, hooks=Odd())
    assert [one.dispatch() for _ in range(3)] == [2, 2, 0]
    assert len(given) == 2
    with Session(engine) as session:
        dead = session.scalars(select(OrderIntent)).all()
        assert {(row.workflow_key, len(row.last_error or "") > 4) for row in dead} == {
            ("bad", True)
        }


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("several", [ValueError(), KeyboardInterrupt()]),
    ],
)
def test_what_is_meant_for_the_worker_ends_it(
    engine: Engine, error: BaseException
) -> None:
    """An interrupt or a cancellation that a handler meets is not its failure."""
    handle(engine, "o-1")

    def handler(_: DueIntent) -> None:
        raise error

    with pytest.raises(type(error)):
        dispatcher(engine, handler).dispatch()


async def _coroutine(_: DueIntent) -> None: ...


def _generator(_: DueIntent) -> Iterator[None]:
    yield


async def _async_generator(_: DueIntent) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("handler", [_coroutine, _generator, _async_generator])
def test_handler_that_has_not_run_is_no_delivery(engine: Engine, handler: Any) -> None:
    """A coroutine or a generator that a handler returns has done nothing yet."""
    handle(engine, "o-1")
    assert dispatcher(engine, handler).dispatch() == 1
    with Session(engine) as session:
        first = session.scalars(select(OrderIntent).filter_by(position=0)).one()
        assert "of which nothing has run" in str(first.last_error)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs such a signal")
@pytest.mark.parametrize("where", ["handler", "poll"])
def test_error_of_a_signal_handler_ends_the_worker(engine: Engine, where: str) -> None:
    """It is no failure of the intent, nor of the database, which would be retried."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGALRM)

    handle(engine, "o-1")
    one = dispatcher(engine, interrupt)
    if where == "poll":
        event.listen(engine, "before_cursor_execute", interrupt)
    before = signal.signal(signal.SIGALRM, too_long)
    try:
        with pytest.raises(TimeoutError):
            one.run(Event())
    finally:
        signal.signal(signal.SIGALRM, before)
    if where == "poll":
        event.remove(engine, "before_cursor_execute", interrupt)
    with Session(engine) as session:
        assert session.scalars(select(OrderIntent.last_error)).all() == [None, None]


@pytest.mark.contract
def test_error_that_the_column_does_not_take_is_left_out(engine: Engine) -> None:
    """A narrower column, or another encoding, does not stop the dispatcher either."""
    with engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE order_intents ALTER last_error TYPE varchar(10)")
        )
    handle(engine, "o-1")

    def handler(_: DueIntent) -> None:
        raise ConnectionError

    assert dispatcher(engine, handler).dispatch() == 1
    with Session(engine) as session:
        first = session.scalars(select(OrderIntent).filter_by(position=0)).one()
        assert (first.attempts, first.last_error) == (1, None)


class Mail(BaseModel):
    to: str


class MailIntent(IntentMixin, Base):
    __tablename__ = "mail_intents"
    payload: Mapped[Mail] = mapped_column(PydanticJSON(Mail))


@pytest.mark.contract
def test_payload_that_cannot_be_read_harms_no_other(engine: Engine) -> None:
    """It is a failure of its own intent, and of no other in the batch."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO mail_intents (workflow_key, version, position, intent_id,"
                " intent_type, target, payload) VALUES"
                " ('bad', 1, 0, gen_random_uuid(), 'mail', 'kim', '{}'),"
                " ('good', 1, 0, gen_random_uuid(), 'mail', 'kim', '{\"to\": \"kim\"}')"
            )
        )
    given: list[Any] = []
    told: list[Any] = []

    class Told(Hooks):
        def not_delivered(self, intent: DueIntent, *_: object) -> None:
            told.append((intent.workflow_key, intent.payload))

    once = RetryPolicy(max_attempts=1)
    one = IntentDispatcher(engine, MailIntent, given.append, retry=once, hooks=Told())
    assert one.dispatch() == 2
    assert [intent.payload for intent in given] == [Mail(to="kim")]
    assert told == [("bad", None)]


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"lease": -1.0}, {"poll": -0.1}, {"poll": float("nan")}],
)
def test_dispatcher_refuses_what_would_never_end(engine: Engine, wrong: Any) -> None:
    """A batch of none would be leased again for ever."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        dispatcher(engine, print, **wrong)
