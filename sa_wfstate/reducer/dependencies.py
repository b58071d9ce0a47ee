"""Dependencies: read what a reducer names beside its state, and guard it at COMMIT.

The rows are read for each attempt, before the reducer is called. The transaction of the
commit locks them together with the row of the action, and compares their versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import MappingError, WorkflowNotFound
from ..orm.criteria import read_visible
from ..orm.entity import statements_of
from ..payload.dependencies import DependentReducer
from ..store.row_guards import GuardedRow, check_rows
from ..values.row_version import RowVersion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from ..errors import StateConflict
    from ..payload.dependencies import Named
    from ..row.statements import Statements
    from ..store.connections import Connections
    from ..values.keys import Key
    from ..values.snapshot import WorkflowSnapshot
    from .action_batch import ActionBatch


_NAMED = "was named by depends_on(); name workflows that exist"


class Dependencies:
    """Read and guard the rows that the reducer of a service depends on.

    *statements* are those of the class of the service.
    """

    def __init__(self, statements: Statements[Any], connections: Connections) -> None:
        self._statements = statements
        self._connections = connections

    def read(
        self, batch: ActionBatch, named: Iterable[Named]
    ) -> list[WorkflowSnapshot[Any]]:
        """Read the rows *named* for an action of *batch*, which then guards them."""
        wanted: list[tuple[Statements[Any], Key]] = []
        for entity, key in named:
            statements = statements_of(entity)
            wanted.append((statements, statements.key_type.parse(entity.__name__, key)))
        found: dict[tuple[Statements[Any], Key], WorkflowSnapshot[Any]] = {}
        for statements in dict.fromkeys(statements for statements, _ in wanted):
            keys = list({key for each, key in wanted if each is statements})
            found |= self._read(statements, keys)
        for statements, key in wanted:
            if (statements, key) not in found:
                raise WorkflowNotFound(statements.entity, key, _NAMED)
        for row, snapshot in found.items():
            seen = RowVersion(snapshot.version, snapshot.provenance.effect_id)
            # Of several actions the first one counts: it was decided on that.
            batch.guards.setdefault(row, seen)
        return [found[row] for row in wanted]

    def check(self, connection: Connection, batch: ActionBatch) -> StateConflict | None:
        """Lock what *batch* guards, and its own row; return the conflict, if any."""
        if not batch.guards:
            return None
        return check_rows(self._rows(connection, batch))

    def _read(
        self, statements: Statements[Any], keys: list[Key]
    ) -> Iterator[tuple[tuple[Statements[Any], Key], WorkflowSnapshot[Any]]]:
        connections = self._connections.of(statements.mapper)
        for shard in connections.by_shard(keys):
            of_shard = [keys[index] for index in shard]
            with connections.autocommit(of_shard) as connection:
                session = connections.filtering(connection)
                rows = read_visible(connection, statements, of_shard, session)
            for key, snapshot in rows.items():
                yield (statements, key), snapshot

    def _rows(self, connection: Connection, batch: ActionBatch) -> Iterator[GuardedRow]:
        for (statements, key), seen in batch.guards.items():
            if not self._connections.reaches(connection, statements.mapper, [key]):
                raise MappingError(
                    statements.entity,
                    f"is in another database than {self._statements.entity}, whose "
                    "reducer depends on it; one COMMIT guards rows of one database",
                )
            yield GuardedRow(connection, statements, key, seen, written=False)
        row = batch.baseline.row
        yield GuardedRow(connection, self._statements, batch.key, row, written=True)


def dependencies_of(reducer: Any) -> Any:
    """Return the function that names what *reducer* depends on, None if it has none."""
    return reducer.dependencies if isinstance(reducer, DependentReducer) else None
