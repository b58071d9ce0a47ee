"""Read a row at a version that was committed before, though a replica may lag behind.

The row itself is polled, by its version; after the wait it is read where it is written.
So no position in the server's log has to be carried from the write to the read.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import StateBehind, WorkflowNotFound
from ..values.row_version import RowVersion

if TYPE_CHECKING:
    from .._concurrency import Waiting
    from ..values.keys import Key
    from ..values.snapshot import WorkflowSnapshot


_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.025


class Look(Protocol):
    """Reads the row; *reads* allows a database that may lag behind the commits."""

    def __call__(self, *, reads: bool) -> WorkflowSnapshot[Any] | None:
        """Return the row, None if there is none."""


def required_of(
    min_version: int | RowVersion | None, max_wait: float
) -> RowVersion | None:
    """Return *min_version* as a RowVersion; check *max_wait*."""
    if not max_wait >= 0:
        raise ValueError(f"max_wait must be 0 or more, got {max_wait}")
    return None if min_version is None else RowVersion.of(min_version)


def read_at(
    entity: str,
    workflow_key: Key,
    required: RowVersion | None,
    max_wait: float,
    look: Look,
    waiting: Waiting,
) -> WorkflowSnapshot[Any]:
    """Read the row, at the version *required* or a later one, if one is required."""
    deadline, pause = monotonic() + max_wait, _FIRST_PAUSE
    found = look(reads=True)
    while not _reaches(found, required):
        left = deadline - monotonic()
        if left <= 0:
            found = look(reads=False)
            break
        waiting.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)
        found = look(reads=True)
    if found is None:
        raise WorkflowNotFound(entity, workflow_key)
    if required is not None and not _reaches(found, required):
        raise StateBehind(entity, workflow_key, required.version, found.version)
    return found


def _reaches(found: WorkflowSnapshot[Any] | None, required: RowVersion | None) -> bool:
    if required is None:
        return True
    return found is not None and required.reached_by(
        RowVersion(found.version, found.provenance.effect_id)
    )
