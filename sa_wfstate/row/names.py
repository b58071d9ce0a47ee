"""Name the row in the error of a value that it cannot hold."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import PayloadError
from ..payload.roundtrip import unstorable_text
from .types import PydanticJSON

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Table


def check_texts(entity: str, row: Mapping[str, Any]) -> None:
    """Raise PayloadError if PostgreSQL cannot store a text of *row*."""
    for name, value in row.items():
        problem = unstorable_text(value) if isinstance(value, str) else None
        if problem:
            raise PayloadError(f"{entity} {row['workflow_key']!r}", name, problem)


@contextmanager
def naming_rows(
    entity: str, table: Table, rows: Sequence[Mapping[str, Any]]
) -> Iterator[None]:
    """Name the row in a PayloadError that is raised while *rows* are written.

    A column type does not know the row of the value that it binds. So after an error
    the values are encoded again, to find the row that is refused.
    """
    try:
        yield
    except PayloadError as error:
        for row in rows:
            _check_json(entity, table, row, error)
        raise


def _check_json(
    entity: str, table: Table, row: Mapping[str, Any], error: PayloadError
) -> None:
    for column in table.c:
        value = row.get(column.key)
        if value is None or not isinstance(column.type, PydanticJSON):
            continue
        where = f"{entity} {row['workflow_key']!r} {column.key}"
        try:
            column.type.codec.encode(value, where=where)
        except PayloadError as located:
            raise located from error.__cause__
