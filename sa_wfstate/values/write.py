"""The writes of commits: one row, or a batch of rows.

A batch is made of columns, like the arrays that are sent: a row that is written needs
no :class:`Write`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .row_version import RowVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from ..values.keys import Key
    from .provenance import Provenance


class Write(NamedTuple):
    """The values that a commit writes to a row, ready to be bound."""

    workflow_key: Key
    version: int
    state_text: str
    provenance: Provenance
    schema_version: int = 1
    base_effect_id: str | None = None
    """The effect that wrote the version to be replaced; None for any."""

    unchanged: bool = False
    """The version that *base_effect_id* wrote has this state already."""

    copy: Any = None
    """The state that was read back from its text, if it was; for one reader."""

    @property
    def base(self) -> RowVersion:
        """The version that is replaced, and the effect that wrote it, if known."""
        return RowVersion(self.version - 1, self.base_effect_id)


class Written(NamedTuple):
    """The values of a row after a successful write."""

    updated_at: datetime
    version: int | None = None
    """None for the version of the write; a trigger may have set another one."""


@dataclass(slots=True)
class Batch:
    """Writes of one class, as one list per field."""

    workflow_keys: Sequence[Key]
    versions: Sequence[int]
    state_texts: Sequence[str]
    provenances: Sequence[Provenance]
    schema_versions: Sequence[int]
    base_effect_ids: Sequence[str | None]
    unchanged: Sequence[bool]
    copies: Sequence[Any]

    @classmethod
    def of(cls, writes: Sequence[Write]) -> Self:
        """Return *writes* as columns."""
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
        return zip(*_columns_of(self), strict=True)

    def take(self, indices: Sequence[int]) -> Batch:
        """Return the rows at *indices*, in that order."""
        if len(indices) == len(self) and list(indices) == list(range(len(self))):
            return self
        return Batch(*([column[i] for i in indices] for column in _columns_of(self)))


_columns_of = attrgetter(*(field.name for field in fields(Batch)))
