"""The plugin of Alembic, for migrations that do not import sa_wfstate.

Alembic loads it by its entry point and calls :func:`setup` when it is imported. The
plugin's name, ``alembic.autogenerate.sa_wfstate``, is among those that an environment
uses by default (``autogenerate_plugins=["alembic.autogenerate.*"]``). From then on

* ``revision --autogenerate`` writes a column of :class:`~sa_wfstate.PydanticJSON` as
  ``postgresql.JSONB(…)``; a ``render_item`` of the application's own is asked first;
* ``check`` reports CHECK constraints, defaults of the counters and a primary key of a
  workflow table that differ from the mapped ones (:mod:`.autogenerate`);
* columns that a table with rows lacks are filled before they are NOT NULL
  (:mod:`.backfill`);
* partitions of a mapped table are left alone (:mod:`.partitions`);
* ``op.upcast_workflow_state`` and others exist (:mod:`.operations`, :mod:`.sharding`).

:func:`setup` is called while Alembic is half imported, and an error in it would break
``import alembic``. So it logs errors, and nothing of Alembic is imported before.
"""

from __future__ import annotations

import logging
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .rendering import render_item

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin


def setup(plugin: Plugin) -> None:
    """Register the comparisons and the operations; called when Alembic is imported."""
    try:
        from alembic.util import DispatchPriority

        plugin.add_autogenerate_comparator(
            _chain_render_item, "autogenerate", "sa_wfstate"
        )
        plugin.add_autogenerate_comparator(
            _split_additions,
            "autogenerate",
            "sa_wfstate_backfill",
            priority=DispatchPriority.LAST,
        )
        plugin.add_autogenerate_comparator(
            _leave_partitions,
            "autogenerate",
            "sa_wfstate_partitions",
            priority=DispatchPriority.LAST,
        )
        # Last, so that findings of Alembic are not repeated.
        plugin.add_autogenerate_comparator(
            _compare_table, "table", "sa_wfstate", priority=DispatchPriority.LAST
        )
        from . import operations, sharding  # noqa: F401 - they register them themselves
    except Exception:
        logging.getLogger("alembic.sa_wfstate").exception(
            "sa_wfstate could not register all of its Alembic operations"
        )


def _chain_render_item(autogen_context: AutogenContext, *_: object) -> Any:
    """Call :func:`render_item` if that of env.py returns False."""
    theirs = autogen_context.opts.get("render_item")
    if not (isinstance(theirs, partial) and theirs.func is _render_after):
        autogen_context.opts["render_item"] = partial(_render_after, theirs)


def _render_after(
    theirs: Any, kind: str, item: object, autogen_context: AutogenContext
) -> Any:
    rendered = theirs(kind, item, autogen_context) if theirs else False
    if rendered is False:
        return render_item(kind, item, autogen_context)
    return rendered


def _compare_table(*arguments: Any) -> Any:
    from .autogenerate import compare_table

    compare_table(*arguments)


def _split_additions(*arguments: Any) -> Any:
    from .backfill import split_additions

    split_additions(*arguments)


def _leave_partitions(*arguments: Any) -> Any:
    from .partitions import leave_partitions

    leave_partitions(*arguments)


class _EntryPoint(ModuleType):
    """The plugin in the form every version of Alembic loads: an iterable module.

    Alembic 1.18.0 to 1.20.0 iterate over what the entry point gives (alembic#1873),
    and a plain module would break ``import alembic`` there.
    """

    setup = staticmethod(setup)

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


entry_point = _EntryPoint(__name__)
