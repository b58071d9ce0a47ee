"""Choose the database of a row, in a session that has several.

A session may choose its engine in a ``get_bind()`` of its own: to send reads to a
replica, say, or each tenant to its server. It is called as by ``Session.execute()``,
with the mapper and with a statement that compares the workflow key: an UPDATE of the
row, unless a caller merely reads it, then a SELECT. A ShardedSession is asked for the
shard of the key by its ``identity_chooser``.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Select,
    Table,
    UpdateBase,
    inspect,
    select,
    update,
)
from sqlalchemy.orm import Session

from ..errors import MappingError
from ..row.columns import key_columns
from ..row.key_columns import KeyColumns
from ..values.keys import TenantKey
from .row_keys import identity_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Mapper

    from ..values.keys import Key


def connection_for(
    session: Session,
    mapper: Mapper[Any],
    workflow_keys: Sequence[Key] = (),
    *,
    reads: bool = False,
) -> Connection:
    """Return the connection on which *session* writes rows of one shard.

    *reads* allows one that may lag behind the commits.
    """
    arguments = bind_arguments(session, mapper, workflow_keys, reads=reads)
    return session.connection(bind_arguments=arguments)


def bind_arguments(
    session: Session,
    mapper: Mapper[Any],
    workflow_keys: Sequence[Key] = (),
    *,
    reads: bool = False,
) -> dict[str, Any]:
    """Return the arguments of ``session.get_bind()`` for rows of one shard."""
    arguments: dict[str, Any] = {"mapper": mapper}
    if type(session).get_bind is Session.get_bind:
        return arguments  # It decides by the mapper.
    if workflow_keys:
        shard = shard_of(session, mapper, workflow_keys[0])
        if shard is not None:
            return arguments | {"shard_id": shard}
    versions = mapper.version_id_col
    # Of a class with joined inheritance, the table of its base has the key.
    table: Any = mapper.local_table if versions is None else versions.table
    statement: Any = select(table) if reads else update(table)
    if workflow_keys:
        keys = KeyColumns(mapper.class_.__name__, *key_columns(table))
        if not keys.type.parts:  # Beside the rows, keys within tenants are texts.
            workflow_keys = [_alone(key) for key in workflow_keys]
        statement = statement.where(keys.among(workflow_keys))
    return arguments | {"clause": statement}


def read_from_primary(session: Session) -> None:
    """Let *session* read where it writes, though its ``get_bind()`` has replicas.

    It is one of the library's own, and new. SQLAlchemy has no event for the choice:
    what a listener of ``do_orm_execute`` puts into the arguments is replaced after it.
    """
    if type(session).get_bind is Session.get_bind or hasattr(
        session, "identity_chooser"
    ):
        return
    choose = session.get_bind

    def get_bind(mapper: Any = None, **arguments: Any) -> Any:
        clause = arguments.get("clause")
        table = _table_of(mapper, clause)
        if table is not None and not isinstance(clause, UpdateBase):
            where = getattr(clause, "whereclause", None)
            conditions = () if where is None else (where,)
            arguments["clause"] = update(table).where(*conditions)
        return choose(mapper, **arguments)

    session.get_bind = get_bind  # type: ignore[method-assign]


def _table_of(mapper: Any, clause: Any) -> Any:
    """Return the table that a get_bind() is asked for; None if it cannot be known."""
    if mapper is not None:
        return inspect(mapper).local_table
    found = clause.get_final_froms() if isinstance(clause, Select) else ()
    return next((each for each in found if isinstance(each, Table)), None)


def _alone(workflow_key: Key) -> Key:
    tenanted = isinstance(workflow_key, TenantKey)
    return str(workflow_key) if tenanted else workflow_key


def shard_of(session: Session, mapper: Mapper[Any], workflow_key: Key) -> Any:
    """Return the shard of a key; None in a session that is no ShardedSession."""
    choose = getattr(session, "identity_chooser", None)
    if choose is None:
        return None
    identity = identity_of(mapper, workflow_key)
    if identity is None:
        raise MappingError(
            mapper.class_.__name__,
            "a ShardedSession finds shards by primary keys, and its primary key is not "
            "the workflow key; use a Session of the shard",
        )
    shards = list(
        choose(
            mapper,
            identity,
            lazy_loaded_from=None,
            execution_options={},
            bind_arguments={},
        )
    )
    if len(shards) != 1:
        raise MappingError(
            mapper.class_.__name__,
            f"the identity_chooser of the ShardedSession returns {len(shards)} shards "
            f"for the key {workflow_key!r}; it must return the one that has the row",
        )
    return shards[0]


def by_shard(
    session: Session, mapper: Mapper[Any], workflow_keys: Sequence[Key]
) -> list[list[int]]:
    """Group *workflow_keys* by their shard; return their positions."""
    if getattr(session, "identity_chooser", None) is None:
        return [list(range(len(workflow_keys)))]
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for index, key in enumerate(workflow_keys):
        groups[shard_of(session, mapper, key)].append(index)
    return list(groups.values())
