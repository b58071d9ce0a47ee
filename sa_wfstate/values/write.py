"""What commits put into rows: a write, and a batch of them.

A batch is made of columns, as the arrays are that are sent: most of its rows win, and
of those no :class:`Write` is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .row_version import RowVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from .provenance import Provenance


class Write(NamedTuple):
    """What a commit puts into a row, ready to be bound."""

    workflow_key: str
    version: int
    state_text: str
    provenance: Provenance
    schema_version: int = 1
    base_effect_id: str | None = None
    """The effect that wrote the version that is replaced; None: any."""

    unchanged: bool = False
    """The version that *base_effect_id* wrote, if any, has this state already."""

    copy: Any = None
    """The state as it was read back from its text, if it was; for one reader."""

    @property
    def base(self) -> RowVersion:
        """The version that is replaced, and the effect that wrote it, if known."""
        return RowVersion(self.version - 1, self.base_effect_id)


class Written(NamedTuple):
    """What a write that won has left in its row."""

    updated_at: datetime
    version: int | None = None
    """None: the version of the write. A trigger may have made another of it."""


@dataclass(slots=True)
class Batch:
    """Writes of one class, a list for each of their fields."""

    workflow_keys: Sequence[str]
    versions: Sequence[int]
    state_texts: Sequence[str]
    provenances: Sequence[Provenance]
    schema_versions: Sequence[int]
    base_effect_ids: Sequence[str | None]
    unchanged: Sequence[bool]
    copies: Sequence[Any]

    @classmethod
    def of(cls, writes: Sequence[Write]) -> Self:
        """Make columns of *writes*."""
        return (
            cls(*zip(*writes, strict=True))
            if writes
            else cls(*[()] * len(Write._fields))
        )

    def __len__(self) -> int:
        return len(self.workflow_keys)

    def __iter__(self) -> Iterator[Write]:
        return map(Write._make, self.rows())

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Return the fields of each write."""
        return zip(*self._columns(), strict=True)

    def take(self, indices: Sequence[int]) -> Batch:
        """Return those rows, in that order."""
        if len(indices) == len(self) and list(indices) == list(range(len(self))):
            return self
        return Batch(*([column[i] for i in indices] for column in self._columns()))

    def _columns(self) -> tuple[Sequence[Any], ...]:
        return tuple(getattr(self, field.name) for field in fields(self))
