"""Upcast in bulk: rewrite the rows of older schema versions, online.

Reads upcast anyway, so this is optional: it saves the work at each read, and old
upcasters can be deleted once no row needs them.

The rows are read in the order of their keys, a batch per transaction. PostgreSQL locks
a batch while it is rewritten, some milliseconds; locked rows are skipped at first and
waited for at the end, so that several jobs share the work. A row is written only if it
is as it was read. Its version and its ``updated_at`` stay: it is the same version in
another shape, and a writer that has read it can still commit. A killed job loses at
most one batch; start it again.

If every step is an :class:`~sa_wfstate.upcasting.Upcaster` with SQL, the payloads do
not leave the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, func, inspect, select

from ..errors import PayloadError
from ..orm.mixin import WorkflowStateMixin
from ..orm.schema_version import skip_unreadable
from ..payload.schema_versions import Upcaster, payload_schema
from ..row.columns import columns_of, key_columns
from ..row.engine_profiles import profile_of
from ..values.public_names import publish
from .job import UpcastJob, UpcastProgress, UpcastReport

if TYPE_CHECKING:
    from ..row.types import PydanticJSON


__all__ = [
    "UpcastProgress",
    "UpcastReport",
    "Upcaster",
    "count_schema_versions",
    "skip_unreadable",
    "upcast_all",
]


def upcast_all(
    engine: Engine,
    entity: type[WorkflowStateMixin[Any]],
    *,
    batch_size: int = 1000,
    progress: Callable[[UpcastProgress], object] | None = None,
    in_sql: bool | None = None,
) -> UpcastReport:
    """Rewrite every row of *entity* whose schema version is older than the current.

    ``__write_schema_version__``, if given, is the current one. *progress* is called
    after each batch; the rows are counted first for it. A row that cannot be upcast, or
    would not validate afterwards, stays as it is and is reported.

    *in_sql* makes the server do the work, without validation. By default it is True if
    all steps have SQL. Raises MappingError if it is True and a step has none.
    """
    mapper = inspect(entity)
    schema = payload_schema(mapper)
    mapped: Any = mapper.columns["state"].table
    state_type: PydanticJSON[Any] = mapper.columns["state"].type

    def check(key: Any, version: int, upcast: str) -> None:
        where = f"{schema.entity} {key!r} state (schema version {version})"
        state_type.load(schema.mark(upcast, schema.write_version, key), where=where)
        state_type.codec.refuse_nul(upcast, where=where)
        _check_storable(upcast, where)

    job = UpcastJob(
        mapped.name,
        schema,
        schema=mapped.schema,
        names={n: c.name for n, c in columns_of(mapped)._asdict().items()},
        keys={column.name: column.type for column in key_columns(mapped)},
        check=check,
    )
    profile = profile_of(engine.dialect)
    if in_sql is None:
        in_sql = job.sql is not None and profile.has_jsonb
    if profile.read_committed:
        # Each row is compared when it is written, so no higher level is needed.
        engine = engine.execution_options(isolation_level="READ COMMITTED")
    return job.run(engine.begin, batch_size, progress, in_sql=in_sql)


def _check_storable(text: str, where: str) -> None:
    """Raise PayloadError if *text* holds numbers that JSONB cannot store."""

    def refuse(number: str) -> None:
        raise PayloadError(where, "", f"holds {number}, which is not JSON")

    if "NaN" in text or "Infinity" in text:
        json.loads(text, parse_constant=refuse)


def count_schema_versions(
    connection: Connection, entity: type[WorkflowStateMixin[Any]]
) -> dict[int, int]:
    """Count the rows of *entity* by schema version."""
    mapped: Any = inspect(entity).columns["schema_version"].table
    version = columns_of(mapped).schema_version
    query = select(version, func.count()).group_by(version).order_by(version)
    rows: Any = connection.execute(query)
    return dict(rows.all())


publish(globals())
