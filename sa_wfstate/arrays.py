"""The statements of a workflow class that write many rows at once, from arrays.

::

    UPDATE orders SET version = …, state = …, updated_at = now(), …
    FROM unnest($1::TEXT[], $2::BIGINT[], $3::TEXT[], $4::INTEGER[], $5::TEXT[])
         AS new (key, expected, state, schema, provenance)
    WHERE orders.workflow_key = new.key AND orders.version = new.expected
    RETURNING orders.workflow_key, orders.updated_at
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Text,
    cast,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from .bound_arrays import BoundArray
from .row_sql import effect_id_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Mapper

    from .statements import Statements, Write

_ARRAYS: dict[str, Any] = {
    "key": Text(),
    "expected": BigInteger(),
    "state": Text(),
    "schema": Integer(),
    "provenance": Text(),
    "base": Text(),
}


class Arrays:
    """The statements of one entity that take arrays."""

    def __init__(self, statements: Statements[Any]) -> None:
        table = statements.table
        new = (
            func.unnest(
                *(BoundArray(f"new_{name}", type_) for name, type_ in _ARRAYS.items())
            )
            .table_valued(*(column(name, type_) for name, type_ in _ARRAYS.items()))
            .render_derived(name="new")
        )
        state = cast(new.c.state, JSONB())
        readable: ColumnElement[int] = literal_column(str(statements.schema.version))
        values = {
            "version": new.c.expected + literal_column("1"),
            "state": state,
            "updated_at": func.now(),
            "schema_version": new.c.schema,
            "provenance": cast(new.c.provenance, JSONB()),
        }
        returned = (table.c.workflow_key, table.c.updated_at)
        self.swap = (
            update(table)
            .where(
                table.c.workflow_key == new.c.key,
                table.c.version == new.c.expected,
                table.c.schema_version <= readable,
                or_(new.c.base.is_(None), new.c.base == effect_id_of(table)),
                # A state that is not sent stays, in the shape that it has.
                or_(new.c.state.is_not(None), table.c.schema_version == new.c.schema),
                statements.own_rows,
            )
            .values(values | {"state": func.coalesce(state, table.c.state)})
            .returning(*returned)
        )
        del values["updated_at"]
        self._new, self._values, self._returned = new, values, returned
        self._statements = statements

    @property
    def create(self) -> Any:
        """Insert rows; what exists is passed over."""
        table = self._statements.table
        constants = self._statements.constants()
        values = self._values | {k: literal(v) for k, v in constants.items()}
        return (
            insert(table)
            .from_select(
                ["workflow_key", *values], select(self._new.c.key, *values.values())
            )
            .on_conflict_do_nothing(index_elements=[table.c.workflow_key])
            .returning(*self._returned)
        )

    def execute(
        self, connection: Connection, statement: Any, writes: Sequence[Write]
    ) -> Sequence[tuple[str, datetime]]:
        """Send *statement* with the arrays of *writes*; return (key, updated_at)."""
        stored = self._statements.state_type.stored
        rows: Any = connection.execute(
            statement,
            {
                "new_key": [write.workflow_key for write in writes],
                "new_expected": [write.version - 1 for write in writes],
                "new_state": [
                    None
                    if write.unchanged and write.version > 1
                    else stored(write.state_text)
                    for write in writes
                ],
                "new_schema": [write.schema_version for write in writes],
                "new_provenance": self._texts(writes),
                "new_base": [write.base_effect_id for write in writes],
            },
        )
        written: Sequence[tuple[str, datetime]] = rows.all()
        return written

    def _texts(self, writes: Sequence[Write]) -> list[str]:
        """Dump each provenance once; a batch often has one for all."""
        texts: dict[int, str] = {}
        for write in writes:
            if id(write.provenance) not in texts:
                text = self._statements.provenance_text(write.provenance)
                texts[id(write.provenance)] = text
        return [texts[id(write.provenance)] for write in writes]


_arrays: WeakKeyDictionary[Mapper[Any], Arrays] = WeakKeyDictionary()


def arrays_of(statements: Statements[Any]) -> Arrays:
    """Return the array statements of an entity, built when they are first needed."""
    arrays = _arrays.get(statements.mapper)
    if arrays is None:
        arrays = _arrays[statements.mapper] = Arrays(statements)
    return arrays
