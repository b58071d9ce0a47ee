"""Read a workflow and commit to it in the transaction of a session.

The statements are prebuilt Core statements, so other instances of the session are
neither flushed nor expired.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .._concurrency import Blocking, Waiting, refuse_async
from ..errors import StateConflict
from ..orm.criteria import filtering, read_visible
from ..orm.entity import statements_of
from ..orm.mixin import WorkflowStateMixin
from ..orm.routing import connection_for
from ..payload.rebase import Rebase
from ..values.keys import Key
from ..values.provenance import Provenance
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted, WorkflowSnapshot
from ..values.write import Batch
from .arguments import require_session
from .compare_and_set import (
    compare_and_set,
    conflict_of_bases,
    named_by_client,
    prepare,
    refused,
    target_of,
)
from .freshness import read_at, required_of
from .instances import adopt, held_instances
from .rebasing import commit_on, rules_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from ..row.statements import Statements


StateT = TypeVar("StateT")
Entity = type[WorkflowStateMixin[StateT]]


def get_state(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key,
    *,
    min_version: int | RowVersion | None = None,
    max_wait: float = 0.1,
) -> WorkflowSnapshot[StateT]:
    """Read the workflow *workflow_key* of *entity* and return a snapshot of its row.

    Pending changes are flushed first, as by any query, if the session autoflushes. The
    row is read from the database even if the session holds an instance of it.

    A session that reads from a replica may be behind. With *min_version*, the version
    or the token that a commit returned, this polls the row for *max_wait* seconds, and
    then reads it where it is written. A re-created row at that version does not do for
    a token.

    Raises WorkflowNotFound if there is no such row, and StateBehind if it is at an
    older version than *min_version*.
    """
    return get_state_of(
        session, entity, workflow_key, min_version, max_wait, Blocking()
    )


def get_state_of(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key,
    min_version: int | RowVersion | None,
    max_wait: float,
    waiting: Waiting,
) -> WorkflowSnapshot[StateT]:
    """Implement get_state for *waiting*, blocking or awaiting."""
    statements, keys = statements_of(entity), [workflow_key]
    statements.check_key(workflow_key)
    required = required_of(min_version, max_wait)
    connection = connection_of(session, statements, keys, reads=True)
    if session.autoflush:
        session.flush()

    def look(*, reads: bool) -> WorkflowSnapshot[StateT] | None:
        where = connection if reads else connection_of(session, statements, keys)
        found = read_visible(where, statements, keys, filtering(session))
        return found.get(workflow_key)

    return read_at(statements.entity, workflow_key, required, max_wait, look, waiting)


@overload
def try_commit(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key,
    *,
    expected_version: int | RowVersion,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    expected_effect_id: str | None = None,
    base: WorkflowSnapshot[StateT] | None = None,
    rebase: bool | Rebase = False,
) -> StateCommitted[StateT] | StateConflict[StateT]: ...
@overload
def try_commit(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key | None = None,
    *,
    expected_version: int | RowVersion | None = None,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    expected_effect_id: str | None = None,
    base: WorkflowSnapshot[StateT],
    rebase: bool | Rebase = False,
) -> StateCommitted[StateT] | StateConflict[StateT]: ...
def try_commit(
    session: Session,
    entity: Entity[StateT],
    workflow_key: Key | None = None,
    *,
    expected_version: int | RowVersion | None = None,
    state: StateT,
    provenance: Provenance | Mapping[str, Any],
    expected_effect_id: str | None = None,
    base: WorkflowSnapshot[StateT] | None = None,
    rebase: bool | Rebase = False,
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Write *state* if the workflow is still at *expected_version*.

    With *expected_version* 0 the workflow is created. If workflows are deleted and
    re-created, give *expected_effect_id*, the effect id of the provenance that was
    read: a re-created row is a conflict then; a RowVersion as *expected_version* has
    both. The version is always checked, also if *state* equals that of the row. One
    statement is sent if the commit wins, and one more to read the row if it loses; a
    loss is returned, not raised, and the transaction stays usable. The write is final
    when the caller commits the session. An instance of the row in the session has the
    new values afterwards.

    *base* is the snapshot that was read; key and version are its own then, and need not
    be given. A *state* equal to its own is not sent: only the version, the time and the
    provenance are written. A re-created row is a conflict, as with
    *expected_effect_id*, and a conflict knows its
    :attr:`~sa_wfstate.StateConflict.changes`. If *expected_version* is a RowVersion
    that a client has named, and *base* another version, the write is a conflict.

    With *rebase*, a commit whose row has moved on is merged with it and sent again, up
    to ten times: by the rules of ``__rebase__`` of the class, or those that are given.
    See :mod:`sa_wfstate.merging`.

    Raises PayloadError if a value cannot be stored, before any SQL is sent;
    UnflushedChanges if the session itself has changed the row; WriteSuppressed if the
    row is at *expected_version* but was not written. At REPEATABLE READ and
    SERIALIZABLE the database may refuse the statement and end the transaction:
    a StateConflict with the reason ``serialization`` is raised.
    """
    statements = statements_of(entity)
    key, expected = target_of(workflow_key, expected_version, base)
    named = named_by_client(base, key, expected)
    write = prepare(
        statements,
        key,
        expected,
        state,
        provenance,
        expected_effect_id=expected_effect_id,
        base=base if named is None else None,
    )
    rules = rules_of(statements, rebase, base)
    held = held_instances(session, statements.mapper, [key])
    connection = connection_of(session, statements, [key])
    if base is not None and named is not None:
        return conflict_of_bases(
            connection, statements, base, named, filtering(session)
        )
    send = partial(compare_and_set, connection, statements, session=filtering(session))
    try:
        write, outcome = commit_on(statements, write, base, rules, send)
    except DBAPIError as error:
        conflict = refused(statements, {write.workflow_key: write.version - 1}, error)
        if conflict is None:
            raise
        raise conflict from error
    adopt(session, connection, statements, Batch.of([write]), [outcome], held)
    return outcome


def connection_of(
    session: Session,
    statements: Statements[Any],
    workflow_keys: Sequence[Key] = (),
    *,
    reads: bool = False,
) -> Connection:
    """Return the connection on which *session* writes, or *reads*, these rows."""
    require_session(session)
    refuse_async(session)
    return connection_for(session, statements.mapper, workflow_keys, reads=reads)
