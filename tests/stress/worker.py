"""A process that delivers actions and may be killed at any time.

Arguments: the URL of the database, "threads" or "tasks", a seed, the number of actions
that may be folded, and the chance that an action starts a timer which kills the process
within a moment. The process ends by itself when every action was acknowledged to it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

import sa_wfstate.asyncio
from sa_wfstate import Action, ReducerService, RetryPolicy
from sa_wfstate.canonical import ActionDedupLog, WorkflowState
from sa_wfstate.errors import ReducerGaveUp

ACTIONS = [
    Action(
        workflow_key=f"order-{number % 5}", action_id=UUID(int=number), payload=number
    )
    for number in range(150)
]


def apply(state: dict[str, int], action: Action[int]) -> dict[str, int]:
    """Count how often each action took effect."""
    name = str(action.payload)
    return state | {name: state.get(name, 0) + 1}


class Delivery:
    """What the threads and the tasks have in common."""

    def __init__(self, seed: str, fold: str, danger: str) -> None:
        self._rng = random.Random(seed)
        self._danger = float(danger)
        self.actions = self._rng.sample(ACTIONS, len(ACTIONS))
        self.options: dict[str, Any] = {
            "initial": lambda: {"begun": 1},
            "dedup": ActionDedupLog,
            "retry": RetryPolicy.for_contention(),
            "fold": int(fold),
        }

    def risk(self) -> None:
        """Start, now and then, the timer that kills."""
        if self._rng.random() < self._danger:
            kill = threading.Timer(
                self._rng.uniform(0, 0.006), os.kill, (os.getpid(), signal.SIGKILL)
            )
            kill.daemon = True
            kill.start()


def run_threads(url: str, delivery: Delivery) -> None:
    """Deliver all actions by four threads."""
    engine = create_engine(url)
    service = ReducerService(engine, WorkflowState, apply, **delivery.options)

    def deliver(action: Action[int]) -> None:
        delivery.risk()
        while True:
            try:
                service.handle(action)
            except (DBAPIError, ReducerGaveUp):
                time.sleep(0.05)  # The server is gone; deliver it again.
            else:
                return

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(deliver, delivery.actions))
    engine.dispose()


async def run_tasks(url: str, delivery: Delivery) -> None:
    """Deliver all actions by four tasks."""
    engine = create_async_engine(url)
    service = sa_wfstate.asyncio.ReducerService(
        engine, WorkflowState, apply, **delivery.options
    )
    waiting = iter(delivery.actions)

    async def deliver() -> None:
        for action in waiting:
            delivery.risk()
            while True:
                try:
                    await service.handle(action)
                except (DBAPIError, ReducerGaveUp):
                    await asyncio.sleep(0.05)
                else:
                    break

    await asyncio.gather(*(deliver() for _ in range(4)))
    await engine.dispose()


def main(url: str, mode: str, *arguments: str) -> None:
    """Deliver all actions, in an order of its own."""
    delivery = Delivery(*arguments)
    if mode == "tasks":
        asyncio.run(run_tasks(url, delivery))
    else:
        run_threads(url, delivery)


if __name__ == "__main__":
    main(*sys.argv[1:])
