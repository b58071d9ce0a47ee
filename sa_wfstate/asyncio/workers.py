"""Async counterparts of projections and the outbox; import them from ``asyncio``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.util import greenlet_spawn

from .._concurrency import Awaiting
from ..outbox import dispatcher as _dispatcher
from ..projection import store as _projection_store
from ..projection import worker as _projection_worker
from ..store.connections import sync_bind

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from .._concurrency import Stop
    from ..hooks.base import Hooks
    from ..outbox.table import IntentMixin
    from ..projection.definition import Projection
    from ..projection.store import Fallback, ProjectionRead
    from ..projection.watermarks import WatermarkMixin
    from ..retry import RetryPolicy
    from ..values.keys import Key
    from ..values.reports import DueIntent
    from ..values.row_version import RowVersion


StateT = TypeVar("StateT")


class ProjectionStore(Generic[StateT]):
    """Async version of :class:`sa_wfstate.projection.ProjectionStore`."""

    def __init__(
        self,
        bind: AsyncEngine | async_sessionmaker[Any],
        projection: Projection[StateT],
    ) -> None:
        self._store = _AwaitingProjectionStore(sync_bind(bind), projection)

    async def get(
        self,
        workflow_key: Key,
        required_version: int | RowVersion | None = None,
        max_wait: float = 0.1,
        *,
        fallback: Fallback = "canonical",
    ) -> ProjectionRead:
        """Async version of :meth:`sa_wfstate.projection.ProjectionStore.get`."""
        return await greenlet_spawn(
            self._store.get,
            workflow_key,
            required_version,
            max_wait,
            fallback=fallback,
        )

    async def get_version(self, workflow_key: Key) -> int | None:
        """Async :meth:`sa_wfstate.projection.ProjectionStore.get_version`."""
        return await greenlet_spawn(self._store.get_version, workflow_key)


class ProjectionWorker(Generic[StateT]):
    """Async version of :class:`sa_wfstate.projection.ProjectionWorker`."""

    def __init__(
        self,
        bind: AsyncEngine | async_sessionmaker[Any],
        projection: Projection[StateT],
        watermarks: type[WatermarkMixin],
        *,
        partitions: int = 1,
        batch_size: int = 500,
        poll: float = 0.05,
        overlap: float = 5.0,
        sweep_every: float = 60.0,
        hooks: Hooks | None = None,
    ) -> None:
        self._worker = _AwaitingWorker(
            sync_bind(bind),
            projection,
            watermarks,
            partitions=partitions,
            batch_size=batch_size,
            poll=poll,
            overlap=overlap,
            sweep_every=sweep_every,
            hooks=hooks,
        )

    async def run(self, stop: Stop) -> None:
        """Async version of :meth:`sa_wfstate.projection.ProjectionWorker.run`."""
        await greenlet_spawn(self._worker.run, stop)

    async def follow(self) -> int:
        """Async version of :meth:`sa_wfstate.projection.ProjectionWorker.follow`."""
        return await greenlet_spawn(self._worker.follow)

    async def sweep(self) -> int:
        """Async version of :meth:`sa_wfstate.projection.ProjectionWorker.sweep`."""
        return await greenlet_spawn(self._worker.sweep)


class IntentDispatcher:
    """Async version of :class:`sa_wfstate.outbox.IntentDispatcher`.

    The handler may be a coroutine function.
    """

    def __init__(
        self,
        bind: AsyncEngine | async_sessionmaker[Any],
        intents: type[IntentMixin],
        handler: Callable[[DueIntent], Any],
        *,
        retry: RetryPolicy = _dispatcher.RETRY,
        batch_size: int = 100,
        lease: float = 60.0,
        poll: float = 0.1,
        hooks: Hooks | None = None,
    ) -> None:
        self._dispatcher = _AwaitingDispatcher(
            sync_bind(bind),
            intents,
            handler,
            retry=retry,
            batch_size=batch_size,
            lease=lease,
            poll=poll,
            hooks=hooks,
        )

    async def run(self, stop: Stop) -> None:
        """Async version of :meth:`sa_wfstate.outbox.IntentDispatcher.run`."""
        await greenlet_spawn(self._dispatcher.run, stop)

    async def dispatch(self, stop: Stop | None = None) -> int:
        """Async version of :meth:`sa_wfstate.outbox.IntentDispatcher.dispatch`."""
        return await greenlet_spawn(self._dispatcher.dispatch, stop)


class _AwaitingProjectionStore(_projection_store.ProjectionStore[StateT]):
    _waiting = Awaiting


class _AwaitingWorker(_projection_worker.ProjectionWorker[StateT]):
    _waiting = Awaiting


class _AwaitingDispatcher(_dispatcher.IntentDispatcher):
    _waiting = Awaiting
