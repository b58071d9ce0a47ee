"""The instances that a session holds of rows committed outside its unit of work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.util import identity_key

from ..errors import UnflushedChanges
from ..orm.routing import shard_of
from ..orm.row_keys import is_workflow, key_is_identity, key_of, table_of
from ..orm.session_state import log_of
from ..orm.tracking import changed_in_place, rebase
from ..orm.version_guard import saw
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted
from .arguments import require_session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Mapper, Session

    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.snapshot import WorkflowSnapshot
    from ..values.write import Batch, Write


def held_instances(
    session: Session, mapper: Mapper[Any], workflow_keys: Collection[Key]
) -> dict[Key, Any]:
    """Return the session's instances of the rows of *workflow_keys*, by key.

    Raises UnflushedChanges if one has changes that are not flushed.
    """
    require_session(session)
    if not len(session.identity_map):
        return {}
    held = dict(_held(session, mapper, workflow_keys))
    for workflow_key, instance in held.items():
        if (
            instance in session.deleted
            or session.is_modified(instance)
            or changed_in_place(instance)
        ):
            raise UnflushedChanges(mapper.class_.__name__, workflow_key)
    return held


def _held(
    session: Session, mapper: Mapper[Any], workflow_keys: Collection[Key]
) -> Iterator[tuple[Key, Any]]:
    if key_is_identity(mapper):
        for key in workflow_keys:
            shard = shard_of(session, mapper, key)
            identity = identity_key(mapper.class_, key, identity_token=shard)
            instance = session.identity_map.get(identity)
            if instance is not None:
                yield key, instance
        return
    # The identity map is by primary key.
    wanted, table = frozenset(workflow_keys), table_of(mapper)
    for state in session.identity_map.all_states():
        if not is_workflow(state) or table_of(state.mapper) is not table:
            continue
        instance, key = state.obj(), key_of(state)
        if instance is not None and key in wanted:
            yield key, instance


def adopt(
    session: Session,
    connection: Connection,
    statements: Statements[Any],
    batch: Batch,
    outcomes: Sequence[object],
    held: Mapping[Key, Any],
) -> None:
    """Record the writes of *batch* that were committed in *session*.

    *held* are the session's instances of these rows, by key.
    """
    own = [
        index
        for index, each in enumerate(outcomes)
        # A replayed write is no evidence of this transaction.
        if isinstance(each, StateCommitted) and not each.replayed
    ]
    if own:
        log_of(session).record(connection, statements, batch.take(own), held)
    if held:
        for write, outcome in zip(batch, outcomes, strict=True):
            if write.workflow_key in held and isinstance(outcome, StateCommitted):
                _update_instance(held[write.workflow_key], write, outcome.snapshot)


def _update_instance(
    instance: Any, write: Write, snapshot: WorkflowSnapshot[Any]
) -> None:
    """Set *instance* to the values of its row."""
    rebase(instance, "state", write.state_text)
    set_committed_value(instance, "version", snapshot.version)
    set_committed_value(instance, "updated_at", snapshot.updated_at)
    set_committed_value(instance, "schema_version", write.schema_version)
    set_committed_value(instance, "provenance", write.provenance)
    saw(inspect(instance), RowVersion(snapshot.version, write.provenance.effect_id))
