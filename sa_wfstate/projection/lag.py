"""How far a projection is behind its workflows."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import sessionmaker

from ..row.columns import columns_of
from ..store.connections import Connections
from .definition import Projection


class ProjectionLag(NamedTuple):
    """How far a projection is behind.

    *keys* counts the workflows that are behind, *versions* is the largest difference of
    versions, *seconds* the age of the oldest write that is not projected.
    """

    keys: int
    versions: int
    seconds: float


def measure_lag(
    bind: Engine | sessionmaker[Any], projection: Projection[Any]
) -> ProjectionLag:
    """Compare all versions and return how far *projection* is behind."""
    canonical, mine = columns_of(projection.statements.table), projection.table
    projected = func.coalesce(mine.c.version, 0)
    age = func.clock_timestamp() - func.min(canonical.updated_at)
    question = (
        select(
            func.count(),
            func.coalesce(func.max(canonical.version - projected), 0),
            func.coalesce(func.extract("epoch", age), 0),
        )
        .select_from(joined(projection))
        .where(projection.statements.own_rows, canonical.version > projected)
    )
    connections = Connections(bind, projection.statements.mapper)
    with connections.autocommit() as connection:
        keys, versions, seconds = connection.execute(question).one()
    return ProjectionLag(keys, versions, float(seconds))


def joined(projection: Projection[Any]) -> Any:
    """Return the rows of *projection* beside those of its workflows, where any."""
    canonical, mine = projection.statements.table, projection.table
    key = projection.statements.keys.stored(projection.stored_key)
    return canonical.outerjoin(mine, mine.c.workflow_key == key)
