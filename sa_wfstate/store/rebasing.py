"""A commit with a base that has lost: find its changes, and rebase it if asked."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..errors import ConflictReason, PayloadError, StateConflict
from ..payload.changes import pointers_of
from ..payload.rebase import Rebase, merge_texts
from ..values.changes import Changes
from ..values.snapshot import WorkflowSnapshot, source_of
from ..values.write import Batch
from .compare_and_set import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..row.statements import Statements
    from ..values.snapshot import StateCommitted
    from ..values.write import Write


StateT = TypeVar("StateT")

ATTEMPTS: Final = 10
"""How often a commit is rebased before it is a conflict after all."""


def explain(
    statements: Statements[StateT],
    base: WorkflowSnapshot[StateT] | None,
    state_text: str,
    outcome: StateCommitted[StateT] | StateConflict[StateT],
) -> StateCommitted[StateT] | StateConflict[StateT]:
    """Let a conflict find what it, *state_text*, and the winner have changed."""
    if (
        base is not None
        and isinstance(outcome, StateConflict)
        and outcome.current is not None
    ):
        compare = partial(_compare, statements, base, state_text, outcome.current)
        outcome.compared_by(compare)
    return outcome


def _compare(
    statements: Statements[Any],
    base: WorkflowSnapshot[Any],
    state_text: str,
    current: WorkflowSnapshot[Any],
) -> Changes | None:
    codec = statements.state_type.codec
    try:
        before, after = _text_of(statements, base), _text_of(statements, current)
        return Changes(*pointers_of(codec, before, state_text, after))
    except PayloadError:
        return None


def _text_of(statements: Statements[Any], snapshot: WorkflowSnapshot[Any]) -> str:
    source = source_of(snapshot)
    if source is None:  # A copy of a snapshot has only its state.
        return statements.state_type.dump(snapshot.state)
    return source[1]


def rules_of(
    statements: Statements[Any],
    rebase: bool | Rebase,  # noqa: FBT001
    base: WorkflowSnapshot[Any] | None,
) -> Rebase | None:
    """Return the rules of a commit that is asked to *rebase*, None for one that is not.

    They are those of its class; without any, disjoint changes both win.
    """
    if rebase is False:
        return None
    if base is None:
        raise TypeError(
            "rebase= needs base=, the snapshot that the state was made from"
        )
    if isinstance(rebase, Rebase):
        return rebase
    return statements.mapper.class_.__rebase__ or Rebase()


def commit_on(
    statements: Statements[StateT],
    write: Write,
    base: WorkflowSnapshot[StateT] | None,
    rules: Rebase | None,
    send: Callable[[Write], StateCommitted[StateT] | StateConflict[StateT]],
) -> tuple[Write, StateCommitted[StateT] | StateConflict[StateT]]:
    """Send *write*, and while its row has moved on, the same changes on that row.

    Returns what was sent last, with its outcome. A conflict is that of *write*, with
    the row as it was found last.
    """
    outcome = send(write)
    if base is None or not isinstance(outcome, StateConflict):
        return write, outcome
    for _ in range(0 if rules is None else ATTEMPTS):
        rebased = _rebased(statements, write, base, rules, outcome)
        if rebased is None:
            break
        outcome = send(rebased)
        if not isinstance(outcome, StateConflict):
            return rebased, outcome
        outcome = replace(outcome, expected_version=base.version)
    return write, explain(statements, base, write.state_text, outcome)


def commit_all_on(
    statements: Statements[StateT],
    batch: Batch,
    bases: Sequence[WorkflowSnapshot[StateT] | None],
    rules: Rebase | None,
    send: Callable[[Batch], list[StateCommitted[StateT] | StateConflict[StateT]]],
) -> tuple[Batch, list[StateCommitted[StateT] | StateConflict[StateT]]]:
    """Send *batch*, and while some of its rows have moved on, these on their rows.

    Returns, as commit_on() does, what was sent last and the outcomes.
    """
    outcomes = send(batch)
    writes: dict[int, Write] = {}
    lost = _lost(outcomes, bases)
    for _ in range(0 if rules is None else ATTEMPTS):
        if not lost:
            break
        writes = writes or dict(enumerate(batch))
        again: dict[int, Write] = {}
        for index, (base, conflict) in lost.items():
            rebased = _rebased(statements, writes[index], base, rules, conflict)
            if rebased is not None:
                again[index] = rebased
        made = send(Batch.of(list(again.values()))) if again else []
        for index, outcome in zip(again, made, strict=True):
            outcomes[index] = outcome
            if isinstance(outcome, StateConflict):
                expected = lost[index][0].version
                outcomes[index] = replace(outcome, expected_version=expected)
            else:
                writes[index] = again[index]
        lost = {
            index: each
            for index, each in _lost(outcomes, bases).items()
            if index in again
        }
    for index, (base, conflict) in _lost(outcomes, bases).items():
        explain(statements, base, batch.state_texts[index], conflict)
    return Batch.of(list(writes.values())) if writes else batch, outcomes


def _lost(
    outcomes: Sequence[StateCommitted[StateT] | StateConflict[StateT]],
    bases: Sequence[WorkflowSnapshot[StateT] | None],
) -> dict[int, tuple[WorkflowSnapshot[StateT], StateConflict]]:
    return {
        index: (base, outcome)
        for index, (base, outcome) in enumerate(zip(bases, outcomes, strict=True))
        if base is not None and isinstance(outcome, StateConflict)
    }


def _rebased(
    statements: Statements[Any],
    write: Write,
    base: WorkflowSnapshot[Any],
    rules: Rebase | None,
    conflict: StateConflict,
) -> Write | None:
    """Return *write* on the row that it has met; None if it cannot be rebased.

    If the result is refused, the *conflict* gets the cause.
    """
    current = conflict.current
    if (
        rules is None
        or current is None
        or conflict.reason is not ConflictReason.MOVED
        or current.version < base.version  # Re-created since, and not yet as far.
    ):
        return None
    texts = (
        _text_of(statements, base),
        write.state_text,
        _text_of(statements, current),
    )
    provenance = write.provenance.model_copy(update={"rebased_from": base.version})
    try:
        state, _ = merge_texts(rules, statements.state_type.codec, *texts)
        return prepare(
            statements,
            write.workflow_key,
            current.version,
            state,
            provenance,
            base=current,
        )
    except ValueError as refusal:
        conflict.__cause__ = refusal
        return None
