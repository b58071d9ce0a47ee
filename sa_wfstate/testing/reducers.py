"""Test a reducer without a database: given, when, then; and replay a history."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar
from uuid import uuid4

from ..payload.actions import Action, Intent, Reducer, Reduction
from ..payload.canonical import canonical_json
from ..payload.codec import Codec
from ..payload.dependencies import DependentReducer
from ..values.snapshot import WorkflowSnapshot

StateT = TypeVar("StateT")

_SHOWN = 5
"""How many differences a failure names."""


def given(
    state: StateT,
    *,
    reducer: Reducer[StateT],
    workflow_key: str = "workflow-1",
    others: Sequence[WorkflowSnapshot[Any]] | None = None,
) -> Given[StateT]:
    """Start a test of *reducer* with *state*.

    A reducer that depends_on() other workflows gets *others* as its third argument.

    >>> def pay(state: dict, action: Action) -> dict:
    ...     return state | {"paid": action.payload}
    >>> given({"paid": 0}, reducer=pay).when(30).then({"paid": 30})
    """
    if others is not None:
        reducer = _with(reducer, others)
    return Given(state, reducer, workflow_key)


def _with(
    reducer: Callable[..., Any], others: Sequence[WorkflowSnapshot[Any]]
) -> Callable[[Any, Action[Any]], Any]:
    return lambda state, action: reducer(state, action, others)


class Given(Generic[StateT]):
    """A state before the actions."""

    def __init__(
        self, state: StateT, reducer: Reducer[StateT], workflow_key: str
    ) -> None:
        self._codec: Codec[StateT] = Codec(type(state))
        self._text = self._codec.encode(state)
        self._reducer = reducer
        self._workflow_key = workflow_key

    def when(self, *actions: Any) -> When[StateT]:
        """Hand each of *actions* to the reducer: an Action, or only its payload.

        As in a service, each call gets a state that is read back from JSON, and the
        result has to survive that. The reducer is called twice for each action; a
        result that differs fails the test, because a service calls it again after each
        conflict.

        An error of the reducer is raised.
        """
        text, intents = self._text, []
        for given_action in actions:
            action = given_action
            if not isinstance(action, Action):
                action = Action(
                    workflow_key=self._workflow_key,
                    action_id=uuid4(),
                    payload=given_action,
                )
            before = text
            text, more = reduce(self._codec, self._reducer, before, action)
            again = reduce(self._codec, self._reducer, before, action)
            _require_equal("the reducer is not pure: its second call", again[0], text)
            _require_equal(
                "the reducer is not pure: its second call", _dump(again[1]), _dump(more)
            )
            intents += more
        return When(self._codec, text, intents)


class When(Generic[StateT]):
    """What the actions have led to."""

    def __init__(
        self, codec: Codec[StateT], text: str, intents: Sequence[Intent]
    ) -> None:
        self._codec = codec
        self._text = text
        self.intents = list(intents)
        """The intents, in their order."""

    @property
    def state(self) -> StateT:
        """The state."""
        return self._codec.load(self._text)

    def then(self, state: StateT, intents: Iterable[Intent] = ()) -> None:
        """Assert that the actions have led to *state* and to *intents*.

        States are compared as JSON, as the library does: ``True`` is not ``1``.
        """
        _require_equal("the state", self._text, self._codec.dump(state))
        _require_equal("the intents", _dump(self.intents), _dump(list(intents)))


def replay(
    reducer: Reducer[StateT],
    history: Iterable[WorkflowSnapshot[StateT]],
    actions: Iterable[Action[Any]],
    *,
    initial: Callable[[], StateT] | None = None,
) -> int:
    """Run *reducer* over recorded *actions*, and compare with the recorded *history*.

    *history* has the snapshots of one workflow, in any order, as
    :func:`~sa_wfstate.history.list_versions` returns them. *actions* are those that the
    application has recorded; the provenance of a version names its action, or several.
    With *initial* a first version is replayed too. A version without its action, or
    without the version before it, is taken as it is.

    Raises AssertionError that names the first version which the reducer of today would
    not write. Returns how many versions were replayed. A reducer that depends_on()
    other workflows is refused with a TypeError: what it read is not recorded.
    """
    if isinstance(reducer, DependentReducer):
        raise TypeError(
            "replay() cannot run a reducer that depends_on() other workflows: what it "
            "read is not in the history; test it by given(…, others=[…])"
        )
    snapshots = sorted(history, key=lambda snapshot: snapshot.version)
    by_id = {str(action.action_id): action for action in actions}
    replayed, before = 0, None
    for snapshot in snapshots:
        codec: Codec[StateT] = Codec(type(snapshot.state))
        recorded = codec.dump(snapshot.state)
        causes = [by_id.get(each) for each in _action_ids(snapshot)]
        if snapshot.version == 1 and initial is not None:
            text: str | None = codec.dump(initial())
        elif before is not None and before.version == snapshot.version - 1:
            text = codec.dump(before.state)
        else:
            text = None
        if text is not None and causes and None not in causes:
            for action in causes:
                assert action is not None  # noqa: S101
                text, _ = reduce(codec, reducer, text, action)
            what = f"version {snapshot.version} of {snapshot.workflow_key!r}, replayed,"
            _require_equal(what, text, recorded)
            replayed += 1
        before = snapshot
    return replayed


def _action_ids(snapshot: WorkflowSnapshot[Any]) -> list[str]:
    provenance = snapshot.provenance
    folded = (provenance.model_extra or {}).get("folded")
    if folded:
        return [str(each.get("action_id")) for each in folded]
    return [] if provenance.action_id is None else [str(provenance.action_id)]


def reduce(
    codec: Codec[StateT], reducer: Reducer[StateT], text: str, action: Action[Any]
) -> tuple[str, list[Intent]]:
    """Return the JSON of the next state, and the intents."""
    result: Any = reducer(codec.load(text), action)
    intents: Sequence[Intent] = ()
    if isinstance(result, Reduction):
        result, intents = result.state, result.intents
    if result is None:
        raise AssertionError("the reducer returned None; it returns the next state")
    return codec.encode(result), list(intents)


def _dump(intents: Sequence[Intent]) -> str:
    return json.dumps([intent.model_dump(mode="json") for intent in intents])


def _require_equal(what: str, actual: str, expected: str) -> None:
    if canonical_json(actual) == canonical_json(expected):
        return
    found = list(_differences(json.loads(actual), json.loads(expected), ""))
    shown = "; ".join(found[:_SHOWN]) + ("; …" if len(found) > _SHOWN else "")
    raise AssertionError(f"{what} differs: {shown}")


def _differences(actual: Any, expected: Any, path: str) -> Iterable[str]:
    """Name each part that differs, as a JSON Pointer with both values."""
    if isinstance(actual, dict) and isinstance(expected, dict):
        pairs: Iterable[Any] = [
            *expected,
            *(key for key in actual if key not in expected),
        ]
    elif isinstance(actual, list) and isinstance(expected, list):
        pairs = range(max(len(actual), len(expected)))
    else:
        if canonical_json(json.dumps(actual)) != canonical_json(json.dumps(expected)):
            yield f"{path or '/'} is {json.dumps(actual)}, not {json.dumps(expected)}"
        return
    for key in pairs:
        at = f"{path}/{key}"
        try:
            mine = actual[key]
        except (KeyError, IndexError):
            yield f"{at} is missing, not {json.dumps(expected[key])}"
            continue
        try:
            other = expected[key]
        except (KeyError, IndexError):
            yield f"{at} is {json.dumps(mine)}, and should not be there"
            continue
        yield from _differences(mine, other, at)
