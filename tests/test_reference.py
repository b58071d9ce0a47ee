"""The reference documents the public names, each at its one public path."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import sa_wfstate

PACKAGE = Path(sa_wfstate.__file__).parent
REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
DIRECTIVE = re.compile(
    r"^\.\. (automodule|auto(?:class|function|exception|data)):: ([\w.]+)$",
    re.MULTILINE,
)


def read_reference() -> tuple[set[str], list[str]]:
    """Return the modules that have a page, and the names that have a directive."""
    modules, names = set(), []
    for page in REFERENCE.glob("*.md"):
        module = ""
        for directive, name in DIRECTIVE.findall(page.read_text()):
            if directive == "automodule":
                module = name
                modules.add(module)
            else:
                names.append(name if "." in name else f"{module}.{name}")
    return modules, names


def public_path(module: str, name: str) -> str:
    """Return the root's path of a name that the root exports too."""
    value = getattr(import_module(module), name)
    return f"{'sa_wfstate' if vars(sa_wfstate).get(name) is value else module}.{name}"


def test_each_public_name_is_documented_once() -> None:
    """Each name of each public module has one directive, under its public path."""
    modules, names = read_reference()
    public = {
        public_path(module, name)
        for module in modules
        for name in import_module(module).__all__
    }
    assert Counter(names) == Counter(public)


def test_each_module_with_public_names_has_its_page() -> None:
    """A module of the root folder that declares __all__ is in the reference."""
    modules, _ = read_reference()
    for path in (*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")):
        if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
            parts = path.with_suffix("").relative_to(PACKAGE.parent).parts
            assert ".".join(parts).removesuffix(".__init__") in modules
