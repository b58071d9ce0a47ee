"""How a race for a row ends for whoever lost it: in a StateConflict, with its reason.

Or in WriteSuppressed, which is none: nobody has won.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.exc import StaleDataError

from .errors import RowError

if TYPE_CHECKING:
    from .snapshots import WorkflowSnapshot


class ConflictReason(StrEnum):
    """How a commit lost its race."""

    MOVED = "moved"
    """Another writer committed a newer version first."""

    MISSING = "missing"
    """The row is gone: another writer deleted the workflow."""

    EXISTS = "exists"
    """The workflow was to be created, and another writer created it first."""

    RECREATED = "recreated"
    """The row was deleted and created again; its version is the same by chance."""

    SERIALIZATION = "serialization"
    """The database refused the transaction (SQLSTATE 40001)."""


class StateConflict(RowError, StaleDataError):
    """Somebody else committed first; nothing of this commit was written.

    It is an exception, raised when a flush loses, and a value, returned by
    :func:`~sa_wfstate.try_commit`. As a subclass of SQLAlchemy's ``StaleDataError`` it
    is caught by code that already handles that; the original error is its
    ``__cause__``.

    *entity* is the name of the mapped class. *expected_version* is the version that the
    commit was based on (0: the workflow was to be created). *actual_version* is the
    version read after the loss: None if the row is gone or if it cannot be known.
    *current* is the snapshot read with it, or None.

    :attr:`conflicts` holds one StateConflict per row that lost; for a single row it
    holds the conflict itself.
    """

    expected_version: int
    actual_version: int | None
    reason: ConflictReason
    current: WorkflowSnapshot[Any] | None = None
    others: tuple[StateConflict, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not the snapshot: args are what repr() shows, and so asyncio's log.
        self.args = self.args[:-2]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.current, self.others), self.__dict__

    @property
    def conflicts(self) -> tuple[StateConflict, ...]:
        """One conflict per row that lost, this one first."""
        return (self, *self.others)

    def together_with(self, others: tuple[StateConflict, ...]) -> StateConflict:
        """Return the conflict of several rows: this one, and *others* after it."""
        return replace(self, others=others)

    def __str__(self) -> str:
        lines = [conflict._describe() for conflict in self.conflicts]  # noqa: SLF001
        advice = "read the workflow again, redo the decision on it, and commit that"
        if self.reason is ConflictReason.SERIALIZATION:
            advice = "roll back and run the whole transaction again"
        return f"{'; '.join(lines)}; {advice}"

    def _describe(self) -> str:
        winner = ""
        if self.current is not None:
            winner = f" (written by effect {self.current.provenance.effect_id!r})"
        if self.reason is ConflictReason.EXISTS:
            found = "exists already"
            if self.actual_version is not None:
                found += f" at version {self.actual_version}"
            return f"{self._row} {found}{winner}, it was to be created"
        if self.reason is ConflictReason.MISSING:
            found = "the row is gone"
        elif self.actual_version is None:
            found = "the version now there cannot be known here"
        elif self.reason is ConflictReason.RECREATED:
            found = f"found it deleted and re-created{winner}"
        else:
            found = f"found {self.actual_version}{winner}"
        return f"{self._row}: expected version {self.expected_version}, {found}"


class WriteSuppressed(RowError, StaleDataError):
    """The row has the expected version, and yet the write changed no row.

    Nobody else wrote, so this is not a conflict and retrying would never end. Row
    security or a trigger on the table hides the write; or the transaction itself has
    written the row before, by a statement past the unit of work.
    """

    version: int

    _says = (
        "{row} is at the expected version {version}, but the write changed no row; "
        "look for row security, a trigger that suppresses it, or a statement of the "
        "same transaction that wrote the row before; a retry will not help"
    )
