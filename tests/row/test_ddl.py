"""Contract: the optional trigger can be put on any table."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, text
from sqlalchemy.schema import CreateSchema, CreateTable

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
