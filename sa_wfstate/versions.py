"""Row versions: what a write is based on, and a trigger that counts them."""

from .row.ddl import version_trigger
from .values.row_version import RowVersion

__all__ = ["RowVersion", "version_trigger"]
