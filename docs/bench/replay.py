"""Replay real event logs through ReducerService, twice over, and compare with the fold.

    python docs/bench/replay.py receipt.xes.gz …

Each event becomes an action whose id is derived from its position. The first time every
action is committed, by tasks that fold what waits for one case; the second time every
one of them is a replay. The states must equal what folding the log in memory gives.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from _harness import postgresql
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_wfstate import Action, StateCommitted
from sa_wfstate.asyncio import ReducerService
from sa_wfstate.canonical import ActionDedupLog, CanonicalBase, WorkflowState

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "demo"))
from xes import read_events

NAMESPACE = UUID("6f2d4f0e-9a5b-4d38-8c3e-0f2a5f1f7b11")
TASKS = 40


def reducer(state: dict[str, Any], action: Action[dict[str, Any]]) -> dict[str, Any]:
    """Count the events of a case and keep the last one."""
    return {"count": state["count"] + 1, "trail": [*state["trail"], action.payload]}


def initial() -> dict[str, Any]:
    """Return the state of a case before its first event."""
    return {"count": 0, "trail": []}


def actions_of(path: Path) -> list[Action[Any]]:
    """Read the log; the position makes a payload unique and gives it its order."""
    return [
        Action(
            workflow_key=event.workflow_key,
            action_id=uuid5(NAMESPACE, f"{path.name}/{event.position}"),
            payload={
                "position": event.position,
                "activity": event.activity,
                "at": event.timestamp.isoformat(),
            },
        )
        for event in read_events(path)
    ]


async def deliver(
    service: ReducerService[dict[str, Any]], actions: list[Action[Any]]
) -> list[StateCommitted[Any]]:
    """Deliver the actions of a case in order, many cases at a time."""
    cases: dict[str, list[Action[Any]]] = {}
    for action in actions:
        cases.setdefault(action.workflow_key, []).append(action)
    free = asyncio.Semaphore(TASKS)

    async def case(mine: list[Action[Any]]) -> list[StateCommitted[Any]]:
        async with free:
            return await asyncio.gather(*map(service.handle, mine))

    return [
        outcome
        for outcomes in await asyncio.gather(*map(case, cases.values()))
        for outcome in outcomes
    ]


async def replay(url: str, actions: list[Action[Any]]) -> None:
    """Deliver everything twice."""
    engine = create_async_engine(url, pool_size=20)
    for expected in (False, True):
        service = ReducerService(
            engine,
            WorkflowState,
            reducer,
            initial=initial,
            dedup=ActionDedupLog,
            fold=64,
        )
        begin = time.perf_counter()
        outcomes = await deliver(service, actions)
        seconds = time.perf_counter() - begin
        assert len(outcomes) == len(actions)
        assert all(outcome.replayed is expected for outcome in outcomes)
        what = "replayed" if expected else "committed"
        print(f"  {len(outcomes)} actions {what} in {seconds:.1f} s")
    await engine.dispose()


def main() -> None:
    """Replay each of the logs that are named."""
    for path in map(Path, sys.argv[1:]):
        actions = actions_of(path)
        folded: dict[str, dict[str, Any]] = {}
        for action in actions:
            key = action.workflow_key
            folded[key] = reducer(folded.get(key) or initial(), action)
        print(f"{path.name}: {len(actions)} events, {len(folded)} cases")
        with postgresql(synchronous_commit="off") as url:
            engine = create_engine(url)
            CanonicalBase.metadata.create_all(engine)
            asyncio.run(replay(url.render_as_string(hide_password=False), actions))
            with Session(engine) as session:
                rows = session.scalars(select(WorkflowState)).all()
                assert {row.workflow_key: row.state for row in rows} == folded
                logged = session.scalars(select(ActionDedupLog.action_id)).all()
                assert set(logged) == {action.action_id for action in actions}
            engine.dispose()
        print("  the states equal the fold, and the log holds every action once")


if __name__ == "__main__":
    main()
