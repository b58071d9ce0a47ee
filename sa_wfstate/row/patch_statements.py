"""The statements of patches: each is built once for a class and a shape."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from ..payload.separate import SeparateParts
from .arrays import bound_table, of_keys
from .json_text import AsText, JSONText
from .patch_sql import parameters_of, patched, places
from .sql import effect_id_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper

    from .edits import EditShape
    from .statements import Statements


Shapes = tuple["EditShape", ...]


class PatchShape(NamedTuple):
    """The edits of a patch, and what it expects of the row."""

    edits: Shapes
    versioned: bool
    of_effect: bool


class PatchStatements:
    """The statements for patches of one entity."""

    def __init__(self, statements: Statements[Any]) -> None:
        self._statements = statements
        self._table = statements.table
        self._columns = c = statements.columns
        self._effect_id = effect_id_of(statements.table)
        self._keys = statements.keys
        current: ColumnElement[int] = literal_column(str(statements.schema.version))
        self._same_shape = c.schema_version == current
        self._built: dict[Any, Any] = {}

    def update(self, shape: PatchShape, when: ColumnElement[bool] | None) -> Any:
        """Return the UPDATE that applies a patch and returns the new state."""
        return self._if("update", shape, self._update, when)

    @cached_property
    def parts(self) -> SeparateParts:
        """The parts of a state that may be changed without validating it."""
        return SeparateParts(self._statements.state_type.codec.schema)

    def update_safely(self, shape: PatchShape, when: ColumnElement[bool] | None) -> Any:
        """Return the UPDATE of a row in which each edit finds its place."""
        return self._if("update_safely", shape, self._update_safely, when)

    def look(self, shape: PatchShape, when: ColumnElement[bool] | None) -> Any:
        """Return the SELECT that locks the row and returns what its state would be."""
        return self._if("look", shape, self._look, when)

    def write(self, shape: PatchShape) -> Any:
        """Return the UPDATE of a row that was locked and looked at."""
        return self._once("write", shape, self._write)

    def found(self, when: ColumnElement[bool] | None) -> Any:
        """Return the SELECT of the row, and of whether *when* is met in it."""
        met: ColumnElement[Any] = literal_column("true")
        if when is not None:
            met = and_(literal_column("true"), when)
        return self._statements.sql.read_one.add_columns(met.label("wfs_met"))

    def look_many(
        self, edits: Shapes, when: ColumnElement[bool] | None, *, lock: bool = True
    ) -> Any:
        """Return the SELECT for many rows that locks them and returns new states.

        Without *lock* they must be locked already.
        """
        if not lock:
            return self._if("read_many", edits, self._read_many, when)
        return self._if("look_many", edits, self._look_many, when)

    def write_many(self, edits: Shapes) -> Any:
        """Return the UPDATE of many rows that were locked and looked at."""
        return self._once("write_many", edits, self._write_many)

    def _once(self, name: str, shape: Any, build: Any) -> Any:
        place = name, shape
        if place not in self._built:
            self._built[place] = build(shape)
        return self._built[place]

    def _if(
        self, name: str, shape: Any, build: Any, when: ColumnElement[bool] | None
    ) -> Any:
        """Return the statement for rows of the current shape that meet *when*."""
        if when is None:
            built = partial(self._if_current, build)
            return self._once(f"{name} without when", shape, built)
        statement = self._once(name, shape, build)
        # Alone, an expression of a mapped class would make an ORM statement of it.
        return statement.where(and_(self._same_shape, when))

    def _if_current(self, build: Any, shape: Any) -> Any:
        return build(shape).where(self._same_shape)

    def _where(self, shape: PatchShape) -> list[ColumnElement[bool]]:
        where = [self._keys.equal, self._statements.own_rows]
        if shape.versioned:
            where.append(self._columns.version == bindparam("wfs_expected_version"))
        if shape.of_effect:
            where.append(self._effect_id == bindparam("wfs_base_effect_id"))
        return where

    def _update(self, shape: PatchShape) -> Any:
        c = self._columns
        return (
            update(self._table)
            .where(*self._where(shape))
            .values(self._assigned(self._patched(shape.edits), _provenance()))
            .returning(c.updated_at, c.version, AsText(c.state))
        )

    def _update_safely(self, shape: PatchShape) -> Any:
        state = self._columns.state
        return self._update(shape).where(*places(state, shape.edits, _edit_value))

    def _look(self, shape: PatchShape) -> Any:
        return (
            select(
                self._columns.version,
                self._effect_id,
                AsText(self._patched(shape.edits)),
            )
            .where(*self._where(shape))
            .with_for_update(key_share=True)
        )

    def _write(self, shape: PatchShape) -> Any:
        c = self._columns
        return (
            update(self._table)
            .where(self._keys.equal, c.version == bindparam("wfs_version"))
            .values(self._assigned(self._patched(shape.edits), _provenance()))
            .returning(c.updated_at, c.version)
        )

    def _assigned(self, state: ColumnElement[Any], provenance: Any) -> dict[Any, Any]:
        c = self._columns
        return {
            c.state: state,
            c.version: c.version + literal_column("1"),
            c.updated_at: func.now(),
            c.provenance: provenance,
        }

    def _patched(self, edits: Shapes, rows: Any = None) -> ColumnElement[Any]:
        parameter = _edit_value if rows is None else rows.c.__getitem__
        return patched(self._columns.state, edits, parameter)

    def _rows(self, edits: Shapes, **more: Any) -> Any:
        values = dict.fromkeys(parameters_of(edits), Text())
        return bound_table({**self._keys.types(), **more, **values})

    def _look_many(self, edits: Shapes) -> Any:
        rows = self._read_many(edits).order_by(*self._keys.columns)
        return rows.with_for_update(key_share=True, of=self._table)

    def _read_many(self, edits: Shapes) -> Any:
        c = self._columns
        new = self._rows(edits, expected=BigInteger(), base=Text())
        return (
            select(
                self._keys.value,
                c.version,
                self._effect_id,
                AsText(self._patched(edits, new)),
            )
            .join(new, of_keys(*self._keys.pairs(new)))
            .where(
                self._statements.own_rows,
                or_(new.c.expected.is_(None), c.version == new.c.expected),
                or_(new.c.base.is_(None), self._effect_id == new.c.base),
            )
        )

    def _write_many(self, edits: Shapes) -> Any:
        c = self._columns
        new = self._rows(edits, version=BigInteger(), provenance=Text())
        return (
            update(self._table)
            .where(of_keys(*self._keys.pairs(new)), c.version == new.c.version)
            .values(
                self._assigned(
                    self._patched(edits, new), cast(new.c.provenance, JSONB())
                )
            )
            .returning(self._keys.value, c.updated_at, c.version)
        )


def _edit_value(name: str) -> ColumnElement[Any]:
    return bindparam(f"wfs_{name}", type_=Text())


def _provenance() -> Any:
    return bindparam("wfs_provenance", type_=JSONText())


_built: WeakKeyDictionary[Mapper[Any], PatchStatements] = WeakKeyDictionary()


def patch_statements_of(statements: Statements[Any]) -> PatchStatements:
    """Return the statements for patches of an entity, built on first use."""
    built = _built.get(statements.mapper)
    if built is None:
        built = _built[statements.mapper] = PatchStatements(statements)
    return built
