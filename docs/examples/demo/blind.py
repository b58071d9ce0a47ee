"""A store that loses updates, to see that the check at the end can fail.

Its mistake is a common one. Before writing it asks for the version once more and
expects that one, "so that the commit does not fail". The version counts on without a
gap, there is hardly a conflict, and a decision made on version 1 is written over
version 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from sa_wfstate import CanonicalStore, WorkflowNotFound

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sa_wfstate import (
        Provenance,
        StateCommitted,
        StateConflict,
        WorkflowSnapshot,
        WorkflowStateMixin,
    )

StateT = TypeVar("StateT")


class BlindStore(Generic[StateT]):
    """Like a CanonicalStore, but deaf to the caller's *expected_version*."""

    def __init__(
        self, engine: Engine, entity: type[WorkflowStateMixin[StateT]]
    ) -> None:
        self._store = CanonicalStore(engine, entity)

    def get_state(self, workflow_key: str) -> WorkflowSnapshot[StateT]:
        """Read the workflow, as it should be done."""
        return self._store.get_state(workflow_key)

    def try_commit(
        self,
        *,
        workflow_key: str,
        expected_version: int,
        state: StateT,
        provenance: Provenance,
    ) -> StateCommitted[StateT] | StateConflict:
        """Write *state* over whatever is there."""
        try:
            expected_version = self.get_state(workflow_key).version
        except WorkflowNotFound:
            expected_version = 0
        return self._store.try_commit(
            workflow_key=workflow_key,
            expected_version=expected_version,
            state=state,
            provenance=provenance,
        )
