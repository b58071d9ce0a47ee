"""Check the values of new rows, those of all of them at once, before a flush sends any.

A listener may change one of them until SQLAlchemy collects what an INSERT sets, and
then its text has to be made again. Where none is called, the text is sent as it was
checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..row.encoded import Encoded, keep_encoded
from .baseline import located, refuse_none, tracked
from .collecting import NOT_VALUES
from .stamps import makes_provenances

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import InstanceState

    from ..row.types import PydanticJSON
    from .collecting import Written


_UPDATES: Final = ("before_update", "after_update")
_EVENTS: Final = (
    *("before_insert", "after_insert", "before_delete", "after_delete"),
    *_UPDATES,
)
_OWN: Final = f"{__package__}.flush"
"""The module whose listeners change no value of the application."""


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
            makes = makes_provenances(mapper.class_)
            if makes or _has_listeners(mapper.dispatch, names):
                return True
    return False


def _has_listeners(dispatch: Any, names: Iterable[str]) -> bool:
    for name in names:
        for listener in getattr(dispatch, name):
            if getattr(listener, "__module__", None) != _OWN:
                return True
    return False


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
