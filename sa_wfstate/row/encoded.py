"""Values that a flush is about to bind.

A listener may change a value in place until SQLAlchemy collects the changes. So the
text that is bound must not be older than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import PayloadError
from ..values.provenance import Provenance, survives

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..payload.codec import Codec


class Encoded:
    """A value that a flush is about to bind, and its *text*, once it is encoded.

    The value is dumped when it is bound, unless the text is *fresh*, dumped when
    SQLAlchemy collected the changes, or the value cannot change. A text is checked only
    once. *locate* names the
    row in an error. *bound*: the text was passed to the driver.
    """

    __slots__ = ("_codec", "_locate", "bound", "fresh", "text", "value")

    def __init__(
        self,
        codec: Codec[Any],
        value: Any,
        locate: Callable[[PayloadError], PayloadError],
    ) -> None:
        self.value = value
        self.text: str | None = None
        self.fresh = False
        self.bound = False
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
                else:
                    codec.check(value, text)
            except PayloadError as error:
                raise self._locate(error) from None
            self.text = text

    def bind(self) -> str:
        """Return the text to be bound."""
        text = self.text if self.fresh or self._codec.frozen else None
        if text is None:
            text = self.dump()
            self.check(text)
        self.fresh, self.bound = False, True
        return text

    def keep(self) -> Encoded:
        """Register this for its value; return the registered one of a shared value."""
        kept = _encoded.setdefault((id(self._codec.type_), id(self.value)), self)
        if kept.value is not self.value:
            kept = _encoded[id(self._codec.type_), id(self.value)] = self
        return kept

    def drop(self) -> None:
        """Undo :meth:`keep`."""
        _encoded.pop((id(self._codec.type_), id(self.value)), None)


_encoded: dict[tuple[int, int], Encoded] = {}


def encoded_of(type_id: int, value: object) -> Encoded | None:
    """Return the Encoded that a running flush keeps for *value*, or None."""
    kept = _encoded.get((type_id, id(value)))
    return kept if kept is not None and kept.value is value else None
