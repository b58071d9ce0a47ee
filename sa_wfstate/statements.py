"""The Core statements of a workflow class, each built once.

Everything that reads or writes a row outside the unit of work goes through here:
:func:`statements_of` an entity gives its reads, its compare-and-set and its creation,
all with ``workflow_key`` compared for equality.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar
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
from sqlalchemy.orm import Mapper

from .errors import MappingError
from .mixin import WorkflowStateMixin
from .provenance import Provenance
from .snapshots import WorkflowSnapshot
from .types import JSONText, PydanticJSON

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


class Statements(Generic[StateT]):
    """The statements of one entity."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.mapper = mapper
        self.entity: str = mapper.class_.__name__
        table = mapper.version_id_col.table  # type: ignore[union-attr]
        assert isinstance(table, Table)
        self.table = table
        self.state_type: PydanticJSON[StateT] = table.c.state.type  # type: ignore[assignment]
        own_rows = _own_rows(mapper)
        self._read = (
            select(*(table.c[name] for name in CANONICAL_COLUMNS))
            .select_from(mapper.selectable)
            .where(own_rows)
        )
        self._read_one = self._read.where(table.c.workflow_key == bindparam("key"))
        self._swap = (
            update(table)
            .where(
                table.c.workflow_key == bindparam("key"),
                table.c.version == bindparam("expected_version"),
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
        self._creations: dict[str, Any] = {}

    def read(
        self, connection: Connection, workflow_key: str
    ) -> WorkflowSnapshot[StateT] | None:
        """Read the row of *workflow_key*, None if there is none."""
        row = connection.execute(self._read_one, {"key": workflow_key}).first()
        return None if row is None else _snapshot(row)

    def read_many(
        self, connection: Connection, workflow_keys: Iterable[str]
    ) -> dict[str, WorkflowSnapshot[StateT]]:
        """Read the rows of *workflow_keys* in one statement, by key."""
        keys = list(workflow_keys)
        statement = self._read.where(self.table.c.workflow_key.in_(keys))
        return {row[0]: _snapshot(row) for row in connection.execute(statement)}

    def swap(self, connection: Connection, write: Write) -> datetime | None:
        """Write over version ``write.version - 1``; return updated_at, None if lost."""
        updated_at: datetime | None = connection.execute(
            self._swap,
            {
                "key": write.workflow_key,
                "expected_version": write.version - 1,
                "new_version": write.version,
                "new_state": write.state_text,
                "new_schema_version": write.schema_version,
                "new_provenance": write.provenance,
            },
        ).scalar()
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
                "state": write.state_text,
                "schema_version": write.schema_version,
                "provenance": write.provenance,
            },
        ).scalar()
        return updated_at

    def _build_creation(self, dialect: str) -> Any:
        if self.mapper.local_table is not self.table:
            raise MappingError(
                self.entity,
                "has columns in a second table, so try_commit cannot create a row; add "
                "an instance to a session instead",
            )
        insert = (sqlite if dialect == "sqlite" else postgresql).insert(self.table)
        discriminator = {}
        if self.mapper.polymorphic_on is not None:
            column = self.mapper.polymorphic_on.key
            discriminator = {column: self.mapper.polymorphic_identity}
        return (
            insert.values(
                {
                    "workflow_key": bindparam("workflow_key"),
                    "version": bindparam("version"),
                    "state": bindparam("state", type_=JSONText()),
                    "schema_version": bindparam("schema_version"),
                    "provenance": bindparam("provenance"),
                }
                | discriminator
            )
            .on_conflict_do_nothing(index_elements=[self.table.c.workflow_key])
            .returning(self.table.c.updated_at)
        )


def _own_rows(mapper: Mapper[Any]) -> ColumnElement[bool]:
    """The criterion that keeps a single-table subclass to its own rows."""
    if mapper.inherits is None or not mapper.single or mapper.polymorphic_on is None:
        return true()
    identities = [each.polymorphic_identity for each in mapper.self_and_descendants]
    return mapper.polymorphic_on.in_(identities)


def _snapshot(row: Sequence[Any]) -> WorkflowSnapshot[Any]:
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
