"""Check the links of the built documentation that stay within it.

python docs/links.py docs/_build/html

Each must lead to a file, and to an element if it names one. Other hosts are not asked:
``sphinx-build -b linkcheck`` does that where there is a network.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in {"href", "src"} and value and tag != "link":
                self.links.add(value)


def find_broken(folder: Path) -> list[str]:
    """Return the links that lead nowhere, each with its page."""
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            there = pages.get(target)
            known = target.exists() if there is None else not url.fragment
            if not (known or (there and unquote(url.fragment) in there.ids)):
                broken.append(f"{path.relative_to(folder)}: {link}")
    return sorted(broken)


if __name__ == "__main__":
    found = find_broken(Path(sys.argv[1]).resolve())
    if found:
        sys.exit("links that lead nowhere:\n" + "\n".join(found))
