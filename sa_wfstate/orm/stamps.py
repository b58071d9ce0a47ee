"""The provenance that a flush gives to a row that was given none.

Unless the class makes its own, it is JSON text until it is read, as that of a loaded
row: a flush makes one for each row, and the database takes its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel
from sqlalchemy.orm import LoaderCallableStatus, Mapper
from sqlalchemy.orm.attributes import set_committed_value

from ..row.unread import Before, Stamp, Unread
from ..values.provenance import Provenance, texts_of_now
from .baseline import tracked
from .collecting import Follower, Kept, will_bind, will_write
from .mixin import WorkflowStateMixin
from .row_keys import set_read

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, UOWTransaction

    from ..row.types import PydanticJSON
    from .session_state import Flush


_DEFAULT: Final = WorkflowStateMixin.default_provenance


def makes_provenances(entity: type[Any]) -> bool:
    """Return whether a class makes the provenances of its rows by its own code."""
    makes: Any = getattr(entity, "default_provenance", _DEFAULT)
    return makes is not _DEFAULT


def text_type(mapper: Mapper[Any]) -> PydanticJSON[Any] | None:
    """Return the type of the provenances of a class, if they can be made as text."""
    entity: Any = mapper.class_
    type_: Any = mapper.columns["provenance"].type
    if (
        issubclass(entity, BaseModel)  # A model is dumped as it is held.
        or type_.type_ is not Provenance
        or type_.eager
        or type_.changes_in_place()
    ):
        return None
    return type_  # type: ignore[no-any-return]


def stamp_of(
    state: InstanceState[Any], flush: Flush | None, type_: PydanticJSON[Any] | None
) -> Provenance | Stamp:
    """Return a new provenance of *state*, for *flush* to write.

    *type_* is that of its class, as by :func:`text_type`.
    """
    if type_ is not None:
        if flush is None:
            stamps = texts_of_now()
        else:
            stamps = flush.stamps = flush.stamps or texts_of_now()
        effect_id, text = next(stamps)
        return Stamp(text, type_.load, effect_id)
    instance: Any = state.obj()
    stamp: Provenance = instance.default_provenance()
    if flush is not None:
        will_bind(flush.written, state, "provenance", stamp)
    return stamp


def set_stamp(
    state: InstanceState[Any], flush: Flush | None, type_: PydanticJSON[Any] | None
) -> Provenance | Stamp:
    """Set a new provenance, not as an assignment of the application."""
    stamp = stamp_of(state, flush, type_)
    set_committed_value(state.obj(), "provenance", stamp)
    return stamp


def stamp_update(
    flush: Flush | None,
    mapper: Mapper[Any],
    state: InstanceState[Any],
    values: dict[str, Any],
    type_: PydanticJSON[Any] | None,
) -> None:
    """Give *state* a provenance of its own, to be written if anything else is.

    *values* are those of the instance.
    """
    context = None if flush is None else flush.context
    if context is not None and _updates_later(context):
        # An UPDATE that post_update sends is to write the provenance as well.
        _, columns = context.post_update_states[mapper.base_mapper]
        columns.add(mapper.columns["provenance"])
    if "provenance" not in state.committed_state:
        was = values.get("provenance", LoaderCallableStatus.NO_VALUE)
        stamp = stamp_of(state, flush, type_)
        set_read(state, values, "provenance", stamp)
        state.committed_state["provenance"] = Unstamped(state, was, stamp)


def _updates_later(context: UOWTransaction) -> bool:
    for mapper in context.mappers:
        for each in mapper.relationships:
            if each.post_update:
                return True
    return False


class Unstamped(Follower, Before):
    """The provenance of the row, which an UPDATE replaces by *stamp*, if there is one.

    *was* is what the instance held as the provenance of its row.
    """

    __slots__ = ("_stamp", "_state", "was")

    def __init__(self, state: InstanceState[Any], was: Any, stamp: Any) -> None:
        self._state, self.was, self._stamp = state, was, stamp

    @property
    def known(self) -> bool:
        return self.was is not None and not isinstance(self.was, LoaderCallableStatus)

    @property
    def text(self) -> str:  # type: ignore[override]
        """The JSON of the row; null if it is not known."""
        if isinstance(self.was, Unread):
            return self.was.text
        return (
            tracked(self._state)["provenance"].dump(self.was) if self.known else "null"
        )

    def is_still(self, value: Any) -> bool:
        return self._judge(value, collecting=True)

    def looks_like(self, value: Any) -> bool:
        return self._judge(value, collecting=False)

    def _judge(self, value: Any, *, collecting: bool) -> bool:
        stamp = self._stamp
        if value is not stamp:  # Another listener has read or assigned it.
            text = tracked(self._state)["provenance"].dump(value)
            if not isinstance(stamp, Unread) or text != stamp.text:
                return self.known and text == self.text
        kept = self._state.committed_state.get("state")
        if isinstance(kept, Kept) and kept.same is False:
            return False
        return not will_write(self._state, collecting=collecting)
