"""Awaitable twins of the functions and classes of ``sa_wfstate``.

Each has the name and the parameters of its original, takes an AsyncSession, AsyncEngine
or async_sessionmaker, and runs the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util import greenlet_spawn

from . import store as _store
from .errors import StateConflict
from .provenance import Provenance
from .snapshots import StateCommitted, WorkflowSnapshot
from .store import Entity

__all__ = ["CanonicalStore", "get_state", "try_commit"]

StateT = TypeVar("StateT")


async def get_state(
    session: AsyncSession, entity: Entity[StateT], workflow_key: str
) -> WorkflowSnapshot[StateT]:
    """Async version of :func:`sa_wfstate.get_state`."""
    return await session.run_sync(_store.get_state, entity, workflow_key)


async def try_commit(
    session: AsyncSession,
    entity: Entity[StateT],
    workflow_key: str,
    *,
    expected_version: int,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
) -> StateCommitted[StateT] | StateConflict:
    """Async version of :func:`sa_wfstate.try_commit`."""
    return await session.run_sync(
        _store.try_commit,
        entity,
        workflow_key,
        expected_version=expected_version,
        state=state,
        provenance=provenance,
    )


class CanonicalStore(Generic[StateT]):
    """Async version of :class:`sa_wfstate.CanonicalStore`."""

    def __init__(
        self, bind: AsyncEngine | async_sessionmaker[Any], entity: Entity[StateT]
    ) -> None:
        sync_bind: Any
        if isinstance(bind, AsyncEngine):
            sync_bind = bind.sync_engine
        else:
            sync_bind = _SyncSessions(bind)
        self._store = _store.CanonicalStore(sync_bind, entity)

    async def get_state(self, workflow_key: str) -> WorkflowSnapshot[StateT]:
        """Async version of :meth:`sa_wfstate.CanonicalStore.get_state`."""
        return await greenlet_spawn(self._store.get_state, workflow_key)

    async def try_commit(
        self,
        *,
        workflow_key: str,
        expected_version: int,
        state_prime: StateT,
        provenance: Provenance | Mapping[str, Any],
    ) -> StateCommitted[StateT] | StateConflict:
        """Async version of :meth:`sa_wfstate.CanonicalStore.try_commit`."""
        return await greenlet_spawn(
            self._store.try_commit,
            workflow_key=workflow_key,
            expected_version=expected_version,
            state_prime=state_prime,
            provenance=provenance,
        )


class _SyncSessions:
    """Make the sync sessions of an async_sessionmaker."""

    def __init__(self, sessions: async_sessionmaker[Any]) -> None:
        self._sessions = sessions

    def __call__(self) -> Any:
        return self._sessions().sync_session
