"""RowVersion: a version of a row, and the effect that wrote it."""

from __future__ import annotations

from typing import Final, NamedTuple


class RowVersion(NamedTuple):
    """A version of a row, and the effect that wrote it, if known."""

    version: int
    effect_id: str | None

    def matches(self, other: RowVersion) -> bool:
        """Return whether *other* is the same version, written by the same effect.

        An effect that is not known is taken to be the same.
        """
        return self.version == other.version and (
            None in {self.effect_id, other.effect_id}
            or self.effect_id == other.effect_id
        )

    def reached_by(self, other: RowVersion) -> bool:
        """Return whether *other* is this version, or a later one of the row."""
        return other.version > self.version or self.matches(other)

    @classmethod
    def of(cls, version: int | RowVersion, effect_id: str | None = None) -> RowVersion:
        """Return *version* as a RowVersion, of *effect_id* unless it names its own."""
        if not isinstance(version, RowVersion):
            return cls(version, effect_id)
        return version if effect_id is None else version._replace(effect_id=effect_id)


NOTHING: Final = RowVersion(0, None)
"""The base of a creation: no row."""
