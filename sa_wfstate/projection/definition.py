"""Projection: a row per workflow to query by, made from its snapshot by a function.

::

    class OrderProjection(ProjectionMixin, Base):
        __tablename__ = "order_projection"
        total: Mapped[Decimal]


    def project(order: WorkflowSnapshot[OrderState]) -> Mapping[str, Any]:
        return {
            "tag": order.state.status,
            "namespace": "shop",
            "total": order.state.total,
        }


    orders = Projection(Order, OrderProjection, project)

A projection is kept in one of two ways. *Inline*, ``orders.keep_inline()``: each commit
writes the row in its own transaction, so the row is never behind, and each commit is
slower. *Materialized*: a :class:`~sa_wfstate.projection.ProjectionWorker` follows the
commits, at no cost to them. Either way each row holds its version, and
:class:`~sa_wfstate.projection.ProjectionStore` waits for the one that a reader
requires.

A row is replaced by one of a newer version only, never by an older one. So writers may
be late, write twice, or run concurrently.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 (SQLAlchemy reads the annotation)
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Table,
    Text,
    delete,
    func,
    inspect,
)
from sqlalchemy.orm import Mapped, mapped_column

from ..commit_listeners import attach
from ..errors import MappingError
from ..orm.entity import statements_of
from ..row.chunks import chunks
from ..row.engine_profiles import profile_of
from ..row.keys import StoredKey
from ..row.names import check_texts, naming_rows
from ..row.types import PydanticJSON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..row.engine_profiles import EngineProfile
    from ..store.api import Entity
    from ..values.keys import Key
    from ..values.snapshot import StateCommitted, WorkflowSnapshot


StateT = TypeVar("StateT")

_OURS = frozenset({"workflow_key", "version", "updated_at"})
"""The columns that the function does not set."""


class ProjectionMixin:
    """The columns of a projection, for a mapped class of the application's own.

    Its further columns, typed and indexed as the queries need them, are filled by the
    same function.
    """

    workflow_key: Mapped[str] = mapped_column(Text, primary_key=True, sort_order=-80)
    version: Mapped[int] = mapped_column(BigInteger, sort_order=-70)
    """The version of the workflow that the row was made from."""

    tag: Mapped[str] = mapped_column(Text, sort_order=-60)
    """The status of the workflow, in one word."""

    last_action: Mapped[str | None] = mapped_column(Text, sort_order=-50)
    namespace: Mapped[str] = mapped_column(Text, sort_order=-40)
    """The group that the workflow belongs to."""

    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True),
        server_default=func.now(),
        onupdate=func.now(),
        sort_order=-30,
    )
    """When the row itself was written, by the server's clock."""

    indices: Mapped[dict[str, Any] | None] = mapped_column(
        PydanticJSON(dict[str, Any]), sort_order=-20
    )
    extras: Mapped[dict[str, Any] | None] = mapped_column(
        PydanticJSON(dict[str, Any]), sort_order=-10
    )


class Projection(Generic[StateT]):
    """A table, and the function that makes its rows from the snapshots of *entity*.

    *function* returns the values of the columns by name: ``tag`` and ``namespace`` at
    least; other columns that it omits become NULL. It must depend on the snapshot only,
    since a row may be made again at any time.
    """

    def __init__(
        self,
        entity: Entity[StateT],
        projection: type[ProjectionMixin],
        function: Callable[[WorkflowSnapshot[StateT]], Mapping[str, Any]],
    ) -> None:
        self.statements = statements_of(entity)
        self.entity = entity
        table = inspect(projection).local_table
        assert isinstance(table, Table)  # noqa: S101
        self.table = table
        self.stored_key = StoredKey(self.statements.key_type, table.c.workflow_key)
        self._row_class = projection.__name__
        self._function = function
        self._names = [c.key for c in table.c if c.key not in _OURS]
        self._upserts: dict[tuple[str, str], Any] = {}
        self._attached = False

    @property
    def name(self) -> str:
        """The name of the table, with its schema; watermarks are kept under it."""
        return self.table.fullname

    def keep_inline(self) -> None:
        """Write the row in the transaction of each commit of the class from now on.

        Rows of workflows that were committed before are made by ``rebuild()``.
        """
        if not self._attached:
            attach(self.entity, self)
            self._attached = True

    def row(self, snapshot: WorkflowSnapshot[StateT]) -> dict[str, Any]:
        """Make the row of *snapshot*; raise MappingError if it fits no column.

        Raises PayloadError if it holds text that PostgreSQL cannot store.
        """
        values = self._function(snapshot)
        unknown = values.keys() - self._names
        if unknown:
            raise MappingError(
                self.statements.entity,
                f"its projection cannot set {', '.join(sorted(unknown))} of "
                f"{self.name!r}, it sets {', '.join(self._names)}",
            )
        row = {
            "workflow_key": self.stored_key.store(snapshot.workflow_key),
            "version": snapshot.version,
            **{name: values.get(name) for name in self._names},
        }
        check_texts(self._row_class, row)
        return row

    def write(
        self,
        connection: Connection,
        rows: Iterable[Mapping[str, Any]],
        *,
        over: Literal["any", "older", "same"],
    ) -> set[Key]:
        """Insert *rows*, or update rows of another version; return the keys written.

        *over* tells which rows are replaced: those of any version, of an older one, or
        of an older one or the same.
        """
        # In the order of the keys, or two of these could wait for each other.
        ordered = sorted(rows, key=lambda row: row["workflow_key"])
        if not ordered:
            return set()
        upsert = self._upsert(profile_of(connection.dialect), over)
        with naming_rows(self._row_class, self.table, ordered):
            written = connection.execute(upsert, ordered).scalars()
            return set(map(self.stored_key.load, written))

    def _upsert(self, profile: EngineProfile, over: str) -> Any:
        if (profile.name, over) not in self._upserts:
            table = self.table
            insert = profile.insert(table)
            theirs = insert.excluded
            changes = {name: theirs[name] for name in ("version", *self._names)}
            older = table.c.version < theirs.version
            same = table.c.version <= theirs.version
            self._upserts[profile.name, over] = insert.on_conflict_do_update(
                index_elements=[table.c.workflow_key],
                # Not now(): an engine may refuse functions here.
                set_={**changes, "updated_at": theirs.updated_at},
                where={"any": None, "older": older, "same": same}[over],
            ).returning(table.c.workflow_key)
        return self._upserts[profile.name, over]

    def remove(self, connection: Connection, workflow_keys: Sequence[Key]) -> None:
        """Delete the rows of *workflow_keys*."""
        table = self.table
        for keys in chunks(list(map(self.stored_key.store, workflow_keys))):
            connection.execute(delete(table).where(table.c.workflow_key.in_(keys)))

    # A commit listener holds the lock of each workflow's row, so it writes the latest
    # version, also of a re-created row, whose versions start at 1.

    def written(
        self, connection: Connection, commits: Sequence[StateCommitted[Any]]
    ) -> None:
        """Follow *commits*, as a commit listener."""
        rows = [self.row(commit.snapshot) for commit in commits]
        self.write(connection, rows, over="any")

    def passed(
        self, connection: Connection, commits: Sequence[StateCommitted[Any]]
    ) -> None:
        """Do nothing: only the last commit of a row counts."""

    def deleted(self, connection: Connection, workflow_keys: Sequence[Key]) -> None:
        """Follow a deletion, as a commit listener."""
        self.remove(connection, workflow_keys)
