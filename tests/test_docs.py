"""The README runs; each how-to can be found, and says where to go next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
HOW_TOS = [path for path in PAGES if path.parent.name == "how-to"]
TEXTS = {path: path.read_text() for path in (ROOT / "README.md", *PAGES)}


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda path: path.stem)
def test_how_to_is_reachable(page: Path) -> None:
    """Another page, not only the table of contents, links to it."""
    link = re.compile(
        rf"(?:{{doc}}`[^`]*?\b|\]\((?:[\w./-]*/)?){re.escape(page.stem)}(?:`|>`|\.md|#)"
    )
    found = [path for path, text in TEXTS.items() if path != page and link.search(text)]
    assert found


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda path: path.stem)
def test_how_to_says_where_to_go_next(page: Path) -> None:
    """Its last paragraph links to the pages that follow."""
    *_, last = TEXTS[page].strip().split("\n\n")
    assert last.startswith("Where to go next: ")
    assert "{doc}`" in last


def test_readme_is_short_and_its_links_work() -> None:
    """120 lines, and each relative link leads to a file of the repository."""
    text = TEXTS[ROOT / "README.md"]
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


@pytest.mark.parametrize("place", ["SQLite", "PostgreSQL"])
def test_example_of_the_readme_prints_what_it_says(
    place: str, database: URL, capsys: pytest.CaptureFixture[str]
) -> None:
    """On SQLite as it is, and on PostgreSQL with another URL and no other change.

    The start page of the documentation includes it.
    """
    text = TEXTS[ROOT / "README.md"]
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert example.count('"sqlite://"') == 1
    if place == "PostgreSQL":
        url = database.render_as_string(hide_password=False)
        example = example.replace('"sqlite://"', repr(url))
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(example, namespace)
    engine: Engine = namespace["engine"]
    engine.dispose()
    (said,) = re.findall(r"It prints \*(.*?)\*", text, re.DOTALL)
    start, _, end = re.split("(6f0d…)", " ".join(said.split()))
    pattern = f"{re.escape(start)}[0-9a-f-]{{36}}{re.escape(end)}"
    assert re.search(pattern, capsys.readouterr().out)
