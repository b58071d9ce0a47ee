"""Values that a flush is about to bind.

A listener may change a value in place until SQLAlchemy collects the changes. So the
text that is bound must not be older than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import PayloadError
from ..values.provenance import Provenance, survives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..payload.codec import Codec


class Encoded:
    """A value that a flush is about to bind, and its *text*, once it is encoded.

    The value is dumped when it is bound, unless the text is *fresh*, dumped when
    SQLAlchemy collected the changes, or the value is *fixed*: it cannot change. A text
    is checked only once. *locate* names the row in an error. *bound*: the text was
    passed to the driver.
    """

    __slots__ = (
        "_codec",
        "_locate",
        "bound",
        "fixed",
        "fresh",
        "text",
        "token",
        "value",
    )

    def __init__(
        self,
        codec: Codec[Any],
        value: Any,
        locate: Callable[[PayloadError], PayloadError],
    ) -> None:
        self.value = value
        self.text: str | None = None
        self.fixed = codec.frozen
        self.fresh = False
        self.bound = False
        self.token = id(codec.type_), id(value)
        self._codec = codec
        self._locate = locate

    def dump(self) -> str:
        """Return the current JSON text of the value."""
        try:
            return self._codec.dump(self.value)
        except PayloadError as error:
            raise self._locate(error) from error.__cause__

    def check(self, text: str) -> None:
        """Keep *text* as the text of the value; PayloadError if it cannot be stored."""
        if text != self.text:
            codec, value = self._codec, self.value
            try:
                if (
                    codec.type_ is Provenance
                    and isinstance(value, Provenance)
                    and survives(value)
                ):
                    codec.refuse_nul(text)
                    self.fixed = not value.model_extra
                else:
                    codec.check(value, text)
            except PayloadError as error:
                raise self._locate(error) from None
            self.text = text

    def bind(self) -> str:
        """Return the text to be bound."""
        text = self.text
        if text is None or not (self.fresh or self.fixed):
            text = self.dump()
            if text != self.text:
                self.check(text)
        self.fresh, self.bound = False, True
        return text

    def keep(self) -> Encoded:
        """Register this for its value; return the registered one of a shared value."""
        kept = _encoded.setdefault(self.token, self)
        if kept.value is not self.value:
            kept = _encoded[self.token] = self
        return kept


_encoded: dict[tuple[int, int], Encoded] = {}


def drop_all(kept: Iterable[Encoded]) -> None:
    """Undo :meth:`Encoded.keep` of each."""
    for each in kept:
        _encoded.pop(each.token, None)


def encoded_of(type_id: int, value: object) -> Encoded | None:
    """Return the Encoded that a running flush keeps for *value*, or None."""
    kept = _encoded.get((type_id, id(value)))
    return kept if kept is not None and kept.value is value else None
