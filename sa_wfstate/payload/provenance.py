"""The codec of provenances: one of a subclass is stored with its declared keys.

It is read back as a Provenance, with these keys as further ones, in the form that JSON
gives them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ..values.provenance import Provenance
from .codec import Codec


class ProvenanceCodec(Codec[Provenance]):
    """Dump and load provenances."""

    def dump(self, value: Provenance, *, where: str | None = None) -> str:
        own: Any = _codec_of(type(value)) or super()
        text: str = own.dump(value, where=where)
        return text

    def check(
        self, value: Provenance, text: str, *, where: str | None = None
    ) -> Provenance | None:
        own = _codec_of(type(value))
        if own is None:
            return super().check(value, text, where=where)
        own.check(value, text, where=where)
        return self.load(text, where=where)


def plain(provenance: Provenance, where: str) -> Provenance:
    """Return *provenance* as it is going to be read back; *where* names it in errors.

    Raises PayloadError if a key that a subclass declares would be lost.
    """
    own = _codec_of(type(provenance))
    if own is None:
        return provenance
    return Provenance.model_validate_json(own.encode(provenance, where=where))


@cache
def _codec_of(type_: type[Any]) -> Codec[Any] | None:
    if type_ is Provenance or not issubclass(type_, Provenance):
        return None
    return Codec(type_)
