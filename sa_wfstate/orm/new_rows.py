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

    from sqlalchemy.orm import InstanceState, Mapper

    from ..row.types import PydanticJSON
    from .collecting import Written


_UPDATES: Final = ("before_update", "after_update")
_EVENTS: Final = (
    *("before_insert", "after_insert", "before_delete", "after_delete"),
    *_UPDATES,
)
_OWN: Final = f"{__package__}.flush"
"""The module whose listeners change no value of the application."""


def calls_listeners(mappers: Iterable[Mapper[Any]], *, updates: bool) -> bool:
    """Return whether a flush of these classes calls code of the application for rows.

    *updates*: it inserts and deletes none.
    """
    names = _UPDATES if updates else _EVENTS
    for mapper in mappers:
        if makes_provenances(mapper.class_):
            return True
        dispatch: Any = mapper.dispatch
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
