"""Run the reducer: from a row to the next one, without the database.

Each call of the reducer gets a state built from its JSON, so a reducer that changes the
object affects nothing else.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .._concurrency import raised_by_signal_handler
from ..errors import PayloadError, VersionNotKept, WorkflowNotFound
from ..payload.actions import Reduction, further_keys
from ..values.provenance import Provenance, new_effect_id
from ..values.row_version import RowVersion
from ..values.snapshot import StateCommitted
from ..values.write import Write, Written
from .action_batch import Baseline, ReducedAction, Step
from .dependencies import dependencies_of
from .nesting import attempt_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._concurrency import Waiting
    from ..payload.actions import Action, Intent, Reducer
    from ..row.statements import Statements
    from ..values.snapshot import WorkflowSnapshot
    from .action_batch import ActionBatch
    from .dependencies import Dependencies


StateT = TypeVar("StateT")


_INITIAL = "give the ReducerService initial=, which makes the state of a new workflow"
_TUPLE = (
    "is a tuple; a reducer returns the next state, or Reduction(state, intents) with "
    "the intents too"
)


class _NotRead(Exception):
    """The database has not answered what a reducer depends on; the cause says why."""


class Awaits(Exception):
    """The reducer is to be awaited, which was not known before."""


class Reductions(Generic[StateT]):
    """Run *reducer* over actions; *initial* makes the state of a missing row.

    *dependencies* reads what the reducer names beside the state.
    Without *takes_intents* a reducer that returns intents is refused.
    """

    def __init__(
        self,
        statements: Statements[StateT],
        waiting: Waiting,
        reducer: Reducer[StateT],
        initial: Callable[[], StateT] | None,
        *,
        dependencies: Dependencies,
        takes_intents: bool,
    ) -> None:
        self._named = dependencies_of(reducer)
        self._dependencies = dependencies
        self._statements = statements
        self._waiting = waiting
        self._reducer = reducer
        self._initial = initial
        self._only_initial: str | None = None
        self.takes_intents = takes_intents
        self.waits = iscoroutinefunction(reducer) or self._named is not None

    def baseline(
        self, batch: ActionBatch, snapshot: WorkflowSnapshot[StateT] | None
    ) -> Baseline:
        """Return the baseline of *batch*, with *snapshot* in its row."""
        if snapshot is not None:
            text = self._statements.state_type.dump(snapshot.state)
            row = RowVersion(snapshot.version, snapshot.provenance.effect_id)
            return Baseline(row, text)
        if self._initial is None:
            if batch.requests:
                raise WorkflowNotFound(self._statements.entity, batch.key, _INITIAL)
            return batch.baseline
        return Baseline(text=self._initial_text(batch.key, self._initial))

    def reduce(
        self, batch: ActionBatch, baseline: Baseline, *, awaits: bool = True
    ) -> None:
        """Run the reducer over the actions, each on the state of the one before.

        Unless it *awaits*, raise Awaits if the reducer returns an awaitable. That of a
        chain does not.
        """
        batch.baseline = baseline
        batch.reduced, batch.accepted = [], []
        batch.guards = {}
        text = baseline.text
        for request in batch.requests:
            intents: Sequence[Intent] = ()
            error = None
            try:
                if batch.chained and request is not batch.caller:
                    call = partial(self._call, batch, text, request.item, awaits=False)
                    entity = self._statements.entity
                    result = request.turn.run(attempt_on, entity, batch.key, call)
                else:
                    now = awaits and not batch.chained
                    result = self._call(batch, text, request.item, awaits=now)
                if isinstance(result, Reduction):
                    result, intents = result.state, tuple(result.intents)
                    self._check_intents(batch.key, request.item, intents)
                text = self._dump(batch.key, result)
            except Awaits:
                raise
            except _NotRead as unread:
                raise unread.__cause__ or unread from None
            except Exception as raised:
                if raised_by_signal_handler(raised):
                    raise
                error = raised
            reduced = ReducedAction(request, text, intents, error)
            batch.reduced.append(reduced)
            if error is None:
                batch.accepted.append(reduced)

    def write(self, batch: ActionBatch) -> Write:
        """Return the write of *batch*; that of a chain replaces its baseline, too."""
        if batch.is_chain:
            writes = [self._write(batch, [each]) for each in batch.accepted]
            # That of the last is checked when it is sent.
            provenances = [write.provenance for write in writes[:-1]]
            keys = [batch.key] * len(provenances)
            self._statements.provenance_texts(keys, provenances)
            last = len(writes) - 1
            batch.steps = [
                Step(
                    write.provenance.effect_id,
                    partial(self._outcome_of, write, last - number),
                )
                for number, write in enumerate(writes)
            ]
            return writes[-1]._replace(unchanged=False)
        return self._write(batch, batch.accepted)

    def _write(self, batch: ActionBatch, accepted: Sequence[ReducedAction]) -> Write:
        return Write(
            batch.key,
            batch.baseline.row.version + 1,
            accepted[-1].text,
            _provenance([each.request.item for each in accepted]),
            self._statements.schema.write_version,
            batch.baseline.row.effect_id,
            # A default that was made by reading is in no row yet.
            unchanged=self._statements.state_type.codec.reads_alike
            and accepted[-1].text == batch.baseline.text,
        )

    def _outcome_of(
        self, write: Write, before: int, last: StateCommitted[StateT]
    ) -> StateCommitted[StateT]:
        """Return the outcome of *write*, so many versions *before* the *last* one."""
        if not before:
            return last
        version = last.version - before

        def snapshot() -> WorkflowSnapshot[StateT]:
            try:
                updated_at = last.snapshot.updated_at
            except VersionNotKept as error:
                raise VersionNotKept(
                    error.entity, write.workflow_key, version
                ) from None
            written = Written(updated_at, version)
            return self._statements.committed(write, written).snapshot

        return StateCommitted(
            write.workflow_key, version, snapshot, replayed=last.replayed
        )

    def _call(
        self, batch: ActionBatch, text: str, action: Action[Any], *, awaits: bool
    ) -> Any:
        load = self._statements.state_type.load
        if not awaits:
            return self._call_now(load(text), action)
        if self._named is None:
            return self._waiting.call(self._reducer, load(text), action)
        named = list(self._named(load(text), action))
        try:
            others = self._dependencies.read(batch, named)
        except (DBAPIError, OSError, PoolTimeoutError) as error:
            raise _NotRead from error  # No error of the reducer: the attempt is lost.
        return self._waiting.call(self._reducer, load(text), action, others)

    def _call_now(self, state: StateT, action: Action[Any]) -> Any:
        result: Any = self._reducer(state, action)
        # To ask takes longer than many a reducer, and a state is none.
        if type(result) is not type(state) and isawaitable(result):
            self.waits = True
            if iscoroutine(result):
                result.close()  # It is called again, by the caller of the action.
            raise Awaits
        return result

    def _check_intents(
        self, key: str, action: Action[Any], intents: Sequence[Intent]
    ) -> None:
        if intents and not self.takes_intents:
            where = f"{self._statements.entity} {key!r} action {action.action_id}"
            problem = (
                "would be dropped; give the ReducerService on_intents, or a writer "
                "such as store_intents()"
            )
            raise PayloadError(where, "intents", problem)

    def _initial_text(self, key: str, initial: Callable[[], StateT]) -> str:
        if self._only_initial is not None:
            return self._only_initial
        text = self._dump(key, initial())
        codec = self._statements.state_type.codec
        # A model of constant defaults has the same state each time.
        if initial is codec.type_ and _is_model(initial) and codec.reads_alike:
            self._only_initial = text
        return text

    def _dump(self, key: str, state: Any) -> str:
        where = f"{self._statements.entity} {key!r} state"
        if state is None:
            raise PayloadError(where, "", "is None; a reducer returns the next state")
        try:
            return self._statements.state_type.codec.encode(state, where=where)
        except PayloadError:
            if isinstance(state, tuple):
                raise PayloadError(where, "", _TUPLE) from None
            raise


def _is_model(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, BaseModel)


def _provenance(actions: list[Action[Any]]) -> Provenance:
    """Make the provenance of one attempt; a fold lists that of each action."""
    effect_id, timestamp = new_effect_id(), datetime.now(UTC)
    each: list[dict[str, Any]] = [
        {
            **further_keys(action),
            "effect_id": effect_id,
            "timestamp": timestamp,
            "action_id": action.action_id,
        }
        for action in actions
    ]
    if len(each) == 1:
        return Provenance.model_validate(each[0])
    folded = to_jsonable_python(each)
    return Provenance.model_validate({**each[-1], "folded": folded})
