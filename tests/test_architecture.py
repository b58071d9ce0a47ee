"""The page about the architecture is about the packages that there are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text()


def test_the_page_has_the_layers_that_the_linter_checks() -> None:
    """The table of packages is the layers' contract of import-linter."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"]
        for contract in pyproject["tool"]["importlinter"]["contracts"]
        if contract["id"] == "layers"
    )
    rows = re.findall(r"^\| (\d?) ?\| `(\w+)/?`", PAGE, re.MULTILINE)
    documented: list[set[str]] = []
    for layer, package in rows:
        if layer:
            documented.append(set())
        documented[-1].add(package)
    assert documented == [set(re.findall(r"\w+", layer)) for layer in layers]


def test_each_module_with_a_rule_exists() -> None:
    """The table of rules names modules of the package."""
    modules = re.findall(r"`([\w/]+\.py)`", PAGE)
    assert modules
    assert [m for m in modules if not (ROOT / "sa_wfstate" / m).is_file()] == []
