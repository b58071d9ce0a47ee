"""An Exception of a signal handler interrupts one caller, and only that one."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from sa_wfstate import (
    Action,
    CanonicalStore,
    Intent,
    ReducerService,
    Reduction,
)
from sa_wfstate.errors import OutcomeUnknown

from ..orders import Base, Order, OrderActions, OrderState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="needs an interval timer"
)
LIMIT = 10.0


class SoftLimit(Exception):
    """A soft time limit, as of Celery."""


def raise_soft_limit(*_: object) -> None:
    """Handle the signal."""
    raise SoftLimit


def raise_timeout(_: object, *__: object) -> None:
    """Handle the signal with an error that the network could have raised."""
    raise TimeoutError


class Handler:
    """A handler that is an object."""

    def __call__(self, *_: object) -> None:
        raise SoftLimit


@pytest.fixture(
    params=[raise_soft_limit, partial(raise_timeout, 1), Handler()],
    ids=["function", "partial", "object"],
)
def limit(request: pytest.FixtureRequest) -> Iterator[tuple[type[Exception], ...]]:
    """Install a handler; return the errors that it raises."""
    before = signal.signal(signal.SIGALRM, request.param)
    yield (SoftLimit, TimeoutError)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class Interrupted:
    """A folding service whose first caller is interrupted once, at *place*."""

    def __init__(self, engine: Engine, place: str, dedup: Any) -> None:
        self.place, self.fired, self.waiting = place, False, False
        self.service = ReducerService(
            engine,
            Order,
            self.note,
            initial=OrderState,
            fold=8,
            dedup=dedup,
            writers=[lambda *_: self.reach("writer")],
        )
        event.listen(engine, "commit", lambda _: self.reach("commit"))

    def reach(self, place: str) -> None:
        if place == self.place and self.waiting and not self.fired:
            self.fired = True
            signal.raise_signal(signal.SIGALRM)

    def note(self, state: OrderState, each: Action[int]) -> OrderState:
        if each.payload == 2:
            self.reach("reducer of another")
        return OrderState(notes=[*state.notes, each.payload])

    def crowd(self, others: ThreadPoolExecutor) -> tuple[list[Any], list[Any]]:
        """Let three actions be folded by the main thread; return their results."""
        keys = self.service._keys

        def wait_for(number: int) -> None:
            deadline = time.monotonic() + LIMIT
            while len(keys._busy["o-1"].requests) < number:
                assert time.monotonic() < deadline
                time.sleep(0.001)

        def hold() -> list[Any]:
            return keys.hold(["o-1"], lambda _: release.wait(LIMIT) and [])

        release = threading.Event()
        holding = others.submit(hold)
        while "o-1" not in keys._busy:
            time.sleep(0.001)

        def follow() -> list[Any]:
            wait_for(2)
            futures = []
            for number in (2, 3):
                futures.append(others.submit(self.service.handle, action(number)))
                wait_for(1 + number)
            self.waiting = True
            release.set()
            return futures

        following = others.submit(follow)
        own: list[Any] = []
        try:
            own.append(self.service.handle(action(1)))
        except Exception as error:  # noqa: BLE001 - it is looked at
            own.append(error)
        futures = following.result(LIMIT)
        assert holding.result(LIMIT) == []
        return own, [each.exception(LIMIT) or each.result() for each in futures]


def action(number: int, key: str = "o-1") -> Action[int]:
    """Make an action."""
    return Action(workflow_key=key, action_id=uuid4(), payload=number)


@pytest.mark.parametrize("dedup", [None, OrderActions])
@pytest.mark.parametrize("place", ["reducer of another", "writer", "commit"])
def test_others_of_a_batch_get_their_own_answer(
    engine: Engine,
    create_tables: Callable[..., None],
    limit: tuple[type[Exception], ...],
    place: str,
    dedup: Any,
) -> None:
    """They are processed again; after a COMMIT under way the outcome is unknown."""
    create_tables(Base.metadata)
    interrupted = Interrupted(engine, place, dedup)
    with ThreadPoolExecutor(4) as others:
        (own,), results = interrupted.crowd(others)
    assert interrupted.fired
    assert isinstance(own, limit)
    if place == "commit":
        assert [type(each) for each in results] == [OutcomeUnknown] * 2
    else:
        assert [each.version for each in results] == [1, 1]
        assert results[0].snapshot.state.notes == [2, 3]
    assert not interrupted.service._keys._busy


def test_limit_during_a_slow_commit(
    engine: Engine,
    create_tables: Callable[..., None],
    limit: tuple[type[Exception], ...],
) -> None:
    """A COMMIT that the server is working on is not made again."""
    create_tables(Base.metadata)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON orders "
                "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slowly()"
            )
        )
    service = ReducerService(
        engine,
        Order,
        lambda state, each: OrderState(notes=[*state.notes, each.payload]),
        initial=OrderState,
        dedup=OrderActions,
    )
    signal.setitimer(signal.ITIMER_REAL, 0.25)
    with pytest.raises(limit):
        service.handle(action(1))
    assert service.handle(action(2)).snapshot.state.notes in ([2], [1, 2])
    assert not service._keys._busy


@pytest.mark.parametrize("place", ["reducer", "commit", "intents"])
def test_limit_ends_a_batch_of_many(
    engine: Engine,
    create_tables: Callable[..., None],
    limit: tuple[type[Exception], ...],
    place: str,
) -> None:
    """handle_many() raises it; it is no result of an action, and repeats nothing."""
    create_tables(Base.metadata)
    left = [1]

    def reach(where: str) -> None:
        if where == place and left:
            left.clear()
            signal.raise_signal(signal.SIGALRM)

    def reducer(state: OrderState, each: Action[int]) -> Reduction[OrderState]:
        reach("reducer")
        state = OrderState(notes=[*state.notes, each.payload])
        return Reduction(state, [Intent(intent_type="tell", target="kim")])

    service = ReducerService(
        engine,
        Order,
        reducer,
        initial=OrderState,
        on_intents=lambda *_: reach("intents"),
        writers=[lambda *_: None],
    )
    event.listen(engine, "commit", lambda _: reach("commit"))
    with pytest.raises(limit):
        service.handle_many([action(1), action(2, "o-2")])
    assert not left
    assert not service._keys._busy
    expected = 2 if place == "intents" else 0
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders")) == expected
    if expected == 0:
        assert service.handle(action(3)).version == 1
    else:
        assert CanonicalStore(engine, Order).get_state("o-1").state.notes == [1]
