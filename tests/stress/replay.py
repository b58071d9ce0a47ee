"""The processes of the replay: replay.py ROLE URL LOG DELIVERIES NUMBER OF DANGER SEED.

*commit* commits the events of every OF-th case, from where it was left; *project* and
*dispatch* follow until they are killed. With a DANGER above 0 a process kills itself
after about that many seconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import defaultdict, deque
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid5

from pydantic import BaseModel
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    Action,
    Intent,
    ReducerService,
    Reduction,
    WorkflowSnapshot,
    WorkflowStateMixin,
)
from sa_wfstate.history import HistoryMixin, keep_history
from sa_wfstate.outbox import (
    DueIntent,
    IntentDispatcher,
    IntentMixin,
    store_intents,
)
from sa_wfstate.projection import (
    Projection,
    ProjectionMixin,
    ProjectionWorker,
    WatermarkMixin,
)

DEMO = Path(__file__).parents[2] / "docs" / "examples" / "demo"
PARTITIONS = 4
CHUNK = 200
IDS = UUID("6a0f7a52-5f1e-4a53-9a53-0d3a1b1f2c3d")


class Base(DeclarativeBase):
    pass


class CaseState(BaseModel):
    events: int = 0
    activity: str = ""
    transition: str = ""
    resources: dict[str, int] = {}


class Case(WorkflowStateMixin[CaseState], Base):
    __tablename__ = "cases"


class CaseHistory(HistoryMixin, Base):
    __tablename__ = "case_history"


class CaseIntent(IntentMixin, Base):
    __tablename__ = "case_intents"


class CaseNow(ProjectionMixin, Base):
    __tablename__ = "case_now"


class CaseSoon(ProjectionMixin, Base):
    __tablename__ = "case_soon"


class Watermark(WatermarkMixin, Base):
    __tablename__ = "watermarks"


def project(case: WorkflowSnapshot[CaseState]) -> dict[str, Any]:
    """Make the row of a projection."""
    state = case.state
    return {
        "tag": state.activity,
        "last_action": f"{state.activity}/{state.transition}",
        "namespace": "incidents",
        "indices": {"events": state.events},
        "extras": {"resources": state.resources},
    }


def step(state: CaseState, event: Any) -> CaseState:
    """Return the state after *event*."""
    resource = event["resource"] or "nobody"
    return CaseState(
        events=state.events + 1,
        activity=event["activity"],
        transition=event["transition"] or "",
        resources={**state.resources, resource: state.resources.get(resource, 0) + 1},
    )


def reduce(state: CaseState, action: Action[Any]) -> Reduction[CaseState]:
    """Take the step, and have it told to its resource."""
    told = Intent(
        intent_type="tell",
        target=action.payload["resource"] or "nobody",
        payload=action.payload["position"],
    )
    return Reduction(step(state, action.payload), intents=[told])


keep_history(Case, CaseHistory)
now = Projection(Case, CaseNow, project)
now.keep_inline()
soon = Projection(Case, CaseSoon, project)


def cases_of(log: str) -> dict[str, list[dict[str, Any]]]:
    """Read the events of each case, in their order."""
    sys.path.insert(0, str(DEMO))
    from xes import read_events  # type: ignore[import-not-found]

    most = int(os.environ.get("SA_WFSTATE_REPLAY_CASES", "1000000"))
    cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in read_events(Path(log)):
        if event.workflow_key in cases or len(cases) < most:
            cases[event.workflow_key].append(
                {
                    "position": event.position,
                    "activity": event.activity,
                    "transition": event.transition,
                    "resource": event.resource,
                }
            )
    return cases


def commit(engine: Any, log: str, number: int, of: int) -> None:
    """Commit the events that are not committed yet."""
    service = ReducerService(
        engine, Case, reduce, initial=CaseState, writers=[store_intents(CaseIntent)]
    )
    cases = cases_of(log)
    with Session(engine) as session:
        rows = session.execute(select(Case.workflow_key, Case.version))
        done = {key: version for key, version in rows}  # noqa: C416
    mine = sorted(cases)[number::of]
    for turn, start in enumerate(range(0, len(mine), CHUNK)):
        chunk = mine[start : start + CHUNK]
        left = [deque(cases[key][done.get(key, 0) :]) for key in chunk]
        # A step of each case at once; in every tenth chunk, one by one.
        while any(left):
            actions = [
                Action(
                    workflow_key=key,
                    action_id=uuid5(IDS, str(events[0]["position"])),
                    payload=events.popleft(),
                )
                for key, events in zip(chunk, left, strict=True)
                if events
            ]
            if turn % 10:
                service.handle_many(actions)
            else:
                for action in actions:
                    service.handle(action)


def dispatch(engine: Any, deliveries: str) -> None:
    """Note each intent as delivered: what is in a file survives the process."""
    receiver = os.open(deliveries, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def receive(intent: DueIntent) -> None:
        place = f"{intent.workflow_key} {intent.version} {intent.payload}"
        os.write(receiver, f"{intent.intent_id} {place}\n".encode())

    IntentDispatcher(
        engine, CaseIntent, receive, batch_size=200, lease=3.0, poll=0.05
    ).run(Event())


def die_some_time(danger: float, seed: str) -> None:
    """Be killed, as from outside."""
    time.sleep(random.Random(seed).expovariate(1 / danger))
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Do the role that the command line gives."""
    role, url, log, deliveries, number, of, danger, seed = sys.argv[1:]
    engine = create_engine(url)
    if float(danger):
        Thread(target=die_some_time, args=(float(danger), seed), daemon=True).start()
    if role == "commit":
        commit(engine, log, int(number), int(of))
    elif role == "dispatch":
        dispatch(engine, deliveries)
    else:
        ProjectionWorker(
            engine, soon, Watermark, partitions=PARTITIONS, sweep_every=5.0
        ).run(Event())
    engine.dispose()


if __name__ == "__main__":
    main()
