"""The errors of the library; every one of them is a :exc:`WorkflowStateError`.

::

    WorkflowStateError
    ├── StateConflict          (also a sqlalchemy.orm.exc.StaleDataError)
    ├── WriteSuppressed        (also a sqlalchemy.orm.exc.StaleDataError)
    ├── WorkflowNotFound       (also a LookupError)
    ├── PayloadError           (also a ValueError)
    ├── UnflushedChanges
    ├── VersionNotAssignable   (also an AttributeError)
    └── MappingError           (also a TypeError)

Messages are built from attributes when they are shown. They name the entity, the
workflow key and the versions, and say what to do next; they never hold a payload.
Each error passes all it knows to ``args``, so that it survives pickle and copy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.exc import StaleDataError

if TYPE_CHECKING:
    from .snapshots import WorkflowSnapshot


class WorkflowStateError(Exception):
    """Base of every error that the library raises."""


class ConflictReason(StrEnum):
    """How a commit lost its race."""

    MOVED = "moved"
    """Another writer committed a newer version first."""

    MISSING = "missing"
    """The row is gone: another writer deleted the workflow."""

    EXISTS = "exists"
    """The workflow was to be created, and another writer created it first."""

    SERIALIZATION = "serialization"
    """The database refused the transaction (SQLSTATE 40001)."""


class StateConflict(WorkflowStateError, StaleDataError):
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

    def __init__(
        self,
        entity: str,
        workflow_key: str,
        expected_version: int,
        actual_version: int | None,
        reason: ConflictReason,
        current: WorkflowSnapshot[Any] | None = None,
        others: tuple[StateConflict, ...] = (),
    ) -> None:
        super().__init__(
            entity,
            workflow_key,
            expected_version,
            actual_version,
            reason,
            current,
            others,
        )
        self.entity = entity
        self.workflow_key = workflow_key
        self.expected_version = expected_version
        self.actual_version = actual_version
        self.reason = reason
        self.current = current
        self._others = others

    @property
    def conflicts(self) -> tuple[StateConflict, ...]:
        """One conflict per row that lost, this one first."""
        return (self, *self._others)

    def __str__(self) -> str:
        lines = [conflict._describe() for conflict in self.conflicts]
        advice = "read the workflow again, redo the decision on it, and commit that"
        if self.reason is ConflictReason.SERIALIZATION:
            advice = "roll back and run the whole transaction again"
        return f"{'; '.join(lines)}; {advice}"

    def _describe(self) -> str:
        who = f"{self.entity} {self.workflow_key!r}"
        if self.reason is ConflictReason.EXISTS:
            found = f"exists already at version {self.actual_version}"
            return f"{who} {found}{self._winner()}, it was to be created"
        expected = f"expected version {self.expected_version}"
        if self.reason is ConflictReason.MISSING:
            return f"{who}: {expected}, the row is gone"
        if self.actual_version is None:
            return f"{who}: {expected}, the version now there cannot be known here"
        return f"{who}: {expected}, found {self.actual_version}{self._winner()}"

    def _winner(self) -> str:
        if self.current is None:
            return ""
        return f" (written by effect {self.current.provenance.effect_id!r})"


class WriteSuppressed(WorkflowStateError, StaleDataError):
    """The row has the expected version, and yet the write changed no row.

    Nobody else wrote, so this is not a conflict and retrying would never end. Row
    security or a trigger on the table hides the write.
    """

    def __init__(self, entity: str, workflow_key: str, version: int) -> None:
        super().__init__(entity, workflow_key, version)
        self.entity = entity
        self.workflow_key = workflow_key
        self.version = version

    def __str__(self) -> str:
        return (
            f"{self.entity} {self.workflow_key!r} is at the expected version "
            f"{self.version}, but the write changed no row; look for row security or a "
            "trigger that suppresses it, a retry will not help"
        )


class WorkflowNotFound(WorkflowStateError, LookupError):
    """There is no row with this workflow key."""

    def __init__(self, entity: str, workflow_key: str) -> None:
        super().__init__(entity, workflow_key)
        self.entity = entity
        self.workflow_key = workflow_key

    def __str__(self) -> str:
        return (
            f"{self.entity} {self.workflow_key!r} does not exist; create it with "
            "try_commit(…, expected_version=0) or by adding an instance to the session"
        )


class PayloadError(WorkflowStateError, ValueError):
    """A value cannot be stored, or cannot be read back, as what it should be.

    *where* names what was being handled (``"Order 'order-42' state"``), *path* the
    field inside it (``"items.0.price"``, empty for the value as a whole), *problem* what
    is wrong there.
    """

    def __init__(self, where: str, path: str, problem: str) -> None:
        super().__init__(where, path, problem)
        self.where = where
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        at = f", at {self.path!r}" if self.path else ""
        return f"{self.where}{at}: {self.problem}"


class UnflushedChanges(WorkflowStateError):
    """``try_commit`` was asked for a row that this session has changed itself."""

    def __init__(self, entity: str, workflow_key: str) -> None:
        super().__init__(entity, workflow_key)
        self.entity = entity
        self.workflow_key = workflow_key

    def __str__(self) -> str:
        return (
            f"{self.entity} {self.workflow_key!r} has changes in this session that are "
            "not flushed; flush() or refresh() it before try_commit, or leave the write "
            "to the flush alone"
        )


class VersionNotAssignable(WorkflowStateError, AttributeError):
    """The version of a workflow was assigned; only the library counts it."""

    def __init__(self, entity: str) -> None:
        super().__init__(entity)
        self.entity = entity

    def __str__(self) -> str:
        return (
            f"{self.entity}.version cannot be assigned, it counts the commits; to say "
            "which version a write is based on, pass expected_version to try_commit"
        )


class MappingError(WorkflowStateError, TypeError):
    """A class cannot be mapped as a workflow; raised when the class is defined."""

    def __init__(self, entity: str, problem: str) -> None:
        super().__init__(entity, problem)
        self.entity = entity
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.entity}: {self.problem}"
