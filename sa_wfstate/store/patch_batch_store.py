"""Many patches in a transaction of their own, and what to do if its answer is lost.

They share their fate: what the database has of one of them holds for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError

from .._concurrency import raised_by_signal_handler
from ..errors import OutcomeUnknown, StateConflict
from ..retry import SERIALIZATION_FAILURE, leaves_unknown, sqlstate
from ..values.snapshot import StateCommitted, replayed
from .connections import READ_COMMITTED
from .patch_many import PatchBatch, prepare_patches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement

    from ..row.statements import Statements
    from ..values.keys import Key
    from .connections import Connections
    from .patch_checks import Prepared
    from .patch_many import Patch
    from .patch_store import PatchTransaction


StateT = TypeVar("StateT")
Outcome = StateCommitted[Any] | StateConflict[Any]


class PatchBatchTransaction(Generic[StateT]):
    """Commit many patches of one class; *single* commits one by itself."""

    def __init__(
        self,
        connections: Connections,
        statements: Statements[StateT],
        single: PatchTransaction[StateT],
    ) -> None:
        self._connections = connections
        self._statements = statements
        self._single = single

    def commit(
        self, patches: Sequence[Patch], when: ColumnElement[bool] | None
    ) -> list[Outcome]:
        """Implement ``CanonicalStore.try_patch_many``."""
        prepared = prepare_patches(self._statements, patches, when)
        if not prepared:
            return []
        outcomes: dict[Key, Outcome] = {}
        keys = list(prepared)
        for indices in self._connections.by_shard(keys):
            own = {keys[index]: prepared[keys[index]] for index in indices}
            outcomes |= self._send(own, when)
        return [outcomes[key] for key in keys]

    def _send(
        self, patches: Mapping[Key, Prepared], when: ColumnElement[bool] | None
    ) -> Mapping[Key, Outcome]:
        while True:
            outcomes: dict[Key, Outcome] = {}
            try:
                # The statements themselves check; a stricter level would only refuse.
                with self._connections.transaction(
                    READ_COMMITTED, list(patches)
                ) as connection:
                    session = self._connections.filtering(connection)
                    batch = PatchBatch(
                        connection, self._statements, patches, when, session
                    )
                    _, outcomes = batch.send()
            except (DBAPIError, OSError) as error:
                if raised_by_signal_handler(error):
                    raise
                if sqlstate(error) == SERIALIZATION_FAILURE:
                    return {
                        key: self._single.send(patch, when)
                        for key, patch in patches.items()
                    }
                if not outcomes or not leaves_unknown(error):
                    raise
                if not self._was_committed(patches, outcomes, error):
                    continue
                return {
                    key: replayed(outcome)
                    if isinstance(outcome, StateCommitted)
                    else outcome
                    for key, outcome in outcomes.items()
                }
            return outcomes

    def _was_committed(
        self,
        patches: Mapping[Key, Prepared],
        outcomes: Mapping[Key, Outcome],
        cause: BaseException,
    ) -> bool:
        """Return whether the transaction was committed, by the first row that tells."""
        unknown: OutcomeUnknown | None = None
        for key, outcome in outcomes.items():
            # One that was done before has its effect in any case.
            if isinstance(outcome, StateCommitted) and not outcome.replayed:
                try:
                    return self._single.found(patches[key], outcome, cause) is not None
                except OutcomeUnknown as error:
                    unknown = unknown or error
        if unknown is not None:
            raise unknown
        return True  # There was nothing to commit.
