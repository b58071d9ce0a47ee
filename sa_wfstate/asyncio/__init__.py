"""Async counterparts of the functions and classes of ``sa_wfstate``.

Each has the name and the parameters of the sync version, takes an AsyncSession,
AsyncEngine or async_sessionmaker, and runs the same code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.util import greenlet_spawn

from .._concurrency import Awaiting, refuse_sync
from ..dedup import ActionDedupMixin
from ..errors import ReducerGaveUp, StateConflict
from ..payload.actions import PayloadT
from ..payload.rebase import Rebase
from ..reducer import service as _reducer
from ..retry import RetryPolicy
from ..row.claims import TTL
from ..store import api as _store
from ..store import bulk as _bulk
from ..store import transactions as _transactions
from ..store.api import Entity
from ..store.batch_checks import Commit
from ..store.canonical_store import NOT_GIVEN
from ..store.canonical_store import CanonicalStore as _CanonicalStore
from ..store.connections import sync_bind
from ..store.patch_many import Patch
from ..values.keys import Key
from ..values.provenance import Provenance
from ..values.public_names import publish
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from .patching import try_delete, try_delete_many, try_patch, try_patch_many
from .workers import IntentDispatcher, ProjectionStore, ProjectionWorker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ..hooks.base import Hooks
    from ..payload.actions import Action, Intent, Reduction
    from ..reducer.commits import Writer
    from ..row.edits import Edit
    from ..values.row_version import RowVersion


__all__ = [
    "CanonicalStore",
    "IntentDispatcher",
    "ProjectionStore",
    "ProjectionWorker",
    "ReducerService",
    "get_state",
    "run_transaction",
    "try_commit",
    "try_commit_many",
    "try_delete",
    "try_delete_many",
    "try_patch",
    "try_patch_many",
]

StateT = TypeVar("StateT")
T = TypeVar("T")


async def get_state(
    session: AsyncSession,
    entity: Entity[StateT],
    workflow_key: Key,
    *,
    min_version: int | RowVersion | None = None,
    max_wait: float = 0.1,
) -> WorkflowSnapshot[StateT]:
    """Async version of :func:`sa_wfstate.get_state`."""
    refuse_sync(session)
    return await session.run_sync(
        _store.get_state_of, entity, workflow_key, min_version, max_wait, Awaiting()
    )


@overload
async def try_commit(
    session: AsyncSession,
    entity: Entity[StateT],
    workflow_key: Key,
    *,
    expected_version: int | RowVersion,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    expected_effect_id: str | None = None,
    base: WorkflowSnapshot[StateT] | None = None,
    rebase: bool | Rebase = False,
) -> StateCommitted[StateT] | StateConflict[StateT]: ...
@overload
async def try_commit(
    session: AsyncSession,
    entity: Entity[StateT],
    workflow_key: Key | None = None,
    *,
    expected_version: int | RowVersion | None = None,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    expected_effect_id: str | None = None,
    base: WorkflowSnapshot[StateT],
    rebase: bool | Rebase = False,
) -> StateCommitted[StateT] | StateConflict[StateT]: ...
async def try_commit(
    session: AsyncSession,
    entity: Entity[StateT],
    workflow_key: Key | None = None,
    *,
    expected_version: int | RowVersion | None = None,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    expected_effect_id: str | None = None,
    base: WorkflowSnapshot[StateT] | None = None,
    rebase: bool | Rebase = False,
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Async version of :func:`sa_wfstate.try_commit`."""
    refuse_sync(session)
    commit: Any = _store.try_commit  # The overloads were decided by the caller.
    outcome: StateCommitted[StateT] | StateConflict[StateT] = await session.run_sync(
        commit,
        entity,
        workflow_key,
        expected_version=expected_version,
        state=state,
        provenance=provenance,
        expected_effect_id=expected_effect_id,
        base=base,
        rebase=rebase,
    )
    return outcome


async def try_commit_many(
    session: AsyncSession,
    entity: Entity[StateT],
    commits: Iterable[Commit[StateT]],
    *,
    rebase: bool | Rebase = False,
) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
    """Async version of :func:`sa_wfstate.try_commit_many`."""
    refuse_sync(session)
    return await session.run_sync(_bulk.try_commit_many, entity, commits, rebase=rebase)


class CanonicalStore(Generic[StateT]):
    """Async version of :class:`sa_wfstate.CanonicalStore`."""

    def __init__(
        self,
        bind: AsyncEngine | async_sessionmaker[Any],
        entity: Entity[StateT],
        *,
        resolve: RetryPolicy = RetryPolicy.for_lock_wait(),  # noqa: B008 - it is frozen
        group: bool = False,
    ) -> None:
        self._store = _AwaitingStore(
            sync_bind(bind), entity, resolve=resolve, group=group
        )

    async def get_state(
        self,
        workflow_key: Key,
        *,
        min_version: int | RowVersion | None = None,
        max_wait: float = 0.1,
    ) -> WorkflowSnapshot[StateT]:
        """Async version of :meth:`sa_wfstate.CanonicalStore.get_state`."""
        return await greenlet_spawn(
            self._store.get_state,
            workflow_key,
            min_version=min_version,
            max_wait=max_wait,
        )

    async def try_commit(
        self,
        *,
        workflow_key: Key | None = None,
        expected_version: int | RowVersion | None = None,
        provenance: Provenance | Mapping[str, Any],
        state: StateT = NOT_GIVEN,
        state_prime: StateT = NOT_GIVEN,
        expected_effect_id: str | None = None,
        base: WorkflowSnapshot[StateT] | None = None,
        rebase: bool | Rebase = False,
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        """Async version of :meth:`sa_wfstate.CanonicalStore.try_commit`."""
        commit: Any = self._store.try_commit  # As above.
        outcome: StateCommitted[StateT] | StateConflict[StateT] = await greenlet_spawn(
            commit,
            workflow_key=workflow_key,
            expected_version=expected_version,
            provenance=provenance,
            state=state,
            state_prime=state_prime,
            expected_effect_id=expected_effect_id,
            base=base,
            rebase=rebase,
        )
        return outcome

    async def try_commit_many(
        self, commits: Iterable[Commit[StateT]], *, rebase: bool | Rebase = False
    ) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
        """Async version of :meth:`sa_wfstate.CanonicalStore.try_commit_many`."""
        return await greenlet_spawn(self._store.try_commit_many, commits, rebase=rebase)

    async def try_patch(
        self,
        *,
        workflow_key: Key,
        edits: Sequence[Edit],
        provenance: Provenance | Mapping[str, Any],
        when: ColumnElement[bool] | None = None,
        expected_version: int | RowVersion | None = None,
    ) -> StateCommitted[StateT] | StateConflict[StateT]:
        """Async version of :meth:`sa_wfstate.CanonicalStore.try_patch`."""
        return await greenlet_spawn(
            self._store.try_patch,
            workflow_key=workflow_key,
            edits=edits,
            provenance=provenance,
            when=when,
            expected_version=expected_version,
        )

    async def try_patch_many(
        self, patches: Iterable[Patch], *, when: ColumnElement[bool] | None = None
    ) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
        """Async version of :meth:`sa_wfstate.CanonicalStore.try_patch_many`."""
        return await greenlet_spawn(self._store.try_patch_many, patches, when=when)


class _AwaitingStore(_CanonicalStore[StateT]):
    _waiting = Awaiting


async def run_transaction(
    sessions: async_sessionmaker[Any],
    fn: Callable[[AsyncSession], Awaitable[T]],
    *,
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
    resolve: RetryPolicy = RetryPolicy.for_lock_wait(),  # noqa: B008 - it is frozen
    rebase: bool = False,
) -> T:
    """Async version of :func:`sa_wfstate.run_transaction`."""
    attempt: Any = None

    def begin() -> Any:
        nonlocal attempt
        attempt = sessions()
        refuse_sync(attempt)
        return attempt.sync_session

    def call(_: object) -> Any:
        return fn(attempt)

    return await greenlet_spawn(
        _transactions.run, begin, call, retry, resolve, Awaiting(), rebase=rebase
    )


class ReducerService(Generic[StateT, PayloadT]):
    """Async version of :class:`sa_wfstate.ReducerService`.

    *reducer* and *on_intents* may be coroutine functions. *writers* may not: they are
    called with a synchronous Connection, as by ``AsyncSession.run_sync()``. A service
    belongs to one event loop, as its engine does. Cancelling handle() withdraws its
    action; one that is being processed is committed, and its intents are delivered.
    """

    def __init__(
        self,
        bind: AsyncEngine | async_sessionmaker[Any],
        entity: Entity[StateT],
        reducer: Callable[
            [StateT, Action[PayloadT]],
            StateT | Reduction[StateT] | Awaitable[StateT | Reduction[StateT]],
        ],
        *,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
        resolve: RetryPolicy = RetryPolicy.for_lock_wait(),  # noqa: B008 - it is frozen
        initial: Callable[[], StateT] | None = None,
        dedup: type[ActionDedupMixin] | None = None,
        dedup_ttl: timedelta = TTL,
        on_intents: Callable[[StateCommitted[StateT], Sequence[Intent]], Any]
        | None = None,
        writers: Iterable[Writer] = (),
        fold: int = 1,
        lock_on_contention: bool = True,
        lock_limit: float = 10.0,
        cache_size: int = 1024,
        group: int = 100,
        queue_limit: int | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self._service: _AwaitingService[StateT, PayloadT] = _AwaitingService(
            sync_bind(bind),
            entity,
            reducer,  # type: ignore[arg-type]
            retry=retry,
            resolve=resolve,
            initial=initial,
            dedup=dedup,
            dedup_ttl=dedup_ttl,
            on_intents=on_intents,
            writers=writers,
            fold=fold,
            lock_on_contention=lock_on_contention,
            lock_limit=lock_limit,
            cache_size=cache_size,
            group=group,
            queue_limit=queue_limit,
            hooks=hooks,
        )

    async def handle(self, action: Action[PayloadT]) -> StateCommitted[StateT]:
        """Async version of :meth:`sa_wfstate.ReducerService.handle`."""
        return await self._service.handle_task(action)

    async def handle_many(
        self, actions: Iterable[Action[PayloadT]]
    ) -> list[StateCommitted[StateT] | Exception]:
        """Async version of :meth:`sa_wfstate.ReducerService.handle_many`."""
        return await greenlet_spawn(self._service.handle_many, actions)


class _AwaitingService(_reducer.ReducerService[StateT, PayloadT]):
    _waiting = Awaiting

    async def handle_task(self, action: Action[Any]) -> StateCommitted[StateT]:
        """Do what handle() does; a greenlet for each waiting task would cost more."""
        action, request, started = self._begin(action)
        try:
            await self._keys.submit_task(action.workflow_key, request)
            result = request.result()
        except ReducerGaveUp as error:
            self._tell(action, error, started)
            raise
        if self._on_intents is not None and result.intents:
            return await greenlet_spawn(self._conclude, action, result, started)
        return self._conclude(action, result, started)


publish(globals())
