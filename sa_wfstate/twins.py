"""Whoever is given the wrong kind of session or engine, sync or async, says so.

It is told by where its class comes from: that of the asynchronous ones is not imported
for whoever never awaits.
"""

from __future__ import annotations

from typing import Any


def _comes_from(given: object, *packages: str) -> bool:
    return any(base.__module__.startswith(packages) for base in type(given).__mro__)


def refuse_async(given: Any) -> None:
    """Raise TypeError if *given* needs awaiting: a sync function has got it."""
    if _comes_from(given, "sqlalchemy.ext.asyncio"):
        raise TypeError(
            f"got an asynchronous {type(given).__name__}; await what has the same name "
            "in sa_wfstate.asyncio, or call this one by run_sync()"
        )


def refuse_sync(given: Any) -> None:
    """Raise TypeError if *given* cannot be awaited: an async function has got it."""
    asynchronous = _comes_from(given, "sqlalchemy.ext.asyncio")
    if not asynchronous and _comes_from(given, "sqlalchemy.orm", "sqlalchemy.engine"):
        raise TypeError(
            f"got a synchronous {type(given).__name__}; give it an asynchronous one, "
            "or call what has the same name in sa_wfstate"
        )
