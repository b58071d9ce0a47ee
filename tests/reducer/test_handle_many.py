"""Contract: handle_many folds the actions of each key and commits many keys at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from sa_wfstate import (
    Action,
    CanonicalStore,
    Intent,
    PayloadError,
    Provenance,
    ReducerService,
    Reduction,
    StateCommitted,
    WorkflowNotFound,
)
from sa_wfstate.errors import ActionIdReused

from ..orders import Base, Order, OrderActions, OrderState
from ..verbs import verbs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from sa_wfstate import WorkflowSnapshot

pytestmark = pytest.mark.contract


class Refused(Exception):
    pass


@pytest.fixture(autouse=True)
def _tables(create_tables: Callable[..., None]) -> None:
    create_tables(Base.metadata)


def note(state: OrderState, action: Action[int]) -> OrderState:
    """Append the payload in place; refuse a negative one after the change."""
    state.notes.append(action.payload)
    if action.payload < 0:
        raise Refused
    return state


def service(engine: Engine, reducer: Any = note, **options: Any) -> ReducerService[Any]:
    """Make a service that creates what it does not find."""
    return ReducerService(engine, Order, reducer, **{"initial": OrderState} | options)


def action(key: str, payload: int, action_id: UUID | None = None) -> Action[int]:
    """Make an action of the order *key*."""
    return Action(workflow_key=key, action_id=action_id or uuid4(), payload=payload)


def notes(engine: Engine, key: str) -> list[int]:
    """Read the notes of the order *key*."""
    return CanonicalStore(engine, Order).get_state(key).state.notes


@pytest.mark.parametrize("dedup", [None, OrderActions])
def test_many_keys_are_one_statement(engine: Engine, dedup: Any) -> None:
    """Ninety actions of thirty keys: one version each, in the order given."""
    actions = [action(f"o-{n % 30}", n) for n in range(90)]
    orders = service(engine, dedup=dedup)
    orders.handle(action("first", 0))  # With a log it asks what server it is.
    sent = verbs_of(engine)
    results: list[Any] = orders.handle_many(actions)
    assert sent == ["SELECT", "INSERT"]
    assert [result.workflow_key for result in results] == [
        each.workflow_key for each in actions
    ]
    assert {result.version for result in results} == {1}
    assert notes(engine, "o-7") == [7, 37, 67]
    if dedup is not None:
        again: list[Any] = orders.handle_many(actions)
        assert all(result.replayed for result in again)
        assert notes(engine, "o-7") == [7, 37, 67]


def test_each_error_is_in_its_place(engine: Engine) -> None:
    """An action that fails is an error in the list; the others are committed."""
    twice = uuid4()
    results: list[Any] = service(engine, dedup=OrderActions).handle_many(
        [
            action("a", 1),
            action("a", -2),
            action("b", -3),
            action("c", 4, twice),
            action("c", 4, twice),
            action("c", 5, twice),
            action("a", 6),
        ]
    )
    assert [type(result).__name__ for result in results] == [
        "StateCommitted",
        "Refused",
        "Refused",
        "StateCommitted",
        "StateCommitted",
        "ActionIdReused",
        "StateCommitted",
    ]
    assert [results[3].replayed, results[4].replayed] == [False, True]
    assert isinstance(results[5], ActionIdReused)
    assert notes(engine, "a") == [1, 6]
    missing = service(engine, initial=None).handle_many([action("new", 1)])
    assert isinstance(missing[0], WorkflowNotFound)


def test_losers_are_handled_one_by_one(engine: Engine) -> None:
    """What another process commits to meanwhile is read again and committed after."""
    pending = [1]
    intents: list[int] = []

    def reducer(state: OrderState, each: Action[int]) -> Reduction[OrderState]:
        if pending and each.payload == 3:
            pending.pop()
            CanonicalStore(engine, Order).try_commit(
                workflow_key="o-3",
                expected_version=0,
                state=OrderState(notes=[99]),
                provenance=Provenance.now(),
            )
        intent = Intent(intent_type="m", target="t", payload=each.payload)
        return Reduction(note(state, each), [intent])

    orders = service(
        engine,
        reducer,
        dedup=OrderActions,
        on_intents=lambda _, handed: intents.extend(each.payload for each in handed),
    )
    results = orders.handle_many([action(f"o-{n}", n) for n in range(6)])
    assert all(isinstance(result, StateCommitted) for result in results)
    assert notes(engine, "o-3") == [99, 3]
    assert sorted(intents) == list(range(6))
    with Session(engine) as session:
        assert session.query(OrderActions).count() == 6


def test_one_poisoned_state_harms_no_other(engine: Engine) -> None:
    """A state that cannot be stored is an error of its own action."""

    def reducer(state: OrderState, each: Action[int]) -> Any:
        return {"notes": "x"} if each.payload == 1 else note(state, each)

    results = service(engine, reducer).handle_many(
        [action(f"o-{n}", n) for n in range(3)]
    )
    assert isinstance(results[1], PayloadError)
    assert notes(engine, "o-2") == [2]


def test_writer_that_fails_harms_no_other(engine: Engine) -> None:
    """What goes wrong in the transaction of all is found again one by one."""

    def writer(_: object, snapshot: WorkflowSnapshot[OrderState], __: object) -> None:
        if snapshot.workflow_key == "o-1":
            raise Refused

    orders = service(engine, writers=[writer])
    results = orders.handle_many([action(f"o-{n}", n) for n in range(3)])
    assert [type(result) for result in results] == [
        StateCommitted,
        Refused,
        StateCommitted,
    ]
    assert notes(engine, "o-2") == [2]


@pytest.mark.parametrize("keys", [["o-1"], ["o-1", "o-2"]])
def test_recreated_workflow_is_not_written_over(
    engine: Engine, keys: list[str]
) -> None:
    """Deleted and created again between its read and the statement of the batch."""
    pending = [1]

    def reducer(state: OrderState, each: Action[int]) -> OrderState:
        if pending and each.payload == 2:
            pending.pop()
            with engine.begin() as connection:
                connection.execute(text("DELETE FROM orders WHERE version = 1"))
            store = CanonicalStore(engine, Order)
            for key in keys:
                store.try_commit(
                    workflow_key=key,
                    expected_version=0,
                    state=OrderState(notes=[99]),
                    provenance=Provenance.now(),
                )
        return note(state, each)

    orders = service(engine, reducer)
    for number in (1, 2):
        results = orders.handle_many([action(key, number) for key in keys])
        assert all(isinstance(result, StateCommitted) for result in results)
    assert [notes(engine, key) for key in keys] == [[99, 2]] * len(keys)


def test_batch_leaves_what_it_committed_to_the_next(engine: Engine) -> None:
    """The next action of a key starts from it: one statement, no conflict."""
    orders = service(engine)
    orders.handle_many([action(f"o-{n}", n) for n in range(3)])
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    assert orders.handle(action("o-1", 7)).version == 2
    assert len(sent) == 1


def test_batch_that_fails_in_its_middle_leaves_nothing(engine: Engine) -> None:
    """The rows of its first statement are not written twice."""
    orders = service(engine)
    orders.handle_many([action("o-1", 1)])
    fail = [1]

    def refuse_once(*args: Any) -> None:
        if "INSERT INTO orders" in args[2] and fail:
            fail.pop()
            raise Refused

    event.listen(engine, "before_cursor_execute", refuse_once)
    results = orders.handle_many([action("o-1", 2), action("o-2", 3), action("o-3", 4)])
    assert all(isinstance(result, StateCommitted) for result in results)
    assert [notes(engine, f"o-{n}") for n in (1, 2, 3)] == [[1, 2], [3], [4]]
