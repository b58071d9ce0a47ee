"""The errors of the library; every one of them is a :exc:`WorkflowStateError`.

::

    WorkflowStateError
    ├── StateConflict          (also a sqlalchemy.orm.exc.StaleDataError)
    ├── WriteSuppressed        (also a sqlalchemy.orm.exc.StaleDataError)
    ├── WorkflowNotFound       (also a LookupError)
    ├── PayloadError           (also a ValueError)
    ├── SchemaVersionAhead
    ├── ReducerGaveUp
    ├── ActionIdReused         (also a ValueError)
    ├── VersionNotKept         (also a LookupError)
    ├── VersionNotInHistory    (also a LookupError)
    ├── ProjectionBehind
    ├── UnflushedChanges
    ├── OutcomeUnknown
    ├── UnversionedWrite       (also a TypeError)
    ├── VersionNotSeen
    ├── VersionNotAssignable   (also an AttributeError)
    └── MappingError           (also a TypeError)

Messages are built from attributes when they are shown. They name the entity, the
workflow key and the versions, and say what to do next; they never hold a payload.
Each error survives pickle and copy; its ``args``, which ``repr()`` shows, hold no
payload either.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.orm.exc import StaleDataError

if TYPE_CHECKING:
    from uuid import UUID

    from .snapshots import WorkflowSnapshot


class WorkflowStateError(Exception):
    """Base of every error that the library raises."""


class RowError(WorkflowStateError):
    """Base of the errors of one row: *entity*, the mapped class, and *workflow_key*."""

    def __init__(self, entity: str, workflow_key: str, *details: Any) -> None:
        super().__init__(entity, workflow_key, *details)
        self.entity = entity
        self.workflow_key = workflow_key

    @property
    def _row(self) -> str:
        return f"{self.entity} {self.workflow_key!r}"


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
        # Not the snapshot: args are what repr() shows, and so asyncio's log.
        super().__init__(entity, workflow_key, expected_version, actual_version, reason)
        self.expected_version = expected_version
        self.actual_version = actual_version
        self.reason = reason
        self.current = current
        self._others = others

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.current, self._others), self.__dict__

    @property
    def conflicts(self) -> tuple[StateConflict, ...]:
        """One conflict per row that lost, this one first."""
        return (self, *self._others)

    def together_with(self, others: tuple[StateConflict, ...]) -> StateConflict:
        """Return the conflict of several rows: this one, and *others* after it."""
        return StateConflict(
            self.entity,
            self.workflow_key,
            self.expected_version,
            self.actual_version,
            self.reason,
            self.current,
            others,
        )

    def __str__(self) -> str:
        lines = [conflict._describe() for conflict in self.conflicts]  # noqa: SLF001
        advice = "read the workflow again, redo the decision on it, and commit that"
        if self.reason is ConflictReason.SERIALIZATION:
            advice = "roll back and run the whole transaction again"
        return f"{'; '.join(lines)}; {advice}"

    def _describe(self) -> str:
        who = f"{self._row}"
        if self.reason is ConflictReason.EXISTS:
            found = f"exists already at version {self.actual_version}"
            return f"{who} {found}{self._winner()}, it was to be created"
        expected = f"expected version {self.expected_version}"
        if self.reason is ConflictReason.MISSING:
            return f"{who}: {expected}, the row is gone"
        if self.actual_version is None:
            return f"{who}: {expected}, the version now there cannot be known here"
        if self.reason is ConflictReason.RECREATED:
            return f"{who}: {expected}, found it deleted and re-created{self._winner()}"
        return f"{who}: {expected}, found {self.actual_version}{self._winner()}"

    def _winner(self) -> str:
        if self.current is None:
            return ""
        return f" (written by effect {self.current.provenance.effect_id!r})"


class WriteSuppressed(RowError, StaleDataError):
    """The row has the expected version, and yet the write changed no row.

    Nobody else wrote, so this is not a conflict and retrying would never end. Row
    security or a trigger on the table hides the write.
    """

    def __init__(self, entity: str, workflow_key: str, version: int) -> None:
        super().__init__(entity, workflow_key, version)
        self.version = version

    def __str__(self) -> str:
        return (
            f"{self._row} is at the expected version "
            f"{self.version}, but the write changed no row; look for row security or a "
            "trigger that suppresses it, a retry will not help"
        )


class WorkflowNotFound(RowError, LookupError):
    """There is no row with this workflow key."""

    def __str__(self) -> str:
        return (
            f"{self._row} does not exist; create it with "
            "try_commit(…, expected_version=0) or by adding an instance to the session"
        )


class PayloadError(WorkflowStateError, ValueError, DontWrapMixin):
    """A value cannot be stored, or cannot be read back, as what it should be.

    *where* names what was being handled (``"Order 'order-42' state"``), *path* the
    field inside it (``"items.0.price"``, empty for the value as a whole), *problem*
    what is wrong there.
    """

    def __init__(self, where: str, path: str, problem: str) -> None:
        super().__init__(where, path, problem)
        self.where = where
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        at = f", at {self.path!r}" if self.path else ""
        return f"{self.where}{at}: {self.problem}"


class SchemaVersionAhead(RowError):
    """A row was written by newer code than this, in a shape that is not known here.

    It is refused rather than read as far as possible: what this code does not know, its
    next commit would drop. *schema_version* is that of the row, *known* that of the
    code.
    """

    def __init__(
        self, entity: str, workflow_key: str, schema_version: int, known: int
    ) -> None:
        super().__init__(entity, workflow_key, schema_version, known)
        self.schema_version = schema_version
        self.known = known

    def __str__(self) -> str:
        return (
            f"{self._row} has schema version "
            f"{self.schema_version}, and this code knows versions up to {self.known}; "
            "leave the row to newer code, or deploy that here"
        )


class UnflushedChanges(RowError):
    """``try_commit`` was asked for a row that this session has changed itself."""

    def __str__(self) -> str:
        return (
            f"{self._row} has changes in this session that are "
            "not flushed; flush() or refresh() it before try_commit, or leave the "
            "write to the flush alone"
        )


class OutcomeUnknown(RowError):
    """The answer to a COMMIT was lost, and whether it was done could not be found out.

    Either the database stayed out of reach, or other commits have since replaced
    every row that would tell. *effect_ids* are those of the writes; the lost connection
    is the ``__cause__``.
    """

    def __init__(
        self, entity: str, workflow_key: str, effect_ids: tuple[str, ...]
    ) -> None:
        super().__init__(entity, workflow_key, effect_ids)
        self.effect_ids = effect_ids

    def __str__(self) -> str:
        effects = ", ".join(map(repr, self.effect_ids))
        return (
            f"{self._row}: the answer to COMMIT was lost, and "
            f"it is not known whether effect {effects} was committed; look for its "
            "outcome before you commit it again"
        )


class UnversionedWrite(WorkflowStateError, TypeError):
    """A statement would write workflow rows without checking or counting versions."""

    def __init__(self, entity: str, statement: str) -> None:
        super().__init__(entity, statement)
        self.entity = entity
        self.statement = statement

    def __str__(self) -> str:
        return (
            f"{self.statement} of {self.entity} checks no version, so it would write "
            "over commits unseen; use try_commit_many, or give the statement the "
            "execution option wfstate_unversioned=True"
        )


class VersionNotSeen(RowError):
    """An instance is to be written whose version was not loaded with its state."""

    def __str__(self) -> str:
        return (
            f"{self._row}: its version was not loaded together "
            "with its state, so the write cannot be checked; load the whole row, or "
            "refresh() both attributes, and decide again"
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


class ReducerGaveUp(RowError):
    """An action was not committed within the attempts and the time of its policy.

    *conflict* is the last one that was lost; None if the last attempt failed with an
    error of the database, which is the ``__cause__`` then. *elapsed* is in seconds.
    """

    def __init__(
        self,
        entity: str,
        workflow_key: str,
        conflict: StateConflict | None,
        attempts: int,
        elapsed: float,
    ) -> None:
        super().__init__(entity, workflow_key, conflict, attempts, elapsed)
        self.conflict = conflict
        self.attempts = attempts
        self.elapsed = elapsed

    def __str__(self) -> str:
        last = "" if self.conflict is None else f"; last conflict: {self.conflict}"
        return (
            f"{self._row}: not committed after {self.attempts} "
            f"attempt(s) in {self.elapsed:.3f} s; deliver the action again, or allow "
            f"more in the RetryPolicy{last}"
        )


class ActionIdReused(WorkflowStateError, ValueError):
    """An action has the id of another one, which had another payload."""

    def __init__(self, workflow_key: str, action_id: UUID) -> None:
        super().__init__(workflow_key, action_id)
        self.workflow_key = workflow_key
        self.action_id = action_id

    def __str__(self) -> str:
        return (
            f"action {self.action_id} of {self.workflow_key!r} was processed before "
            "with another payload; give each action an id of its own"
        )


class VersionNotKept(RowError, LookupError):
    """The snapshot of a version was asked for that the row has moved on from."""

    def __init__(self, entity: str, workflow_key: str, version: int) -> None:
        super().__init__(entity, workflow_key, version)
        self.version = version

    def __str__(self) -> str:
        return (
            f"{self._row} had version {self.version} when this "
            "action was first processed, and only the newest state is kept; read that "
            "with get_state"
        )


class VersionNotInHistory(RowError, LookupError):
    """The history holds no such version; *version* None: none of the time asked for."""

    def __init__(self, entity: str, workflow_key: str, version: int | None) -> None:
        super().__init__(entity, workflow_key, version)
        self.version = version

    def __str__(self) -> str:
        which = "of that time" if self.version is None else str(self.version)
        return (
            f"the history of {self._row} holds no version "
            f"{which}; list_versions says which ones it holds"
        )


class ProjectionBehind(RowError):
    """A projection has not reached the version that was required of it.

    *found* is the version that was there when the wait was over, 0 if there was none.
    """

    def __init__(
        self, entity: str, workflow_key: str, required: int, found: int
    ) -> None:
        super().__init__(entity, workflow_key, required, found)
        self.required = required
        self.found = found

    def __str__(self) -> str:
        return (
            f"{self._row}: version {self.required} is needed, "
            f"found {self.found}; wait longer, or see whether the projection's worker "
            "runs"
        )
