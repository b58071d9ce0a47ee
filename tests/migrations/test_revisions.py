"""What the revisions make: the tables of the design, and nothing is left behind."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from sa_wfstate.canonical import CanonicalBase

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.config import Config

# As the design has it. The migrations and the mapping both must make exactly this.
WORKFLOW_STATE = """
    CREATE TABLE workflow_state (
        workflow_key TEXT PRIMARY KEY,
        version BIGINT NOT NULL DEFAULT 1 CHECK (version >= 1),
        state JSONB NOT NULL,
        updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
        schema_version INT NOT NULL DEFAULT 1 CHECK (schema_version >= 1),
        provenance JSONB NOT NULL
    );
    CREATE INDEX idx_workflow_state_version ON workflow_state (workflow_key, version);
    CREATE INDEX idx_workflow_state_updated ON workflow_state (updated_at DESC);
"""
STEPS = [
    ("wfstate_0001", {"workflow_state"}),
    ("wfstate_0002", {"action_dedup_log"}),
    ("wfstate_0003", {"workflow_projection", "projection_watermarks"}),
    ("wfstate_0004", {"workflow_history"}),
    ("wfstate_0005", {"workflow_intents"}),
]
TABLES = set[str]().union(*(tables for _, tables in STEPS))


@pytest.fixture
def designed(catalog: Any) -> dict[str, Any]:
    """Describe the table of the design; it is gone again when the test starts."""
    catalog.execute(WORKFLOW_STATE)
    description = catalog.describe("workflow_state")
    catalog.execute("DROP TABLE workflow_state")
    return description


def test_upgrade_makes_the_canonical_tables(config: Config, catalog: Any) -> None:
    """Head holds the tables of the design and Alembic's own."""
    command.upgrade(config, "head")
    assert catalog.tables() == TABLES | {"sa_wfstate_alembic_version"}


def test_upgrade_makes_workflow_state_as_designed(
    config: Config, catalog: Any, designed: dict[str, Any]
) -> None:
    """PostgreSQL describes the migrated table in the same words as the raw SQL one."""
    command.upgrade(config, "head")
    assert catalog.describe("workflow_state") == designed


def test_workflow_state_has_the_columns_of_the_design(
    config: Config, catalog: Any
) -> None:
    """The comparison with raw SQL compares something."""
    command.upgrade(config, "head")
    description = catalog.describe("workflow_state")
    assert [column[:4] for column in description["columns"]] == [
        ("workflow_key", "text", True, None),
        ("version", "bigint", True, "1"),
        ("state", "jsonb", True, None),
        ("updated_at", "timestamp with time zone", True, "now()"),
        ("schema_version", "integer", True, "1"),
        ("provenance", "jsonb", True, None),
    ]
    # PostgreSQL 18 lists NOT NULL among the constraints, 17 does not.
    constraints = [row[0] for row in description["constraints"] if row[1] != "n"]
    assert constraints == [
        "workflow_state_pkey",
        "workflow_state_schema_version_check",
        "workflow_state_version_check",
    ]
    assert [index[0] for index in description["indexes"]] == [
        "idx_workflow_state_updated",
        "idx_workflow_state_version",
        "workflow_state_pkey",
    ]


def test_create_all_makes_the_same_tables(
    config: Config,
    catalog: Any,
    designed: dict[str, Any],
    create_tables: Callable[..., None],
) -> None:
    """A test suite that calls create_all() tests the tables that production has."""
    command.upgrade(config, "head")
    migrated = catalog.describe_all()
    command.downgrade(config, "base")
    create_tables(CanonicalBase.metadata)
    assert catalog.describe_all() == migrated
    assert catalog.describe("workflow_state") == designed


def test_check_is_clean_after_upgrade(config: Config) -> None:
    """The mapping and the migrations agree, server defaults and CHECKs included."""
    command.upgrade(config, "head")
    command.check(config)


def test_check_is_clean_on_an_adopted_table(config: Config, catalog: Any) -> None:
    """A workflow_state made by hand from the design is stamped, not made again."""
    catalog.execute(WORKFLOW_STATE)
    command.stamp(config, "wfstate_0001")
    command.upgrade(config, "head")
    command.check(config)


@pytest.mark.parametrize(
    "change",
    [
        "DROP INDEX idx_workflow_state_updated",
        "ALTER TABLE workflow_state ALTER version DROP DEFAULT",
        "ALTER TABLE workflow_state ALTER schema_version SET DEFAULT 2",
        "ALTER TABLE workflow_state ALTER provenance DROP NOT NULL",
        "ALTER TABLE workflow_state ALTER version TYPE int",
        "ALTER TABLE workflow_state ADD more text",
        "DROP TABLE projection_watermarks",
        "ALTER TABLE workflow_state DROP CONSTRAINT workflow_state_version_check",
        "ALTER TABLE workflow_state DROP CONSTRAINT workflow_state_pkey",
    ],
)
def test_check_sees_a_difference(config: Config, catalog: Any, change: str) -> None:
    """A check that is always clean would be worth nothing."""
    command.upgrade(config, "head")
    catalog.execute(change)
    with pytest.raises(CommandError, match="New upgrade operations detected"):
        command.check(config)


def test_revisions_go_up_and_down_step_by_step(config: Config, catalog: Any) -> None:
    """Each revision adds its own tables, and takes just those away again."""
    expected = {"sa_wfstate_alembic_version"}
    for revision, tables in STEPS:
        command.upgrade(config, "+1")
        expected |= tables
        assert catalog.tables() == expected, revision
    for revision, tables in reversed(STEPS):
        command.downgrade(config, "-1")
        expected -= tables
        assert catalog.tables() == expected, revision


def test_downgrade_leaves_nothing(config: Config, catalog: Any) -> None:
    """No relation, type or function survives, only Alembic's own empty table."""
    command.upgrade(config, "head")
    assert len(catalog.objects()) > len(TABLES)
    command.downgrade(config, "base")
    assert catalog.objects() == {
        ("pg_class", "sa_wfstate_alembic_version"),
        ("pg_class", "sa_wfstate_alembic_version_pkc"),
        ("pg_type", "sa_wfstate_alembic_version"),
        ("pg_type", "_sa_wfstate_alembic_version"),
    }


def test_up_again_after_down_gives_the_same_tables(
    config: Config, catalog: Any
) -> None:
    """Going down and up changes nothing."""
    command.upgrade(config, "head")
    first = catalog.describe_all()
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    assert catalog.describe_all() == first


def test_history_is_one_line(config: Config) -> None:
    """There is one head, and the revisions stand in the order of their numbers."""
    revisions = [*ScriptDirectory.from_config(config).walk_revisions()]
    names = [revision.revision for revision in reversed(revisions)]
    assert names == [name for name, _ in STEPS]


def test_revisions_do_not_import_the_package(config: Config) -> None:
    """A revision says what was true when it was written, whatever changes later."""
    paths = sorted(Path(ScriptDirectory.from_config(config).versions).glob("*.py"))
    assert len(paths) == len(STEPS)
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert all(not n.name.startswith("sa_wfstate") for n in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("sa_wfstate")


def test_no_folder_of_the_migrations_is_a_package(config: Config) -> None:
    """An __init__.py in a folder called alembic would shadow Alembic itself."""
    folder = Path(ScriptDirectory.from_config(config).dir)
    assert (folder / "env.py").is_file()
    assert not list(folder.rglob("__init__.py"))


def test_autogenerate_writes_what_the_revisions_make(
    config: Config, catalog: Any, make_copy: Callable[[], Config]
) -> None:
    """A generated revision has no trace of sa_wfstate, and makes the same tables."""
    copy = make_copy()
    command.revision(copy, "everything", autogenerate=True)
    (path,) = Path(ScriptDirectory.from_config(copy).versions).glob("*.py")
    assert "sa_wfstate" not in path.read_text()
    command.upgrade(copy, "head")
    generated = catalog.describe_all()
    command.downgrade(copy, "base")
    command.upgrade(config, "head")
    assert generated == catalog.describe_all()


def test_an_empty_revision_runs(catalog: Any, make_copy: Callable[[], Config]) -> None:
    """What the template writes is a revision, before anyone fills it in."""
    copy = make_copy()
    command.revision(copy, "nothing yet")
    command.upgrade(copy, "head")
    assert catalog.tables() == {"sa_wfstate_alembic_version"}
    command.downgrade(copy, "base")
