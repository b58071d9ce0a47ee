"""The workflow key of an instance's row, which need not be its primary key.

A class without a primary key of its own has ``workflow_key`` as it. Any other keeps
its primary key, by which a session identifies its instances; rows are still read and
written by ``workflow_key``. So an instance notes the key of its row, which an expired
attribute would not tell. The key of a stored row never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Column, Table, inspect, select
from sqlalchemy.orm import LoaderCallableStatus

from ..errors import KeyNotAssignable, PayloadError
from ..row.columns import columns_of, makes_value
from ..row.ddl import complete_primary_key
from ..row.keys import KeyType, key_type_of

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, Mapper, Session


_NOTED: Final = "sa_wfstate.key"
_IDENTITY: Final = "sa_wfstate.key_is_identity"
_TYPE: Final = "sa_wfstate.key_type"


def instrument_class(mapper: Mapper[Any], cls: type[Any]) -> None:
    """Make workflow_key the primary key of a table without one.

    It is called before the mapper looks for the primary key.
    """
    table = mapper.local_table
    own = mapper.inherits is None or mapper.concrete
    if own and isinstance(table, Table):
        declared = cls.__dict__.get("workflow_key")
        key = getattr(declared, "column", declared)
        if not isinstance(key, Column):
            key = table.c.get("workflow_key")
        if key is not None and key.table is table:
            complete_primary_key(table, key)


def note_key_column(mapper: Mapper[Any]) -> None:
    """Note the type of the keys of a class, and whether they are its primary key.

    Raises MappingError if its column cannot hold keys.
    """
    key, noted = columns_of(table_of(mapper)).workflow_key, mapper.class_manager.info
    noted[_TYPE] = key_type_of(mapper.class_.__name__, key)
    noted[_IDENTITY] = list(mapper.primary_key) == [key]


def key_type(mapper: Mapper[Any]) -> KeyType:
    """Return the type of the keys of a class."""
    found: KeyType = mapper.class_manager.info[_TYPE]
    return found


def is_workflow(state: InstanceState[Any]) -> bool:
    """Return whether the class of *state* is a workflow."""
    return _IDENTITY in state.manager.info


def key_is_identity(mapper: Mapper[Any]) -> bool:
    """Return whether the workflow key is the whole primary key of a class."""
    alone: bool = mapper.class_manager.info[_IDENTITY]
    return alone


def starts_with_key(mapper: Mapper[Any]) -> bool:
    """Return whether the primary key of a class starts with its workflow key.

    That of a dedup log or an outbox does.
    """
    alone = mapper.class_manager.info.get(_IDENTITY)
    return mapper.primary_key[0].key == "workflow_key" if alone is None else alone


def table_of(mapper: Mapper[Any]) -> Table:
    """Return the table with the workflow columns of a class."""
    table: Any = mapper.version_id_col.table  # type: ignore[union-attr]
    return table  # type: ignore[no-any-return]


def note_key(state: InstanceState[Any], *, written: bool = False) -> None:
    """Note the key of the row that *state* has read or *written*.

    There is nothing to note if the key is the identity.
    """
    if not state.manager.info[_IDENTITY]:
        key = state.dict.get("workflow_key")
        if key is not None and (written or "workflow_key" not in state.committed_state):
            state.info[_NOTED] = key


def known_key_of(state: InstanceState[Any]) -> Any:
    """Return the key of the row of *state*, None if the row must be read for it."""
    if state.identity is None:
        return state.dict.get("workflow_key")
    if state.manager.info[_IDENTITY]:
        return state.identity[0]
    noted = state.info.get(_NOTED)
    if noted is None:
        was = state.committed_state.get("workflow_key", state.dict.get("workflow_key"))
        noted = None if isinstance(was, LoaderCallableStatus) else was
    return noted


def key_of(state: InstanceState[Any]) -> Any:
    """Return the key of the row, even if the attribute is expired or was changed.

    The row is read if it was loaded without its key and is in a session.
    """
    key, session = known_key_of(state), state.session
    if key is None and session is not None and state.identity is not None:
        mapper = state.mapper
        pairs = zip(mapper.primary_key, state.identity, strict=True)
        where: dict[str, Any] = {"mapper": mapper}
        if state.identity_token is not None:
            where["shard_id"] = state.identity_token
        key = session.connection(bind_arguments=where).scalar(
            select(columns_of(table_of(mapper)).workflow_key).where(
                *(column == value for column, value in pairs)
            )
        )
        if key is not None:
            state.info[_NOTED] = key
    return key


def set_workflow_key(
    state: InstanceState[Any], value: Any, _old: object, _initiator: object
) -> None:
    """Check the key that is set; that of a stored row is not changed."""
    key_type(state.mapper).check(state.class_.__name__, value)
    known = None if state.identity is None else known_key_of(state)
    if known is not None and value != known:
        raise KeyNotAssignable(state.class_.__name__, known)


def keep_key(state: InstanceState[Any]) -> None:
    """Raise KeyNotAssignable if a flush would change the key of a stored row."""
    if state.identity is not None and "workflow_key" in state.committed_state:
        # It was deleted, set past its attribute, or copied from a row it refers to.
        known = key_of(state)
        if state.dict.get("workflow_key") != known:
            raise KeyNotAssignable(state.class_.__name__, known)


def gets_key(state: InstanceState[Any]) -> bool:
    """Return whether the INSERT makes the key; PayloadError if there is none."""
    if state.identity is not None or state.dict.get("workflow_key") is not None:
        return False
    if not makes_value(columns_of(table_of(state.mapper)).workflow_key):
        problem = "is missing; set it, or give its column a default"
        raise PayloadError(state.class_.__name__, "workflow_key", problem)
    return True


def check_replacement(state: InstanceState[Any], replaced: InstanceState[Any]) -> None:
    """Check an INSERT that the unit of work makes an UPDATE of a row to be deleted.

    Both have one identity. Raises KeyNotAssignable if they differ in the key.
    """
    known = key_of(replaced)
    if state.dict.get("workflow_key") != known:
        raise KeyNotAssignable(state.class_.__name__, known)


def check_insertion(session: Session, state: InstanceState[Any]) -> None:
    """Raise PayloadError if the flush deletes a row of the key that it inserts.

    It inserts first, so the key would exist.
    """
    if not session.deleted or key_is_identity(state.mapper):
        return
    key, table = state.dict.get("workflow_key"), table_of(state.mapper)
    for instance in session.deleted:
        other: InstanceState[Any] = inspect(instance)
        if (
            is_workflow(other)
            and table_of(other.mapper) is table
            and key_of(other) == key
        ):
            problem = (
                "is the key of a row that the same flush deletes, after its INSERTs; "
                "flush() the deletion first"
            )
            where = f"{state.class_.__name__} {key!r}"
            raise PayloadError(where, "workflow_key", problem)
