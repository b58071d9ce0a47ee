"""Check the values of new rows, those of all of them at once, before a flush sends any.

A listener may change one of them until SQLAlchemy collects what an INSERT sets, and
then its text has to be made again. Where none is called, the text is sent as it was
checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..commit_listeners import listeners_of
from ..row.encoded import Encoded, keep_encoded
from .baseline import located, refuse_none, tracked
from .collecting import NOT_VALUES
from .mixin import WorkflowStateMixin

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper, Session

    from ..row.types import PydanticJSON
    from .collecting import Written
    from .session_state import Flush


MANY: Final = 16
"""From how many rows on it is worth to ask what a flush calls."""

_UPDATES: Final = ("before_update", "after_update")
_EVENTS: Final = (
    *("before_insert", "after_insert", "before_delete", "after_delete"),
    *_UPDATES,
)
_OWN: Final = f"{__package__}.flush"
"""The module whose listeners change no value of the application."""
_ROOT: Final = __package__.partition(".")[0]
_OF_SESSIONS: Final = (
    "after_transaction_create",
    "after_begin",
    "pending_to_persistent",
    "after_flush",
    "after_flush_postexec",
)
_ANYWHERE: Final = frozenset({"sqlalchemy_utils.aggregates"})
"""A module that listens once it is imported, and changes no instance."""
_OF_CONNECTIONS: Final = (
    "engine_connect",
    "begin",
    "savepoint",
    "before_execute",
    "after_execute",
    "before_cursor_execute",
    "after_cursor_execute",
)
_OF_DIALECTS: Final = ("do_connect", "do_execute", "do_executemany", "do_setinputsizes")
_OF_POOLS: Final = ("connect", "first_connect", "checkout")
_POOLED: Final = frozenset({"sqlalchemy.engine.create", "sqlalchemy.util.langhelpers"})
"""The modules of SQLAlchemy that listen to a pool."""
_DEFAULT: Final = WorkflowStateMixin.default_provenance


def calls_listeners(
    *groups: Iterable[InstanceState[Any]], updates: bool = False
) -> bool:
    """Return whether a flush of these states calls code of the application for them.

    *updates*: it inserts and deletes none.
    """
    asked, names = set(), _UPDATES if updates else _EVENTS
    for states in groups:
        for state in states:
            mapper = state.manager.mapper  # A class manager takes longer to hash.
            if mapper in asked:
                continue
            asked.add(mapper)
            # It makes the provenances.
            makes: Any = getattr(mapper.class_, "default_provenance", _DEFAULT)
            if makes is not _DEFAULT or _has_listeners(mapper.dispatch, names):
                return True
    return False


def _has_listeners(dispatch: Any, names: Iterable[str]) -> bool:
    for name in names:
        for listener in getattr(dispatch, name):
            if getattr(listener, "__module__", None) != _OWN:
                return True
    return False


def runs_alone(session: Session, flush: Flush) -> bool:
    """Return whether *flush*, which has inserted rows, has called no other code.

    Then they hold what it has bound. It is asked of a flush that is quiet and has
    written nothing but rows of workflows, and takes as long as a few rows.
    """
    return not (
        _listen(session, _OF_SESSIONS, _ANYWHERE)
        or any(_is_observed(connection) for _, connection in flush.targets)
        or any(_calls_code(mapper) for mapper, _ in flush.targets)
    )


def _listen(target: Any, names: Iterable[str], known: Collection[str] = ()) -> bool:
    """Return whether other modules than ours and *known* listen to *target*."""
    modules = {
        getattr(listener, "__module__", None)
        for name in names
        for listener in getattr(target.dispatch, name)
    }
    return any(each not in known and _root(each) != _ROOT for each in modules)


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _is_observed(connection: Connection) -> bool:
    dialect = connection.dialect
    return (
        dialect.is_async  # Other tasks run while it waits.
        or not dialect.insert_returning  # Or it reads each row.
        or _listen(connection, _OF_CONNECTIONS)
        or _listen(dialect, _OF_DIALECTS)
        or _listen(connection.engine.pool, _OF_POOLS, _POOLED)
    )


def _calls_code(mapper: Mapper[Any]) -> bool:
    """Return whether an INSERT of a class calls code of the application."""
    count: Any = mapper.version_id_generator
    return (
        bool(listeners_of(mapper))
        or _listen(mapper.class_manager, ("refresh_flush",))
        or _root(count.__module__) != "sqlalchemy"
        or any(_computes(column) for column in mapper.columns)
    )


def _computes(column: Any) -> bool:
    default = column.default
    return _root(type(column.type).__module__) not in {"sqlalchemy", _ROOT} or (
        default is not None
        and default.is_callable
        and _root(default.arg.__module__) not in {"uuid", _ROOT}
    )


def prepare_inserts(
    states: Iterable[InstanceState[Any]], written: Written, *, fresh: bool
) -> None:
    """Check what INSERTs are going to write.

    *fresh*: nothing of the application is called before SQLAlchemy collects that.
    """
    groups: dict[PydanticJSON[Any], list[Encoded]] = {}
    without: set[tuple[type[Any], str]] = set()
    for state in states:
        values, entity = state.dict, state.class_
        for key, column_type in tracked(state).items():
            value = values.get(key)
            if value is None:
                if (entity, key) not in without:
                    refuse_none(state, key)
                    without.add((entity, key))
            elif not isinstance(value, NOT_VALUES):
                place = state, key
                encoded = keep_encoded(column_type.codec, value, located, place)
                written[place] = encoded
                groups.setdefault(column_type, []).append(encoded)
    for column_type, group in groups.items():
        texts = column_type.dump_all([each.value for each in group], check=True)
        if texts is None:
            for each in group:
                each.check(each.dump())
                each.fresh = fresh
        else:
            for each, text in zip(group, texts, strict=True):
                each.text, each.fresh = text, fresh
