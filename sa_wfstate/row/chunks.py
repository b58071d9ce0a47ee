"""Many rows in as many statements as that takes.

A driver allows so many parameters in one: 32,767 with asyncpg, 65,535 with psycopg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


T = TypeVar("T")

CHUNK = 1_000
"""How many rows one statement reads or writes at most."""


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut *items* into pieces for one statement each."""
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
