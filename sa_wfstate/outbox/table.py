"""Transactional outbox: intents stored in the transaction of their commit.

::

    class OrderIntents(IntentMixin, Base):
        __tablename__ = "order_intents"


    service = ReducerService(
        engine, Order, reducer, writers=[store_intents(OrderIntents)]
    )

So an intent exists if, and only if, the commit is final.
:class:`~sa_wfstate.outbox.IntentDispatcher` delivers it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Engine,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    func,
    insert,
    inspect,
    null,
    text,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.sql.elements import conv

from ..orm.routing import connection_for
from ..payload.actions import Intent
from ..row.auxiliary import AuxiliaryTable
from ..row.keys import StoredKey, checked_type
from ..row.names import check_texts, naming_rows
from ..row.types import PydanticJSON
from ..store.connections import Connections
from ..values.keys import Key
from ..values.snapshot import StateCommitted, WorkflowSnapshot


class IntentMixin(AuxiliaryTable):
    """The columns of an outbox, for your own mapped class.

    Its table gets the index on ``due_at`` that the dispatcher needs.
    """

    workflow_key: Mapped[str] = mapped_column(Text, primary_key=True, sort_order=-130)
    version: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, sort_order=-120
    )
    position: Mapped[int] = mapped_column(
        Integer, primary_key=True, autoincrement=False, sort_order=-110
    )
    """The position among the intents of one commit, from 0."""

    intent_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, sort_order=-100)
    """Identifies the intent, the same for each delivery."""

    intent_type: Mapped[str] = mapped_column(Text, sort_order=-90)
    target: Mapped[str] = mapped_column(Text, sort_order=-80)
    payload: Mapped[Any] = mapped_column(
        PydanticJSON(Any), nullable=True, sort_order=-70
    )
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), sort_order=-60
    )
    attempts: Mapped[int] = mapped_column(
        Integer, server_default=text("0"), sort_order=-50
    )
    due_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), sort_order=-40
    )
    """When it may be delivered: the end of a lease, or of a pause after a failure."""

    dead_at: Mapped[datetime | None] = mapped_column(
        DateTime(timezone=True), sort_order=-30
    )
    """When it became a dead letter; NULL while it is to be delivered."""

    last_error: Mapped[str | None] = mapped_column(Text, sort_order=-20)

    @classmethod
    def _complete_table(cls, table: Table) -> None:
        name = conv(f"idx_{table.name}_due")
        if name not in {index.name for index in table.indexes}:
            alive = table.c.dead_at.is_(None)
            Index(name, table.c.due_at, postgresql_where=alive, sqlite_where=alive)


def store_intents(
    intents: type[IntentMixin],
) -> Callable[[Connection, WorkflowSnapshot[Any], Sequence[Intent]], None]:
    """Return the writer that makes a ReducerService store its intents in *intents*."""
    entity, table = intents.__name__, table_of(intents)
    statement = insert(table)

    def write(
        connection: Connection, snapshot: WorkflowSnapshot[Any], given: Sequence[Intent]
    ) -> None:
        effect_id = snapshot.provenance.effect_id
        stored = _stored(intents, snapshot.workflow_key)
        rows = [
            {
                "workflow_key": stored,
                "version": snapshot.version,
                "position": position,
                "intent_id": uuid5(
                    NAMESPACE_OID, f"{snapshot.workflow_key}\0{effect_id}\0{position}"
                ),
                "intent_type": intent.intent_type,
                "target": intent.target,
                "payload": intent.payload,
            }
            for position, intent in enumerate(given)
        ]
        for row in rows:
            check_texts(entity, row)
        if rows:
            with naming_rows(entity, table, rows):
                connection.execute(statement, rows)

    return write


def add_intents(
    session: Session,
    intents: type[IntentMixin],
    committed: StateCommitted[Any],
    given: Sequence[Intent],
) -> None:
    """Store the intents *given* with a commit that *session* has made.

    Use it after ``try_commit``, once per commit and in the same transaction.
    """
    key = committed.workflow_key
    connection = connection_for(session, inspect(intents), [key])
    store_intents(intents)(connection, committed.snapshot, given)


def revive_dead(
    bind: Engine | sessionmaker[Any],
    intents: type[IntentMixin],
    *,
    workflow_key: Key | None = None,
) -> int:
    """Make dead letters due again, of all workflows or of one; return their number."""
    table = table_of(intents)
    dead = update(table).where(table.c.dead_at.is_not(None))
    if workflow_key is not None:
        stored = _stored(intents, workflow_key)
        dead = dead.where(table.c.workflow_key == stored)
    with Connections(bind, inspect(intents)).transaction() as connection:
        return connection.execute(
            dead.values(dead_at=null(), attempts=0, due_at=func.now())
        ).rowcount


def _stored(intents: type[IntentMixin], workflow_key: Key) -> Any:
    """Return what the table of *intents* stores for a key."""
    key_type = checked_type(intents.__name__, workflow_key)
    return StoredKey(key_type, table_of(intents).c.workflow_key).store(workflow_key)


def table_of(intents: type[IntentMixin]) -> Table:
    """Return the table of *intents*."""
    table = inspect(intents).local_table
    assert isinstance(table, Table)  # noqa: S101
    return table
