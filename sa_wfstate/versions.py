"""Row versions: the base of a write, and a trigger that checks their order."""

from .row.ddl import version_trigger
from .values.public_names import publish
from .values.row_version import RowVersion

__all__ = ["RowVersion", "version_trigger"]

publish(globals())
