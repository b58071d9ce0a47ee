"""Operations for migrations of workflow tables: methods of ``op``, and functions.

::

    from alembic import op


    def upgrade():
        op.upcast_workflow_state("orders", {2: "state - 'discount'"})
        op.create_version_trigger("orders")

The operations exist once Alembic is imported; type checkers do not know them, so there
are functions of the same names here.

A migration is one transaction. To upcast a large table while it is written to, use
:func:`~sa_wfstate.upcasting.upcast_all` or ``python -m sa_wfstate upcast``, which
commit each batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from alembic import op
from alembic.operations import MigrateOperation, Operations
from alembic.util import CommandError
from sqlalchemy import MetaData, Table

from ..payload.schema_versions import Step
from ..row.columns import column_of
from ..row.ddl import find_tenant, version_trigger
from ..row.engine_profiles import profile_of
from ..values.public_names import publish

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.types import TypeEngine

    from ..payload.schema_versions import PayloadSchema

__all__ = [
    "create_version_trigger",
    "drop_version_trigger",
    "upcast_workflow_state",
]


def upcast_workflow_state(
    table_name: str,
    upcasters: Mapping[int, Step | str],
    *,
    schema: str | None = None,
    batch_size: int = 1000,
) -> None:
    """Rewrite the rows of *table_name* whose schema version is among *upcasters*.

    They go to the version after the highest one. A step is a function, SQL over the
    column ``state``, or an :class:`~sa_wfstate.upcasting.Upcaster`, which is both; do
    not import it from the application, where it may change. If all steps have SQL, one
    UPDATE does it.

    Raises CommandError offline (``--sql``) unless all steps have SQL, and PayloadError,
    naming the row, if a step fails; the migration is rolled back then.
    """
    op.invoke(
        UpcastWorkflowStateOp(
            table_name, upcasters, schema=schema, batch_size=batch_size
        )
    )


def create_version_trigger(table_name: str, *, schema: str | None = None) -> None:
    """Create the trigger on *table_name* that enforces the version.

    It refuses an UPDATE that does not increment the version and is no upcast.
    PostgreSQL only.
    """
    op.invoke(VersionTriggerOp(table_name, schema=schema))


def drop_version_trigger(table_name: str, *, schema: str | None = None) -> None:
    """Drop that trigger from *table_name*."""
    op.invoke(VersionTriggerOp(table_name, schema=schema, drop=True))


class UpcastWorkflowStateOp(MigrateOperation):
    """The operation of :func:`upcast_workflow_state`."""

    def __init__(
        self,
        table_name: str,
        upcasters: Mapping[int, Step | str],
        *,
        schema: str | None = None,
        batch_size: int = 1000,
    ) -> None:
        self.table_name = table_name
        self.upcasters = upcasters
        self.schema = schema
        self.batch_size = batch_size

    @classmethod
    def upcast_workflow_state(
        cls,
        operations: Operations,
        table_name: str,
        upcasters: Mapping[int, Step | str],
        *,
        schema: str | None = None,
        batch_size: int = 1000,
    ) -> None:
        """Rewrite the rows of *table_name*; see the function of the same name."""
        operations.invoke(
            cls(table_name, upcasters, schema=schema, batch_size=batch_size)
        )


class VersionTriggerOp(MigrateOperation):
    """The operation of the functions for the trigger."""

    def __init__(
        self, table_name: str, *, schema: str | None = None, drop: bool = False
    ) -> None:
        self.table_name = table_name
        self.schema = schema
        self.drop = drop

    @classmethod
    def create_version_trigger(
        cls, operations: Operations, table_name: str, *, schema: str | None = None
    ) -> None:
        """Create the trigger; see the function of the same name."""
        operations.invoke(cls(table_name, schema=schema))

    @classmethod
    def drop_version_trigger(
        cls, operations: Operations, table_name: str, *, schema: str | None = None
    ) -> None:
        """Drop the trigger; see the function of the same name."""
        operations.invoke(cls(table_name, schema=schema, drop=True))


def _set_trigger(operations: Operations, operation: VersionTriggerOp) -> None:
    if not profile_of(operations.get_context().dialect).triggers:
        raise CommandError("the version trigger is for PostgreSQL only")
    target = Table(operation.table_name, MetaData(), schema=operation.schema)
    for statement in version_trigger(target, drop=operation.drop):
        operations.execute(statement)


def _upcast(operations: Operations, operation: UpcastWorkflowStateOp) -> None:
    # This module may be imported while those are.
    from ..payload.schema_versions import PayloadSchema, Upcaster
    from ..upcasting.job import UpcastJob

    context = operations.get_context()
    _check_versions(operation, context.opts.get("target_metadata"))
    steps: dict[int, Any] = {
        version: Upcaster(_no_function, step) if isinstance(step, str) else step
        for version, step in operation.upcasters.items()
    }
    schema = PayloadSchema(
        operation.table_name, max(steps) + 1, steps, oldest=min(steps)
    )
    make = partial(UpcastJob, operation.table_name, schema, schema=operation.schema)
    statement = make().sql
    if statement is not None and profile_of(context.dialect).has_jsonb:
        operations.execute(statement)
    elif context.as_sql:
        raise CommandError(
            f"upcast_workflow_state({operation.table_name!r}) has a step without SQL, "
            "and --sql cannot call Python; give each step as SQL or as an Upcaster"
        )
    else:
        connection = operations.get_bind()
        job = make(keys=_keys_of(operation, connection))
        report = job.run(lambda: nullcontext(connection), operation.batch_size)
        for failure in report.failures:
            raise failure


def _keys_of(
    operation: UpcastWorkflowStateOp, connection: Connection
) -> dict[str, TypeEngine[Any]]:
    """Return the types of the columns of the keys, as the database has them now."""
    name = operation.table_name
    table = Table(
        name,
        MetaData(),
        schema=operation.schema,
        autoload_with=connection,
        resolve_fks=False,
    )
    key = table.c.workflow_key
    tenant = find_tenant(name, table, key)
    columns = [key] if tenant is None else [tenant, key]
    return {column.name: column.type for column in columns}


def _check_versions(operation: UpcastWorkflowStateOp, mapped: Any) -> None:
    """Raise CommandError if the steps have a gap, or lead beyond what is *mapped*.

    Steps that are keyed by their target version lead one too far: the application could
    not read the rows.
    """
    who = f"upcast_workflow_state({operation.table_name!r})"
    hint = "a step is keyed by the schema version that it starts from"
    given = list(operation.upcasters)
    first = min((v for v in given if type(v) is int and v > 0), default=1)
    last = first + len(given) - 1
    if not given or {*given} != {*range(first, last + 1)}:
        raise CommandError(f"{who} needs steps without a gap, got {given}; {hint}")
    for metadata in mapped if isinstance(mapped, (list, tuple)) else [mapped]:
        schema = _schema_of(operation, metadata)
        if schema is not None and schema.version <= last:
            raise CommandError(
                f"{who} would make schema version {last + 1}, and {schema.entity} "
                f"knows versions up to {schema.version}; {hint}"
            )


def _schema_of(
    operation: UpcastWorkflowStateOp, metadata: MetaData | None
) -> PayloadSchema | None:
    """Return the schema versions of the table of *operation*, if it is mapped."""
    for table in [] if metadata is None else metadata.tables.values():
        if (table.name, table.schema) == (operation.table_name, operation.schema):
            state_type = getattr(column_of(table, "state"), "type", None)
            return getattr(state_type, "payload_schema", None)
    return None


def _no_function(data: Any) -> Any:
    raise NotImplementedError("this step is given in SQL only, for PostgreSQL")


# Here and not in the plugin: if this module is imported before Alembic, it is half
# imported itself when Alembic loads the plugin.
Operations.register_operation("upcast_workflow_state")(UpcastWorkflowStateOp)
Operations.implementation_for(UpcastWorkflowStateOp)(_upcast)
for _name in ("create_version_trigger", "drop_version_trigger"):
    Operations.register_operation(_name)(VersionTriggerOp)
Operations.implementation_for(VersionTriggerOp)(_set_trigger)
publish(globals(), __package__)
