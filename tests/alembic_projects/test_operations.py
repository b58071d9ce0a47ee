"""Operations in migrations: online, offline, by name and as plain functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import NullPool, column, create_engine, insert, select, table, text
from sqlalchemy.exc import IntegrityError

from sa_wfstate import PayloadError

if TYPE_CHECKING:
    from collections.abc import Callable

BY_NAME = "op.upcast_workflow_state"
PLAIN = "upcast_workflow_state"
PYTHON = "{1: lambda data: {'status': data['state']}, 2: lambda data: data | {'n': 0}}"
SQL = (
    "{1: \"jsonb_build_object('status', state->'state')\", "
    '2: "state || \'{\\"n\\":0}\'::jsonb"}'
)


TABLE = '__tablename__ = "orders"'
VERSIONS = """
    __schema_version__ = 3
    __upcasters__ = {1: dict, 2: dict}
"""


def write_migration(project: Any, call: str, undo: str = "pass") -> None:
    """Add a revision that does *call*, after the one that makes the tables."""
    models = project.folder / "models.py"
    models.write_text(models.read_text().replace(TABLE, TABLE + VERSIONS))
    project.revise("tables")
    script = command.revision(project.config, "upcast")
    path = Path(script.path)
    text = path.read_text()
    names = {f.partition("(")[0] for f in (call, undo) if f[:3] != "op." and "(" in f}
    if names:
        line = f"from sa_wfstate.alembic.operations import {', '.join(sorted(names))}"
        text = text.replace(
            "import sqlalchemy as sa", f"{line}\nimport sqlalchemy as sa"
        )
    for body in (call, undo):
        text = text.replace("    pass", f"    {body}  #", 1)
    path.write_text(text)


def upgrade(project: Any, state: str) -> None:
    """Make the tables, put three rows of old versions in, and upcast them."""
    command.upgrade(project.config, "+1")
    project.execute(
        f"""
        INSERT INTO orders (workflow_key, schema_version, state, provenance) VALUES
        ('o-1', 1, '{state}', '{{}}'),
        ('o-2', 2, '{{"status": "new"}}', '{{}}'),
        ('o-3', 3, '{{"status": "new", "n": 0}}', '{{}}')
        """
    )
    command.upgrade(project.config, "+1")


def stored(project: Any) -> list[tuple[int, Any]]:
    """Read schema version and state of all rows."""
    engine = create_engine(project.url)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT schema_version, CAST(state AS TEXT) FROM orders "
            "ORDER BY workflow_key"
        ).all()
    engine.dispose()
    return [(version, json.loads(state)) for version, state in rows]


@pytest.mark.parametrize("name", [BY_NAME, PLAIN])
@pytest.mark.parametrize("steps", [PYTHON, SQL], ids=["python", "sql"])
def test_rows_are_upcast_by_a_migration(
    make_project: Callable[..., Any], name: str, steps: str
) -> None:
    """With functions and with SQL, as ``op.…`` and as a plain function."""
    project = make_project("plain")
    write_migration(project, f"{name}('orders', {steps}, batch_size=2)")
    upgrade(project, '{"state": "new"}')
    assert stored(project) == [(3, {"status": "new", "n": 0})] * 3


TENANT = """
    tenant_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    workflow_key: Mapped[str] = mapped_column(primary_key=True)
"""


def test_rows_of_tenants_are_upcast_by_a_migration(
    make_project: Callable[..., Any],
) -> None:
    """Each by both columns of its key, which ``alembic check`` accepts."""
    project = make_project("plain")
    models = project.folder / "models.py"
    source = models.read_text().replace(TABLE, TABLE + TENANT)
    imported = "import DeclarativeBase, Mapped, mapped_column"
    models.write_text(source.replace("import DeclarativeBase", imported))
    step = "{1: lambda data: data | {'n': 0}, 2: dict}"
    write_migration(project, f"{BY_NAME}('orders', {step}, batch_size=3)")
    command.upgrade(project.config, "+1")
    project.execute(
        """
        INSERT INTO orders (tenant_id, workflow_key, schema_version, state, provenance)
        SELECT t, 'o-' || k, 1, jsonb_build_object('of', t), '{}'
        FROM generate_series(1, 3) t, generate_series(1, 3) k
        """
    )
    command.upgrade(project.config, "+1")
    command.check(project.config)
    engine = create_engine(project.url)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT tenant_id, schema_version, state FROM orders ORDER BY 1"
        ).all()
    engine.dispose()
    assert [tuple(row) for row in rows] == [
        (tenant, 3, {"of": tenant, "n": 0}) for tenant in (1, 2, 3) for _ in range(3)
    ]


def test_offline_one_update_is_written(make_project: Callable[..., Any]) -> None:
    """``--sql`` prints a statement that psql could run."""
    project = make_project("plain")
    write_migration(project, f"{BY_NAME}('orders', {SQL})")
    config = project.config
    command.upgrade(config, "head", sql=True)
    script = config.output_buffer.getvalue()
    (update,) = [line for line in script.splitlines() if "UPDATE orders" in line]
    assert update.startswith("UPDATE orders AS wfs SET schema_version=3, state=CASE")
    upgrade(project, '{"state": "new"}')
    project.execute('UPDATE orders SET schema_version = 1, state = \'{"state": "x"}\'')
    project.execute(update)
    assert stored(project) == [(3, {"status": "x", "n": 0})] * 3


def test_offline_functions_are_refused(make_project: Callable[..., Any]) -> None:
    """The error says what to do."""
    project = make_project("plain")
    write_migration(project, f"{BY_NAME}('orders', {PYTHON})")
    with pytest.raises(CommandError, match="has a step without SQL, and --sql cannot"):
        command.upgrade(project.config, "head", sql=True)


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ("{2: 'state', 3: 'state'}", "would make schema version 4, and Order knows"),
        ("{1: 'state', 3: 'state'}", r"needs steps without a gap, got \[1, 3\]"),
        ("{0: 'state'}", r"needs steps without a gap, got \[0\]"),
        ("{'1': 'state'}", r"needs steps without a gap, got \['1'\]"),
        ("{}", r"needs steps without a gap, got \[\]"),
    ],
)
def test_steps_with_wrong_keys_are_refused(
    make_project: Callable[..., Any], steps: str, problem: str, offline: bool
) -> None:
    """Keyed by the version they lead to, they would make what the code cannot read."""
    project = make_project("plain")
    write_migration(project, f"{BY_NAME}('orders', {steps})")
    expected = f"{problem}.* a step is keyed by the schema version that it starts from"
    with pytest.raises(CommandError, match=expected):
        command.upgrade(project.config, "head", sql=offline)


def test_failing_step_rolls_the_migration_back(
    make_project: Callable[..., Any],
) -> None:
    """The row is named, and no row is changed."""
    project = make_project("plain")
    write_migration(project, f"{BY_NAME}('orders', {PYTHON})")
    with pytest.raises(PayloadError, match=r"orders 'o-1' state \(schema version 1\)"):
        upgrade(project, '{"other": "new"}')
    assert [version for version, _ in stored(project)] == [1, 2, 3]


@pytest.mark.parametrize("prefix", ["op.", ""], ids=["by name", "plain"])
def test_version_trigger_goes_up_and_down(
    make_project: Callable[..., Any], prefix: str
) -> None:
    """What does not count the version is refused, an upcast is not."""
    project = make_project("plain")
    create, drop = (f"{prefix}{verb}_version_trigger" for verb in ("create", "drop"))
    write_migration(project, f"{create}('orders')", f"{drop}('orders')")
    command.upgrade(project.config, "head")
    project.execute(
        "INSERT INTO orders (workflow_key, schema_version, state, provenance) "
        "VALUES ('o-1', 1, '{\"n\": 1}', '{}')"
    )
    blind = "UPDATE orders SET state = '{\"n\": 2}'"
    with pytest.raises(IntegrityError, match="can only be followed by version 2"):
        project.execute(blind)
    project.execute(f"{blind}, schema_version = 2")
    project.execute(f"{blind}, version = version + 1")
    project.check()
    command.downgrade(project.config, "-1")
    project.execute(blind)


def test_version_trigger_is_written_offline(make_project: Callable[..., Any]) -> None:
    """``--sql`` prints the function and the trigger."""
    project = make_project("plain")
    write_migration(project, "op.create_version_trigger('orders')")
    config = project.config
    command.upgrade(config, "head", sql=True)
    script = config.output_buffer.getvalue()
    assert "CREATE TRIGGER wfstate_count_version BEFORE UPDATE ON orders" in script
    assert "'workflow %: version % can only" in script


@pytest.mark.parametrize("steps", [PYTHON, SQL], ids=["python", "sql"])
@pytest.mark.parametrize("name", ["Orders", 'an "order"', "an :order", "100%", "%(a)s"])
def test_table_may_have_any_name(
    make_project: Callable[..., Any], name: str, steps: str
) -> None:
    """Names are quoted, and escaped as the driver and ``text()`` need it."""
    project = make_project("plain")
    models = project.folder / "models.py"
    renamed = f"__tablename__ = {name!r}{VERSIONS}"
    models.write_text(models.read_text().replace(TABLE, renamed))
    upcast = f"op.create_version_trigger({name!r}); {BY_NAME}({name!r}, {steps})"
    undo = f"op.drop_version_trigger({name!r})"
    write_migration(project, upcast, undo)
    command.upgrade(project.config, "+1")
    orders = table(name, *map(column, ["workflow_key", "state", "provenance"]))
    row = {"state": text('\'{"state": "new"}\''), "provenance": text("'{}'")}
    engine = create_engine(project.url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(insert(orders).values(workflow_key="o-1", **row))
    command.upgrade(project.config, "head")
    with engine.connect() as connection:
        assert connection.scalar(select(orders.c.state)) == {"status": "new", "n": 0}
    command.downgrade(project.config, "base")


@pytest.mark.parametrize("name", ["an :order", "100%"])
def test_table_may_have_any_name_offline(
    make_project: Callable[..., Any], name: str
) -> None:
    """``--sql`` prints it as it is."""
    project = make_project("plain")
    operations = f"op.create_version_trigger({name!r}); {BY_NAME}({name!r}, {SQL})"
    write_migration(project, operations)
    config = project.config
    command.upgrade(config, "head", sql=True)
    script = config.output_buffer.getvalue()
    assert f'BEFORE UPDATE ON "{name}"\n' in script
    assert f'UPDATE "{name}" AS wfs SET' in script
