"""The replayed workflows: a case of an event log, its typed state and its reducer.

Several workers take the events of one case from the queue at once, so the events are
*committed* in an order that differs from run to run. The end state must not: a replay
is right only if it equals a fold over the log by one thread, to the byte of the
canonical JSON. Two designs give that.

* A gate: an event waits until the one before it is committed. Then no two workers are
  ever inside one case, nothing is contended, and the replay proves nothing.
* A reducer that does not depend on the order of arrival. This is what
  :func:`add_event` is: it puts each event at its place by its timestamp, then by its
  position in the log, and everything else in the state is a count or a bound over the
  events present.

So the order of events within a case keeps its meaning, since it is in the state, and
the workers may race. An event that is already there is left alone: a delivery repeated
after an unknown outcome changes nothing. What the reducer cannot hide is a lost update:
the step that was overwritten is missing from the end state.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import DeclarativeBase

from sa_wfstate import WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xes import Event


class Step(BaseModel):
    """One event of the case, without the key that it shares with the others."""

    model_config = ConfigDict(frozen=True)

    timestamp: datetime
    position: int
    activity: str
    transition: str | None = None
    resource: str | None = None


class CaseState(BaseModel):
    """What is known of one case after the events that have been applied to it."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[Step, ...] = ()
    activities: dict[str, int] = {}
    resources: dict[str, int] = {}
    started_at: datetime | None = None
    last_at: datetime | None = None


class Base(DeclarativeBase):
    """The demo's own mapped classes, apart from the canonical tables."""


class Case(WorkflowStateMixin[CaseState], Base):
    """One case of the log: one row, its version the number of its events."""

    __tablename__ = "demo_case"


def add_event(state: CaseState, event: Event) -> CaseState:
    """Return *state* with *event* at its place by time, then by position in the log."""
    at = bisect_left(
        state.steps, (event.timestamp, event.position), key=_time_and_position
    )
    if at < len(state.steps) and state.steps[at].position == event.position:
        return state
    step = Step(
        timestamp=event.timestamp,
        position=event.position,
        activity=event.activity,
        transition=event.transition,
        resource=event.resource,
    )
    steps = (*state.steps[:at], step, *state.steps[at:])
    return CaseState(
        steps=steps,
        activities=_counted(state.activities, event.activity),
        resources=_counted(state.resources, event.resource),
        started_at=steps[0].timestamp,
        last_at=steps[-1].timestamp,
    )


def _time_and_position(step: Step) -> tuple[datetime, int]:
    return step.timestamp, step.position


def _counted(counts: Mapping[str, int], name: str | None) -> dict[str, int]:
    """Return *counts* with one more of *name*; of None, which names nobody, none."""
    if name is None:
        return dict(counts)
    return {**counts, name: counts.get(name, 0) + 1}
