"""Any order of imports, in processes of their own, warnings being errors."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "alembic.autogenerate.sa_wfstate"
ALEMBICS_OWN = [
    f"alembic.autogenerate.{name}"
    for name in ("schemas", "tables", "types", "constraints", "defaults", "comments")
]
GENERATE = """
import models
from alembic.config import Config
from alembic import command

config = Config("alembic.ini")
command.revision(config, "generated", autogenerate=True)
"""
MIGRATE = """
command.upgrade(config, "head")
command.check(config)
command.downgrade(config, "base")
"""
MODELS_FIRST = """
import models
import alembic.autogenerate, alembic.command"""
ALEMBIC_FIRST = """
import alembic.autogenerate, alembic.command
import models"""
CHECK = """{order}
from alembic.config import Config
try:
    alembic.command.check(Config("alembic.ini"))
except alembic.util.CommandError as error:
    for found in ("modify_default", "add_constraint"):
        print(found, str(error).count(repr(found)))
"""
COMPARE = """{order}
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
with create_engine({url!r}).connect() as connection:
    context = MigrationContext.configure(connection)
    diffs = alembic.autogenerate.compare_metadata(context, models.Base.metadata)
for found in ("modify_default", "add_constraint"):
    print(found, str(diffs).count(repr(found)))
"""
RENDER = """{order}
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
with create_engine({url!r}).connect() as connection:
    context = MigrationContext.configure(connection)
    script = alembic.autogenerate.produce_migrations(context, models.Base.metadata)
text = alembic.autogenerate.render_python_code(script.upgrade_ops)
print("modify_default", text.count("server_default=sa.text('1')"))
print("add_constraint", text.count("create_check_constraint("))
"""
FOUND = "modify_default 1\nadd_constraint 1\n"


def run(project: Any, *command: str) -> str:
    """Run Python in the folder of *project*."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=project.folder,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def make_complete(make_project: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that sets up a project whose alembic.ini has the URL, too."""

    def make(options: str = "") -> Any:
        project = make_project("plain", options)
        write_url(project)
        return project

    return make


def write_url(project: Any) -> None:
    """Write the URL of the database where a person would."""
    ini = project.folder / "alembic.ini"
    ini.write_text(
        ini.read_text().replace(
            "driver://user:pass@localhost/dbname", project.url.replace("%", "%%")
        )
    )


@pytest.fixture
def project(make_complete: Callable[..., Any]) -> Any:
    """Set up a project that the command line can be run in."""
    return make_complete()


def revision_of(project: Any) -> str:
    """Read the only revision of *project*."""
    (path,) = Path(project.folder, "migrations", "versions").glob("*.py")
    return path.read_text()


def test_command_line_is_clean(project: Any) -> None:
    """``alembic init``, two lines edited, and every command runs."""
    run(project, "-m", "alembic", "revision", "--autogenerate", "-m", "generated")
    assert "sa_wfstate" not in revision_of(project)
    for command in [["upgrade", "head"], ["check"], ["downgrade", "base"]]:
        run(project, "-m", "alembic", *command)


def test_models_may_come_before_alembic(project: Any) -> None:
    """A program that has imported its models already generates the same revision."""
    run(project, "-c", GENERATE + MIGRATE)
    assert "sa_wfstate" not in revision_of(project)


def test_columns_added_by_a_program_that_imported_its_models_first(
    project: Any,
) -> None:
    """The same for columns that an existing table lacks."""
    project.execute(
        "CREATE TABLE orders (workflow_key TEXT PRIMARY KEY, state JSONB NOT NULL)"
    )
    run(project, "-c", GENERATE)
    revision = revision_of(project)
    assert (
        "op.add_column('orders', sa.Column('provenance', postgresql.JSONB" in revision
    )
    assert "sa_wfstate" not in revision


def test_importing_the_package_does_not_import_alembic(project: Any) -> None:
    """Applications that never migrate do not load it."""
    run(
        project,
        "-c",
        "import sys, models, sa_wfstate.canonical; "
        "assert not [m for m in sys.modules if m.startswith('alembic')]",
    )


@pytest.mark.parametrize("first", ["alembic", "alembic.op", "alembic.autogenerate"])
def test_each_operation_is_there_without_an_import_of_ours(
    project: Any, first: str
) -> None:
    """The plugin is set up while Alembic is half imported, and logs no failure."""
    names = "upcast_workflow_state", "distribute_table", "create_hash_partitions"
    names = *names, "replace_workflow_indexes"
    said = run(
        project,
        "-c",
        f"import logging, sys; logging.basicConfig(stream=sys.stdout); import {first}; "
        f"import alembic.op; print([n for n in {names} if not hasattr(alembic.op, n)])",
    )
    assert said.split() == ["[]"]


@pytest.mark.parametrize("first", ["alembic.operations", "alembic.plugin"])
def test_our_own_modules_may_come_before_alembic(project: Any, first: str) -> None:
    """Whichever module imports Alembic, the operations are there afterwards."""
    run(
        project,
        "-c",
        f"import sa_wfstate.{first}, alembic.op, models; "
        "assert hasattr(alembic.op, 'upcast_workflow_state')",
    )


def test_importing_alembic_survives_a_failure_of_ours(project: Any) -> None:
    """Revisions are still right, and the log says what is missing."""
    broken = "import sys; sys.modules['sa_wfstate.alembic.operations'] = None\n"
    check = "import alembic.op; assert not hasattr(alembic.op, 'upcast_workflow_state')"
    run(project, "-c", broken + check + GENERATE + MIGRATE)
    assert "sa_wfstate" not in revision_of(project)
    log = "logging.basicConfig(stream=sys.stdout); import alembic"
    assert "sa_wfstate could not register all of its Alembic operations" in run(
        project, "-c", f"{broken}import logging; {log}"
    )


def test_entry_point_is_a_module_that_can_be_iterated() -> None:
    """Alembic before 1.20.1 iterates over it, and could not be imported otherwise."""
    (found,) = metadata.entry_points(group="alembic.plugins", name=NAME)
    plugin = found.load()
    assert isinstance(plugin, ModuleType)
    assert [*plugin] == [plugin]


def test_explicit_list_of_plugins_may_name_ours(make_complete: Any) -> None:
    """An environment that lists Alembic's own plugins adds one name."""
    project = make_complete(f"autogenerate_plugins={[*ALEMBICS_OWN, NAME]}")
    run(project, "-c", GENERATE + MIGRATE)
    assert "sa_wfstate" not in revision_of(project)
    project.upgrade()
    project.execute("DROP TABLE orders")
    drift(project)
    assert run(project, "-c", CHECK.format(order=MODELS_FIRST)) == FOUND


def test_explicit_list_without_ours_needs_render_item(make_complete: Any) -> None:
    """The tables can be migrated with ``render_item``; drift is not compared."""
    project = make_complete(
        f"autogenerate_plugins={ALEMBICS_OWN}, render_item=render_item"
    )
    env = project.folder / "migrations" / "env.py"
    line = "from sa_wfstate.alembic.rendering import render_item"
    env.write_text(
        env.read_text().replace("import context\n", f"import context\n{line}\n")
    )
    run(project, "-c", GENERATE + MIGRATE)
    assert "sa_wfstate" not in revision_of(project)
    project.upgrade()
    project.execute("DROP TABLE orders")
    drift(project)
    project.check()


def drift(project: Any) -> None:
    """Make the tables, and let them lack what is ours alone to compare."""
    project.execute(
        """
        CREATE TABLE orders (
            workflow_key TEXT PRIMARY KEY,
            version BIGINT NOT NULL DEFAULT 2 CHECK (version >= 1),
            state JSONB NOT NULL,
            updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
            schema_version INT NOT NULL DEFAULT 1,
            provenance JSONB NOT NULL
        )
        """
    )


def test_rendering_without_an_environment_takes_render_item(project: Any) -> None:
    """``render_python_code`` is told what a comparison in an environment is not."""
    program = RENDER.format(order=MODELS_FIRST, url=project.url)
    program = program.replace(
        "script.upgrade_ops)", "script.upgrade_ops, render_item=render_item)"
    )
    done = run(
        project,
        "-c",
        f"from sa_wfstate.alembic.rendering import render_item{program}print(text)",
    )
    assert "sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text())" in done
    assert "sa_wfstate" not in done


@pytest.mark.parametrize(
    "order", [MODELS_FIRST, ALEMBIC_FIRST], ids=["models first", "Alembic first"]
)
@pytest.mark.parametrize(
    "entry", [CHECK, COMPARE, RENDER], ids=["check", "compare", "render"]
)
def test_drift_is_seen_by_programs_too(project: Any, order: str, entry: str) -> None:
    """In any order of imports, and by any function of Alembic."""
    drift(project)
    program = entry.format(order=order, url=project.url)
    assert run(project, "-c", program) == FOUND


def test_drift_is_seen_by_the_command_line(project: Any) -> None:
    """``alembic check`` finds the same."""
    drift(project)
    program = (
        "import sys, runpy; sys.argv = ['alembic', 'check']; "
        "runpy.run_module('alembic', run_name='__main__')"
    )
    with pytest.raises(AssertionError) as caught:
        run(project, "-c", program)
    for found in ("'modify_default'", "'add_constraint'"):
        assert found in str(caught.value)
