"""The statements that distribute tables on Citus, and those that make partitions.

tests/citus executes the former.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
    insert,
    text,
)
from sqlalchemy.schema import CreateSchema, DropSchema

from sa_wfstate.errors import MappingError
from sa_wfstate.sharding import distribute, hash_partitions

from .drives import Base


def parts_of(statement: object) -> list[str]:
    """Return the table, the column and what it is colocated with."""
    return str(statement).split("'")[1:6:2]


def test_tables_are_beside_the_first_one() -> None:
    """All that have the key are distributed by it; the watermarks are not."""
    first, *others = map(parts_of, distribute(Base))
    keyed = {t.name for t in Base.metadata.sorted_tables if "workflow_key" in t.c}
    assert {first[0], *(name for name, _, _ in others)} == keyed
    assert "watermarks" not in keyed
    assert first[1:] == ["workflow_key", "default"]
    assert [rest for _, *rest in others] == [["workflow_key", first[0]]] * len(others)


def test_keys_of_another_type_have_shards_of_their_own() -> None:
    """Tables by tenant, one of them by a number, with names that must be quoted."""
    metadata = MetaData(schema="Shop")
    for name, kind in (("A%b", Text()), ("B", Integer()), ("C", Text())):
        Table(
            name,
            metadata,
            Column("tenant", kind, primary_key=True),
            Column("workflow_key", Text, primary_key=True),
        )
    assert [parts_of(each) for each in distribute(metadata, column="tenant")] == [
        ['"Shop"."A%b"', "tenant", "default"],
        ['"Shop"."B"', "tenant", "default"],
        ['"Shop"."C"', "tenant", '"Shop"."A%b"'],
    ]


def test_tables_beside_a_workflow_of_tenants_are_distributed_by_their_key() -> None:
    """They have no column of the tenant; their key is a text that names it."""
    metadata = MetaData()
    for name, columns in {
        "orders": ("tenant", "workflow_key"),
        "order_actions": ("workflow_key", "action_id"),
        "order_history": ("workflow_key", "version"),
        "watermarks": ("name",),
    }.items():
        Table(name, metadata, *(Column(c, Text, primary_key=True) for c in columns))
    assert sorted(map(parts_of, distribute(metadata, column="tenant"))) == [
        ["order_actions", "workflow_key", "default"],
        ["order_history", "workflow_key", "order_actions"],
        ["orders", "tenant", "default"],
    ]


def test_unique_without_the_column_is_refused() -> None:
    """Citus keeps no constraint over several shards."""
    metadata = MetaData()
    Table(
        "orders",
        metadata,
        Column("workflow_key", Text, primary_key=True),
        Column("number", Integer),
        UniqueConstraint("number"),
    )
    with pytest.raises(MappingError, match=r"orders.*\(number\) is unique without"):
        distribute(metadata)


def partitioned(name: str, *columns: Any, by: str = "HASH (workflow_key)") -> MetaData:
    """Return the metadata of a table that is partitioned *by* its key."""
    metadata = MetaData(schema='Shop "5%"')
    key = Column("workflow_key", Text, primary_key=True)
    Table(name, metadata, key, *columns, postgresql_partition_by=by)
    return metadata


@pytest.mark.contract
def test_partitions_are_created_with_the_table(engine: Engine) -> None:
    """By the event of the metadata, each time only those that are not there."""
    metadata = partitioned('A "b" 100% :c', by='hash( "workflow_key" )')
    for statement in hash_partitions(metadata, 4):
        event.listen(metadata, "after_create", statement)
    (table,) = metadata.tables.values()
    with engine.begin() as connection:
        connection.execute(CreateSchema(str(metadata.schema)))
    try:
        for _ in range(2):
            metadata.create_all(engine)
        keys = [{"workflow_key": f"o-{number}"} for number in range(40)]
        with engine.begin() as connection:
            connection.execute(insert(table), keys)
            spread = connection.scalars(
                text(
                    "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid"
                    " WHERE reltuples <> 0 ORDER BY 1"
                )
            ).all()
        assert spread == [f"{table.name}_p{number}" for number in range(4)]
    finally:
        metadata.drop_all(engine)
        with engine.begin() as connection:
            connection.execute(DropSchema(str(metadata.schema)))


def test_partitions_are_those_of_the_tables_that_have_them() -> None:
    """Others are created as usual; what PostgreSQL could not keep is refused."""
    assert hash_partitions(partitioned("orders", by="LIST (workflow_key)"), 2) == []
    assert hash_partitions(Base, 2) == []
    with pytest.raises(
        MappingError, match=r"\(number\) is unique without workflow_key"
    ):
        hash_partitions(partitioned("orders", Column("number", Text, unique=True)), 2)
    with pytest.raises(MappingError, match="give the table a shorter name"):
        hash_partitions(partitioned("o" * 60), 11)
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        hash_partitions(partitioned("orders"), 0)
