"""Check a patch before any SQL is sent, and encode its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Column, ColumnElement, SelectBase

from ..errors import MappingError, PayloadError
from ..row.edits import Edit
from ..row.patch_statements import PatchShape
from ..values.row_version import RowVersion
from .compare_and_set import check_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..row.statements import Statements
    from ..values.keys import Key
    from ..values.provenance import Provenance


class Prepared(NamedTuple):
    """A patch whose values are encoded; *expected* is what it expects of the row."""

    workflow_key: Key
    edits: Sequence[Edit]
    provenance: Provenance
    expected: RowVersion | None
    values: dict[str, str]
    shape: PatchShape

    @property
    def expected_version(self) -> int:
        """The version that a conflict names; 0 if the patch expects none."""
        return 0 if self.expected is None else self.expected.version


def prepare_patch(
    statements: Statements[Any],
    workflow_key: Key,
    edits: Sequence[Edit],
    provenance: Provenance | Mapping[str, Any],
    expected_version: int | RowVersion | None,
) -> Prepared:
    """Check everything that can be checked before any SQL is sent."""
    expected = expected_version
    if expected is not None and not isinstance(expected, RowVersion):
        expected = RowVersion(expected, None)
    version = 1 if expected is None else expected.version
    provenance = check_target(statements, workflow_key, version, provenance)
    row = f"{statements.entity} {workflow_key!r}"
    if version == 0:
        problem = "must be a version that was read; a patch cannot create a workflow"
        raise PayloadError(row, "expected_version", problem)
    edits = list(edits)
    if not edits:
        raise PayloadError(row, "edits", "must hold one edit or more")
    values: dict[str, str] = {}
    for number, edit in enumerate(edits):
        _check_path(statements, edit)
        values[f"path_{number}"] = edit.path_text
        value = edit.value_text(statements.state_type, f"{row} state")
        if value is not None:
            values[f"value_{number}"] = value
    shape = PatchShape(
        tuple(edit.shape for edit in edits),
        expected is not None,
        expected is not None and expected.effect_id is not None,
    )
    return Prepared(workflow_key, edits, provenance, expected, values, shape)


def _check_path(statements: Statements[Any], edit: Edit) -> None:
    if not isinstance(edit, Edit):
        kind = type(edit).__name__
        problem = f"an edit is made by set_to() and the like, got {kind}"
        raise MappingError(statements.entity, problem)
    if not statements.columns.state.shares_lineage(edit.path.root):
        problem = (
            f"the path of {edit.type}() is not one into its state; make it with "
            f"field_of({statements.entity}.state, …)"
        )
        raise MappingError(statements.entity, problem)


def check_condition(
    statements: Statements[Any], when: ColumnElement[bool] | None
) -> None:
    """Raise MappingError if *when* refers to another table than that of the row."""
    pending: list[Any] = [] if when is None else [when]
    while pending:
        element = pending.pop()
        if isinstance(element, Column) and element.table is not statements.table:
            raise MappingError(
                statements.entity,
                f"when= refers to {element.table.name!r}.{element.name}, which is not "
                f"in the row of table {statements.table.name!r}; use a subquery, or "
                "read that row first",
            )
        if not isinstance(element, SelectBase):
            pending.extend(element.get_children())
