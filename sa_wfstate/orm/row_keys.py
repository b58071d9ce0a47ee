"""The workflow key of an instance's row, which need not be its primary key.

A class without a primary key of its own has ``workflow_key`` as it. Any other keeps
its primary key, by which a session identifies its instances; rows are still read and
written by ``workflow_key``. So an instance notes the key of its row, which an expired
attribute would not tell. The key of a stored row never changes. Where it is unique only
within a tenant, the attribute of the tenant is a part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Column, Table, inspect, select
from sqlalchemy.orm import LoaderCallableStatus
from sqlalchemy.orm.attributes import set_committed_value

from ..errors import KeyNotAssignable, PayloadError
from ..row.columns import key_columns, makes_value, note_tenant
from ..row.ddl import complete_primary_key, find_tenant
from ..row.key_columns import KeyColumns
from ..values.keys import key_of_parts, parts_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy.orm import InstanceState, Mapper, Session

    from ..row.keys import KeyType
    from ..values.keys import Key


_NOTED: Final = "sa_wfstate.key"
_IDENTITY: Final = "sa_wfstate.key_is_identity"
_ATTRIBUTES: Final = "sa_wfstate.key_attributes"
_TYPE: Final = "sa_wfstate.key_type"
"""Where a class has the type of its column workflow_key, without a tenant."""


def instrument_class(mapper: Mapper[Any], cls: type[Any]) -> None:
    """Make workflow_key the primary key of a table without one; find its tenant.

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
            tenant = find_tenant(cls.__name__, table, key)
            if tenant is not None:
                note_tenant(tenant)


def note_key_column(mapper: Mapper[Any]) -> None:
    """Note the type of the keys of a class, and whether they are its primary key.

    Raises MappingError if its column cannot hold keys.
    """
    columns, noted = key_columns(table_of(mapper)), mapper.class_manager.info
    key_type = KeyColumns(mapper.class_.__name__, *columns).type
    names = (mapper.get_property_by_column(column).key for column in columns)
    types = key_type.parts or (key_type,)
    noted[_ATTRIBUTES] = dict(zip(names, types, strict=True))
    noted[_TYPE] = types[-1]
    noted[_IDENTITY] = list(mapper.primary_key) == list(columns[-1:]) == list(columns)


def key_attributes(mapper: Mapper[Any]) -> dict[str, KeyType]:
    """Return the attributes of the key of a class, with their types."""
    found: dict[str, KeyType] = mapper.class_manager.info[_ATTRIBUTES]
    return found


def key_in(values: Mapping[str, Any], names: Collection[str]) -> Any:
    """Return the key in *values*; None if it, or a part of it, is not there."""
    if len(names) == 1:
        (name,) = names
        alone = values.get(name)
        return None if isinstance(alone, LoaderCallableStatus) else alone
    parts = []
    for name in names:
        part = values.get(name)
        if part is None or isinstance(part, LoaderCallableStatus):
            return None
        parts.append(part)
    return key_of_parts(*parts)


def is_workflow(state: InstanceState[Any]) -> bool:
    """Return whether the class of *state* is a workflow."""
    return _IDENTITY in state.manager.info


def key_is_identity(mapper: Mapper[Any]) -> bool:
    """Return whether the workflow key is the whole primary key of a class."""
    alone: bool = mapper.class_manager.info[_IDENTITY]
    return alone


def identity_of(mapper: Mapper[Any], workflow_key: Key) -> tuple[Any, ...] | None:
    """Return the primary key of a row, or its start, if that is its workflow key.

    That of a dedup log or an outbox starts with it.
    """
    columns: Any = mapper.primary_key
    if _IDENTITY not in mapper.class_manager.info:
        return (workflow_key,) if columns[0].key == "workflow_key" else None
    parts = key_columns(table_of(mapper))
    values = dict(zip(parts, parts_of(workflow_key), strict=True))
    if values.keys() != set(columns):
        return None
    return tuple(values[column] for column in columns)


def key_columns_of(mapper: Mapper[Any]) -> KeyColumns:
    """Return the columns of the keys of a class."""
    return KeyColumns(mapper.class_.__name__, *key_columns(table_of(mapper)))


def table_of(mapper: Mapper[Any]) -> Table:
    """Return the table with the workflow columns of a class."""
    table: Any = mapper.version_id_col.table  # type: ignore[union-attr]
    return table  # type: ignore[no-any-return]


def note_key(state: InstanceState[Any], *, written: bool = False) -> None:
    """Note the key of the row that *state* has read or *written*.

    There is nothing to note if the key is the identity.
    """
    if not state.manager.info[_IDENTITY]:
        names, was = key_attributes(state.mapper), state.committed_state
        key = key_in(state.dict, names)
        if key is not None and (written or not names.keys() & was.keys()):
            state.info[_NOTED] = key


def known_key_of(state: InstanceState[Any]) -> Any:
    """Return the key of the row of *state*, None if the row must be read for it."""
    if state.key is None:
        return key_in(state.dict, state.manager.info[_ATTRIBUTES])
    if state.manager.info[_IDENTITY]:
        return state.key[1][0]
    noted = state.info.get(_NOTED)
    if noted is None:
        names, was = key_attributes(state.mapper), state.committed_state
        read = {name: was.get(name, state.dict.get(name)) for name in names}
        noted = key_in(read, names)
    return noted


def key_of(state: InstanceState[Any]) -> Any:
    """Return the key of the row, even if the attribute is expired or was changed.

    The row is read if it was loaded without its key and is in a session.
    """
    if state.key is not None and state.manager.info[_IDENTITY]:
        return state.key[1][0]
    key = known_key_of(state)
    if key is not None:
        return key
    session = state.session
    if session is not None and state.identity is not None:
        mapper = state.mapper
        pairs = zip(mapper.primary_key, state.identity, strict=True)
        where: dict[str, Any] = {"mapper": mapper}
        if state.identity_token is not None:
            where["shard_id"] = state.identity_token
        key = session.connection(bind_arguments=where).scalar(
            select(key_columns_of(mapper).value).where(
                *(column == value for column, value in pairs)
            )
        )
        if key is not None:
            state.info[_NOTED] = key
    return key


def set_workflow_key(
    state: InstanceState[Any], value: Any, _old: object, _initiator: object, **_: object
) -> Any:
    """Check the key that is set; that of a stored row is not changed."""
    type_: KeyType = state.manager.info[_TYPE]
    if not type_.is_plain(value):
        type_.check(state.class_.__name__, value)
    known = None if state.key is None else known_key_of(state)
    if known is not None and value != parts_of(known)[-1]:
        raise KeyNotAssignable(state.class_.__name__, known)
    return value


def keep_key(state: InstanceState[Any], values: Mapping[str, Any]) -> None:
    """Raise KeyNotAssignable if a flush would change the key of a stored row.

    *values* are those that the instance holds.
    """
    names, was = state.manager.info[_ATTRIBUTES], state.committed_state
    if names.keys().isdisjoint(was) or state.identity is None:
        return
    for index, name in enumerate(names):
        if name in was:
            # It was deleted, set past its attribute, or copied from a row it refers to.
            known = key_of(state)
            if values.get(name) != parts_of(known)[index]:
                raise KeyNotAssignable(state.class_.__name__, known)


def set_read(
    state: InstanceState[Any], values: dict[str, Any], name: str, value: Any
) -> None:
    """Set an attribute of *state*, whose *values* are given, as if it was read."""
    if name in values and name not in state.committed_state and not state.callables:
        values[name] = value  # As set_committed_value() does, in a third of the time.
    else:
        instance: Any = state.obj()
        set_committed_value(instance, name, value)


def give_key(state: InstanceState[Any], values: dict[str, Any]) -> None:
    """Set those attributes of the key that are not in *values*, as if read."""
    names = state.manager.info[_ATTRIBUTES]
    if names.keys() <= values.keys():
        return
    for name, part in zip(names, parts_of(key_of(state)), strict=True):
        if name not in values:
            set_read(state, values, name, part)


def check_key_is_made(state: InstanceState[Any]) -> None:
    """Raise PayloadError unless the INSERT makes the parts of the key that miss."""
    names, columns = key_attributes(state.mapper), key_columns(table_of(state.mapper))
    for name, column in zip(names, columns, strict=True):
        if state.dict.get(name) is None and not makes_value(column):
            problem = "is missing; set it, or give its column a default"
            raise PayloadError(state.class_.__name__, name, problem)


def check_replacement(state: InstanceState[Any], replaced: InstanceState[Any]) -> None:
    """Check an INSERT that the unit of work makes an UPDATE of a row to be deleted.

    Both have one identity. Raises KeyNotAssignable if they differ in the key.
    """
    known = key_of(replaced)
    if key_of(state) != known:
        raise KeyNotAssignable(state.class_.__name__, known)


def check_insertion(session: Session, state: InstanceState[Any]) -> None:
    """Raise PayloadError if the flush deletes a row of the key that it inserts.

    It inserts first, so the key would exist.
    """
    if not session.deleted or key_is_identity(state.mapper):
        return
    key, table = key_of(state), table_of(state.mapper)
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
