"""The Core statements of a workflow class, each built once.

Everything that reads or writes a row outside the unit of work goes through here:
:func:`statements_of` an entity gives its reads, its compare-and-set and its creation,
all with ``workflow_key`` compared for equality.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    bindparam,
    func,
    inspect,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import NoInspectionAvailable

from . import side_writes
from .errors import MappingError, PayloadError
from .mixin import WorkflowStateMixin
from .schema import payload_schema
from .snapshots import StateCommitted, WorkflowSnapshot
from .types import JSONText, PydanticJSON

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Mapper

    from .provenance import Provenance

StateT = TypeVar("StateT")

CANONICAL_COLUMNS = (
    "workflow_key",
    "version",
    "state",
    "updated_at",
    "schema_version",
    "provenance",
)


class Write(NamedTuple):
    """What a commit puts into a row, ready to be bound."""

    workflow_key: str
    version: int
    state_text: str
    provenance: Provenance
    schema_version: int = 1
    base_effect_id: str | None = None
    """The effect that wrote the version that is replaced; None: any."""


class Statements(Generic[StateT]):
    """The statements of one entity."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.mapper = mapper
        self.entity: str = mapper.class_.__name__
        # Of a class with joined inheritance, that is the table of its base.
        self.table: Table = mapper.version_id_col.table  # type: ignore[union-attr]
        table = self.table
        self.state_type: PydanticJSON[StateT] = table.c.state.type
        self.schema = payload_schema(mapper)
        self.own_rows = own_rows = _own_rows(mapper)
        self._read = (
            select(*(table.c[name] for name in CANONICAL_COLUMNS))
            .select_from(mapper.selectable)
            .where(own_rows)
        )
        self._read_one = self._read.where(table.c.workflow_key == bindparam("key"))
        self._lock_one = self._read_one.with_for_update(key_share=True, of=table)
        self._swap = (
            update(table)
            .where(
                table.c.workflow_key == bindparam("key"),
                table.c.version == bindparam("expected_version"),
                # What newer code has written is not written over.
                table.c.schema_version <= self.schema.version,
                own_rows,
            )
            .values(
                version=bindparam("new_version"),
                state=bindparam("new_state", type_=JSONText()),
                updated_at=func.now(),
                schema_version=bindparam("new_schema_version"),
                provenance=bindparam("new_provenance"),
            )
            .returning(table.c.updated_at)
        )
        effect_id = effect_id_of(table)
        self._swap_same = self._swap.where(effect_id == bindparam("base_effect_id"))
        self._versions = select(
            table.c.workflow_key, table.c.version, effect_id
        ).order_by(table.c.workflow_key)
        self._creations: dict[str, Any] = {}

    def read(
        self, connection: Connection, workflow_key: str, *, lock: bool = False
    ) -> WorkflowSnapshot[StateT] | None:
        """Read the row of *workflow_key*, None if there is none.

        *lock* keeps other writers away until the transaction ends.
        """
        statement = self._lock_one if lock else self._read_one
        try:
            row = connection.execute(statement, {"key": workflow_key}).first()
        except PayloadError as error:
            where = error.where.replace(
                f"{self.entity} state", f"{self.entity} {workflow_key!r} state"
            )
            raise PayloadError(where, error.path, error.problem) from error.__cause__
        return None if row is None else snapshot_of(row)

    def read_many(
        self, connection: Connection, workflow_keys: Iterable[str]
    ) -> dict[str, WorkflowSnapshot[StateT]]:
        """Read the rows of *workflow_keys* in one statement, by key."""
        keys = list(workflow_keys)
        statement = self._read.where(self.table.c.workflow_key.in_(keys))
        return {row[0]: snapshot_of(row) for row in connection.execute(statement)}

    def versions(
        self,
        connection: Connection,
        workflow_keys: Iterable[str],
        *,
        lock: bool = False,
    ) -> dict[str, tuple[int, str | None]]:
        """Read version and effect id of the rows of *workflow_keys*, by key.

        *lock* waits for other writers, and keeps them away until the transaction ends.
        """
        keys = list(workflow_keys)
        statement = self._versions.where(self.table.c.workflow_key.in_(keys))
        if lock:
            statement = statement.with_for_update()
        rows = connection.execute(statement)
        return {key: (version, effect_id) for key, version, effect_id in rows}

    def swap(self, connection: Connection, write: Write) -> datetime | None:
        """Write over version ``write.version - 1``; return updated_at, None if lost."""
        parameters = {
            "key": write.workflow_key,
            "expected_version": write.version - 1,
            "new_version": write.version,
            "new_state": self.state_type.stored(write.state_text),
            "new_schema_version": write.schema_version,
            "new_provenance": write.provenance,
        }
        statement = self._swap
        if write.base_effect_id is not None:
            statement = self._swap_same
            parameters["base_effect_id"] = write.base_effect_id
        updated_at: datetime | None = connection.execute(statement, parameters).scalar()
        self._follow(connection, write, updated_at)
        return updated_at

    def create(self, connection: Connection, write: Write) -> datetime | None:
        """Insert the row; return updated_at, or None if the key exists already."""
        dialect = connection.dialect.name
        if dialect not in self._creations:
            self._creations[dialect] = self._build_creation(dialect)
        updated_at: datetime | None = connection.execute(
            self._creations[dialect],
            {
                "workflow_key": write.workflow_key,
                "version": write.version,
                "state": self.state_type.stored(write.state_text),
                "schema_version": write.schema_version,
                "provenance": write.provenance,
            },
        ).scalar()
        self._follow(connection, write, updated_at)
        return updated_at

    def _follow(
        self, connection: Connection, write: Write, updated_at: datetime | None
    ) -> None:
        if updated_at is not None and side_writes.writers_of(self.mapper):
            commit = self.committed(write, updated_at)
            side_writes.write(connection, self.mapper, [commit])

    def committed(
        self, write: Write, updated_at: datetime, *, attempts: int = 1
    ) -> StateCommitted[StateT]:
        """Make the outcome of a write that won."""

        def snapshot() -> WorkflowSnapshot[StateT]:
            return WorkflowSnapshot(
                workflow_key=write.workflow_key,
                version=write.version,
                # Read from the text that was written: the caller's own object may be
                # changed after the commit.
                state=self.state_type.load(write.state_text),
                updated_at=updated_at,
                schema_version=write.schema_version,
                provenance=write.provenance,
            )

        return StateCommitted(
            write.workflow_key, write.version, snapshot, attempts=attempts
        )

    def constants(self) -> dict[str, Any]:
        """Return what every new row of the class holds: its discriminator.

        Raises MappingError if a row alone does not make an instance.
        """
        if self.mapper.local_table is not self.table:
            raise MappingError(
                self.entity,
                "has columns in a second table, so try_commit cannot create a row; add "
                "an instance to a session instead",
            )
        if self.mapper.polymorphic_on is None:
            return {}
        column = self.mapper.polymorphic_on.key
        return {column: self.mapper.polymorphic_identity}

    def _build_creation(self, dialect: str) -> Any:
        insert = (sqlite if dialect == "sqlite" else postgresql).insert(self.table)
        return (
            insert.values(
                {
                    "workflow_key": bindparam("workflow_key"),
                    "version": bindparam("version"),
                    "state": bindparam("state", type_=JSONText()),
                    "schema_version": bindparam("schema_version"),
                    "provenance": bindparam("provenance"),
                }
                | self.constants()
            )
            .on_conflict_do_nothing(index_elements=[self.table.c.workflow_key])
            .returning(self.table.c.updated_at)
        )


def effect_id_of(table: Table) -> ColumnElement[str]:
    """Return the SQL expression for the effect that wrote a row of *table*."""
    effect_id: ColumnElement[str] = table.c.provenance["effect_id"].as_string()
    return effect_id


def _own_rows(mapper: Mapper[Any]) -> ColumnElement[bool]:
    """Return the criterion that keeps a single-table subclass to its own rows."""
    if mapper.inherits is None or not mapper.single or mapper.polymorphic_on is None:
        return true()
    identities = [each.polymorphic_identity for each in mapper.self_and_descendants]
    return mapper.polymorphic_on.in_(identities)


def snapshot_of(row: Sequence[Any]) -> WorkflowSnapshot[Any]:
    """Make the snapshot of a row that holds the CANONICAL_COLUMNS in their order."""
    return WorkflowSnapshot(**dict(zip(CANONICAL_COLUMNS, row, strict=True)))


_statements: WeakKeyDictionary[Mapper[Any], Statements[Any]] = WeakKeyDictionary()


def statements_of(entity: type[WorkflowStateMixin[StateT]]) -> Statements[StateT]:
    """Return the statements of *entity*; MappingError if it is no workflow class."""
    try:
        mapper: Mapper[Any] = inspect(entity)
    except NoInspectionAvailable:
        name = getattr(entity, "__name__", repr(entity))
        raise MappingError(name, "is not a mapped class") from None
    statements = _statements.get(mapper)
    if statements is None:
        if not issubclass(mapper.class_, WorkflowStateMixin):
            raise MappingError(
                mapper.class_.__name__,
                "is not a workflow; derive it from WorkflowStateMixin[YourState]",
            )
        statements = _statements[mapper] = Statements(mapper)
    return statements
