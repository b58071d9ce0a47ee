"""Compare what is stored with what was acknowledged, action by action.

The workers remember which actions ``try_commit`` acknowledged. From these alone, one
thread folds the reducer over each workflow, and the stored row must agree:

* its state is the folded state, as canonical JSON of what is in the column;
* its version is the number of its acknowledged commits, the one that created it
  included;
* the actions counted in it are as many;
* and there is no row too many and none too few.

A lost update fails this check: it was acknowledged, and its effect is not there.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_jsonable_python
from sqlalchemy import Text, cast, select

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Engine
    from workers import AnyAction, Workload

StateT = TypeVar("StateT")
ActionT = TypeVar("ActionT", bound="AnyAction")


def differences(
    engine: Engine,
    workload: Workload[StateT, ActionT],
    acknowledged: Iterable[ActionT],
) -> Iterator[str]:
    """Yield one line for each workflow that is not as *acknowledged* says.

    States are read as the text in the column, past the model that might mend them.
    """
    actions_of: defaultdict[str, list[ActionT]] = defaultdict(list)
    for action in acknowledged:
        actions_of[action.workflow_key].append(action)
    entity = workload.entity
    rows = select(
        entity.workflow_key, entity.version, cast(entity.state, Text)
    ).order_by(entity.workflow_key)
    with engine.connect() as connection:
        for key, version, text in connection.execution_options(yield_per=500).execute(
            rows
        ):
            actions = sorted(actions_of.pop(key, []), key=_position)
            difference = _difference(workload, actions, version, json.loads(text))
            if difference:
                yield f"{key}: {difference}"
    for key, actions in actions_of.items():
        yield f"{key}: no row, but {len(actions)} commits were acknowledged"


def _difference(
    workload: Workload[StateT, ActionT],
    actions: list[ActionT],
    version: int,
    stored: Any,
) -> str | None:
    if not actions:
        return "a row that no acknowledged commit has written"
    if (counted := workload.counted(stored)) != len(actions):
        return (
            f"the state holds {counted} actions, but {len(actions)} commits were "
            "acknowledged"
        )
    if version != len(actions):
        return f"version {version}, but {len(actions)} commits were acknowledged"
    folded = to_jsonable_python(reduce(workload.reducer, actions, workload.initial))
    if canonical(stored) != canonical(folded):
        fields = sorted(
            name
            for name in stored.keys() | folded.keys()
            if canonical(stored.get(name)) != canonical(folded.get(name))
        )
        return f"the state differs from the fold in: {', '.join(fields)}"
    return None


def canonical(value: Any) -> str:
    """Return *value*, models in it dumped, as JSON text with its keys in order."""
    return json.dumps(to_jsonable_python(value), sort_keys=True, ensure_ascii=False)


def _position(action: AnyAction) -> int:
    return action.position
