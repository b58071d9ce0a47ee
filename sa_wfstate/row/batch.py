"""Statements of a workflow class that write many rows at once, from arrays.

::

    WITH written AS (
        UPDATE orders SET version = …, state = …, updated_at = now(), …
        FROM unnest($1::TEXT[], $2::BIGINT[], $3::TEXT[], $4::TEXT[])
             AS new (key, expected, state, provenance)
        WHERE orders.workflow_key = new.key AND orders.version = new.expected
          AND orders.workflow_key = ANY ($1)
        RETURNING orders.workflow_key, orders.updated_at
    )
    SELECT count(*), min(updated_at), …

If all rows of a batch are written at the same time, the answer is their count and that
time. Otherwise it also lists the keys that were written. A value that is the same for
all rows is not sent as an array, and one that no row needs is not sent.

The keys are compared with the array too, beside the join: by that PostgreSQL leaves out
the partitions without any of them. It would lock those on other servers as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from ..values.write import Written
from .arrays import bound_table, of_keys
from .columns import columns_of, conflict_target
from .sql import effect_id_of

if TYPE_CHECKING:
    from sqlalchemy import CTE
    from sqlalchemy.orm import Mapper

    from ..values.keys import Key
    from ..values.write import Batch
    from .statements import Statements


_FIRST: Final[ColumnElement[int]] = literal_column("1")


class Shape(NamedTuple):
    """The properties that the rows of one statement share."""

    swaps: bool
    creates: bool
    based: bool
    """A write names the effect that it replaces, and may keep the state."""

    one_provenance: bool

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Return the shape of the statement that writes *batch*."""
        one = batch.provenances[0]
        return cls(
            swaps=any(version > 1 for version in batch.versions),
            creates=1 in batch.versions,
            based=any(batch.base_effect_ids),
            one_provenance=all(each is one for each in batch.provenances),
        )


class Arrays:
    """The array statements of one entity."""

    def __init__(self, statements: Statements[Any]) -> None:
        self._statements = statements
        self._built: dict[Shape, Any] = {}

    def write(self, connection: Connection, batch: Batch) -> dict[Key, Written]:
        """Send *batch*; return the written rows by key."""
        shape = Shape.of(batch)
        if shape not in self._built:
            self._built[shape] = answer_of(self.written(shape))
        parameters = self.parameters(shape, batch)
        return written_of(batch, connection.execute(self._built[shape], parameters))

    def parameters(self, shape: Shape, batch: Batch) -> dict[str, Any]:
        """Return the parameters of the statement that writes *batch*."""
        stored = self._statements.schema.write
        provenances = batch.provenances[:1] if shape.one_provenance else None
        texts = self._statements.provenance_texts(
            batch.workflow_keys, provenances or batch.provenances
        )
        parameters: dict[str, Any] = {
            "wfs_rows": len(batch),
            **self._statements.keys.arrays(batch.workflow_keys),
            "wfs_state": [stored(text) for text in batch.state_texts],
            "wfs_schema": batch.schema_versions[0],
            "wfs_provenance": texts[0] if shape.one_provenance else texts,
        }
        if shape.swaps:
            parameters["wfs_expected"] = [version - 1 for version in batch.versions]
        if shape.based:
            parameters["wfs_base"] = list(batch.base_effect_ids)
            for index, unchanged in enumerate(batch.unchanged):
                if unchanged:
                    parameters["wfs_state"][index] = None
        return parameters

    def written(
        self, shape: Shape, *criteria: ColumnElement[bool], steps: bool = False
    ) -> CTE[Any]:
        """Return the rows that are written, if *criteria* are true.

        With *steps* a parameter has the number of versions that each row moves on.
        """
        keys = self._statements.keys
        arrays: dict[str, Any] = {**keys.types(), "state": Text()}
        if shape.swaps:
            arrays["expected"] = BigInteger()
        if shape.based:
            arrays["base"] = Text()
        if not shape.one_provenance:
            arrays["provenance"] = Text()
        if steps:
            arrays["steps"] = BigInteger()
        new = bound_table(arrays)
        by: Any = new.c.steps if steps else _FIRST
        provenance: ColumnElement[Any] = (
            # A subquery runs once, so that the text is parsed once.
            select(
                cast(bindparam("wfs_provenance", type_=Text()), JSONB())
            ).scalar_subquery()
            if shape.one_provenance
            else cast(new.c.provenance, JSONB())
        )
        c = columns_of(self._statements.table)
        values: dict[Column[Any], Any] = {
            c.state: cast(new.c.state, JSONB()),
            c.updated_at: func.now(),
            c.schema_version: bindparam("wfs_schema", type_=Integer()),
            c.provenance: provenance,
        }
        writes: list[tuple[Any, Any]] = []
        if shape.creates:
            created = [*criteria, new.c.expected == 0] if shape.swaps else criteria
            created_as = {**values, c.version: by}
            writes.append((self._creation(new, created_as, *created), _FIRST))
        if shape.swaps:
            values[c.version] = new.c.expected + by
            swap = self._swap(new, values, based=shape.based).where(*criteria)
            # What its Write says. A chain goes further, so its version is answered.
            writes.append((swap, new.c.expected + _FIRST))
        written: list[CTE[Any]] = [
            write.returning(
                keys.value, c.updated_at, c.version, (c.version == sent).label("sent")
            ).cte(f"wfs_written{number or ''}")
            for number, (write, sent) in enumerate(writes)
        ]
        if len(written) == 1:
            return written[0]
        return union_all(*map(select, written)).cte("wfs_all_written")

    def _swap(self, new: Any, values: dict[Column[Any], Any], *, based: bool) -> Any:
        table = self._statements.table
        c = columns_of(table)
        swap = update(table).where(
            of_keys(*self._statements.keys.pairs(new)),
            c.version == new.c.expected,
            self._statements.sql.not_ahead,
            self._statements.own_rows,
        )
        if based:
            swap = swap.where(
                or_(new.c.base.is_(None), new.c.base == effect_id_of(table)),
                # A state that is not sent keeps its shape.
                or_(
                    new.c.state.is_not(None),
                    c.schema_version == values[c.schema_version],
                ),
            )
            values[c.state] = func.coalesce(values[c.state], c.state)
        return swap.values(values)

    def _creation(
        self,
        new: Any,
        values: dict[Column[Any], Any],
        *criteria: ColumnElement[bool],
    ) -> Any:
        """Insert the rows whose key does not exist."""
        table, constants = self._statements.table, self._statements.constants()
        keys = dict(self._statements.keys.pairs(new))
        values = keys | values
        values |= {column: literal(value) for column, value in constants.items()}
        return (
            insert(table)
            .from_select([*values], select(*values.values()).where(*criteria))
            .on_conflict_do_nothing(index_elements=conflict_target(table))
        )


def answer_of(written: CTE[Any]) -> Any:
    """Return the statement that answers what was *written*; see written_of()."""
    rows, begin, end = func.count(), func.min(written.c[1]), func.max(written.c[1])
    alike = and_(
        rows == bindparam("wfs_rows", type_=Integer()),
        begin == end,
        func.bool_and(written.c.sent),
    )
    lists = (func.array_agg(written.c[index]) for index in range(3))
    return select(rows, begin, *(case((alike, None), else_=x) for x in lists))


def written_of(batch: Batch, result: Any) -> dict[Key, Written]:
    """Return the rows of *batch* that were written, by key."""
    count, updated_at, keys, times, versions = result.one()
    if count == len(batch) and keys is None:
        return dict.fromkeys(batch.workflow_keys, Written(updated_at))
    each = map(Written, times or (), versions or ())
    return dict(zip(keys or (), each, strict=True))


_arrays: WeakKeyDictionary[Mapper[Any], Arrays] = WeakKeyDictionary()


def arrays_of(statements: Statements[Any]) -> Arrays:
    """Return the array statements of an entity, built on first use."""
    arrays = _arrays.get(statements.mapper)
    if arrays is None:
        arrays = _arrays[statements.mapper] = Arrays(statements)
    return arrays
