"""RowVersion: a version of a row, and the effect that wrote it."""

from __future__ import annotations

from typing import Final, NamedTuple


class RowVersion(NamedTuple):
    """The version that the code has seen, and the effect that wrote it, if known."""

    version: int
    effect_id: str | None

    def matches(self, other: RowVersion) -> bool:
        """Say whether *other* is the same version, written by the same effect."""
        return self.version == other.version and (
            None in {self.effect_id, other.effect_id}
            or self.effect_id == other.effect_id
        )


NOTHING: Final = RowVersion(0, None)
"""What the creation of a workflow is based on."""
