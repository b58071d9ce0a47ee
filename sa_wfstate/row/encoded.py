"""Values that a flush is about to bind.

A listener may change a value in place until SQLAlchemy collects the changes. So the
text that is bound must not be older than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..errors import PayloadError
from ..values.provenance import Provenance, survives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..payload.codec import Codec


class Encoded:
    """A value that a flush is about to bind, and its *text*, once it is encoded.

    The value is dumped when it is bound, unless the text is *fresh*: nothing of the
    application was called since it was dumped, up to where SQLAlchemy has collected the
    changes; or the value is *fixed*: it cannot change. A text is checked only once.
    *locate*, called with the error and *place*, names the row in it. *bound*: the text
    was passed to the driver. *stored* is that text; None if it was passed once more and
    was another one by then: for another row, or for a statement of the application.
    """

    __slots__ = (
        "_codec",
        "_locate",
        "_place",
        "bound",
        "fixed",
        "fresh",
        "stored",
        "text",
        "token",
        "value",
    )

    def __init__(
        self,
        codec: Codec[Any],
        value: Any,
        token: tuple[int, int],
        locate: Callable[..., PayloadError],
        place: tuple[Any, str],
    ) -> None:
        self.value = value
        self.text: str | None = None
        self.stored: str | None = None
        self.fixed = codec.frozen
        self.fresh = False
        self.bound = False
        self.token = token
        self._codec = codec
        self._locate = locate
        self._place = place

    def dump(self) -> str:
        """Return the current JSON text of the value."""
        try:
            return self._codec.dump(self.value)
        except PayloadError as error:
            raise self._locate(error, *self._place) from error.__cause__

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
                    if "\\" in text:
                        codec.refuse_nul(text)
                    self.fixed = not value.__pydantic_extra__
                else:
                    codec.check(value, text)
            except PayloadError as error:
                raise self._locate(error, *self._place) from None
            self.text = text

    def bind(self) -> str:
        """Return the text to be bound."""
        text = self.text
        if text is None or not (self.fresh or self.fixed):
            text = self.dump()
            if text != self.text:
                self.check(text)
        self.fresh = False
        if not self.bound:
            self.bound, self.stored = True, text
        elif text != self.stored:
            self.stored = None
        return text


_encoded: dict[tuple[int, int], Encoded] = {}

encoded_at: Final = _encoded.get
"""Return what is kept at the ids of a type and of a value, maybe of another one."""


def keep_encoded(
    codec: Codec[Any],
    value: Any,
    locate: Callable[..., PayloadError],
    place: tuple[Any, str],
) -> Encoded:
    """Return the Encoded of *value*, which binding it finds; instances may share one.

    Undo it by :func:`drop_all`.
    """
    token = id(codec.type_), id(value)
    kept = _encoded.get(token)
    if kept is None or kept.value is not value:
        kept = _encoded[token] = Encoded(codec, value, token, locate, place)
    return kept


def drop_all(kept: Iterable[Encoded]) -> None:
    """Forget each of *kept*."""
    for each in kept:
        _encoded.pop(each.token, None)
