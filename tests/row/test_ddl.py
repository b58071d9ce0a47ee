"""Contract: the optional trigger can be put on any table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateSchema, CreateTable

from sa_wfstate import Commit, Provenance, WorkflowStateMixin, try_commit_many
from sa_wfstate.versions import version_trigger

pytestmark = pytest.mark.contract

ON = "SELECT relname FROM pg_trigger JOIN pg_class ON tgrelid = pg_class.oid"
NAMES = ["Orders", "order", 'an "order"', "o'rder", "an :order", "100%", "%(table)s"]


def tables_with_trigger(connection: Connection) -> list[str]:
    """Return the tables that have the trigger."""
    return list(connection.scalars(text(f"{ON} WHERE tgname ^@ 'wfstate_'")))


@pytest.mark.parametrize("schema", [None, 'Shop 5% "a" :b'])
@pytest.mark.parametrize("name", NAMES)
def test_trigger_is_put_on_a_table_of_any_name(
    engine: Engine, name: str, schema: str | None
) -> None:
    """Names are quoted, and escaped as the driver needs it."""
    table = Table(name, MetaData(), Column("version", Integer), schema=schema)
    with engine.connect() as connection:
        if schema:
            connection.execute(CreateSchema(schema))
        connection.execute(CreateTable(table))
        for drop in (False, True):
            for ddl in version_trigger(table, drop=drop):
                connection.execute(ddl)
            assert tables_with_trigger(connection) == ([] if drop else [name])


def test_trigger_follows_a_schema_translate_map(engine: Engine) -> None:
    """It is put on the table that the map of the connection names."""
    table = Table("orders", MetaData(), Column("version", Integer), schema="shop")
    translating = engine.execution_options(schema_translate_map={"shop": "other"})
    with translating.connect() as connection:
        connection.execute(CreateSchema("other"))
        connection.execute(CreateTable(table))
        for ddl in version_trigger(table):
            connection.execute(ddl)
        assert tables_with_trigger(connection) == ["orders"]


class Own(DeclarativeBase):
    """Two classes: the key is the primary key, or is unique beside it."""


class Alone(WorkflowStateMixin[int], Own):
    __tablename__ = "alone"


class Beside(WorkflowStateMixin[int], Own):
    __tablename__ = "beside"

    id: Mapped[int] = mapped_column(primary_key=True)


class Recent(WorkflowStateMixin[int], Own):
    __tablename__ = "recent"
    __workflow_indexes__ = ("recent",)


def test_unique_key_and_recent_leave_updates_hot(
    engine: Engine, create_tables: Callable[[MetaData], None]
) -> None:
    """A commit writes no column of a B-tree, so it makes no index entry.

    From PostgreSQL 16 on the columns of a BRIN index do not matter.
    """
    create_tables(Own.metadata)
    share = text(
        "SELECT n_tup_hot_upd / n_tup_upd::float FROM pg_stat_user_tables"
        " WHERE relname = :name"
    )
    with Session(engine) as session:
        for version in range(40):
            for entity in (Alone, Beside, Recent):
                commits = [
                    Commit(
                        key,
                        expected_version=version,
                        state=version,
                        provenance=Provenance.now(),
                    )
                    for key in ("o-1", "o-2", "o-3")
                ]
                try_commit_many(session, entity, commits)
                session.commit()
        session.execute(text("SELECT pg_stat_force_next_flush()"))
        session.commit()
        alone, beside, recent = (
            session.scalars(share, {"name": entity.__tablename__}).one()
            for entity in (Alone, Beside, Recent)
        )
    assert alone > 0.9
    if (engine.dialect.server_version_info or ()) >= (16,):
        assert recent > 0.9
    assert abs(alone - beside) <= 0.02
