"""Partitions, distribution and indexes in migrations: created, rendered, left alone."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.autogenerate import render_python_code
from alembic.operations import Operations, ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine, inspect

from sa_wfstate.alembic.sharding import (
    DistributeTableOp,
    HashPartitionsOp,
    WorkflowIndexesOp,
)
from sa_wfstate.canonical import WorkflowState, replace_indexes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TABLES = ("orders", "order_history", "order_actions", "order_intents", "order_rows")


def offline(dialect: str) -> tuple[Operations, StringIO]:
    """Return operations that write SQL, and where they write it."""
    output = StringIO()
    options = {"as_sql": True, "output_buffer": output}
    context = MigrationContext.configure(dialect_name=dialect, opts=options)
    return Operations(context), output


def add(path: str, *calls: str) -> None:
    """Let the first revision in *path* do *calls* at its end."""
    (script,) = Path(path).glob("migrations/versions/*.py")
    before, rest = script.read_text().split("    # ### end Alembic commands", 1)
    lines = "".join(f"    {call}\n" for call in calls)
    script.write_text(f"{before}{lines}    # ### end Alembic commands{rest}")


def test_partitions_are_created_and_left_alone(
    make_project: Callable[..., Any],
) -> None:
    """Rows are taken, nothing is to be changed, and a downgrade leaves nothing."""
    project = make_project("hash_partitions", options="include_schemas=True")
    revision = project.revise()
    assert revision.count("postgresql_partition_by='HASH (workflow_key)'") == 5
    add(project.folder, *(f"op.create_hash_partitions({t!r}, 8)" for t in TABLES))
    project.upgrade()
    project.execute(
        "INSERT INTO orders (workflow_key, state, provenance)"
        " SELECT 'o-' || n, '{}', '{}' FROM generate_series(1, 50) n"
    )
    engine = create_engine(project.url, poolclass=NullPool)
    with engine.connect() as connection:
        spread = "SELECT count(DISTINCT tableoid) FROM orders"
        assert connection.exec_driver_sql(spread).scalar() == 8
    assert len(inspect(engine).get_table_names()) == 5 * 9 + 2
    project.check()
    project.execute("CREATE TABLE other (n int) PARTITION BY HASH (n)")
    project.execute(
        "CREATE TABLE other_p0 PARTITION OF other FOR VALUES WITH (MODULUS 1,"
        " REMAINDER 0)"
    )
    # Those of tables that are not mapped are none of ours.
    drop = project.revise("again").partition("def upgrade")[2].partition("def ")[0]
    assert drop.count("op.drop_table") == 2
    project.execute("DROP TABLE other")
    project.downgrade()
    assert inspect(engine).get_table_names() == ["alembic_version"]


def test_operations_are_rendered() -> None:
    """A directive of env.py may add them to a revision."""
    distributed = DistributeTableOp("order_history", colocate_with="orders")
    every = [
        HashPartitionsOp("orders", 8),
        DistributeTableOp("orders", "tenant_id", schema="shop"),
        distributed,
        distributed.reverse(),
        WorkflowIndexesOp("workflow_state", "recent"),
    ]
    lines = [
        line.strip() for line in render_python_code(ops.UpgradeOps(every)).split("\n")
    ]
    assert lines[1:-1] == [
        "op.create_hash_partitions('orders', 8)",
        "op.distribute_table('orders', 'tenant_id', schema='shop')",
        "op.distribute_table('order_history', 'workflow_key', colocate_with='orders')",
        "op.execute(\"SELECT undistribute_table('order_history')\")",
        "op.replace_workflow_indexes('workflow_state', 'recent')",
    ]


def test_distribution_is_that_of_the_statements() -> None:
    """The operation is executed as :func:`sa_wfstate.sharding.distribute` has it."""
    made, output = offline("postgresql")
    operations: Any = made
    operations.distribute_table("Orders", schema="shop")
    operations.distribute_table("history", colocate_with="Orders", schema="shop")
    first, second = output.getvalue().strip().split("\n\n")
    assert first.startswith(
        "SELECT create_distributed_table('shop.\"Orders\"', 'workflow_key', "
        "colocate_with => 'default') WHERE NOT EXISTS"
    )
    assert "colocate_with => 'shop.\"Orders\"') WHERE" in second
    with pytest.raises(CommandError, match="is for PostgreSQL only"):
        offline("sqlite")[0].distribute_table("orders")  # type: ignore[attr-defined]


@pytest.fixture
def _own_indexes() -> Iterator[None]:
    """Put the indexes of the canonical table back."""
    table: Any = WorkflowState.__table__
    before = set(table.indexes)
    yield
    table.indexes.clear()
    table.indexes.update(before)


@pytest.mark.usefixtures("_own_indexes")
def test_indexes_of_the_canonical_table_are_replaced(
    make_project: Callable[..., Any],
) -> None:
    """By one operation, and one call, so that autogenerate agrees; and back."""
    project = make_project("canonical")
    project.revise("tables")
    project.upgrade()
    replace_indexes("recent")
    command.revision(project.config, "indexes")
    (script,) = (project.folder / "migrations" / "versions").glob("*_indexes.py")
    up, down = (
        f"op.replace_workflow_indexes('workflow_state', {names})"
        for names in ("'recent'", "'version', 'updated'")
    )
    text = script.read_text()
    for call in (up, down):
        text = text.replace("    pass", f"    {call}", 1)
    script.write_text(text)
    project.upgrade()
    project.check()
    engine = create_engine(project.url, poolclass=NullPool)

    def names() -> set[str | None]:
        return {each["name"] for each in inspect(engine).get_indexes("workflow_state")}

    assert names() == {"idx_workflow_state_recent"}
    command.downgrade(project.config, "-1")
    replace_indexes("version", "updated")
    assert names() == {"idx_workflow_state_version", "idx_workflow_state_updated"}
