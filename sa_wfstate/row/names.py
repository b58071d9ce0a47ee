"""Errors of values that a row cannot hold, with the name of the row in them."""

from __future__ import annotations

from inspect import currentframe
from typing import TYPE_CHECKING, Any

from ..errors import PayloadError
from ..payload.roundtrip import unstorable_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column


_FRAMES = 8


def check_texts(entity: str, row: Mapping[str, Any]) -> None:
    """Raise PayloadError if PostgreSQL cannot store a text of *row*."""
    for name, value in row.items():
        problem = unstorable_text(value) if isinstance(value, str) else None
        if problem:
            raise PayloadError(f"{entity} {row['workflow_key']!r}", name, problem)


def with_row(
    error: PayloadError, owner: tuple[str, Column[Any]] | None, value: object
) -> PayloadError:
    """Return *error*, which refuses to bind *value*, with the name of its row.

    *owner* is the mapped class and the column, if there is one. Where the row is not
    known, as in an UPDATE of many, they are named alone.
    """
    if owner is None:
        return error
    entity, column = owner
    names = [each.key for each in column.table.primary_key]
    if "workflow_key" in names:
        names = ["workflow_key"]
    row = _parameters_beside(value)
    if row.keys() >= set(names):
        key = tuple(row[name] for name in names)
        entity += f" {key[0] if len(key) == 1 else key!r}"
    return PayloadError(f"{entity} {column.key}", error.path, error.problem)


def _parameters_beside(value: object) -> Mapping[str, Any]:
    """Return the parameters that are being bound, *value* among them; {} if unknown.

    A type is given a value and not told of its row: the caller of its processor has
    that in a dict. It is looked for only where *value* is refused.
    """
    frame = currentframe()
    for _ in range(_FRAMES):
        frame = frame and frame.f_back
        for found in list(frame.f_locals.values()) if frame else ():
            if (
                type(found) is dict
                and len(found) > 1
                and any(each is value for each in found.values())
            ):
                return found
    return {}
