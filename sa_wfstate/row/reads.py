"""Read the rows of a workflow class by Core statements, each built once."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import PayloadError, SchemaVersionAhead
from ..payload.schema_versions import payload_schema
from ..values.row_version import RowVersion
from ..values.snapshot import WorkflowSnapshot, with_source
from .arrays import among
from .chunks import chunks
from .columns import columns_of, key_columns
from .direct import first_row
from .engine_profiles import profile_of, profile_on
from .key_columns import KeyColumns
from .sql import CANONICAL_COLUMNS, LOCKS, RowSQL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Table
    from sqlalchemy.orm import Mapper

    from ..values.keys import Key
    from ..values.provenance import Provenance
    from .sql import Lock
    from .types import PydanticJSON


StateT = TypeVar("StateT")


class Reads(Generic[StateT]):
    """The statements of one entity that read its rows."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.mapper = mapper
        self.entity: str = mapper.class_.__name__
        # Of a class with joined inheritance, that is the table of its base.
        self.table: Table = mapper.version_id_col.table  # type: ignore[union-attr]
        table = self.table
        self.columns = columns_of(table)
        self.keys = KeyColumns(self.entity, *key_columns(table))
        self.key_type = self.keys.type
        types: Any = self.columns
        self.state_type: PydanticJSON[StateT] = types.state.type
        self.provenance_type: PydanticJSON[Provenance] = types.provenance.type
        self.schema = payload_schema(mapper)
        self.sql = RowSQL(mapper, table, self.keys, self.schema.version)
        self.own_rows = self.sql.own_rows
        self._of_arrays: dict[str, Any] = {}

    def check_key(self, workflow_key: object) -> None:
        """Raise PayloadError unless *workflow_key* can be a key of the class."""
        self.key_type.check(self.entity, workflow_key)

    def read(
        self, connection: Connection, workflow_key: Key, *, lock: bool = False
    ) -> WorkflowSnapshot[StateT] | None:
        """Read the row of *workflow_key*, None if there is none.

        *lock* blocks other writers until the transaction ends.
        """
        statement = self.sql.read_one
        if lock:
            options = profile_of(connection.dialect).lock_options
            statement = self.sql.lock_one if options else self.sql.lock_one_fully
        row = first_row(connection, statement, self.keys.parameters(workflow_key))
        return None if row is None else self.snapshot_of(row)

    def read_many(
        self,
        connection: Connection,
        workflow_keys: Iterable[Key],
        *,
        whole: bool = False,
    ) -> dict[Key, WorkflowSnapshot[StateT]]:
        """Read the rows of *workflow_keys*, by key."""
        name = "read_whole" if whole else "read"
        rows = self._rows_of(connection, name, workflow_keys)
        return {row[0]: self.snapshot_of(row) for row in rows}

    def found(
        self,
        connection: Connection,
        expected: Mapping[Key, int],
        *,
        whole: bool = False,
    ) -> dict[Key, WorkflowSnapshot[StateT] | RowVersion]:
        """Read the rows that a write did not find at the versions *expected*, by key.

        *whole*: with the application's own columns, which beside_of() returns. A row's
        version alone is read if the state cannot be, for example of newer code, and if
        another class of the table has the key of a row to be created.
        """
        found: dict[Key, WorkflowSnapshot[StateT] | RowVersion] = {}
        try:
            found |= self.read_many(connection, expected, whole=whole)
        except (PayloadError, SchemaVersionAhead):
            for key in expected:
                with suppress(PayloadError, SchemaVersionAhead):
                    found |= self.read_many(connection, [key], whole=whole)
            unread = [key for key in expected if key not in found]
        else:
            alone = self.mapper.inherits is None
            unread = [k for k in expected if not (alone or expected[k] or k in found)]
        versions = self.versions(connection, unread)
        return found | {key: RowVersion(*version) for key, version in versions.items()}

    def snapshot_of(self, row: Sequence[Any]) -> WorkflowSnapshot[StateT]:
        """Return the snapshot of a row that was selected with its state as text."""
        key, version, text, updated_at, schema_version, provenance, *beside = row
        marked = self.schema.mark(text, schema_version, key)
        where = self.schema.name_of(schema_version, key)
        state = self.state_type.load(marked, where=where)
        snapshot = WorkflowSnapshot(
            workflow_key=key,
            version=version,
            state=state,
            updated_at=updated_at,
            schema_version=schema_version,
            provenance=self.provenance_type.load(
                provenance, where=f"{self.entity} {key!r} provenance"
            ),
        )
        return with_source(snapshot, self.table.fullname, marked, beside)

    def versions(
        self,
        connection: Connection,
        workflow_keys: Iterable[Key],
        *,
        lock: Lock = False,
    ) -> dict[Key, tuple[int, str | None]]:
        """Read version and effect id of the rows of *workflow_keys*, by key.

        *lock* waits for other writers, and blocks them until the transaction ends; "no
        key" lets others refer to the rows meanwhile, "no key nowait" does not wait.
        """
        rows = self._rows_of(connection, "versions", workflow_keys, lock=lock)
        return {key: (version, effect_id) for key, version, effect_id in rows}

    def _rows_of(
        self,
        connection: Connection,
        name: str,
        workflow_keys: Iterable[Key],
        *,
        lock: Lock = False,
    ) -> Iterator[Any]:
        """Read the rows of *workflow_keys* in order, because they may be locked."""
        keys_in_order = sorted(workflow_keys)
        statement = getattr(self.sql, name)
        profile = profile_of(connection.dialect)
        if lock:
            options = LOCKS[lock] if profile.lock_options else {}
            statement = statement.with_for_update(**options)
            if len(keys_in_order) == 1 or not profile_on(connection).locks_many:
                for key in keys_in_order:
                    yield from connection.execute(statement.where(self.keys.only(key)))
                return
        # One array: for IN a server prepares a statement for each number of keys.
        elif profile.is_postgresql and not self.keys.type.parts:
            if name not in self._of_arrays:
                self._of_arrays[name] = statement.where(among(*self.keys.columns))
            for keys in chunks(keys_in_order):
                parameters = {"wfs_key": list(keys)}
                yield from connection.execute(self._of_arrays[name], parameters)
            return
        for keys in chunks(keys_in_order):
            yield from connection.execute(statement.where(self.keys.among(keys)))


def snapshot_of(row: Sequence[Any]) -> WorkflowSnapshot[Any]:
    """Return the snapshot of a row with the CANONICAL_COLUMNS in their order."""
    return WorkflowSnapshot(**dict(zip(CANONICAL_COLUMNS, row, strict=True)))
