"""Row versions: what a write is based on, and what else must not have moved.

``expect_version(order, 7)`` bases the next write of an instance on a version that a
person has seen. ``try_delete`` deletes a workflow at a version, without loading it.
``require_version(session, customer)`` guards a row that a decision depends on and that
the transaction does not write; ``@depends_on(…)`` names such rows for a reducer.
"""

from .orm.expected_version import expect_version
from .payload.dependencies import depends_on
from .row.ddl import version_trigger
from .store.deletes import try_delete, try_delete_many
from .store.read_guards import require_version
from .values.public_names import publish
from .values.row_version import RowVersion

__all__ = [
    "RowVersion",
    "depends_on",
    "expect_version",
    "require_version",
    "try_delete",
    "try_delete_many",
    "version_trigger",
]

publish(globals())
