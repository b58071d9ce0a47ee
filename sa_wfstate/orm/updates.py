"""What a flush does before and after it updates a row.

The listener before the write notes what is written only if the row is: the schema
version, the provenance, and the version that the row must have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .collecting import will_write
from .flush_operations import confirm, note, session_of, target_of
from .row_keys import keep_key
from .schema_version import follow_state, forget_unwritten
from .session_state import state_of
from .stamps import stamp_update
from .unversioned import write_uncounted
from .version_guard import seen_of
from .write_log import OperationType

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper


def before_update(
    mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    known, values = state_of(session_of(state)), state.dict
    target = target_of(known, connection, mapper)
    keep_key(state, values)
    write_uncounted(mapper, connection, state)
    follow_state(connection, state, values, target.schema)
    likely = will_write(state)
    if not likely and seen_of(state) is None:
        return  # If another listener changes it, refresh_flush() refuses to write it.
    stamp_update(known.flush, mapper, state, values, target.stamp_type)
    base = known.log.check(state)
    operation = note(known, target, OperationType.UPDATE, state, base)
    operation.likely = likely


def after_update(
    _: Mapper[Any], connection: Connection, state: InstanceState[Any]
) -> None:
    forget_unwritten(state)
    confirm(connection, state)
