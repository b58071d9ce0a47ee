"""The project's tasks: ``python -m nox -l`` lists them.

Plain ``nox`` runs what a change must pass. Everything installs from the package
index, PostgreSQL included.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import nox

if TYPE_CHECKING:
    from collections.abc import Iterator

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["lint", "typing", "tests", "docs"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
OLDEST = PYTHONS[0]
# The oldest that the package says it supports, and what was released since.
DIALECT_TESTS = [
    f"tests/{path}"
    for path in (
        "store/test_api.py",
        "store/test_bulk.py",
        "store/test_read_guards.py",
        "store/test_rebasing.py",
        "orm/test_conflicts.py",
        "test_dedup.py",
        "outbox",
        "history",
    )
]
"""The contract tests that are run over the dialects of other engines."""
ALEMBICS = ["1.19.2", "1.20.0", "1.20.1"]


def install(session: nox.Session, *groups: str, package: bool = True) -> None:
    """Install the tools of *groups*, and the package with all its extras."""
    tools = nox.project.dependency_groups(PROJECT, *groups)
    session.install(*tools, *(["-e", ".[all]"] if package else []))


def run_pytest(session: nox.Session, *arguments: str, **env: str) -> None:
    """Run pytest, on two processes unless the arguments say otherwise."""
    # Not python -m pytest: it would put the working folder on the import path.
    session.run("pytest", "-n", "2", *arguments, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and the order of the modules."""
    install(session, "lint", package=False)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types with mypy, wrong uses that it must refuse included."""
    install(session, "typing")
    session.run("mypy", *session.posargs)


@nox.session
def pyright(session: nox.Session) -> None:
    """Check the types of the public names with pyright; it fetches itself with npm."""
    install(session, "pyright", "docs")
    session.run("pyright", *session.posargs)
    session.run("pyright", "-p", write_snippets(session))
    # It exits with 1 as long as a single type is ambiguous: a measure, not a gate.
    verify = ["pyright", "--ignoreexternal", "--verifytypes", "sa_wfstate"]
    session.run(*verify, success_codes=[0, 1])


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after ``--`` go to pytest."""
    install(session, "test")
    run_pytest(session, *session.posargs)


@nox.session
def lint_sql(session: nox.Session) -> None:
    """Run the tests; one fails in which a statement could not be sent to one shard."""
    install(session, "test")
    run_pytest(session, *session.posargs, SA_WFSTATE_LINT_SQL="1")


@nox.session
def stress(session: nox.Session) -> None:
    """Try more random operations, and kill processes and a server; takes minutes."""
    install(session, "test")
    if not session.posargs:
        folder = Path("tests", "orm")
        properties = [str(path) for path in folder.glob("test_*_properties.py")]
        run_pytest(session, *properties, SA_WFSTATE_SEQUENCES="400")
    session.run("pytest", "-m", "stress", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Prove that no commit is lost or doubled while servers and connections die."""
    install(session, "test")
    session.run("pytest", "-m", "faults", "-s", "tests/faults", *session.posargs)


@nox.session
def shards(session: nox.Session) -> None:
    """Run the drives of the public API on tables distributed over two servers.

    And commits while these servers are killed: ``SA_WFSTATE_SHARD_COMMITS``, or 2,000.
    """
    install(session, "test")
    session.run("pytest", "-m", "shards", "tests/shards", *session.posargs)


@nox.session
def replicas(session: nox.Session) -> None:
    """Read from a standby that lags, and let one take over while commits go on.

    ``SA_WFSTATE_REPLICA_COMMITS`` says how many commits, 3,000 by default.
    """
    install(session, "test")
    session.run("pytest", "-m", "replicas", "tests/replicas", *session.posargs)


@nox.session
def citus(session: nox.Session) -> None:
    """Run the drives of the public API on Citus, if ``SA_WFSTATE_CITUS_URL`` is set.

    It names a database of the coordinator in which the tests may drop tables.
    """
    if "SA_WFSTATE_CITUS_URL" not in os.environ:
        session.skip("SA_WFSTATE_CITUS_URL does not name a Citus coordinator")
    install(session, "test")
    session.run("pytest", "-m", "citus", "tests/citus", *session.posargs)


@nox.session
def dialects(session: nox.Session) -> None:
    """Run drives and contract tests over the dialects of CockroachDB and Aurora DSQL.

    Against a PostgreSQL that refuses what those engines lack; they are not here.
    """
    install(session, "test")
    # They need SQLAlchemy 2.0.
    session.install("sqlalchemy-cockroachdb", "aurora-dsql-sqlalchemy")
    session.run("pytest", "-m", "dialects", "tests/dialects", *session.posargs)
    # SQLAlchemy warns of the first; the library sees by RETURNING what was written.
    quiet = "ignore:Dialect cockroachdb+psycopg does not support updated rowcount"
    contract = ["-W", quiet, "-m", "contract", "-k", "psycopg and not psycopg_async"]
    # What is skipped asks itself for what the engine lacks.
    for dialect, test in {
        # The rows of a class without versions are not counted.
        "cockroachdb": "tests/orm/test_conflicts.py::test_other_errors_pass_through",
        # A PostgreSQL refuses a lock that would not be taken there.
        "auroradsql": "tests/store/test_read_guards.py::"
        "test_row_that_moved_at_repeatable_read",
    }.items():
        arguments = [*contract, "--deselect", test, *DIALECT_TESTS]
        run_pytest(session, *arguments, SA_WFSTATE_DIALECT=dialect)


@nox.session
def bouncer(session: nox.Session) -> None:
    """Run the drives of the public API behind PgBouncer, if the machine has one.

    The program is the one in the path, or that of ``SA_WFSTATE_PGBOUNCER``.
    """
    # The system's packages put it where only root looks.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    program = os.environ.get("SA_WFSTATE_PGBOUNCER") or shutil.which(
        "pgbouncer", path=path
    )
    if not program:
        session.skip("no pgbouncer in the path, and none named by SA_WFSTATE_PGBOUNCER")
    install(session, "test")
    command = ["pytest", "-m", "bouncer", "tests/bouncer", *session.posargs]
    session.run(*command, env={"SA_WFSTATE_PGBOUNCER": program})


@nox.session(python=PYTHONS)
@nox.parametrize("sqlalchemy", ["2.0", "2.1"])
def matrix(session: nox.Session, sqlalchemy: str) -> None:
    """Run the tests on every Python and SQLAlchemy."""
    install(session, "test")
    lowest = "2.0.40" if sqlalchemy == "2.0" else f"{sqlalchemy}.0"
    session.install(f"sqlalchemy[asyncio]~={lowest}")
    run_pytest(session, *session.posargs)


@nox.session
@nox.parametrize("sqlalchemy", ["2.0", "2.1"])
def sqlalchemy_suites(session: nox.Session, sqlalchemy: str) -> None:
    """Run SQLAlchemy's own ORM tests without the library, and with a workflow mapped.

    Arguments after ``--`` go to pytest.
    """
    install(session, "test")
    session.install("pip", f"sqlalchemy[asyncio]~={sqlalchemy}.0")
    show = "import sqlalchemy; print(sqlalchemy.__version__)"
    version = session.run("python", "-c", show, silent=True).strip()
    folder = Path(session.create_tmp()).resolve()
    tree = folder / f"sqlalchemy-{version}"
    if not tree.exists():
        download = ["pip", "download", "--no-deps", "--no-binary", "sqlalchemy"]
        wanted = ["-d", str(folder), f"sqlalchemy=={version}"]
        session.run("python", "-m", *download, *wanted)
        shutil.unpack_archive(f"{tree}.tar.gz", folder, filter="data")
    script = "tests/sqlalchemy_suites/run.py"
    arguments = session.posargs or ["-n", "2"]
    session.run("python", script, str(tree), *arguments)


@nox.session
@nox.parametrize("alembic", ALEMBICS)
def alembic_versions(session: nox.Session, alembic: str) -> None:
    """Run what concerns migrations on an Alembic, beside other extensions of it."""
    install(session, "test")
    neighbours = ["alembic-utils", "alembic-postgresql-enum", "pytest-alembic"]
    session.install(*neighbours, f"alembic=={alembic}")
    # Or pytest-alembic collects its tests by itself, without an environment.
    arguments = ["-o", "pytest_alembic_tests_path=none.py"]
    run_pytest(session, *arguments, "tests/alembic_projects", "tests/migrations")


@nox.session
def neighbours(session: nox.Session) -> None:
    """Run one short test each beside frameworks, extensions, tools and task queues."""
    install(session, "test", "neighbours")
    # Their own deprecations are no errors here; pytest-alembic collects by itself.
    arguments = ["-W", "default", "-o", "pytest_alembic_tests_path=none.py"]
    session.run("pytest", *arguments, "-m", "neighbours", "tests/neighbours")
    session.run("pytest", *arguments, "tests/alembic_projects/test_pytest_alembic.py")


@nox.session(python=OLDEST)
def tests_min(session: nox.Session) -> None:
    """Run the tests on the lowest versions that the package says it supports."""
    package = PROJECT["project"]
    needs = [package["dependencies"], *package["optional-dependencies"].values()]
    lowest = {n.replace(">=", "==") for n in chain.from_iterable(needs) if ">=" in n}
    session.install(*nox.project.dependency_groups(PROJECT, "test"), *sorted(lowest))
    session.install("-e", ".[all]")
    run_pytest(session, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure which lines and branches the tests reach."""
    install(session, "coverage")
    session.run("coverage", "erase")
    script = Path(session.bin, "pytest")
    session.run("coverage", "run", str(script), "-n", "2", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def postgres(session: nox.Session) -> None:
    """Run the tests on another PostgreSQL.

    Either on the server at the URL ``SA_WFSTATE_TEST_URL``, or on a temporary one
    made with the programs in the folder ``SA_WFSTATE_PG_BIN``, such as
    ``/usr/lib/postgresql/15/bin``.
    """
    if not os.environ.keys() & {"SA_WFSTATE_TEST_URL", "SA_WFSTATE_PG_BIN"}:
        session.error("set SA_WFSTATE_TEST_URL or SA_WFSTATE_PG_BIN")
    install(session, "test")
    if "SA_WFSTATE_TEST_URL" in os.environ:
        run_pytest(session, *session.posargs)
        return
    with server_from(Path(os.environ["SA_WFSTATE_PG_BIN"])) as url:
        run_pytest(session, *session.posargs, SA_WFSTATE_TEST_URL=url)


@contextmanager
def server_from(programs: Path) -> Iterator[str]:
    """Start a temporary server with the given initdb and pg_ctl."""
    home = Path(tempfile.mkdtemp(prefix="wfs-"))
    data, log = home / "data", home / "log"
    # The server refuses to run as root; a system package brings this user along.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        os.chown(home, pwd.getpwnam(user).pw_uid, -1)

    def run(program: str, *arguments: str) -> None:
        command = [programs / program, "-D", data, *arguments]
        subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL)

    try:
        run("initdb", "--auth=trust", "--encoding=UTF8", "--username=postgres")
        options = f"-c listen_addresses= -k {home} -c fsync=off -c max_connections=200"
        options += " -c max_prepared_transactions=20"
        run("pg_ctl", "-w", "-l", str(log), "-o", options, "start")
        try:
            yield f"postgresql://postgres@/postgres?host={home}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def write_snippets(session: nox.Session) -> str:
    """Write the snippets of the documentation as modules; return their folder."""
    folder = Path(session.create_tmp(), "snippets").resolve()
    session.run("python", "docs/snippets.py", str(folder))
    return str(folder)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; check the types of every snippet in it, and run them."""
    install(session, "docs")
    session.run("python", "docs/pictures/draw.py", "--check")
    session.run("sphinx-build", "-q", "-W", "-n", "docs", "docs/_build/html")
    session.run("python", "docs/links.py", "docs/_build/html")
    session.run("mypy", "--strict", write_snippets(session))
    session.run("pytest", "README.md", "docs", *session.posargs)


@nox.session
def linkcheck(session: nox.Session) -> None:
    """Ask the hosts of all links in the documentation; needs a network."""
    install(session, "docs")
    session.run(
        "sphinx-build", "-q", "-b", "linkcheck", "docs", "docs/_build/linkcheck"
    )


@nox.session
def demo(session: nox.Session) -> None:
    """Drive workflows from several workers; arguments after ``--`` go to the demo."""
    install(session, "demo")
    session.run("python", "docs/examples/demo", *session.posargs)


@nox.session
def web(session: nox.Session) -> None:
    """Start the example service on a temporary PostgreSQL, until Ctrl-C."""
    install(session, "web")
    session.run("python", "docs/examples/web", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the measurements in docs/bench, or those that are named after ``--``."""
    install(session, "bench")
    folder = Path("docs", "bench")
    names = session.posargs or sorted(path.stem for path in folder.glob("[!_]*.py"))
    if not names:
        session.skip("there are no measurements yet")
    for name in names:
        session.run("python", str(folder / f"{name}.py"))


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel from the sdist, and run the contract tests against it."""
    session.install("build")
    elsewhere = Path(session.create_tmp()).resolve()
    shutil.rmtree(elsewhere)
    session.run("python", "-m", "build", "--outdir", str(elsewhere))
    (built,), (source,) = elsewhere.glob("*.whl"), elsewhere.glob("*.tar.gz")
    folders = {name.partition("/")[0] for name in zipfile.ZipFile(built).namelist()}
    if not all(name.startswith("sa_wfstate") for name in folders):
        session.error(f"the wheel holds more than the package: {sorted(folders)}")
    session.install("--force-reinstall", "--no-deps", str(built))
    tools = nox.project.dependency_groups(PROJECT, "test")
    session.install(*tools, f"{built}[all]")
    # The tests as the sdist has them, with the installed package as the only one.
    shutil.unpack_archive(source, elsewhere, filter="data")
    tree = elsewhere / source.name.removesuffix(".tar.gz")
    shutil.rmtree(tree / "sa_wfstate")
    with session.chdir(tree):
        run_pytest(session, "-m", "contract", *session.posargs)


if __name__ == "__main__":
    sys.exit(nox.main())
