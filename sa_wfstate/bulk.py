"""Commit to many workflows at once: one statement and one round trip for each chunk.

::

    UPDATE orders SET version = …, state = …, updated_at = now(), …
    FROM unnest($1::TEXT[], $2::BIGINT[], $3::TEXT[], $4::INTEGER[], $5::TEXT[])
         AS new (key, expected, state, schema, provenance)
    WHERE orders.workflow_key = new.key AND orders.version = new.expected
    RETURNING orders.workflow_key, orders.updated_at

What comes back has won. Keys are sent in order, so that two batches lock their rows in
one order, and may still deadlock (SQLSTATE 40P01) where the planner chooses another.
psycopg sends its arrays in binary, which takes less than half the time of text; asyncpg
always does. A database without unnest, as SQLite, gets the statements one by one.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from . import side_writes
from .commits import lost, prepare, refused
from .errors import PayloadError, StateConflict
from .ledger import record
from .snapshots import StateCommitted
from .statements import Statements, Write, effect_id_of, statements_of
from .store import Entity, connection_of, held_instance, update_instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Mapper, Session
    from sqlalchemy.sql.compiler import SQLCompiler

    from .provenance import Provenance

StateT = TypeVar("StateT")

CHUNK = 1_000
"""How many rows one statement writes at most."""

_ARRAYS: dict[str, Any] = {
    "key": Text(),
    "expected": BigInteger(),
    "state": Text(),
    "schema": Integer(),
    "provenance": Text(),
    "base": Text(),
}


@dataclass(slots=True)
class Commit(Generic[StateT]):
    """One commit of a batch; see :func:`~sa_wfstate.try_commit` for what it holds."""

    workflow_key: str
    _: KW_ONLY
    expected_version: int
    state: StateT
    provenance: Provenance | Mapping[str, Any]


def try_commit_many(
    session: Session, entity: Entity[StateT], commits: Iterable[Commit[StateT]]
) -> list[StateCommitted[StateT] | StateConflict]:
    """Commit each of *commits* whose workflow is at its expected version.

    Returns one outcome per commit, in the order given; one that lost does not keep the
    others from winning. For each :data:`CHUNK` of rows one statement is sent, one more
    if there are workflows to create, and one to read the rows of those that lost.
    Otherwise it behaves as :func:`~sa_wfstate.try_commit`, also in what it raises.

    A key that is given twice raises PayloadError before any SQL is sent.
    """
    statements = statements_of(entity)
    writes = [
        prepare(
            statements,
            commit.workflow_key,
            commit.expected_version,
            commit.state,
            commit.provenance,
        )
        for commit in commits
    ]
    if len({write.workflow_key for write in writes}) < len(writes):
        _refuse_duplicate(statements, writes)
    if not writes:
        return []
    held = {}
    # Looking each key up costs more than the session that holds none of the class.
    if len(session.identity_map):
        for write in writes:
            key = write.workflow_key
            instance = held_instance(session, statements.mapper, key)
            if instance is not None:
                held[key] = instance
    connection = connection_of(session, statements)
    outcomes = commit_writes(connection, statements, writes)
    for write, outcome in zip(writes, outcomes, strict=True):
        if isinstance(outcome, StateCommitted):
            instance = held.get(write.workflow_key)
            if instance is not None:
                update_instance(instance, write, outcome.snapshot)
            record(session, connection, statements, write, instance)
    return outcomes


def commit_writes(
    connection: Connection, statements: Statements[StateT], writes: list[Write]
) -> list[StateCommitted[StateT] | StateConflict]:
    """Send *writes*, of different keys, and return the outcome of each."""
    by_key = {write.workflow_key: write for write in writes}
    ordered = [by_key[key] for key in sorted(by_key)]
    written: dict[str, datetime] = {}
    for start in range(0, len(ordered), CHUNK):
        chunk = ordered[start : start + CHUNK]
        try:
            written |= _send(connection, statements, chunk)
        except DBAPIError as error:
            # The database has refused the transaction: each of them is lost.
            refusals = [refused(statements, write, error) for write in chunk]
            conflicts = [each for each in refusals if each is not None]
            if not conflicts:
                raise
            first, *others = conflicts
            raise StateConflict(
                first.entity,
                first.workflow_key,
                first.expected_version,
                None,
                first.reason,
                others=tuple(others),
            ) from error
    losers = [key for key in by_key if key not in written]
    current = statements.read_many(connection, losers) if losers else {}
    return [
        statements.committed(write, written[key])
        if key in written
        else lost(statements, write, current.get(key))
        for key, write in by_key.items()
    ]


def _refuse_duplicate(statements: Statements[Any], writes: list[Write]) -> None:
    seen = set()
    for write in writes:
        if write.workflow_key in seen:
            where = f"{statements.entity} {write.workflow_key!r}"
            problem = "is given twice; commit to a workflow once in a batch"
            raise PayloadError(where, "workflow_key", problem)
        seen.add(write.workflow_key)


def _send(
    connection: Connection, statements: Statements[Any], writes: list[Write]
) -> dict[str, datetime]:
    """Write what can be written; return updated_at by key."""
    if len(writes) == 1 or not isinstance(connection.dialect, PGDialect):
        return _send_singly(connection, statements, writes)
    arrays = _arrays_of(statements)
    written: dict[str, datetime] = {}
    swaps = [write for write in writes if write.version > 1]
    if swaps:
        written.update(arrays.execute(connection, arrays.swap, swaps))
    if len(swaps) < len(writes):
        creations = [write for write in writes if write.version == 1]
        written.update(arrays.execute(connection, arrays.create, creations))
    if side_writes.writers_of(statements.mapper):
        commits = [
            statements.committed(write, written[write.workflow_key])
            for write in writes
            if write.workflow_key in written
        ]
        side_writes.write(connection, statements.mapper, commits)
    return written


def _send_singly(
    connection: Connection, statements: Statements[Any], writes: list[Write]
) -> dict[str, datetime]:
    written = {}
    for write in writes:
        send = statements.create if write.version == 1 else statements.swap
        updated_at = send(connection, write)
        if updated_at is not None:
            written[write.workflow_key] = updated_at
    return written


class _Array(FunctionElement[Any]):
    """A bound array, sent in binary."""

    inherit_cache = True


@compiles(_Array)
def _compile_array(element: _Array, compiler: SQLCompiler, **kw: Any) -> str:
    text: str = compiler.process(element.clauses.clauses[0], **kw)
    # psycopg's placeholder for "binary"; with %s it sends a list as text.
    psycopg = compiler.dialect.driver in {"psycopg", "psycopg_async"}
    return text.replace(")s", ")b", 1) if psycopg else text


class _Arrays:
    """The statements of one entity that take arrays."""

    def __init__(self, statements: Statements[Any]) -> None:
        table = statements.table
        new = (
            func.unnest(
                *(
                    _Array(bindparam(f"new_{name}", type_=ARRAY(type_)))
                    for name, type_ in _ARRAYS.items()
                )
            )
            .table_valued(*(column(name, type_) for name, type_ in _ARRAYS.items()))
            .render_derived(name="new")
        )
        values = {
            "version": new.c.expected + 1,
            "state": cast(new.c.state, JSONB()),
            "updated_at": func.now(),
            "schema_version": new.c.schema,
            "provenance": cast(new.c.provenance, JSONB()),
        }
        provenance: Any = table.c.provenance.type
        self._dump = provenance.dump
        returned = (table.c.workflow_key, table.c.updated_at)
        self.swap = (
            update(table)
            .where(
                table.c.workflow_key == new.c.key,
                table.c.version == new.c.expected,
                table.c.schema_version <= statements.schema.version,
                or_(new.c.base.is_(None), new.c.base == effect_id_of(table)),
                statements.own_rows,
            )
            .values(values)
            .returning(*returned)
        )
        del values["updated_at"]
        self._new, self._values, self._returned = new, values, returned
        self._statements = statements

    @property
    def create(self) -> Any:
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
                "new_state": [stored(write.state_text) for write in writes],
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
                texts[id(write.provenance)] = self._dump(write.provenance)
        return [texts[id(write.provenance)] for write in writes]


_arrays: WeakKeyDictionary[Mapper[Any], _Arrays] = WeakKeyDictionary()


def _arrays_of(statements: Statements[Any]) -> _Arrays:
    arrays = _arrays.get(statements.mapper)
    if arrays is None:
        arrays = _arrays[statements.mapper] = _Arrays(statements)
    return arrays
