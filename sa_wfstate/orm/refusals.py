"""A class that is refused leaves nothing behind.

A mapper that stayed in its registry would be configured with all the others, and raise
again for each of them.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table

from ..errors import MappingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Mapper

    Listener = Callable[[Mapper[Any], type[Any]], None]


def refusing(listener: Listener) -> Listener:
    """Take back the mapper that *listener*, of a mapper event, refuses."""

    @wraps(listener)
    def listen(mapper: Mapper[Any], cls: type[Any]) -> None:
        try:
            listener(mapper, cls)
        except MappingError:
            _take_back(mapper)
            raise

    return listen


def _take_back(mapper: Mapper[Any]) -> None:
    """Undo the mapping of one class, and the table that it has declared."""
    table, cls = mapper.local_table, mapper.class_
    declared = getattr(cls, "__tablename__", None)
    if mapper.inherits is not None:
        mapper.polymorphic_map.pop(mapper.polymorphic_identity, None)
    if (
        isinstance(table, Table)
        and table.name == declared
        and (mapper.inherits is None or table is not mapper.inherits.local_table)
    ):
        table.metadata.remove(table)
    # As registry.dispose() does for all of its classes; there is no way for one.
    registry, manager = mapper.registry, mapper.class_manager
    registry._managers.pop(manager, None)  # noqa: SLF001
    registry._dispose_manager_and_mapper(manager)  # noqa: SLF001
