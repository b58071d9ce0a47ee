"""What an INSERT of the ORM holds is checked: its keys, and that versions are 1."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import BindParameter, ClauseElement

from ..errors import VersionNotAssignable
from .row_keys import key_attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Mapper


def check_rows(mapper: Mapper[Any], rows: Any, *, any_version: bool = False) -> None:
    """Raise unless *rows* of a class have keys that can be stored, and version 1."""
    entity, types = mapper.class_.__name__, key_attributes(mapper)
    for row in rows if isinstance(rows, (list, tuple)) else [rows or {}]:
        for name in types.keys() & row.keys():
            types[name].check(entity, row[name], name)
        if not any_version and row.get("version", 1) != 1:
            raise VersionNotAssignable(entity)


def values_of(mapper: Mapper[Any], statement: Any) -> Iterator[dict[str, Any]]:
    """Return the keys and versions that an INSERT itself holds, by attribute.

    What is SQL is not among them.
    """
    known = (*key_attributes(mapper), "version")
    names = {mapper.columns[name].key: name for name in known}
    several = chain.from_iterable(statement._multi_values)  # noqa: SLF001 - no public name
    for row in (statement._values or {}, *several):  # noqa: SLF001
        if not isinstance(row, Mapping):  # It is in the order of the table.
            row = dict(zip(mapper.local_table.c, row, strict=False))  # noqa: PLW2901
        values = {
            names[key]: value.value if isinstance(value, BindParameter) else value
            for column, value in row.items()
            if (key := getattr(column, "key", column)) in names
        }
        yield {k: v for k, v in values.items() if not isinstance(v, ClauseElement)}
