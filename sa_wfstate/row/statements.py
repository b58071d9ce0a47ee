"""Read and write the rows of a workflow class by Core statements, each built once.

All writes of rows outside the unit of work are here: compare-and-set, create.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..commit_listeners import follow, listeners_of
from ..errors import MappingError
from ..payload.canonical import holds_nul
from ..values.provenance import text_of
from ..values.snapshot import StateCommitted, WorkflowSnapshot, with_source
from ..values.write import Write, Written
from .columns import without_value
from .direct import first_row
from .engine_profiles import profile_of
from .reads import Reads, StateT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Column, Connection
    from sqlalchemy.orm import Mapper

    from ..errors import StateConflict
    from ..payload.batch import BatchCodec
    from ..values.keys import Key
    from ..values.provenance import Provenance
    from ..values.write import Batch
    from .engine_profiles import EngineProfile


class Statements(Reads[StateT]):
    """The statements of one entity."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        super().__init__(mapper)
        self._creations: dict[str, Any] = {}

    @property
    def batch_codec(self) -> BatchCodec[StateT]:
        """The codec for many states at once."""
        return self.state_type.batch_codec

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
            text = self.provenance_type.codec.encode(provenance, where=where)
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
