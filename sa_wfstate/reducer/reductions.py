"""From a row to the next one, with no database at hand.

A state is handed to the reducer freshly built from its JSON each time, so what a
reducer does to the object it was given reaches nobody else.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

from pydantic_core import to_jsonable_python

from ..errors import PayloadError, WorkflowNotFound
from ..payload.actions import Reduction
from ..values.provenance import Provenance
from ..values.write import Write
from .run import Base, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._concurrency import Waiting
    from ..payload.actions import Action, Intent, Reducer
    from ..row.statements import Statements
    from ..values.snapshot import WorkflowSnapshot
    from .run import Run


StateT = TypeVar("StateT")


class Reductions(Generic[StateT]):
    """Run *reducer* over actions; *initial* makes the state of a row not there yet.

    *takes_intents* says that what the reducer asks for is handed on.
    """

    def __init__(
        self,
        statements: Statements[StateT],
        waiting: Waiting,
        reducer: Reducer[StateT],
        initial: Callable[[], StateT] | None,
        *,
        takes_intents: bool,
    ) -> None:
        self._statements = statements
        self._waiting = waiting
        self._reducer = reducer
        self._initial = initial
        self._takes_intents = takes_intents

    def base(self, run: Run, snapshot: WorkflowSnapshot[StateT] | None) -> Base:
        """Return what *run* starts from, with *snapshot* in its row now."""
        if snapshot is not None:
            text = self._statements.state_type.dump(snapshot.state)
            return Base(snapshot.version, snapshot.provenance.effect_id, text)
        if self._initial is None:
            if run.tickets:
                raise WorkflowNotFound(self._statements.entity, run.key)
            return run.base
        return Base(text=self._dump(run.key, self._initial()))

    def reduce(self, run: Run, base: Base) -> None:
        """Run the reducer over the actions, each on the state the last one left."""
        run.base = base
        run.steps = []
        text = base.text
        for ticket in run.tickets:
            intents: Sequence[Intent] = ()
            error = None
            try:
                state = self._statements.state_type.load(text)
                result = self._waiting.call(self._reducer, state, ticket.item)
                if isinstance(result, Reduction):
                    result, intents = result.state, tuple(result.intents)
                    self._check_intents(run.key, ticket.item, intents)
                text = self._dump(run.key, result)
            except Exception as raised:  # noqa: BLE001 - it goes to the caller
                error = raised
            run.steps.append(Step(ticket, text, intents, error))

    def write(self, run: Run) -> Write:
        """Return what *run* is to put into its row."""
        done = run.done
        return Write(
            run.key,
            run.base.version + 1,
            done[-1].text,
            _provenance([step.ticket.item for step in done]),
            self._statements.schema.write_version,
            run.base.effect_id,
            # What a default made at the reading is in no row yet.
            unchanged=self._statements.state_type.codec.reads_alike
            and done[-1].text == run.base.text,
        )

    def _check_intents(
        self, key: str, action: Action[Any], intents: Sequence[Intent]
    ) -> None:
        if intents and not self._takes_intents:
            where = f"{self._statements.entity} {key!r} action {action.action_id}"
            problem = (
                "would be dropped; give the ReducerService on_intents, or a writer "
                "such as store_intents()"
            )
            raise PayloadError(where, "intents", problem)

    def _dump(self, key: str, state: Any) -> str:
        where = f"{self._statements.entity} {key!r} state"
        if state is None:
            raise PayloadError(where, "", "is None; a reducer returns the next state")
        return self._statements.state_type.codec.encode(state, where=where)


def _provenance(actions: list[Action[Any]]) -> Provenance:
    """Make the provenance of one attempt; folded, each action has its own in it."""
    effect_id, timestamp = str(uuid4()), datetime.now(UTC).isoformat()
    each = [
        {
            **(to_jsonable_python(action.model_extra) or {}),
            "effect_id": effect_id,
            "timestamp": timestamp,
            "action_id": str(action.action_id),
        }
        for action in actions
    ]
    if len(each) == 1:
        return Provenance.model_validate(each[0])
    return Provenance.model_validate({**each[-1], "folded": each})
