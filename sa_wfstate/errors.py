"""The errors of the library; every one of them is a :exc:`WorkflowStateError`.

::

    WorkflowStateError
    ├── StateConflict          (also a sqlalchemy.orm.exc.StaleDataError)
    ├── WriteSuppressed        (also a sqlalchemy.orm.exc.StaleDataError)
    ├── WorkflowNotFound       (also a LookupError)
    ├── PayloadError           (also a ValueError)
    ├── SchemaVersionAhead
    ├── ReducerGaveUp
    ├── NestedHandle
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

Each is a dataclass. Messages are built from its fields when they are shown. They name
the entity, the workflow key and the versions, and say what to do next; they never hold
a payload. Each error survives pickle and copy; its ``args``, which ``repr()`` shows,
hold no payload either.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.orm.exc import StaleDataError

if TYPE_CHECKING:
    from uuid import UUID

    from .values.snapshot import WorkflowSnapshot

__all__ = [
    "ActionIdReused",
    "ConflictReason",
    "KeyNotAssignable",
    "MappingError",
    "NestedHandle",
    "OutcomeUnknown",
    "PayloadError",
    "ProjectionBehind",
    "ReducerGaveUp",
    "SchemaVersionAhead",
    "StateConflict",
    "UnflushedChanges",
    "UnversionedWrite",
    "VersionNotAssignable",
    "VersionNotInHistory",
    "VersionNotKept",
    "VersionNotSeen",
    "WorkflowNotFound",
    "WorkflowStateError",
    "WriteSuppressed",
]


@dataclass_transform(eq_default=False)
class WorkflowStateError(Exception):
    """Base of every error that the library raises."""

    _says: ClassVar[str]
    """What the error says, with the names of its fields in braces."""

    def __init_subclass__(cls) -> None:
        dataclass(eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        self.args = tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self._says.format_map(vars(self))


class RowError(WorkflowStateError):
    """Base of the errors of one row: *entity*, the mapped class, and *workflow_key*."""

    entity: str
    workflow_key: str

    def __str__(self) -> str:
        return self._says.format(row=self._row, **vars(self))

    @property
    def _row(self) -> str:
        # None: it came by a query that does not tell which row it was.
        key: str | None = self.workflow_key
        return f"a row of {self.entity}" if key is None else f"{self.entity} {key!r}"


class WorkflowNotFound(RowError, LookupError):
    """There is no row with this workflow key."""

    _says = (
        "{row} does not exist; create it with try_commit(…, expected_version=0) or by "
        "adding an instance to the session"
    )


class PayloadError(WorkflowStateError, ValueError, DontWrapMixin):
    """A value cannot be stored, or cannot be read back, as what it should be.

    *where* names what was being handled (``"Order 'order-42' state"``), *path* the
    field inside it (``"items.0.price"``, empty for the value as a whole), *problem*
    what is wrong there.
    """

    where: str
    path: str
    problem: str

    def __str__(self) -> str:
        at = f", at {self.path!r}" if self.path else ""
        return f"{self.where}{at}: {self.problem}"


class SchemaVersionAhead(RowError):
    """A row was written by newer code than this, in a shape that is not known here.

    It is refused rather than read as far as possible: what this code does not know, its
    next commit would drop. *schema_version* is that of the row, *known* that of the
    code.
    """

    schema_version: int
    known: int

    _says = (
        "{row} has schema version {schema_version}, and this code knows versions up to "
        "{known}; leave the row to newer code, or deploy that here"
    )


class UnflushedChanges(RowError):
    """``try_commit`` was asked for a row that this session has changed itself."""

    _says = (
        "{row} has changes in this session that are not flushed; flush() or refresh() "
        "it before try_commit, or leave the write to the flush alone"
    )


class OutcomeUnknown(RowError):
    """The answer to a COMMIT was lost, and whether it was done could not be found out.

    Either the database stayed out of reach, or nothing tells: other commits have since
    replaced every row that would, or no row was written that could. Of several
    databases, some may have committed and others not. *effect_ids* are those of the
    writes; *workflow_key* is empty where no workflow row was written. The lost
    connection is the ``__cause__``.
    """

    effect_ids: tuple[str, ...]

    def __str__(self) -> str:
        row = self._row if self.workflow_key else self.entity
        effects = ", ".join(map(repr, self.effect_ids))
        what = f"effect {effects}" if effects else "it"
        return (
            f"{row}: the answer to COMMIT was lost, and it is not known whether {what} "
            "was committed; look for its outcome before you commit it again"
        )


class UnversionedWrite(WorkflowStateError, TypeError):
    """Workflow rows would be written without checking or counting their versions.

    *statement* is what would do it, *instead* what to do.
    """

    entity: str
    statement: str
    instead: str

    _says = (
        "{statement} of {entity} does not check versions as it must, so it would write "
        "over commits unseen; {instead}"
    )


class VersionNotSeen(RowError):
    """An instance is to be written whose version was not loaded with its state."""

    _says = (
        "{row}: its version was not loaded together with its state, so the write "
        "cannot be checked; load the whole row, or refresh() both attributes, and "
        "decide again"
    )


class VersionNotAssignable(WorkflowStateError, AttributeError):
    """The version of a workflow was assigned; only the library counts it."""

    entity: str

    _says = (
        "{entity}.version cannot be assigned, it counts the commits; to say which "
        "version a write is based on, pass expected_version to try_commit"
    )


class KeyNotAssignable(RowError, AttributeError):
    """The ``workflow_key`` of a row that is stored was to be changed."""

    _says = (
        "{row} is stored under its workflow_key, which cannot be changed: history, "
        "projection, deduplication and intents are stored under it too; to rename the "
        "workflow, create one with the new key and delete this one"
    )


class MappingError(WorkflowStateError, TypeError):
    """A class cannot be mapped as a workflow; raised when the class is defined."""

    entity: str
    problem: str

    _says = "{entity}: {problem}"


class ReducerGaveUp(RowError):
    """An action was not committed within the attempts and the time of its policy.

    *conflict* is the last one that was lost, None if there was none. An error of the
    database in which the last attempt ended is the ``__cause__``. *elapsed* is in
    seconds.
    """

    conflict: StateConflict | None
    attempts: int
    elapsed: float

    def __str__(self) -> str:
        last = "" if self.conflict is None else f"; last conflict: {self.conflict}"
        return (
            f"{self._row}: not committed after {self.attempts} "
            f"attempt(s) in {self.elapsed:.3f} s; deliver the action again, or allow "
            f"more in the RetryPolicy{last}"
        )


class NestedHandle(RowError):
    """An action was handed in from within an attempt, by a reducer for instance.

    *entity* and *workflow_key* are those of that action; *within* names the entity and
    the key of the attempt.
    """

    within: str

    _says = (
        "{row} was to be handled while an action of {within} is being reduced, which "
        "may wait for itself; a reducer is pure: return an Intent, and handle the next "
        "action in on_intents or after handle() has returned"
    )


class ActionIdReused(WorkflowStateError, ValueError):
    """An action has the id of another one, which had another payload."""

    workflow_key: str
    action_id: UUID

    _says = (
        "action {action_id} of {workflow_key!r} was processed before with another "
        "payload; give each action an id of its own"
    )


class VersionNotKept(RowError, LookupError):
    """The snapshot of a version was asked for that the row has moved on from."""

    version: int

    _says = (
        "{row} had version {version} when this action was first processed, and only "
        "the newest state is kept; read that with get_state"
    )


class VersionNotInHistory(RowError, LookupError):
    """The history holds no such version; *version* None: none of the time asked for."""

    version: int | None

    def __str__(self) -> str:
        which = "of that time" if self.version is None else str(self.version)
        return (
            f"the history of {self._row} holds no version {which}; list_versions says "
            "which ones it holds"
        )


class ProjectionBehind(RowError):
    """A projection has not reached the version that was required of it.

    *found* is the version that was there when the wait was over, 0 if there was none.
    """

    required: int
    found: int

    _says = (
        "{row}: version {required} is needed, found {found}; wait longer, or see "
        "whether the projection's worker runs"
    )


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
