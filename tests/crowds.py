"""Callers that arrive at once, in threads or tasks, and are committed as one group."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sa_wfstate.store.groups import FLIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import URL, Engine


class Crowd:
    """Callers in threads, or in tasks, all of whose commits are one group."""

    def __init__(self, url: URL, kind: str) -> None:
        self.kind = kind
        self.plain = create_engine(url)
        self.runner = asyncio.Runner()
        self.awaiting: Any = create_async_engine(
            url.set(drivername="postgresql+asyncpg")
        )
        self.engine: Engine = (
            self.plain if kind == "threads" else self.awaiting.sync_engine
        )

    def close(self) -> None:
        self.runner.run(self.awaiting.dispose())
        self.runner.close()
        self.plain.dispose()

    def call_together(
        self,
        groups: Any,
        calls: Sequence[Callable[[], Any]],
        *,
        waiting: int | None = None,
        then: Callable[[], object] = lambda: None,
        cancel: int | None = None,
    ) -> list[Any]:
        """Make all *calls* at once; let none start until *waiting* of them wait.

        Call *then* before they start, and *cancel* one of the tasks once they have.
        """
        expected = len(calls) if waiting is None else waiting
        for _ in range(FLIGHTS):
            groups._flights[object()] = float("inf")

        def release() -> None:
            then()
            with groups._lock:
                groups._flights.clear()
            groups._wake_next()

        if self.kind == "threads":
            with ThreadPoolExecutor(len(calls)) as threads:
                futures = [threads.submit(call) for call in calls]
                while len(groups._pending) < expected:
                    time.sleep(0.001)
                release()
                return [each.exception(30) or each.result() for each in futures]

        async def main() -> list[Any]:
            tasks = [asyncio.create_task(call()) for call in calls]
            while len(groups._pending) < expected:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.001)
            release()
            if cancel is not None:
                await asyncio.sleep(0.05)  # Its group waits for a lock.
                tasks[cancel].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        return self.runner.run(main())
