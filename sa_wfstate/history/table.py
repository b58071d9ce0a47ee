"""The table of a history, and the commit listener that adds its rows.

The state is copied inside the database, so it is sent once::

    INSERT INTO order_history (workflow_key, version, committed_at, …)
    SELECT workflow_key, version, clock_timestamp(), … FROM orders
    WHERE workflow_key IN ('order-42')
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Integer,
    Table,
    Text,
    bindparam,
    insert,
    inspect,
    select,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, Mapper, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from ..commit_listeners import attach, lineage_of
from ..errors import MappingError
from ..orm.entity import statements_of
from ..orm.mixin import WorkflowStateMixin
from ..row.chunks import chunks
from ..row.columns import columns_of
from ..row.engine_profiles import profile_of
from ..row.keys import StoredKey
from ..row.sql import effect_id_of
from ..row.types import PydanticJSON
from ..values.provenance import Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.sql.compiler import SQLCompiler

    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.snapshot import StateCommitted


class HistoryMixin:
    """The columns of a history table, for your own mapped class."""

    workflow_key: Mapped[str] = mapped_column(Text, primary_key=True, sort_order=-60)
    version: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, sort_order=-50
    )
    committed_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), primary_key=True, sort_order=-40
    )
    """When the version was written, by the server's clock; later for later versions."""

    state: Mapped[Any] = mapped_column(
        PydanticJSON(Any), nullable=False, sort_order=-30
    )
    schema_version: Mapped[int] = mapped_column(Integer, sort_order=-20)
    provenance: Mapped[Provenance] = mapped_column(
        PydanticJSON(Provenance), sort_order=-10
    )


class _Clock(FunctionElement[datetime]):
    """The current time, not the start of the transaction, which now() returns.

    It orders the versions of a workflow, since the row was locked in between.
    """

    inherit_cache = True
    type = DateTime(timezone=True)


@compiles(_Clock)
def _now(_: _Clock, compiler: SQLCompiler, **__: object) -> str:
    has_clock = profile_of(compiler.dialect).is_postgresql
    return "clock_timestamp()" if has_clock else "CURRENT_TIMESTAMP"


class _HistoryListener:
    """Copies rows into the history in the transaction of their commit."""

    def __init__(self, statements: Statements[Any], history: Table) -> None:
        source = statements.table
        names = ["workflow_key", "version", "state", "schema_version", "provenance"]
        columns = columns_of(source)._asdict()
        self._stored = StoredKey(statements.key_type, history.c.workflow_key)
        rows = select(
            *(
                type_coerce(columns[name], history.c[name].type.impl_instance)  # type: ignore[attr-defined]
                if name in {"state", "provenance"}
                else columns[name] - bindparam("behind", type_=BigInteger())
                if name == "version"
                else statements.keys.stored(self._stored)
                if name == "workflow_key"
                else columns[name]
                for name in names
            ),
            _Clock(),
        )
        self._history = history
        self._keys = statements.keys
        self._copy = partial(insert(history).from_select, [*names, "committed_at"])
        self._rows = rows
        # Built once where the keys can be the values of one parameter.
        self._built = None
        if not self._keys.type.parts:
            own = columns["workflow_key"].in_(bindparam("keys", expanding=True))
            self._built = self._copy(rows.where(own))
        defaults = (column.default for column in history.c)
        self._singly = any(each is not None and each.is_callable for each in defaults)

    def written(
        self,
        connection: Connection,
        commits: Sequence[StateCommitted[Any]],
        behind: int = 0,
    ) -> None:
        keys = [commit.workflow_key for commit in commits]
        # A default in Python would be called once for all rows.
        for some in [[key] for key in keys] if self._singly else chunks(keys):
            copy, parameters = self._copy_of(some)
            connection.execute(copy, {**parameters, "behind": behind})

    def _copy_of(self, keys: Sequence[Key]) -> tuple[Any, dict[str, Any]]:
        """Return the INSERT for *keys*, and the parameters that name them."""
        if self._built is not None:
            return self._built, {"keys": keys}
        return self._copy(self._rows.where(self._keys.among(keys))), {}

    def passed(
        self, connection: Connection, commits: Sequence[StateCommitted[Any]]
    ) -> None:
        """Add rows that differ from the current ones in the version only."""
        self.written(connection, commits, behind=1)

    def deleted(self, connection: Connection, workflow_keys: Sequence[Key]) -> None:
        """Do nothing: a deleted workflow keeps its history."""

    def keeps(
        self, connection: Connection, workflow_key: Key, effect_ids: Sequence[str]
    ) -> bool:
        """Return whether one of *effect_ids* wrote a version in the history."""
        history = self._history
        written = select(history.c.version).where(
            history.c.workflow_key == self._stored.store(workflow_key),
            effect_id_of(history).in_(effect_ids),
        )
        return connection.execute(written).first() is not None


_histories: WeakKeyDictionary[Mapper[Any], Table] = WeakKeyDictionary()


def keep_history(
    entity: type[WorkflowStateMixin[Any]], history: type[HistoryMixin]
) -> None:
    """Keep every version of *entity*, and of its subclasses, in the table of *history*.

    Call it once, next to the definition of the classes. Raises MappingError if *entity*
    has a history already.
    """
    statements = statements_of(entity)
    if find_history(statements.mapper) is not None:
        raise MappingError(statements.entity, "has a history already")
    table = inspect(history).local_table
    assert isinstance(table, Table)  # noqa: S101
    _histories[statements.mapper] = table
    attach(entity, _HistoryListener(statements, table))


def find_history(mapper: Mapper[Any]) -> Table | None:
    """Return the history table of the class of *mapper*, None if it has none."""
    found = (_histories.get(each) for each in lineage_of(mapper))
    return next((table for table in found if table is not None), None)


def history_of(statements: Statements[Any]) -> Table:
    """Return the history table of an entity; raise MappingError if it has none."""
    table = find_history(statements.mapper)
    if table is None:
        raise MappingError(statements.entity, "has no history; see keep_history()")
    return table
