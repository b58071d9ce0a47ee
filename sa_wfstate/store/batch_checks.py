"""Check the commits of a batch before any SQL is sent."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import PayloadError
from ..values.row_version import RowVersion
from ..values.write import Batch
from .compare_and_set import check_target, prepare, target_of
from .rebasing import rules_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..payload.rebase import Rebase
    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.provenance import Provenance
    from ..values.snapshot import WorkflowSnapshot


StateT = TypeVar("StateT")


@dataclass(slots=True)
class Commit(Generic[StateT]):
    """One commit of a batch; see :func:`~sa_wfstate.try_commit` for its fields.

    With *base*, key and version need not be given.
    """

    workflow_key: Key | None = None
    _: KW_ONLY
    expected_version: int | RowVersion | None = None
    state: StateT
    provenance: Provenance | Mapping[str, Any]
    base: WorkflowSnapshot[StateT] | None = None


def prepare_all(
    statements: Statements[StateT],
    commits: Sequence[Commit[StateT]],
    rebase: bool | Rebase,  # noqa: FBT001
) -> tuple[Batch, list[WorkflowSnapshot[StateT] | None], Rebase | None]:
    """Check *commits* before any SQL is sent.

    Returns what is to be sent, the base of each, and the rules if it is asked for them.
    """
    batch = _prepare(statements, commits)
    if len(set(batch.workflow_keys)) < len(batch):
        _refuse_duplicate(statements, batch)
    bases = [commit.base for commit in commits]
    rules: Rebase | None = None
    if rebase is not False:
        for version, base in zip(batch.versions, bases, strict=True):
            if base is not None or version > 1:
                rules = rules_of(statements, rebase, base)
    return batch, bases, rules


def _prepare(
    statements: Statements[StateT], commits: Sequence[Commit[StateT]]
) -> Batch:
    """Check everything that can be checked before any SQL is sent."""
    if all(commit.base is None for commit in commits):
        encoded = statements.batch_codec.encode([commit.state for commit in commits])
        if encoded is not None:
            texts, copies = encoded
            targets = [
                target_of(commit.workflow_key, commit.expected_version, None)
                for commit in commits
            ]
            provenances = [
                check_target(statements, *target, commit.provenance)
                for target, commit in zip(targets, commits, strict=True)
            ]
            rows = len(commits)
            bases = [RowVersion.of(version) for _, version in targets]
            return Batch(
                [key for key, _ in targets],
                [base.version + 1 for base in bases],
                texts,
                provenances,
                [statements.schema.write_version] * rows,
                [base.effect_id for base in bases],
                [False] * rows,
                copies,
            )
    return Batch.of(
        [
            prepare(
                statements,
                *target_of(commit.workflow_key, commit.expected_version, commit.base),
                commit.state,
                commit.provenance,
                base=commit.base,
            )
            for commit in commits
        ]
    )


def _refuse_duplicate(statements: Statements[Any], batch: Batch) -> None:
    seen = set()
    for key in batch.workflow_keys:
        if key in seen:
            where = f"{statements.entity} {key!r}"
            problem = "is given twice; commit to a workflow once in a batch"
            raise PayloadError(where, "workflow_key", problem)
        seen.add(key)
