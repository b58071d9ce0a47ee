"""Merging: apply the changes of a write that lost to what the winner has written.

Nothing is merged unless it is asked for by name. A *rebase* compares three states: the
base, which both writers have read, mine and theirs. ::

    class Order(WorkflowStateMixin[OrderState], Base):
        __tablename__ = "orders"
        __rebase__ = Rebase({"tags": union, "visits": add})


    outcome = try_commit(session, Order, base=base, state=…, provenance=…, rebase=True)

What only one of the two has changed is taken from that one. Where both have changed
something, the rule of its path decides; without a rule, the write is a conflict as
before, and so is one whose row was deleted, re-created, or written by newer code. An
element of a list counts as the list.

The result is validated by the state's type as a whole: what both writers may do alone,
an invariant across fields may forbid together. Then the write is a conflict, and the
validator's error its ``__cause__``. The provenance of a rebased version has the version
of its base as ``rebased_from``.

Three calls take ``rebase=True``: :func:`~sa_wfstate.try_commit`, ``try_commit`` of a
:class:`~sa_wfstate.CanonicalStore`, and :func:`~sa_wfstate.run_transaction` for the
flushes of its sessions. Of another session, the execution option
``sa_wfstate_rebase=True`` does. A flush rebases only classes that declare
``__rebase__``: it locks the changed rows in the order of their keys, and also keeps the
mapped columns beside the state that only the other writer has set.

Before an uncertain write is repeated, look for its effect: a write that did win is not
recognised once others have followed, and would be added to itself.
"""

from .payload.rebase import Rebase, add, append, mine, theirs, union
from .values.changes import Changes
from .values.public_names import publish

__all__ = ["Changes", "Rebase", "add", "append", "mine", "theirs", "union"]

publish(globals())
