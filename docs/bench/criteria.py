"""get_state and try_commit in a session whose loads are filtered, and in a plain one.

A listener of ``do_orm_execute`` may add ``with_loader_criteria()`` for a tenant. In
such a session a row is selected through the ORM, so that the criteria hold, and locked
before it is written; without a listener the prebuilt statements are sent. The key of
one class is unique within a tenant, as a TenantKey; that of the other is unique by
itself.
"""

from __future__ import annotations

from typing import Any

from _harness import compare, postgresql, print_table
from pydantic import BaseModel
from sqlalchemy import create_engine, event
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    ORMExecuteState,
    Session,
    mapped_column,
    with_loader_criteria,
)

from sa_wfstate import (
    Provenance,
    StateCommitted,
    TenantKey,
    WorkflowStateMixin,
    get_state,
    try_commit,
)


class Base(DeclarativeBase):
    """The declarative base of both."""


class OrderState(BaseModel):
    """A state of about 0.3 kB."""

    status: str = "new"
    lines: list[str] = ["apple"] * 20


class Order(WorkflowStateMixin[OrderState], Base):
    """Its key is unique by itself."""

    __tablename__ = "orders"

    tenant: Mapped[int] = mapped_column(default=7)


class Ticket(WorkflowStateMixin[OrderState], Base):
    """Its key is unique within a tenant."""

    __tablename__ = "tickets"

    tenant: Mapped[int] = mapped_column(primary_key=True)
    workflow_key: Mapped[str] = mapped_column(primary_key=True)


def of_tenant(execute: ORMExecuteState) -> None:
    """Show the rows of one tenant only."""
    if execute.is_select:
        for entity in (Order, Ticket):
            own = with_loader_criteria(entity, entity.tenant == 7)
            execute.statement = execute.statement.options(own)


class Contender:
    """Reads and commits one row, in a session of its own."""

    def __init__(self, session: Session, entity: Any, key: Any) -> None:
        self._session, self._entity, self._key = session, entity, key
        session.commit()
        self._version = get_state(session, entity, key).version

    def read(self) -> None:
        """Read the row."""
        get_state(self._session, self._entity, self._key)

    def commit(self) -> None:
        """Write the row, in a transaction."""
        outcome = try_commit(
            self._session,
            self._entity,
            self._key,
            expected_version=self._version,
            state=OrderState(status=str(self._version)),
            provenance=Provenance.now(),
        )
        assert isinstance(outcome, StateCommitted)
        self._version = outcome.version
        self._session.commit()


def main() -> None:
    """Measure and print."""
    with postgresql(fsync="off") as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        names = "plain", "listener", "tenant", "both"
        with Session(engine) as session:
            for name in names:
                session.add(Order(workflow_key=name, state=OrderState()))
                session.add(Ticket(tenant=7, workflow_key=name, state=OrderState()))
            session.commit()
        sessions = {name: Session(engine) for name in names}
        for name in ("listener", "both"):
            event.listen(sessions[name], "do_orm_execute", of_tenant)
        rows: dict[str, tuple[Any, Any]] = {
            "plain": (Order, "plain"),
            "listener": (Order, "listener"),
            "tenant": (Ticket, TenantKey(7, "tenant")),
            "both": (Ticket, TenantKey(7, "both")),
        }
        contenders = {n: Contender(sessions[n], *row) for n, row in rows.items()}
        reads = {name: each.read for name, each in contenders.items()}
        commits = {name: each.commit for name, each in contenders.items()}
        results = {
            "get_state": compare(reads, baseline="plain"),
            "try_commit": compare(commits, baseline="plain"),
        }
        print_table("One row: a filtered session, a key within a tenant", results)
        for session in sessions.values():
            session.close()
        engine.dispose()


if __name__ == "__main__":
    main()
