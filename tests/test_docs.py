"""Each how-to can be found from another page, and says where to go next."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
