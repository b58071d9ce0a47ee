"""Patch many workflows at once: two statements for each chunk of one shape.

First all rows are locked, in the order of their keys, and what their states would be is
read and validated; then they are written. So a result that is refused writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..errors import PayloadError, StateConflict, WriteSuppressed
from ..orm.criteria import filtering, visible
from ..orm.entity import statements_of
from ..orm.routing import by_shard
from ..row.chunks import chunks
from ..row.columns import evaluates
from ..row.edits import Edit
from ..row.engine_profiles import profile_on
from ..row.patch_sql import parameters_of
from ..row.patch_statements import patch_statements_of
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted
from ..values.write import Batch, Write, Written
from .api import Entity, connection_of
from .compare_and_set import refused
from .instances import adopt, held_instances
from .patch_checks import check_condition, prepare_patch
from .patch_row import (
    follow_patches,
    missing,
    patch_row,
    require_postgresql,
    write_of,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from ..row.patch_statements import Shapes
    from ..row.statements import Statements
    from ..values.keys import Key
    from .patch_checks import Prepared


StateT = TypeVar("StateT")


@dataclass(slots=True)
class Patch:
    """One patch of a batch; see :func:`try_patch` for its fields."""

    workflow_key: Key
    edits: Sequence[Edit]
    _: KW_ONLY
    provenance: Provenance | Mapping[str, Any]
    expected_version: int | RowVersion | None = None


def try_patch_many(
    session: Session,
    entity: Entity[StateT],
    patches: Iterable[Patch],
    *,
    when: ColumnElement[bool] | None = None,
) -> list[StateCommitted[StateT] | StateConflict[StateT]]:
    """Apply each of *patches* whose row meets *when* and has its expected version.

    Returns one outcome per patch, in the order given; each wins or loses by itself. For
    each 1,000 rows with edits of one shape, two statements are sent, and one for each
    row that was not written. Otherwise it behaves as :func:`try_patch`, also in what it
    raises: nothing is written then.

    A key that is given twice raises PayloadError before any SQL is sent.
    """
    statements, patches = statements_of(entity), list(patches)
    prepared = prepare_patches(statements, patches, when)
    if not patches:
        return []
    held = held_instances(session, statements.mapper, prepared)
    outcomes: dict[Key, Any] = {}
    keys = list(prepared)
    for indices in by_shard(session, statements.mapper, keys):
        own = {keys[index]: prepared[keys[index]] for index in indices}
        connection = connection_of(session, statements, list(own))
        batch = PatchBatch(connection, statements, own, when, filtering(session))
        try:
            writes, made = batch.send()
        except DBAPIError as error:
            lost = {key: patch.expected_version for key, patch in own.items()}
            conflict = refused(statements, lost, error)
            if conflict is None:
                raise
            raise conflict from error
        won = [made[write.workflow_key] for write in writes]
        adopt(session, connection, statements, Batch.of(writes), won, held)
        outcomes |= made
    return [outcomes[key] for key in prepared]


def prepare_patches(
    statements: Statements[Any],
    patches: Iterable[Patch],
    when: ColumnElement[bool] | None,
) -> dict[Key, Prepared]:
    """Return *patches* by key, in the order given, after what needs no database.

    Raises PayloadError if they cannot be sent.
    """
    prepared: dict[Key, Prepared] = {}
    for each in patches:
        patch = prepare_patch(
            statements,
            each.workflow_key,
            each.edits,
            each.provenance,
            each.expected_version,
        )
        if patch.workflow_key in prepared:
            problem = "is given twice; give all edits of a workflow in one patch"
            raise PayloadError(statements.entity, "workflow_key", problem)
        prepared[patch.workflow_key] = patch
    check_condition(statements, when)
    return prepared


class PatchBatch:
    """The patches of one transaction, by key."""

    def __init__(
        self,
        connection: Connection,
        statements: Statements[Any],
        patches: Mapping[Key, Prepared],
        when: ColumnElement[bool] | None,
        session: Session | None,
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._patches = patches
        self._when = when
        self._session = session

    def send(self) -> tuple[list[Write], dict[Key, Any]]:
        """Return what was written, and the outcome of each patch."""
        require_postgresql(self._connection, self._statements)
        outcomes: dict[Key, Any] = {}
        keys = sorted(self._patches)
        if self._session is not None:
            seen = visible(self._session, self._statements, keys, lock=True)
            hidden = [key for key in keys if key not in seen]
            outcomes |= {k: missing(self._statements, self._patches[k]) for k in hidden}
            keys = [key for key in keys if key in seen]
        groups: dict[Shapes, list[Key]] = {}
        # A callable onupdate would be called once for all rows.
        if len(keys) > 1 and not evaluates(self._statements.table, inserting=False):
            for key in keys:
                groups.setdefault(self._patches[key].shape.edits, []).append(key)
        locked = bool(groups) and not profile_on(self._connection).locks_many
        if locked:
            # Citus allows the subqueries of several edits for one key only.
            groups = {edits: of for edits, of in groups.items() if len(edits) == 1}
        if locked or len(groups) > 1:
            self._statements.versions(self._connection, keys, lock=True)
        writes: dict[Key, Write] = {}
        for shapes, of_shape in groups.items():
            for chunk in chunks(of_shape):
                writes |= self._look(shapes, chunk, lock=not locked)
        written = list(self._write(groups, writes))
        follow_patches(self._connection, self._statements, written)
        outcomes |= {
            write.workflow_key: self._statements.committed(write, row)
            for write, row in written
        }
        done = [write for write, _ in written]
        for key in keys:
            if key not in outcomes:
                write, outcomes[key] = self._alone(key)
                done += [] if write is None else [write]
        return done, outcomes

    def _alone(self, key: Key) -> tuple[Write | None, Any]:
        """Send a patch by itself, which tells why it loses."""
        return patch_row(
            self._connection,
            self._statements,
            self._patches[key],
            self._when,
            session=None,
            own=False,
        )

    def _look(
        self, shapes: Shapes, keys: Sequence[Key], *, lock: bool
    ) -> dict[Key, Write]:
        """Lock rows, and return what is to be written to them."""
        sql = patch_statements_of(self._statements)
        statement = sql.look_many(shapes, self._when, lock=lock)
        expected = [self._patches[key].expected or (None, None) for key in keys]
        parameters = self._arrays(shapes, keys) | {
            "wfs_expected": [version for version, _ in expected],
            "wfs_base": [effect_id for _, effect_id in expected],
        }
        rows = self._connection.execute(statement, parameters).all()
        return {
            key: write_of(
                self._statements, self._patches[key], version + 1, text, effect_id
            )
            for key, version, effect_id, text in rows
        }

    def _write(
        self, groups: dict[Shapes, list[Key]], writes: dict[Key, Write]
    ) -> Iterable[tuple[Write, Written]]:
        for shapes, of_shape in groups.items():
            for chunk in chunks([key for key in of_shape if key in writes]):
                yield from self._write_chunk(shapes, chunk, writes)

    def _write_chunk(
        self, shapes: Shapes, keys: Sequence[Key], writes: dict[Key, Write]
    ) -> Iterable[tuple[Write, Written]]:
        statement = patch_statements_of(self._statements).write_many(shapes)
        provenances = [writes[key].provenance for key in keys]
        parameters = self._arrays(shapes, keys) | {
            "wfs_version": [writes[key].base.version for key in keys],
            "wfs_provenance": self._statements.provenance_texts(keys, provenances),
        }
        found = {
            key: Written(updated_at, version)
            for key, updated_at, version in self._connection.execute(
                statement, parameters
            )
        }
        for key in keys:
            if key not in found:
                version = writes[key].base.version
                raise WriteSuppressed(self._statements.entity, key, version)
            yield writes[key], found[key]

    def _arrays(self, shapes: Shapes, keys: Sequence[Key]) -> dict[str, Any]:
        """Return the values of the edits, as arrays."""
        arrays: dict[str, Any] = {
            f"wfs_{name}": [self._patches[key].values[name] for key in keys]
            for name in parameters_of(shapes)
        }
        return arrays | self._statements.keys.arrays(keys)
