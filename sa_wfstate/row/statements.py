"""Read and write the rows of a workflow class by Core statements, each built once.

All reads and writes of rows outside the unit of work are here: read, compare-and-set,
create.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..commit_listeners import follow, listeners_of
from ..errors import MappingError, PayloadError, SchemaVersionAhead
from ..payload.canonical import holds_nul
from ..payload.schema_versions import payload_schema
from ..values.provenance import text_of
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot, with_source
from ..values.write import Write, Written
from .arrays import among
from .chunks import chunks
from .columns import columns_of, key_columns, without_value
from .direct import first_row
from .engine_profiles import profile_of, profile_on
from .key_columns import KeyColumns
from .sql import CANONICAL_COLUMNS, LOCKS, RowSQL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Column, Connection, Table
    from sqlalchemy.orm import Mapper

    from ..errors import StateConflict
    from ..payload.batch import BatchCodec
    from ..values.keys import Key
    from ..values.provenance import Provenance
    from ..values.write import Batch
    from .engine_profiles import EngineProfile
    from .sql import Lock
    from .types import PydanticJSON


StateT = TypeVar("StateT")


class Statements(Generic[StateT]):
    """The statements of one entity."""

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
        self._provenance_type: PydanticJSON[Provenance] = types.provenance.type
        self.schema = payload_schema(mapper)
        self.sql = RowSQL(mapper, table, self.keys, self.schema.version)
        self.own_rows = self.sql.own_rows
        self._creations: dict[str, Any] = {}
        self._of_arrays: dict[str, Any] = {}

    def check_key(self, workflow_key: object) -> None:
        """Raise PayloadError unless *workflow_key* can be a key of the class."""
        self.key_type.check(self.entity, workflow_key)

    @property
    def batch_codec(self) -> BatchCodec[StateT]:
        """The codec for many states at once."""
        return self.state_type.batch_codec

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
            provenance=self._provenance_type.load(
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

    def swap(self, connection: Connection, write: Write) -> Written | None:
        """Replace the version ``write.base``; return None if the row is not at it."""
        parameters = self.parameters(write)
        statement = self.sql.swap
        if write.base_effect_id is not None:
            statement = self.sql.swap_same
        row = None
        if write.unchanged:
            # SQLAlchemy refuses a parameter that the statement has no place for.
            bump = {n: each for n, each in parameters.items() if n != "wfs_state"}
            row = first_row(connection, self.sql.bump, bump)
        if row is None:
            # Also for an unchanged state, whose row may have been upcast since.
            row = first_row(connection, statement, parameters)
        return self._follow(connection, write, row)

    def parameters(self, write: Write) -> dict[str, Any]:
        """Return the parameters of the statement that sends *write*."""
        key, text = write.workflow_key, self.state_type.stored(write.state_text)
        provenance = self._provenance_text(key, write.provenance)
        if write.version == 1:
            c = self.columns
            return {
                **self.keys.named(key),
                c.version.key: write.version,
                c.state.key: text,
                c.schema_version.key: write.schema_version,
                c.provenance.key: provenance,
            }
        parameters = {
            **self.keys.parameters(key),
            "wfs_expected_version": write.base.version,
            "wfs_state": text,
            "wfs_schema_version": write.schema_version,
            "wfs_provenance": provenance,
        }
        if write.base_effect_id is not None:
            parameters["wfs_base_effect_id"] = write.base_effect_id
        return parameters

    def create(self, connection: Connection, write: Write) -> Written | None:
        """Insert the row; return None if the key exists already."""
        creation = self.creation(profile_of(connection.dialect))
        row = first_row(connection, creation, self.parameters(write))
        return self._follow(connection, write, row)

    def inserted(self, connection: Connection, writes: Iterable[Write]) -> Any:
        """Insert rows, each with its own defaults; return the inserted ones."""
        rows = list(map(self.parameters, writes))
        parameters: Any = rows if len(rows) > 1 else rows[0]
        creation = self.creation(profile_of(connection.dialect))
        return connection.execute(creation, parameters)

    def creation(self, profile: EngineProfile) -> Any:
        """Return the INSERT of a row, unless its key exists."""
        if profile.name not in self._creations:
            creation = self.sql.creation(profile, self.constants())
            self._creations[profile.name] = creation
        return self._creations[profile.name]

    def _follow(self, connection: Connection, write: Write, row: Any) -> Written | None:
        if row is None:
            return None
        written = Written(row[0], row[1])
        if listeners_of(self.mapper):
            # The copy is for the caller: a commit listener may change its snapshot.
            commit = self.committed(write._replace(copy=None), written)
            follow(connection, self.mapper, [commit])
        return written

    def committed(
        self, write: Write, written: Written, *, attempts: int = 1
    ) -> StateCommitted[StateT]:
        """Return the outcome of a successful write."""
        snapshot = partial(self._written, write, written)
        version = written.version or write.version
        return StateCommitted(write.workflow_key, version, snapshot, attempts=attempts)

    def all_committed(
        self, batch: Batch, written: Mapping[Key, Written]
    ) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
        """Return the outcomes of a successful *batch*, *written* by key."""

        def snapshot(row: Any, written: Written) -> WorkflowSnapshot[StateT]:
            return self._written(Write._make(row), written)

        return [
            StateCommitted(
                row[0],
                written[row[0]].version or row[1],
                partial(snapshot, row, written[row[0]]),
            )
            for row in batch.rows()
        ]

    def _written(self, write: Write, written: Written) -> WorkflowSnapshot[StateT]:
        state = write.copy
        if state is None:
            # From the text: the caller may change its object after the commit.
            key: Any = write.workflow_key
            where = self.schema.name_of(write.schema_version, key)
            state = self.state_type.load(write.state_text, where=where)
        snapshot = WorkflowSnapshot(
            workflow_key=write.workflow_key,
            version=written.version or write.version,
            state=state,
            updated_at=written.updated_at,
            schema_version=write.schema_version,
            provenance=write.provenance,
        )
        return with_source(snapshot, self.table.fullname, write.state_text)

    def _provenance_text(self, workflow_key: Key, provenance: Provenance) -> str:
        text = text_of(provenance)
        if text is None or holds_nul(text):
            where = f"{self.entity} {workflow_key!r} provenance"
            text = self._provenance_type.codec.encode(provenance, where=where)
        return text

    def provenance_texts(
        self, workflow_keys: Sequence[Key], provenances: Sequence[Provenance]
    ) -> list[str]:
        """Return the JSON of *provenances*; PayloadError if one would change."""
        return list(map(self._provenance_text, workflow_keys, provenances))

    def constants(self) -> dict[Column[Any], Any]:
        """Return the constants of a new row of the class: its discriminator.

        Raises MappingError if an instance has columns in another table, or if its
        primary key has a column without a default.
        """
        if self.mapper.local_table is not self.table:
            raise MappingError(
                self.entity,
                "has columns in a second table, so try_commit cannot create a row; add "
                "an instance to a session instead",
            )
        missing = without_value(self.table)
        if missing is not None:
            raise MappingError(
                self.entity,
                f"the column {missing!r} of its primary key has no default, so "
                "try_commit cannot create a row; add an instance to a session "
                "instead, or give the column a default",
            )
        if self.mapper.polymorphic_on is None:
            return {}
        column: Any = self.mapper.polymorphic_on
        return {column: self.mapper.polymorphic_identity}


def snapshot_of(row: Sequence[Any]) -> WorkflowSnapshot[Any]:
    """Return the snapshot of a row with the CANONICAL_COLUMNS in their order."""
    return WorkflowSnapshot(**dict(zip(CANONICAL_COLUMNS, row, strict=True)))
