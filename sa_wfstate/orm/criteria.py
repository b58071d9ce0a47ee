"""What the criteria of a session hide is neither read nor written.

An application may filter what its sessions load: a listener of ``do_orm_execute`` adds
``with_loader_criteria()`` to each SELECT, for the rows of one tenant, say, or against
rows that are marked as deleted. Such a session reads workflows by a SELECT of the
entity through ``session.execute()``, and locks by one what it is about to write. A
session without such a listener uses the prebuilt statements alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import scoped_session

from ..row.chunks import CHUNK, chunks
from ..row.engine_profiles import profile_on
from ..row.json_text import AsText
from ..row.key_columns import KeyColumns
from ..row.sql import CANONICAL_COLUMNS
from ..row.types import PydanticJSON
from ..values.keys import key_of_parts
from ..values.row_version import RowVersion
from .routing import bind_arguments, shard_of
from .row_keys import key_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.snapshot import WorkflowSnapshot


StateT = TypeVar("StateT")

HIDDEN: Final = RowVersion(-1, None)
"""What a creation finds where the criteria hide the row of its key."""


def filtering(session: Session) -> Session | None:
    """Return *session* if its loads may be filtered, else None."""
    if isinstance(session, scoped_session):
        session = session()  # It has the methods of a session, and no events.
    # A ShardedSession chooses the shards by a listener of SQLAlchemy's own.
    known = {__name__.partition(".")[0], "sqlalchemy"}
    for listener in session.dispatch.do_orm_execute:
        module = getattr(listener, "__module__", None) or ""  # Builtins have None.
        if module.partition(".")[0] not in known:
            return session
    return None


def read_visible(
    connection: Connection,
    statements: Statements[StateT],
    workflow_keys: Sequence[Key],
    session: Session | None,
    *,
    lock: bool = False,
) -> dict[Key, WorkflowSnapshot[StateT]]:
    """Read those rows of *workflow_keys* that *session* may see, by key.

    Without one all of them. *lock* keeps other writers away from them.
    """
    if session is not None:
        rows = select_rows(
            session, statements, CANONICAL_COLUMNS[1:], workflow_keys, lock=lock
        )
        return {row[0]: statements.snapshot_of(row) for row in rows}
    if len(workflow_keys) == 1:
        row = statements.read(connection, workflow_keys[0], lock=lock)
        return {} if row is None else {workflow_keys[0]: row}
    return statements.read_many(connection, workflow_keys)


def visible(
    session: Session,
    statements: Statements[Any],
    workflow_keys: Iterable[Key],
    *,
    lock: bool = False,
) -> set[Key]:
    """Return those of *workflow_keys* whose rows *session* may see.

    *lock* keeps their rows as they are until the transaction ends.
    """
    rows = select_rows(session, statements, (), workflow_keys, lock=lock)
    return {key for (key,) in rows}


def hide(
    session: Session | None,
    statements: Statements[Any],
    found: Mapping[Key, Any],
    expected: Mapping[Key, int],
) -> Mapping[Key, Any]:
    """Return of *found* what *session* may see; *expected* are versions, by key."""
    if session is None or not found:
        return found
    seen = visible(session, statements, found)
    return {
        key: row if key in seen else HIDDEN
        for key, row in found.items()
        if key in seen or not expected[key]
    }


def select_rows(
    session: Session,
    statements: Statements[Any],
    names: Iterable[str],
    workflow_keys: Iterable[Key],
    *,
    lock: bool,
) -> Iterator[Any]:
    """Select the keys of rows and their attributes *names*, in the order of the keys.

    JSON is selected as text. *lock* keeps other writers away from the rows.
    """
    entity = statements.mapper.class_
    # Each as an attribute: the criteria are for the entity of those.
    key = [getattr(entity, name) for name in key_attributes(statements.mapper)]
    columns = {name: getattr(entity, name) for name in names}
    for name, column in columns.items():
        if isinstance(statements.mapper.columns[name].type, PydanticJSON):
            columns[name] = AsText(column).label(name)
    query = select(*key, *columns.values()).order_by(*key)
    keys_of = KeyColumns(statements.entity, *key)
    ordered, size = sorted(workflow_keys), CHUNK
    if lock and ordered:
        bind = bind_arguments(session, statements.mapper, ordered)
        profile = profile_on(session.connection(bind_arguments=bind))
        options: dict[str, Any] = {"key_share": True, "of": statements.table}
        query = query.with_for_update(**(options if profile.lock_options else {}))
        size = CHUNK if profile.locks_many else 1
    one_by_one = lock and (size == 1 or len(ordered) == 1)
    for keys in chunks(ordered, size):
        shard = shard_of(session, statements.mapper, keys[0])
        where = {} if shard is None else {"shard_id": shard}
        one = query.where(keys_of.only(keys[0]) if one_by_one else keys_of.among(keys))
        with session.no_autoflush:
            for row in session.execute(one, bind_arguments=where):
                yield key_of_parts(*row[: len(key)]), *row[len(key) :]
