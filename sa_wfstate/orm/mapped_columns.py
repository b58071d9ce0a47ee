"""The columns that a workflow class needs: an application may bring its own.

An existing column of the same name, and of the same meaning, is taken. One of another
meaning is refused, by an error that names the way. What an own column lacks and a
workflow needs, a default of the provenance, for example, is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Column, DateTime, Integer, TypeDecorator, func
from sqlalchemy.schema import ColumnDefault

from ..errors import MappingError
from ..row.columns import Columns
from ..row.types import PydanticJSON
from ..values.provenance import Provenance

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper


_KINDS: Final[dict[str, tuple[type[Any], str]]] = {
    "version": (Integer, "a BigInteger or an Integer"),
    "state": (PydanticJSON, "a PydanticJSON"),
    "updated_at": (DateTime, "a DateTime"),
    "schema_version": (Integer, "an Integer"),
    "provenance": (PydanticJSON, "a PydanticJSON"),
}


def require_columns(mapper: Mapper[Any]) -> None:
    """Raise MappingError unless each attribute of a workflow is a column."""
    entity = mapper.class_.__name__
    for name in Columns._fields:
        if name in mapper.columns:
            continue
        if mapper.concrete and mapper.inherits is not None:
            problem = (
                f"has no column for {name}; with concrete inheritance each class "
                "declares its own: derive both classes from an abstract base "
                "(__abstract__ = True) that derives from WorkflowStateMixin[…]"
            )
        else:
            problem = (
                f"its attribute {name!r} is no column, and a workflow has one of that "
                "name; call the attribute of the application otherwise"
            )
        raise MappingError(entity, problem)


def check_columns(entity: str, columns: Columns) -> None:
    """Raise MappingError if a column has another type, and so another meaning."""
    for name, (kind, wanted) in _KINDS.items():
        column: Column[Any] = getattr(columns, name)
        type_: Any = column.type
        if not isinstance(type_, kind) and isinstance(type_, TypeDecorator):
            type_ = type_.impl_instance
        if not isinstance(type_, kind):
            raise MappingError(
                entity,
                f"column {column.name!r} of table {column.table.name!r} must be "
                f"{wanted}, not {column.type!r}; if the application means something "
                f"else by it, map it to another attribute, as in own_{name}: … = "
                f"mapped_column({column.name!r}, …), and {name} to another column, as "
                f"in {name}: … = mapped_column('workflow_{name}', …)",
            )


def complete_columns(columns: Columns) -> None:
    """Add the defaults that an INSERT and an UPDATE of the ORM need."""
    provenance, updated_at = columns.provenance, columns.updated_at
    if provenance.default is None and provenance.server_default is None:
        # For bulk INSERTs, which send no event; see default_provenance().
        provenance.default = ColumnDefault(Provenance.now)
    if updated_at.default is None and updated_at.server_default is None:
        updated_at.default = ColumnDefault(func.now())
    if updated_at.onupdate is None and updated_at.server_onupdate is None:
        updated_at.onupdate = ColumnDefault(func.now(), for_update=True)
