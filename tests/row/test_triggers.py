"""HasTriggers asks whether a trigger is called when rows of a table are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, select, text

from sa_wfstate.row.triggers import HasTriggers

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


def test_triggers_of_a_table_are_found(
    engine: Engine, create_tables: Callable[[MetaData], None]
) -> None:
    """Not those of foreign keys, of DELETE, or that are off; under any name."""
    metadata = MetaData()
    watched = Table("it's 100%", metadata, Column("id", Integer, primary_key=True))
    plain = Table("plain", metadata, Column("id", ForeignKey(watched.c.id)))
    create_tables(metadata)
    name = f'"{watched.name}"'

    def found(table: Table) -> bool | None:
        with engine.connect() as connection:
            connection.execution_options(schema_translate_map={None: "public"})
            return connection.scalar(select(HasTriggers(table)))

    def run(statement: str) -> None:
        with engine.begin() as connection:
            connection.execute(text(statement))

    run(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RETURN NULL; END $$"
    )
    for event, answer in (("DELETE", False), ("UPDATE", True), ("INSERT", True)):
        run(f"DROP TRIGGER IF EXISTS t ON {name}")
        run(f"CREATE TRIGGER t AFTER {event} ON {name} EXECUTE FUNCTION nothing()")
        assert (found(watched), found(plain)) == (answer, False)
    run(f"ALTER TABLE {name} DISABLE TRIGGER USER")
    assert not found(watched)
