"""Mapped classes beside the workflows, whose tables get an index of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Table


class AuxiliaryTable:
    """Base of the mixins for a dedup log and an outbox."""

    @classmethod
    def _complete_table(cls, table: Table) -> None:
        """Add to *table* what its mixin needs; called when the class is mapped."""


def after_mapper_constructed(mapper: Any, cls: type[AuxiliaryTable]) -> None:
    """Complete the table of *cls*."""
    cls._complete_table(mapper.local_table)
