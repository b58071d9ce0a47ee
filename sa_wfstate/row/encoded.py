"""Values that a flush is about to bind.

A listener may change a value in place until SQLAlchemy collects the changes. So the
text that is bound must not be older than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..errors import PayloadError
from ..values.provenance import Provenance, survives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..payload.codec import Codec
    from .types import PydanticJSON

_MANY: Final = 16
"""From how many values on it is worth to encode them at once."""


class Encoded:
    """A value that a flush is about to bind, and its *text*, once it is encoded.

    The value is dumped when it is bound, unless the text is *fresh*: nothing of the
    application was called since it was dumped, up to where SQLAlchemy has collected the
    changes; or the value is *fixed*: it cannot change. A text is checked only once.
    *locate*, called with the error and *place*, names the row in it. *bound*: the text
    was passed to the driver.
    """

    __slots__ = (
        "_codec",
        "_locate",
        "_place",
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
        token: tuple[int, int],
        locate: Callable[..., PayloadError],
        place: tuple[Any, str],
    ) -> None:
        self.value = value
        self.text: str | None = None
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
        self.fresh, self.bound = False, True
        return text


_encoded: dict[tuple[int, int], Encoded] = {}


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


def text_to_bind(type_id: int, value: object) -> str | None:
    """Return the text of a *value* that a running flush is about to bind, or None."""
    kept = _encoded.get((type_id, id(value)))
    return None if kept is None or kept.value is not value else kept.bind()


def check_all(
    column_type: PydanticJSON[Any], kept: Sequence[Encoded], *, fresh: bool
) -> None:
    """Dump and check what is *kept*; *fresh*: it is not going to change by then."""
    texts = dump_all(column_type, [each.value for each in kept], check=True)
    if texts is not None:
        for each, text in zip(kept, texts, strict=True):
            each.text, each.fresh = text, fresh
    else:
        for each in kept:
            each.check(each.dump())
            each.fresh = fresh


def dump_all(
    column_type: PydanticJSON[Any], values: list[Any], *, check: bool = False
) -> list[str] | None:
    """Return the texts of *values*, at once; None if it has to be one by one.

    They are as many as are worth it, and none is refused by a *check*.
    """
    if len(values) < _MANY:
        return None
    if not check:
        return column_type.batch_codec.dump(values)
    encoded = column_type.batch_codec.encode(values)
    return None if encoded is None else encoded[0]
