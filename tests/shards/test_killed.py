"""Actions take effect once, though coordinator and shards are killed meanwhile."""

from __future__ import annotations

import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import NullPool, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Session

from sa_wfstate import (
    Action,
    ErrorKind,
    ReducerService,
    RetryPolicy,
    WorkflowStateMixin,
    classify,
)
from sa_wfstate.dedup import ActionDedupMixin
from sa_wfstate.errors import ReducerGaveUp

from ..faults.killing import Server
from .cluster import cluster

if TYPE_CHECKING:
    from sqlalchemy import Engine

pytestmark = pytest.mark.shards

ACTIONS = int(os.environ.get("SA_WFSTATE_SHARD_COMMITS", "2000"))
KEYS = [f"sum-{number}" for number in range(24)]
WORKERS = 6
KILLS = 9


class Base(DeclarativeBase):
    pass


class Total(BaseModel):
    """The numbers of the actions that took effect, in their order."""

    numbers: list[int] = []


class Sum(WorkflowStateMixin[Total], Base):
    __tablename__ = "sums"


class Done(ActionDedupMixin, Base):
    __tablename__ = "done"


def add(state: Total, action: Action[int]) -> Total:
    """Note the number of *action*."""
    return Total(numbers=[*state.numbers, action.payload])


def deliver(service: ReducerService[Total, int], action: Action[int]) -> int:
    """Handle *action* until it is acknowledged; return how many times that took."""
    for attempt in range(1, 500):
        try:
            outcome = service.handle(action)
        except Exception as error:
            lost = isinstance(error, ReducerGaveUp)
            if not lost and classify(error, committing=True) is ErrorKind.FATAL:
                raise
            time.sleep(random.uniform(0, 0.2))
        else:
            if not outcome.replayed:
                assert action.payload in outcome.snapshot.state.numbers
            return attempt
    raise AssertionError("the servers do not come back")


def test_killed_servers_double_no_action(capsys: pytest.CaptureFixture[str]) -> None:
    """Each action is delivered until it is acknowledged, many of them once more."""
    with cluster(Base.metadata) as (coordinator, shards):
        servers = [Server(url) for url in (coordinator, *shards)]
        engine = create_engine(coordinator, pool_size=WORKERS)
        retry = RetryPolicy(max_attempts=8, base_delay=0.05, max_delay=0.5)
        services: list[ReducerService[Total, int]] = [
            ReducerService(engine, Sum, add, initial=Total, dedup=Done, retry=retry)
            for _ in range(2)
        ]
        actions = [
            Action(workflow_key=random.choice(KEYS), action_id=uuid4(), payload=number)
            for number in range(ACTIONS)
        ]
        kills = 0
        with ThreadPoolExecutor(WORKERS + 1) as pool:
            twice = [*actions, *random.sample(actions, ACTIONS // 4)]
            pending = [
                pool.submit(deliver, services[number % 2], action)
                for number, action in enumerate(twice)
            ]
            while (done := sum(future.done() for future in pending)) < len(pending):
                time.sleep(0.05)
                if kills < KILLS and done > (kills + 1) * len(pending) / (KILLS + 1):
                    servers[kills % 3].kill()
                    kills += 1
            attempts = [future.result() for future in pending]
        engine.dispose()
        found = numbers_of(create_engine(coordinator, poolclass=NullPool))
    assert kills == KILLS
    assert sorted(n for numbers in found.values() for n in numbers) == [*range(ACTIONS)]
    where = {action.payload: action.workflow_key for action in actions}
    assert all(where[n] == key for key, numbers in found.items() for n in numbers)
    with capsys.disabled():
        again = sum(attempts) - len(attempts)
        sys.stdout.write(
            f"\n{ACTIONS} actions took effect once; {kills} kills, {len(twice)} "
            f"deliveries, {again} of them repeated after an error\n"
        )


def numbers_of(engine: Engine) -> dict[str, Any]:
    """Read what took effect, by key; each of it has its version."""
    with Session(engine) as session:
        rows = session.scalars(select(Sum)).all()
        assert all(len(row.state.numbers) == row.version for row in rows)
        return {row.workflow_key: row.state.numbers for row in rows}
