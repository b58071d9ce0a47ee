"""The errors of the library; each is a :exc:`WorkflowStateError`.

::

    WorkflowStateError
    ├── StateConflict          (also a sqlalchemy.orm.exc.StaleDataError)
    ├── WriteSuppressed        (also a sqlalchemy.orm.exc.StaleDataError)
    ├── WorkflowNotFound       (also a LookupError)
    ├── PayloadError           (also a ValueError)
    ├── SchemaVersionAhead
    ├── ReducerGaveUp
    ├── NestedHandle
    ├── QueueFull
    ├── ActionIdReused         (also a ValueError)
    ├── VersionNotKept         (also a LookupError)
    ├── VersionNotInHistory    (also a LookupError)
    ├── ProjectionBehind
    ├── StateBehind
    ├── IfMatchRefused         (also a ValueError)
    ├── UnflushedChanges
    ├── StateReplaced
    ├── OutcomeUnknown
    ├── UnversionedWrite       (also a TypeError)
    ├── VersionNotSeen
    ├── VersionNotAssignable   (also an AttributeError)
    └── MappingError           (also a TypeError)

Each is a dataclass, whose message is built from its fields when it is shown. A message
names the entity, the workflow key and the versions, and says what to do next. Neither
the message nor ``args``, which ``repr()`` shows, holds a payload. Each error can be
pickled and copied.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    Never,
    Self,
    dataclass_transform,
)

from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.orm.exc import StaleDataError
from typing_extensions import TypeVar  # That of typing has no default before 3.13.

MYPY: Final = False
"""True for mypy, which finds ``if outcome`` only where there is no ``__bool__``."""

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from .values.changes import Changes
    from .values.snapshot import WorkflowSnapshot

__all__ = [
    "ActionIdReused",
    "ConflictReason",
    "IfMatchRefused",
    "KeyNotAssignable",
    "MappingError",
    "NestedHandle",
    "OutcomeUnknown",
    "PayloadError",
    "ProjectionBehind",
    "QueueFull",
    "ReducerGaveUp",
    "SchemaVersionAhead",
    "StateBehind",
    "StateConflict",
    "StateReplaced",
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


StateT_co = TypeVar("StateT_co", covariant=True, default=Any)


@dataclass_transform(eq_default=False)
class WorkflowStateError(Exception):
    """Base of every error that the library raises."""

    _template: ClassVar[str]
    """The message, with the names of the fields in braces."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        self.args = tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self._template.format_map(vars(self))


class RowError(WorkflowStateError):
    """Base of the errors of one row: *entity*, the mapped class, and *workflow_key*."""

    entity: str
    workflow_key: Any

    def __str__(self) -> str:
        return self._template.format(row=self._row, **vars(self))

    @property
    def _row(self) -> str:
        # None: the query has not selected the key.
        key = self.workflow_key
        return f"a row of {self.entity}" if key is None else f"{self.entity} {key!r}"


class WorkflowNotFound(RowError, LookupError):
    """No row has this workflow key; *instead* says how to create it."""

    instead: str = (
        "create it with try_commit(…, expected_version=0) or by adding an instance to "
        "the session"
    )

    _template = "{row} does not exist; {instead}"


class PayloadError(WorkflowStateError, ValueError, DontWrapMixin):
    """A value cannot be stored, or a stored one cannot be read.

    *where* names the value (``"Order 'order-42' state"``), *path* the field inside it
    (``"items.0.price"``, empty for the value as a whole), *problem* the reason.
    """

    where: str
    path: str
    problem: str

    def __str__(self) -> str:
        at = f", at {self.path!r}" if self.path else ""
        return f"{self.where}{at}: {self.problem}"


class SchemaVersionAhead(RowError):
    """A row was written by newer code, in a shape that this code does not know.

    The row is not read in part, because the next commit would drop the unknown fields.
    *schema_version* is the version of the row, *known* the version of the code.
    """

    schema_version: int
    known: int

    _template = (
        "{row} has schema version {schema_version}, and this code knows versions up to "
        "{known}; leave the row to newer code, or deploy that here"
    )


class UnflushedChanges(RowError):
    """``try_commit`` was called for a row that its session has changed."""

    _template = (
        "{row} has changes in this session that are not flushed; flush() or refresh() "
        "it before try_commit, or let the flush write them"
    )


class StateReplaced(RowError):
    """A value was changed that a flush had replaced when it rebased the row.

    The application has kept a part of the state, or of the column *attribute*, from
    before the flush. The change would be lost.
    """

    attribute: str

    _template = (
        "{row}: a part of {attribute} was changed that was read before a flush rebased "
        "the row; after a flush, read it again from the instance"
    )


class OutcomeUnknown(RowError):
    """The answer to a COMMIT was lost, and its outcome cannot be found out.

    Either the database stayed unreachable, or no row is evidence: other commits have
    replaced the rows, or none was written. Of several databases, some may have
    committed and others not. *effect_ids* are those of the writes; *workflow_key* is
    empty if no workflow row was written. The ``__cause__`` is the lost connection.
    """

    effect_ids: tuple[str, ...]

    def __str__(self) -> str:
        row = self.entity if self.workflow_key == "" else self._row
        effects = ", ".join(map(repr, self.effect_ids))
        what = f"effect {effects}" if effects else "it"
        return (
            f"{row}: the answer to COMMIT was lost, and it is not known whether {what} "
            "was committed; look for its outcome before you commit it again"
        )


class UnversionedWrite(WorkflowStateError, TypeError):
    """A statement would write workflow rows without checking or counting versions.

    *statement* names it, *instead* says what to use instead.
    """

    entity: str
    statement: str
    instead: str

    _template = (
        "{statement} of {entity} does not check versions, so it could overwrite the "
        "commits of other writers; {instead}"
    )


class VersionNotSeen(RowError):
    """The version of an instance to be written was not loaded with its state."""

    _template = (
        "{row}: its version was not loaded together with its state, so the write "
        "cannot be checked; load the whole row, or refresh() both attributes, and "
        "decide again"
    )


class VersionNotAssignable(WorkflowStateError, AttributeError):
    """The application assigned the version, which only the library counts."""

    entity: str

    _template = (
        "{entity}.version cannot be assigned, it counts the commits; to base a write "
        "on a version, pass expected_version to try_commit"
    )


class KeyNotAssignable(RowError, AttributeError):
    """The application assigned another ``workflow_key`` to a stored row."""

    _template = (
        "{row} is stored under its workflow_key, which cannot be changed: history, "
        "projection, deduplication and intents are stored under it too; to rename the "
        "workflow, create one with the new key and delete this one"
    )


class MappingError(WorkflowStateError, TypeError):
    """A class, or a query of it, cannot work as it is declared."""

    entity: str
    problem: str

    _template = "{entity}: {problem}"


class ReducerGaveUp(RowError):
    """An action was not committed within the attempts and the time of its policy.

    *conflict* is the last conflict, None without one. If the last attempt ended in a
    database error, that is the ``__cause__``. *elapsed* is in seconds.
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
    """A reducer, or other code of an attempt, called ``handle``.

    *entity* and *workflow_key* are those of the nested action; *within* names the
    entity and the key of the attempt.
    """

    within: str

    _template = (
        "handle() was called for {row} within an attempt for {within}, which could "
        "deadlock; a reducer is pure: return an Intent, and handle the next action in "
        "on_intents or after handle() has returned"
    )


class QueueFull(RowError):
    """Too many callers wait for the service; the action was not queued."""

    waiting: int

    _template = (
        "{row}: {waiting} actions wait for this service already; hand the action in "
        "again later, or allow more by queue_limit"
    )


class ActionIdReused(WorkflowStateError, ValueError):
    """An action has the id of an earlier action with another payload."""

    workflow_key: Any
    action_id: UUID

    _template = (
        "action {action_id} of {workflow_key!r} was processed before with another "
        "payload; give each action its own id"
    )


class VersionNotKept(RowError, LookupError):
    """The snapshot of a version is no longer stored: the row has a newer one."""

    version: int

    _template = (
        "{row} had version {version} when this action was first processed, and only "
        "the newest state is kept; read that with get_state"
    )


class VersionNotInHistory(RowError, LookupError):
    """The history holds no such version; *version* is None for a look-up by time."""

    version: int | None

    def __str__(self) -> str:
        which = "of that time" if self.version is None else str(self.version)
        return (
            f"the history of {self._row} holds no version {which}; list_versions "
            "returns those that it holds"
        )


class ProjectionBehind(RowError):
    """A projection has not reached the required version.

    *found* is its version at the end of the wait, 0 without a row.
    """

    required: int
    found: int

    _template = (
        "{row}: version {required} is required, found {found}; wait longer, or check "
        "that the projection's worker runs"
    )


class StateBehind(RowError):
    """The row that was read has not reached the required version.

    *found* is its version, read from where it is written, after the wait.
    """

    required: int
    found: int

    _template = (
        "{row}: version {required} is required, found {found}; the row was deleted and "
        "created again, or the session reads a server that lags behind"
    )


class IfMatchRefused(WorkflowStateError, ValueError):
    """The header ``If-Match`` of a request names no version to base a write on.

    *problem* is the reason, *status* the HTTP status to answer with. The text of the
    header is not shown.
    """

    problem: str
    status: int

    _template = "If-Match {problem}"


class ConflictReason(StrEnum):
    """Why a commit was in conflict."""

    MOVED = "moved"
    """Another writer committed a newer version first."""

    MISSING = "missing"
    """Another writer deleted the row."""

    EXISTS = "exists"
    """Another writer created the workflow first."""

    RECREATED = "recreated"
    """The row was deleted and created again, and has the same version (ABA)."""

    SERIALIZATION = "serialization"
    """The database refused the transaction (SQLSTATE 40001)."""

    CONDITION = "condition"
    """The row does not meet the condition of a patch; a retry alone does not help."""


_COMPARE: Final = "_compare"
_CHANGES: Final = "_changes"


class StateConflict(RowError, StaleDataError, Generic[StateT_co]):
    """Another writer committed first; this commit wrote nothing.

    A flush raises it, and :func:`~sa_wfstate.try_commit` returns it. As a subclass of
    SQLAlchemy's ``StaleDataError`` it is caught by code that already handles that; the
    original error is its ``__cause__``.

    *entity* is the name of the mapped class. *expected_version* is the version that the
    commit was based on (0 for a creation, and for a patch of any version).
    *actual_version* is the version read after the conflict: None if the row is gone or
    the version cannot be known. *current* is the snapshot read with it, or None.

    *role* is "read" for a row that was only read, under
    :func:`~sa_wfstate.versions.require_version` or
    :func:`~sa_wfstate.versions.depends_on`.

    For a type checker, ``StateConflict[OrderState]`` is the outcome of a commit to an
    entity with that state; one that is caught may be of any.

    :attr:`conflicts` holds one StateConflict per row in conflict; for a single row that
    is the conflict itself.
    """

    expected_version: int
    actual_version: int | None
    reason: ConflictReason
    current: WorkflowSnapshot[StateT_co] | None = None
    others: tuple[StateConflict, ...] = ()
    role: Literal["write", "read"] = "write"

    if TYPE_CHECKING and not MYPY:

        def __bool__(self) -> Never:
            """Tell pyright that ``if outcome`` is wrong; there is none at run time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Without the snapshot: repr() shows args, and so does asyncio's log.
        self.args = self.args[:-3]

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {name: self.__dict__[name] for name in self.__dict__ if name != _COMPARE}
        return type(self), (*self.args, self.current, self.others), kept

    @property
    def changes(self) -> Changes | None:
        """What this write and the winning one have changed, if both are known.

        They are compared when this is first read. None where the version that the write
        was based on, or the row as it is, is not known: a creation, a row that is gone,
        a COMMIT that was refused, a ``try_commit`` without ``base=``. A pickled
        conflict keeps them if they were read before.
        """
        compare = self.__dict__.pop(_COMPARE, None)
        if compare is not None:
            self.__dict__[_CHANGES] = compare()
        changes: Changes | None = self.__dict__.get(_CHANGES)
        return changes

    def compared_by(self, compare: Callable[[], Changes | None]) -> Self:
        """Let *compare* find the changes when they are asked for."""
        self.__dict__[_COMPARE] = compare
        return self

    @property
    def conflicts(self) -> tuple[StateConflict, ...]:
        """One conflict per row, this one first."""
        return (self, *self.others)

    def together_with(self, others: tuple[StateConflict, ...]) -> StateConflict:
        """Return one conflict for several rows: this one, then *others*."""
        first = replace(self, others=others)
        for name in {_COMPARE, _CHANGES} & self.__dict__.keys():
            first.__dict__[name] = self.__dict__[name]
        return first

    def __str__(self) -> str:
        lines = [conflict._describe() for conflict in self.conflicts]  # noqa: SLF001
        advice = (
            "read the workflow again (after rollback(), if a flush has raised this), "
            "redo the decision on it, and commit that, as run_transaction() does"
        )
        if self.reason is ConflictReason.SERIALIZATION:
            advice = (
                "rollback() and run the whole transaction again, as run_transaction() "
                "does"
            )
        if self.reason is ConflictReason.CONDITION:
            advice = "read the workflow, and decide whether the change still applies"
        return f"{'; '.join(lines)}; {advice}"

    def _describe(self) -> str:
        winner = ""
        if self.current is not None:
            winner = f" (written by effect {self.current.provenance.effect_id!r})"
        if self.reason is ConflictReason.EXISTS:
            found = "exists already"
            if self.actual_version is not None:
                found += f" at version {self.actual_version}"
            return f"{self._row}: expected no row, it {found}{winner}"
        if self.reason is ConflictReason.CONDITION:
            at = f"at version {self.actual_version}{winner}"
            return f"{self._row}: {at} it does not meet the condition of the patch"
        if self.reason is ConflictReason.MISSING:
            if not self.expected_version:
                return f"{self._row}: there is no such row"
            found = "the row is gone"
        elif self.actual_version is None:
            found = "its current version cannot be known"
        elif self.reason is ConflictReason.RECREATED:
            found = f"found it deleted and re-created{winner}"
        else:
            found = f"found {self.actual_version}{winner}"
        row = f"{self._row}, which was only read" if self.role == "read" else self._row
        return f"{row}: expected version {self.expected_version}, {found}"


class WriteSuppressed(RowError, StaleDataError):
    """The row has the expected version, but the write changed no row.

    No other writer has changed the row, so this is no conflict, and each retry would
    fail again. Row security or a trigger of the table suppresses the write; or the same
    transaction has written the row by a statement outside the unit of work.
    """

    version: int

    _template = (
        "{row} is at the expected version {version}, but the write changed no row; "
        "look for row security, a trigger that suppresses it, or a statement of the "
        "same transaction that wrote the row before; a retry will not help"
    )
