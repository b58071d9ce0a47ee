"""Write the Python snippets of the README and the documentation as modules.

python docs/snippets.py FOLDER

``nox -s docs`` checks them with mypy, ``nox -s pyright`` with pyright. A page becomes a
module, because its snippets share a namespace. Each line of code has the number that it
has on the page, so an error of a type checker names the page and the line. What the
tests skip is left out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from shutil import rmtree

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)(?:```|~~~)(.*)$")
SKIP = re.compile(r"<!-- skip: next")
HEAD = 'DATABASE_URL = "postgresql+psycopg://"; '
"""What the tests give to a page. It stands in the first line, so that none moves."""

PYRIGHT = '{"typeCheckingMode": "standard", "pythonVersion": "3.11"}'


def module_of(text: str) -> str:
    """Return the code of a page; all other lines are empty."""
    lines: list[str] = []
    language, indent, skipped = None, 0, False
    for line in text.splitlines():
        fence, code = FENCE.match(line), ""
        if fence and language is None:
            language, indent = fence[2].strip(), len(fence[1])
        elif fence and fence[2] == "":
            language, skipped = None, False
        elif language == "python" and not skipped:
            code = line[indent:]
        elif language is None and SKIP.search(line):
            skipped = True
        lines.append(code)
    return HEAD + "\n".join(map(strip_prompt, undo_output(lines))) + "\n"


def undo_output(lines: list[str]) -> list[str]:
    """Empty the lines that a console session prints."""
    result, in_session = [], False
    for line in lines:
        if line.startswith(">>>"):
            in_session = True
        elif not line:
            in_session = False
        printed = in_session and not line.startswith((">>> ", "... "))
        result.append("" if printed else line)
    return result


def strip_prompt(line: str) -> str:
    """Return the code after a prompt."""
    return line[4:] if line.startswith((">>> ", "... ")) else line


def write_modules(folder: Path) -> None:
    """Write a module for each page that has code."""
    rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "pyrightconfig.json").write_text(PYRIGHT)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        if "_build" in page.parts or "changelog.d" in page.parts:
            continue
        code = module_of(page.read_text())
        if code.strip() != HEAD.strip():
            name = "_".join(page.relative_to(ROOT).with_suffix("").parts)
            (folder / f"{name.replace('-', '_')}.py").write_text(code)


if __name__ == "__main__":
    write_modules(Path(sys.argv[1]))
