"""A stock environment stays clean: autogenerate, upgrade, check, downgrade."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine, inspect, make_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

PROJECTS = sorted(
    path.parent.name for path in Path(__file__).parent.glob("*/models.py")
)
CHECKS = '["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"]'
EVERYTHING = (
    "compare_type=True, compare_server_default=True, include_schemas=True"
    f", autogenerate_plugins={CHECKS}"
)
BATCH = "render_as_batch=True"
JSONB = "postgresql.JSONB(astext_type=sa.Text())"


def schemas_of(project: Any, name: str) -> None:
    """Make the schema that a project expects."""
    if name == "schema_and_convention":
        project.execute("CREATE SCHEMA shop")


def imports(revision: str) -> set[str]:
    """Return the modules that *revision* imports."""
    found = set()
    for node in ast.walk(ast.parse(revision)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def tables(url: str) -> set[str]:
    """Return the tables of the application and of Alembic."""
    inspector = inspect(create_engine(url, poolclass=NullPool))
    return {
        table
        for schema in {"public", "shop", "main"} & {*inspector.get_schema_names()}
        for table in inspector.get_table_names(schema)
    }


@pytest.mark.parametrize("options", ["", EVERYTHING], ids=["stock", "everything"])
@pytest.mark.parametrize("name", PROJECTS)
def test_up_check_down_are_clean(
    make_project: Callable[..., Any], name: str, options: str
) -> None:
    """What was generated is all there is to do, and can be undone."""
    if "shop" in (Path(__file__).parent / name / "models.py").read_text() and (
        not options
    ):
        # A schema of the application's own is compared only if it says so.
        options = "include_schemas=True"
    project = make_project(name, options)
    schemas_of(project, name)
    revision = project.revise()
    assert JSONB in revision
    assert "sa_wfstate" not in revision
    assert imports(revision) <= {
        *("typing", "collections.abc", "alembic", "sqlalchemy"),
        "sqlalchemy.dialects",
    }
    project.upgrade()
    project.check()
    assert len(tables(project.url)) > 1
    project.downgrade()
    assert tables(project.url) == {"alembic_version"}


@pytest.mark.parametrize("options", ["", BATCH], ids=["stock", "batch"])
@pytest.mark.parametrize("name", ["plain", "own_table_args", "two_tables"])
def test_sqlite_is_clean_too(
    make_project: Callable[..., Any], name: str, options: str, tmp_path: Path
) -> None:
    """A revision made on SQLite runs there, and says what PostgreSQL stores."""
    url = make_url(f"sqlite:///{tmp_path}/test.db")
    project = make_project(name, options, url=url)
    revision = project.revise()
    assert f'sa.JSON().with_variant({JSONB}, "postgresql")' in revision
    assert "sa_wfstate" not in revision
    project.upgrade()
    project.check()
    project.downgrade()
    assert tables(project.url) == {"alembic_version"}


def test_revision_made_on_sqlite_runs_on_postgresql(
    make_project: Callable[..., Any], tmp_path: Path, database: URL
) -> None:
    """A migration generated on SQLite still makes JSONB in production."""
    project = make_project("plain", url=make_url(f"sqlite:///{tmp_path}/test.db"))
    project.revise()
    project.url = database.render_as_string(hide_password=False)
    project.upgrade()
    project.check()
    inspector = inspect(create_engine(project.url, poolclass=NullPool))
    types = {
        column["name"]: column["type"] for column in inspector.get_columns("orders")
    }
    assert type(types["state"]).__name__ == "JSONB"


def test_revision_has_the_checks_and_the_chosen_indexes(
    make_project: Callable[..., Any],
) -> None:
    """Names are PostgreSQL's own, marked as final."""
    revision = make_project("own_table_args").revise()
    for name in ("orders_version_check", "orders_schema_version_check"):
        assert f"name=op.f('{name}')" in revision
    for index in ("version", "updated", "state", "provenance"):
        assert f"op.f('idx_orders_{index}')" in revision
    assert "postgresql_using='gin'" in revision


def test_own_render_item_is_asked_first(make_project: Callable[..., Any]) -> None:
    """A render_item of the application's own keeps its say."""
    theirs = "render_item=lambda kind, item, context: "
    project = make_project("plain", theirs + "'sa.JSON()' if kind == 'type' else False")
    assert "sa.Column('state', sa.JSON()" in project.revise()


RAW = """
    CREATE TABLE orders (
        workflow_key TEXT PRIMARY KEY,
        version BIGINT NOT NULL DEFAULT 1 CHECK (version >= 1),
        state JSONB NOT NULL,
        updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
        schema_version INT NOT NULL DEFAULT 1 CHECK (schema_version >= 1),
        provenance JSONB NOT NULL
    )
"""


@pytest.mark.parametrize("options", ["", EVERYTHING], ids=["stock", "everything"])
def test_table_made_by_raw_sql_is_adopted(
    make_project: Callable[..., Any], options: str
) -> None:
    """The table of the design, made by psql, shows no difference."""
    project = make_project("plain", options)
    project.execute(RAW)
    assert "op." not in project.revise().partition("def upgrade()")[2]
    project.upgrade()
    project.check()


def test_check_with_another_name_is_accepted(make_project: Callable[..., Any]) -> None:
    """What a constraint says matters, not what it is called."""
    project = make_project("plain")
    project.execute(
        RAW,
        "ALTER TABLE orders RENAME CONSTRAINT orders_version_check TO positive",
    )
    project.check()


DRIFTS = {
    "a CHECK is missing": (
        "ALTER TABLE orders DROP CONSTRAINT orders_version_check",
        "op.create_check_constraint(op.f('orders_version_check'), 'orders', 'version >",
    ),
    "a CHECK is weaker": (
        """
        ALTER TABLE orders DROP CONSTRAINT orders_version_check,
        ADD CONSTRAINT orders_version_check CHECK (version >= 0)
        """,
        "op.drop_constraint(op.f('orders_version_check'), 'orders', type_='check')",
    ),
    "a default is missing": (
        "ALTER TABLE orders ALTER version DROP DEFAULT",
        "server_default=sa.text('1')",
    ),
    "a default is another": (
        "ALTER TABLE orders ALTER schema_version SET DEFAULT 2",
        "server_default=sa.text('1')",
    ),
    "columns are missing": (
        "ALTER TABLE orders DROP provenance, DROP schema_version",
        f"op.add_column('orders', sa.Column('provenance', {JSONB}, nullable=True))",
    ),
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize(
    "options", ["", EVERYTHING, BATCH], ids=["stock", "everything", "batch"]
)
def test_drift_is_seen_and_mended(
    make_project: Callable[..., Any], drift: str, options: str
) -> None:
    """A stock environment sees it; the revision mends it, and its undoing works."""
    statement, expected = DRIFTS[drift]
    if options == EVERYTHING and "weaker" in drift:
        pytest.skip("not compared by name")
    project = make_project("plain", options)
    project.execute(RAW, statement)
    before = described(project.url)
    with pytest.raises(CommandError, match="New upgrade operations detected"):
        project.check()
    revision = project.revise()
    if not options:
        assert expected in revision
    assert ("batch_op." in revision) == (options == BATCH)
    project.upgrade()
    project.check()
    project.downgrade()
    assert described(project.url) == before
    project.upgrade()
    project.check()


def described(url: str) -> list[Any]:
    """Return what the revisions of these tests change of the table ``orders``."""
    inspector = inspect(create_engine(url, poolclass=NullPool))
    columns = inspector.get_columns("orders")
    return [
        inspector.get_pk_constraint("orders"),
        inspector.get_check_constraints("orders"),
        {column["name"]: (column["nullable"], column["default"]) for column in columns},
    ]


KEY = "workflow_key TEXT PRIMARY KEY"
OTHER_KEYS = {
    "another column": "id INT PRIMARY KEY, workflow_key TEXT NOT NULL",
    "two columns": "shop INT, workflow_key TEXT, CONSTRAINT mine "
    "PRIMARY KEY (shop, workflow_key)",
    "none": "workflow_key TEXT NOT NULL",
}


@pytest.mark.parametrize("key", OTHER_KEYS)
@pytest.mark.parametrize("options", ["", BATCH], ids=["stock", "batch"])
def test_primary_key_is_changed_and_changed_back(
    make_project: Callable[..., Any], key: str, options: str
) -> None:
    """A table whose primary key is another one gets the mapped one."""
    project = make_project("plain", options)
    project.execute(RAW.replace(KEY, OTHER_KEYS[key]))
    before = described(project.url)
    revision = project.revise()
    prefix, table = ("batch_op.", "") if options else ("op.", "'orders', ")
    name = f"{prefix}f('orders_pkey')"
    assert f"{prefix}create_primary_key({name}, {table}['workflow_key'])" in revision
    project.upgrade()
    found = described(project.url)[0]
    assert found["name"] == "orders_pkey"
    assert found["constrained_columns"] == ["workflow_key"]
    project.check()
    project.downgrade()
    assert described(project.url) == before


REFERRING = {
    "id": "CREATE TABLE notes (id INT PRIMARY KEY, order_id INT REFERENCES orders)",
    "workflow_key": "CREATE TABLE notes "
    "(id INT PRIMARY KEY, order_key TEXT REFERENCES orders (workflow_key))",
}


@pytest.mark.parametrize("column", REFERRING)
def test_foreign_key_to_the_old_primary_key_raises_in_the_migration(
    make_project: Callable[..., Any], column: str
) -> None:
    """What becomes of it must be written; one to another unique key stays as it is."""
    only_orders = "include_name=lambda name, kind, parents: name != 'notes'"
    project = make_project("plain", only_orders)
    project.execute(
        RAW.replace(KEY, "id INT PRIMARY KEY, workflow_key TEXT NOT NULL UNIQUE"),
        REFERRING[column],
        "ALTER TABLE orders ALTER version DROP DEFAULT",
    )
    before = described(project.url)
    with pytest.raises(CommandError, match="modify_primary_key"):
        project.check()
    revision = project.revise()
    if column == "workflow_key":
        assert "op.create_primary_key" in revision
        return
    problem = (
        r"of orders changes from \(id\) to \(workflow_key\), and foreign keys of notes "
        "refer to it: drop these foreign keys"
    )
    with pytest.raises(NotImplementedError, match=problem):
        project.upgrade()
    assert described(project.url) == before


def test_primary_key_may_have_another_name(make_project: Callable[..., Any]) -> None:
    """Its columns are compared, as with a CHECK its text."""
    project = make_project("plain")
    project.execute(RAW, "ALTER TABLE orders RENAME CONSTRAINT orders_pkey TO mine")
    project.check()


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    ("name", "schema"), [("long_names", None), ("schema_and_convention", "shop")]
)
def test_missing_primary_key_is_created_under_the_name_that_it_had(
    make_project: Callable[..., Any], name: str, schema: str | None, batch: bool
) -> None:
    """PostgreSQL's own also for long and quoted names, or the naming convention's."""
    project = make_project(name, f"include_schemas=True, render_as_batch={batch}")
    schemas_of(project, name)
    project.revise()
    project.upgrade()
    engine = create_engine(project.url, poolclass=NullPool)
    inspector = inspect(engine)
    own = {*inspector.get_table_names(schema)} - {"alembic_version"}
    keys = {table: inspector.get_pk_constraint(table, schema) for table in own}
    with engine.begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        for table, key in keys.items():
            op.drop_constraint(key["name"], table, schema=schema)
    project.revise()
    project.upgrade()
    project.check()
    inspector = inspect(engine)
    assert {table: inspector.get_pk_constraint(table, schema) for table in own} == keys
