"""Values that leave the database: a snapshot of a row, and the outcome of a commit."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Never, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from .keys import WorkflowKey
from .provenance import Provenance
from .row_version import RowVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


StateT = TypeVar("StateT")

MYPY: Final = False
"""True for mypy, which finds ``if outcome`` only where there is no ``__bool__``."""

PositiveInt64 = Annotated[int, Field(ge=1, lt=2**63)]
PositiveInt32 = Annotated[int, Field(ge=1, lt=2**31)]


class WorkflowSnapshot(BaseModel, Generic[StateT]):
    """One row of a workflow at one version.

    The snapshot is frozen and shares nothing with the session that read it. Its *state*
    is the application's model and as mutable as that; changing it changes no row.

    >>> snapshot = WorkflowSnapshot(
    ...     workflow_key="order-42",
    ...     version=1,
    ...     state={"status": "new"},
    ...     updated_at="2026-01-01T00:00:00Z",
    ...     provenance={"effect_id": "effect-1", "timestamp": "2026-01-01T00:00:00Z"},
    ... )
    >>> snapshot.schema_version
    1
    """

    # Not a field: the name of the table, the text that the state was read from, and the
    # values of the application's own columns, if they were read. Copies and pickles do
    # not have it.
    __slots__ = ("_source",)

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    workflow_key: WorkflowKey
    version: PositiveInt64
    state: StateT
    updated_at: datetime
    schema_version: PositiveInt32 = 1
    provenance: Provenance


def with_source(
    snapshot: WorkflowSnapshot[StateT],
    table: str,
    text: str,
    beside: Sequence[Any] = (),
) -> WorkflowSnapshot[StateT]:
    """Keep in *snapshot* the *table* of its row, the *text* of its state, and *beside*.

    These are the values of the application's own columns, if they were read.
    """
    object.__setattr__(snapshot, "_source", (table, text, *beside))
    return snapshot


def source_of(snapshot: WorkflowSnapshot[Any]) -> tuple[str, str] | None:
    """Return table and text of a *snapshot* that was read from a row, else None."""
    source: tuple[Any, ...] | None = getattr(snapshot, "_source", None)
    return None if source is None else (source[0], source[1])


def beside_of(snapshot: WorkflowSnapshot[Any]) -> tuple[Any, ...]:
    """Return the values of the application's own columns that were read with it."""
    source: tuple[Any, ...] = getattr(snapshot, "_source", ())
    return source[2:]


class StateCommitted(Generic[StateT]):
    """The commit succeeded; *version* is the version that it wrote.

    Tell it from a StateConflict by ``isinstance()`` or ``match``: neither is false.
    *replayed* says that an earlier attempt of the same write had already committed.
    *attempts* counts the attempts, this one included.
    """

    __slots__ = ("_snapshot", "attempts", "replayed", "version", "workflow_key")

    def __init__(
        self,
        workflow_key: Any,
        version: int,
        snapshot: WorkflowSnapshot[StateT] | Callable[[], WorkflowSnapshot[StateT]],
        *,
        replayed: bool = False,
        attempts: int = 1,
    ) -> None:
        self.workflow_key = workflow_key
        self.version = version
        self.replayed = replayed
        self.attempts = attempts
        self._snapshot = snapshot

    if TYPE_CHECKING and not MYPY:

        def __bool__(self) -> Never:
            """Tell pyright that ``if outcome`` is wrong; there is none at run time."""

    @property
    def snapshot(self) -> WorkflowSnapshot[StateT]:
        """The committed row; made on first access."""
        if not isinstance(self._snapshot, WorkflowSnapshot):
            self._snapshot = self._snapshot()
        return self._snapshot

    @property
    def token(self) -> RowVersion:
        """The version that was committed, to base the next write or a read on.

        It is the :func:`~sa_wfstate.http.etag` of the row. The effect is None if the
        snapshot of a *replayed* outcome is not stored any more.
        """
        try:
            return RowVersion(self.version, self.snapshot.provenance.effect_id)
        except LookupError:  # VersionNotKept
            return RowVersion(self.version, None)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        return _restore, (
            type(self),
            (self.workflow_key, self.version, self.snapshot),
            {"replayed": self.replayed, "attempts": self.attempts},
        )

    def __repr__(self) -> str:
        replayed = ", replayed" if self.replayed else ""
        return (
            f"<StateCommitted {self.workflow_key!r} version {self.version}{replayed}>"
        )


def replayed(outcome: StateCommitted[StateT]) -> StateCommitted[StateT]:
    """Return the *outcome* of a commit that was found to be done."""
    key, version = outcome.workflow_key, outcome.version
    return StateCommitted(key, version, lambda: outcome.snapshot, replayed=True)


def _restore(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return cls(*args, **kwargs)
