"""Public names: functions and errors say the module that they are imported from."""

from __future__ import annotations

from inspect import isclass, isfunction
from typing import Any


def publish(namespace: dict[str, Any], path: str | None = None) -> None:
    """Set ``__module__`` of public functions and errors to *path*, by default theirs.

    *namespace* is the ``globals()`` of a public module, with its ``__all__``, of which
    names may be missing that are imported later.
    Tracebacks, help() and pickles show that path. Other classes keep their own:
    SQLAlchemy and pydantic resolve annotations there. inspect.getsource() finds a
    function all the same, as its code says the file. It looks for a class in the module
    that the class names, and does not find those of the root, which are in errors.py: a
    traceback with the path of the ``except`` clause is worth more.
    """
    for name in namespace["__all__"]:
        public = namespace.get(name)
        if isfunction(public) or (
            isclass(public) and issubclass(public, BaseException)
        ):
            public.__module__ = path or namespace["__name__"]
