"""Row versions: what a write is based on, and what else must not have moved.

``require_version(session, customer)`` guards a row that a decision depends on and that
the transaction does not write.
"""

from .row.ddl import version_trigger
from .store.read_guards import require_version
from .values.public_names import publish
from .values.row_version import RowVersion

__all__ = ["RowVersion", "require_version", "version_trigger"]

publish(globals())
