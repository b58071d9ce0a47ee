"""Patches: change parts of a state in the database, without reading it first.

::

    visits = field_of(Order.state, lambda state: state.visits)
    status = field_of(Order.state, lambda state: state.status)

    try_patch(
        session,
        Order,
        "order-42",
        [increment(visits, 1), set_to(status, "paid")],
        when=status == "new",
        provenance=Provenance.now(),
    )
"""

from .row.edits import Edit, append, increment, remove, set_to
from .store.patch_many import Patch, try_patch_many
from .store.patches import try_patch
from .values.public_names import publish

__all__ = [
    "Edit",
    "Patch",
    "append",
    "increment",
    "remove",
    "set_to",
    "try_patch",
    "try_patch_many",
]

publish(globals())
