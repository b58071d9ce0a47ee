"""A process that delivers actions and may be killed at any time.

Arguments: the URL of the database, a seed, the number of actions that may be folded,
and the chance that an action starts a timer which kills the process within a moment.
The process ends by itself when every action was acknowledged to it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from sa_wfstate import Action, ReducerGaveUp, ReducerService, RetryPolicy
from sa_wfstate.canonical import ActionDedupLog, WorkflowState

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


def main(url: str, seed: str, fold: str, danger: str) -> None:
    """Deliver all actions, in an order of its own."""
    engine = create_engine(url)
    service = ReducerService(
        engine,
        WorkflowState,
        apply,
        initial=lambda: {"begun": 1},
        dedup=ActionDedupLog,
        retry=RetryPolicy.contended(),
        fold=int(fold),
    )
    rng = random.Random(seed)

    def deliver(action: Action[int]) -> None:
        if rng.random() < float(danger):
            kill = threading.Timer(
                rng.uniform(0, 0.006), os.kill, (os.getpid(), signal.SIGKILL)
            )
            kill.daemon = True
            kill.start()
        while True:
            try:
                service.handle(action)
            except (DBAPIError, ReducerGaveUp):
                time.sleep(0.05)  # The server is gone; deliver it again.
            else:
                return

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(deliver, rng.sample(ACTIONS, len(ACTIONS))))
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
