"""The statements of a mapped class, which has to be a workflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import inspect
from sqlalchemy.exc import NoInspectionAvailable

from ..errors import MappingError
from ..row.statements import Statements
from .mixin import WorkflowStateMixin

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper

    from ..row.reads import StateT


_statements: WeakKeyDictionary[Mapper[Any], Statements[Any]] = WeakKeyDictionary()


def statements_of(entity: type[WorkflowStateMixin[StateT]]) -> Statements[StateT]:
    """Return the statements of *entity*; MappingError if it is no workflow class."""
    if isinstance(entity, WorkflowStateMixin):
        name = type(entity).__name__
        problem = f"got an instance where the mapped class belongs; give it {name}"
        raise MappingError(name, problem)
    try:
        mapper: Mapper[Any] = inspect(entity)
    except NoInspectionAvailable:
        name = getattr(entity, "__name__", repr(entity))
        raise MappingError(name, "is not a mapped class") from None
    if not issubclass(mapper.class_, WorkflowStateMixin):
        raise MappingError(
            mapper.class_.__name__,
            "is not a workflow; derive it from WorkflowStateMixin[YourState]",
        )
    return statements_by(mapper)


def statements_by(mapper: Mapper[Any]) -> Statements[Any]:
    """Return the statements of a workflow class by its mapper."""
    statements = _statements.get(mapper)
    if statements is None:
        statements = _statements[mapper] = Statements(mapper)
    return statements
