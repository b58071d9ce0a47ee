"""What the package depends on in SQLAlchemy beyond its API; each list only shrinks.

A private name may change with any release; a patched method or a swapped class changes
objects that are not ours. An entry that the package no longer needs fails its test.
"""

from __future__ import annotations

import ast
from pathlib import Path

import sa_wfstate
from sa_wfstate.orm.events import METHODS

PACKAGE = Path(sa_wfstate.__file__).parent

TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}

DOCUMENTED = {"_asdict", "_missing_", "_replace"}
"""Names of named tuples and enums that are API in spite of their underscore."""

PRIVATE_NAMES = {
    "_bulk_save_mappings": "every bulk_…_mappings() goes through it",
    "_commit_all": "a written instance is clean where no event makes it so",
    "_dirty": "what a transaction changed is known after its rollback",
    "_dispose_manager_and_mapper": "a refused class leaves no mapper behind",
    "_getter": "a loaded state column is read from its row",
    "_managers": "a refused class leaves no mapper behind",
    "_merge": "every merge into a session goes through it",
    "_multi_values": "an INSERT of several rows is refused or completed",
    "_values": "the columns that a statement sets are known",
    "_version_check": "a SELECT that compares versions is known before it is sent",
}
"""By private name of another library: what it is needed for."""

CLASS_SWAPS = {
    "orm/attributes.py": 2,  # an attribute of SQLAlchemy's gets dirty checking
    "orm/mixin.py": 1,  # an assignment to version is refused
}
"""How often a module assigns to ``__class__``."""

PATCHED_METHODS = {"_bulk_save_mappings", "_merge", "bulk_save_objects"}
"""The methods of Session that are wrapped, since they send no event."""


def is_private(name: str) -> bool:
    """Return whether *name* has an underscore and is no dunder name."""
    return name.startswith("_") and not name.startswith("__")


def own_names() -> set[str]:
    """Return the private names that the package itself defines."""
    names = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                names.add(node.attr)
            case ast.Assign(targets=[ast.Name(id="__slots__")]):
                slots = ast.literal_eval(node.value)
                names |= {slots} if isinstance(slots, str) else {*slots}
            case ast.alias(asname=str() as alias):
                names.add(alias)
    return names


def test_private_names() -> None:
    """Attributes and imports with an underscore that others define.

    Some are named by a string, in a getattr() or in the table of methods.
    """
    found = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        match node:
            case ast.Attribute():
                found.add(node.attr)
            case ast.ImportFrom(level=0):
                found |= {each.name for each in node.names}
            case ast.Call(func=ast.Name("getattr" | "hasattr" | "setattr")):
                found |= {
                    each.value
                    for each in node.args
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
    found = found - own_names() | METHODS.keys()
    private = {name for name in found if is_private(name)}
    assert private - DOCUMENTED == PRIVATE_NAMES.keys()


def test_class_swaps() -> None:
    """Assignments to ``__class__``, by module."""
    found: dict[str, int] = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(attr="__class__", ctx=ast.Store()):
                    found[path] = found.get(path, 0) + 1
    assert found == CLASS_SWAPS


def test_patched_methods() -> None:
    """One module replaces methods of SQLAlchemy's classes, those of one table."""
    calls = [
        (path, ast.unparse(node.args[0]))
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr"
        if ast.unparse(node.args[0])[:1].isupper()
    ]
    assert calls == [("orm/session_patch.py", "Session")]
    assert METHODS.keys() == PATCHED_METHODS
