"""The SQL of one row: read, compare-and-set, create.

Each statement compares the columns of the key for equality. It is built once for each
class; constants are part of the text, not parameters. Parameters are named ``wfs_…``,
because SQLAlchemy takes one with the name of a column for its new value.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Table,
    bindparam,
    func,
    literal_column,
    select,
    true,
    update,
)

from .columns import column_of, columns_of, conflict_target
from .json_text import AsText, JSONText
from .types import PydanticJSON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Mapper

    from .engine_profiles import EngineProfile
    from .key_columns import KeyColumns


Lock = Literal[False, True, "no key", "no key nowait"]
LOCKS: Final[Mapping[Lock, dict[str, Any]]] = {
    True: {},
    "no key": {"key_share": True},
    "no key nowait": {"key_share": True, "nowait": True},
}
"""The options of with_for_update(), by the lock."""

CANONICAL_COLUMNS = (
    "workflow_key",
    "version",
    "state",
    "updated_at",
    "schema_version",
    "provenance",
)


class RowSQL:
    """The SQL for the rows of *mapper* in *table*, by code at *schema_version*."""

    def __init__(
        self, mapper: Mapper[Any], table: Table, keys: KeyColumns, schema_version: int
    ) -> None:
        self._mapper = mapper
        self._table = table
        self._keys = keys
        self._columns = columns_of(table)
        self._schema_version = schema_version
        self.own_rows = _own_rows(mapper)

    @cached_property
    def read(self) -> Any:
        """The statement that reads the canonical columns of rows."""
        columns = {**self._columns._asdict(), "workflow_key": self._keys.value}
        # As text, which a snapshot keeps; the reader knows the row.
        for name in ("state", "provenance"):
            columns[name] = AsText(columns[name]).label(name)
        return (
            select(*(columns[name] for name in CANONICAL_COLUMNS))
            .select_from(self._mapper.selectable)
            .where(self.own_rows)
        )

    @cached_property
    def read_one(self) -> Any:
        """The statement that reads the row of one key."""
        return self.read.where(self._keys.equal)

    @cached_property
    def lock_one(self) -> Any:
        """The statement that also locks it, but lets its key be referred to."""
        return self.read_one.with_for_update(key_share=True, of=self._table)

    @cached_property
    def lock_one_fully(self) -> Any:
        """The statement that locks it where there is no other lock."""
        return self.read_one.with_for_update()

    @cached_property
    def versions(self) -> Any:
        """The statement that reads the versions and effects of rows."""
        columns = (self._keys.value, self._columns.version, self._effect_id)
        return select(*columns).order_by(*self._keys.columns)

    @cached_property
    def _effect_id(self) -> ColumnElement[str]:
        return effect_id_of(self._table)

    @cached_property
    def _update(self) -> Any:
        c = self._columns
        expected = c.version == bindparam("wfs_expected_version")
        return (
            update(self._table)
            .where(self._keys.equal, expected, self.own_rows)
            .values(
                {
                    c.version: c.version + literal_column("1"),
                    c.updated_at: func.now(),
                    c.provenance: bindparam("wfs_provenance", type_=JSONText()),
                }
            )
            .returning(c.updated_at, c.version)
        )

    @cached_property
    def not_ahead(self) -> ColumnElement[bool]:
        """The criterion of PayloadSchema.is_ahead."""
        known: ColumnElement[int] = literal_column(str(self._schema_version))
        return self._columns.schema_version <= known

    @cached_property
    def swap(self) -> Any:
        """The UPDATE of a row at the expected version."""
        c = self._columns
        return self._update.where(self.not_ahead).values(
            {
                c.state: bindparam("wfs_state", type_=JSONText()),
                c.schema_version: self._written_as,
            }
        )

    @cached_property
    def swap_same(self) -> Any:
        """The UPDATE that also compares the effect that wrote the version."""
        return self.swap.where(self._same_effect)

    @cached_property
    def bump(self) -> Any:
        """The UPDATE of a row whose state is unchanged.

        The state must have the shape that would be written.
        """
        written = self._columns.schema_version == self._written_as
        return self._update.where(self._same_effect, written)

    @cached_property
    def _same_effect(self) -> ColumnElement[bool]:
        return self._effect_id == bindparam("wfs_base_effect_id")

    @property
    def _written_as(self) -> Any:
        return bindparam("wfs_schema_version", type_=Integer())

    @cached_property
    def beside(self) -> dict[str, Column[Any]]:
        """The application's own columns that an object loads, by attribute."""
        canonical = set(self._columns)
        return {
            name: column
            for name, column in self._mapper.columns.items()
            # A column_property() may be any expression.
            if isinstance(column, Column)  # type: ignore[redundant-expr]
            and not (column.primary_key or column in canonical)
            and not getattr(self._mapper.get_property(name), "deferred", False)
        }

    @cached_property
    def read_whole(self) -> Any:
        """The statement that also reads the columns of :attr:`beside`."""
        columns = (
            AsText(column) if isinstance(column.type, PydanticJSON) else column
            for column in self.beside.values()
        )
        named = zip(self.beside, columns, strict=True)
        labels = (each.label(f"wfs_{name}") for name, each in named)
        return self.read.add_columns(*labels)

    def creation(
        self, profile: EngineProfile, constants: Mapping[Column[Any], Any]
    ) -> Any:
        """Return the INSERT of a row with *constants*, unless its key exists."""
        c = self._columns
        insert = profile.insert(self._table)
        values: dict[Any, Any] = {
            **{column: bindparam(column.key) for column in self._keys.columns},
            c.version: bindparam(c.version.key),
            c.state: bindparam(c.state.key, type_=JSONText()),
            c.updated_at: func.now(),
            c.schema_version: bindparam(c.schema_version.key),
            c.provenance: bindparam(c.provenance.key, type_=JSONText()),
        }
        return (
            insert.values(values | dict(constants))
            .on_conflict_do_nothing(index_elements=conflict_target(self._table))
            .returning(c.updated_at, c.version, self._keys.value)
        )


def _own_rows(mapper: Mapper[Any]) -> ColumnElement[bool]:
    """Return the criterion for the rows of *mapper* in a table that it may share."""
    kind = mapper.polymorphic_on
    if mapper.inherits is None or mapper.concrete or kind is None:
        return true()
    identities = [each.polymorphic_identity for each in mapper.self_and_descendants]
    return kind.in_(identities)


def effect_id_of(table: Table) -> ColumnElement[str]:
    """Return the SQL of the effect id that wrote a row of *table*."""
    provenance = column_of(table, "provenance")
    effect_id: ColumnElement[str] = provenance["effect_id"].as_string()
    return effect_id
