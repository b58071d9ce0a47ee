"""Run suites of SQLAlchemy's own without the library, and with a workflow mapped.

    python tests/sqlalchemy_suites/run.py FOLDER [arguments of pytest]

FOLDER is the unpacked sdist of the SQLAlchemy that is installed. Each suite runs on
SQLite and on a PostgreSQL server of its own. What fails only with the library, or does
not run with it, is listed, and the exit status is 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

import sqlalchemy
from sqlalchemy import create_engine, text

from sa_wfstate.testing import temporary_server

SUITES = [
    "ext/test_mutable.py",
    "orm/test_events.py",
    "orm/test_merge.py",
    "orm/test_session.py",
    "orm/test_transaction.py",
    "orm/test_unitofwork.py",
    "orm/test_unitofworkv2.py",
    "orm/test_versioning.py",
]
SETTINGS = {"fsync": "off", "max_prepared_transactions": "20"}


def outcomes(folder: Path, url: str, *arguments: str, mapped: bool) -> dict[str, str]:
    """Run the suites; return what became of each test, by its name."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        # Or the tests would take the library of the sdist for the installed one.
        environment = {**os.environ, "PYTHONNOUSERSITE": "1"}
        plugin = []
        if mapped:
            environment["PYTHONPATH"] = str(Path(__file__).parent.resolve())
            plugin = ["-p", "workflow_mapped"]
        suites = [f"test/{suite}" for suite in SUITES]
        options = ["-q", "-q", "-r", "N", "--dburi", url, f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *plugin, *options, *arguments]
        subprocess.run([*command, *suites], cwd=folder, env=environment, check=False)
        found: dict[str, str] = {}
        for case in ET.parse(report).iter("testcase"):
            kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
            name = f"{case.get('classname')}::{case.get('name')}"
            found[name] = min(kinds, default="passed")
        return found


def compare(folder: Path, url: str, *arguments: str) -> bool:
    """Say how many passed without and with the library; return whether all is well."""
    without, mapped = (
        outcomes(folder, url, *arguments, mapped=mapped) for mapped in (False, True)
    )
    changed = {
        name: (without.get(name, "not run"), mapped.get(name, "not run"))
        for name in sorted(without.keys() | mapped.keys())
        if without.get(name) != mapped.get(name)
    }
    failing = [name for name, kind in without.items() if kind in {"failure", "error"}]
    print(f"\nSQLAlchemy {sqlalchemy.__version__} on {url.partition(':')[0]}")
    for title, found in (("without the library", without), ("mapped", mapped)):
        counts = [
            f"{sum(kind == each for kind in found.values())} {each}"
            for each in ("passed", "failure", "error", "skipped")
        ]
        print(f"{title}: {', '.join(counts)}")
    for name in failing:
        print(f"  fails without the library: {name}")
    for name, (before, after) in changed.items():
        print(f"  {before} -> {after}: {name}")
    return bool(without) and not changed


def main() -> int:
    """Compare on both databases; return the exit status."""
    folder, *arguments = sys.argv[1:]
    with temporary_server(settings=SETTINGS) as server:
        engine = create_engine(server)
        with engine.begin() as connection:
            for name in ("test_schema", "test_schema_2"):
                connection.execute(text(f"CREATE SCHEMA {name}"))
        engine.dispose()
        urls = ["sqlite://", server.render_as_string(hide_password=False)]
        return not min([compare(Path(folder), url, *arguments) for url in urls])


if __name__ == "__main__":
    sys.exit(main())
