"""Split rows into several statements.

A driver limits the parameters of a statement: 32,767 with asyncpg, 65,535 with psycopg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


T = TypeVar("T")

CHUNK = 1_000
"""The most rows that one statement reads or writes."""


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Split *items* into one chunk per statement."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
