"""Async counterparts of patches and of deletes; import them from ``asyncio``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncSession

from .._concurrency import refuse_sync
from ..errors import StateConflict
from ..row.edits import Edit
from ..store import deletes as _deletes
from ..store import patch_many as _patch_many
from ..store import patches as _patches
from ..store.api import Entity
from ..store.patch_many import Patch
from ..values.keys import Key
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted

StateT = TypeVar("StateT")


async def try_patch(
    session: AsyncSession,
    entity: Entity[StateT],
    workflow_key: Key,
    edits: Sequence[Edit],
    *,
    provenance: Provenance | Mapping[str, Any],
    when: ColumnElement[bool] | None = None,
    expected_version: int | RowVersion | None = None,
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Async version of :func:`sa_wfstate.patching.try_patch`."""
    refuse_sync(session)
    return await session.run_sync(
        _patches.try_patch,
        entity,
        workflow_key,
        edits,
        provenance=provenance,
        when=when,
        expected_version=expected_version,
    )


async def try_patch_many(
    session: AsyncSession,
    entity: Entity[StateT],
    patches: Iterable[Patch],
    *,
    when: ColumnElement[bool] | None = None,
) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
    """Async version of :func:`sa_wfstate.patching.try_patch_many`."""
    refuse_sync(session)
    return await session.run_sync(
        _patch_many.try_patch_many, entity, patches, when=when
    )


async def try_delete(
    session: AsyncSession,
    entity: Entity[StateT],
    workflow_key: Key,
    *,
    expected_version: int | RowVersion,
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Async version of :func:`sa_wfstate.versions.try_delete`."""
    refuse_sync(session)
    return await session.run_sync(
        _deletes.try_delete, entity, workflow_key, expected_version=expected_version
    )


async def try_delete_many(
    session: AsyncSession,
    entity: Entity[StateT],
    expected_versions: Mapping[Any, int | RowVersion],
) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
    """Async version of :func:`sa_wfstate.versions.try_delete_many`."""
    refuse_sync(session)
    return await session.run_sync(_deletes.try_delete_many, entity, expected_versions)
