"""The methods of Session that SQLAlchemy has no event for, and what is put around them.

They are wrapped when the first workflow class is mapped, once. A program that has none
keeps its Session as it is. A call that concerns no workflow, right or wrong, ends as it
would without the wrapper.
"""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper, Session

from .mixin import WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def patch_session(wrappers: Mapping[str, Callable[..., Any]]) -> None:
    """Put *wrappers* around the methods of Session that have their names.

    Each is called with its method, the session, and the arguments by their names.
    """
    for name, wrapper in wrappers.items():
        setattr(Session, name, _wrapped(getattr(Session, name), wrapper))


def _wrapped(method: Callable[..., Any], wrapper: Callable[..., Any]) -> Any:
    bind = signature(method).bind

    @wraps(method)
    def wrapped(*args: Any, **options: Any) -> Any:
        try:
            given = bind(*args, **options).arguments
        except TypeError:
            return method(*args, **options)  # It raises the error of its signature.
        return wrapper(method, given.pop("self"), **given)

    return wrapped


def workflow_mapper(mapped: Any) -> Mapper[Any] | None:
    """Return the mapper of what SQLAlchemy takes for one, if it is of a workflow."""
    if mapped is None:
        return None
    mapper = getattr(inspect(mapped, raiseerr=False), "mapper", None)
    ours = isinstance(mapper, Mapper) and issubclass(mapper.class_, WorkflowStateMixin)
    return mapper if ours else None
