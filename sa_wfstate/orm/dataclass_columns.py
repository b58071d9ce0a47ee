"""The columns of a workflow class that SQLAlchemy makes a dataclass.

SQLAlchemy takes the fields of a dataclass from the class itself and from bases that are
dataclasses. The mixin is none, or each workflow would be one. So a subclass of
MappedAsDataclass gets the columns as its own: ``workflow_key``, ``state`` and, if
given, ``provenance`` are keyword arguments of its constructor.

A Pydantic model needs fields in place of columns: ``sa_wfstate.sqlmodel`` has them.
"""

from __future__ import annotations

from datetime import datetime
from inspect import get_annotations
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Mapped, MappedAsDataclass, mapped_column

from ..errors import MappingError
from ..values.provenance import Provenance


def declare_columns(cls: type[Any], mixin: type[Any]) -> None:
    """Declare the columns of *mixin* in *cls*, if it is to be a dataclass.

    Those that it declares itself, or inherits from another base, stay.
    """
    if not issubclass(cls, MappedAsDataclass) or "__table__" in cls.__dict__:
        return
    annotations: dict[str, Any] = {}
    for name, (type_, options) in _FIELDS.items():
        if _owner(cls, name) is mixin:
            annotations[name] = Mapped[type_]  # type: ignore[valid-type]
            setattr(cls, name, _column(mixin, cls, name, options))
    cls.__annotations__ = annotations | get_annotations(cls)


def refuse_model(cls: type[Any], mixin: type[Any]) -> None:
    """Raise MappingError if *cls* is a Pydantic model, which needs fields instead."""
    if issubclass(cls, BaseModel) and _owner(cls, "workflow_key") is mixin:
        raise MappingError(
            cls.__name__,
            "is a Pydantic model, whose columns are fields; derive a table class of "
            "SQLModel from sa_wfstate.sqlmodel.WorkflowStateFields[YourState] instead",
        )


def _owner(cls: type[Any], name: str) -> type[Any]:
    """Return the class from which *cls* has the attribute *name*."""
    return next(c for c in cls.__mro__ if name in c.__dict__ or _declares(c, name))


def _declares(cls: type[Any], name: str) -> bool:
    return name in get_annotations(cls)


_FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "workflow_key": (str, {"kw_only": True}),
    "version": (int, {"init": False}),
    "state": (Any, {"kw_only": True}),
    "updated_at": (datetime, {"init": False}),
    "schema_version": (int, {"init": False}),
    "provenance": (Provenance, {"kw_only": True, "default": None}),
}


def _column(mixin: Any, cls: Any, name: str, options: dict[str, Any]) -> Any:
    """Return a column as that of *mixin*, as a field of a dataclass."""
    own = mixin.__dict__[name]
    column = (own.fget(cls) if name == "state" else own).column
    if column.default is not None and "default" not in options:
        options = options | {"insert_default": column.default.arg}
    return mapped_column(
        column.type,
        nullable=column.nullable,
        server_default=column.server_default,
        onupdate=column.onupdate,
        info=column.info,
        sort_order=_ORDER[name],
        **options,
    )


_ORDER = {name: 10 * (index - len(_FIELDS)) for index, name in enumerate(_FIELDS)}
