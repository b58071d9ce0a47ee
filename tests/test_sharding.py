"""The statements that distribute tables on Citus; tests/citus executes them."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, UniqueConstraint

from sa_wfstate.errors import MappingError
from sa_wfstate.sharding import distribute

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
        ['"Shop"."A%%b"', "tenant", "default"],
        ['"Shop"."B"', "tenant", "default"],
        ['"Shop"."C"', "tenant", '"Shop"."A%%b"'],
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
