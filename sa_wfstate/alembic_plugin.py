"""Alembic: generated migrations that know nothing of sa_wfstate.

In an environment as ``alembic init`` makes it, nothing has to be set up: this module is
imported with Alembic (as its plugin, since Alembic 1.18), and otherwise when a workflow
class is mapped while Alembic is there. From then on

* ``revision --autogenerate`` writes a column of :class:`~sa_wfstate.PydanticJSON` as
  ``postgresql.JSONB(…)``; a ``render_item`` of the application's own is asked first;
* ``check`` sees when the CHECK constraints or the defaults of ``version`` and
  ``schema_version`` have drifted from what is mapped (:mod:`.alembic_drift`);
* ``op.upcast_workflow_state`` exists (:mod:`.alembic_operations`).

If a program imports its models before Alembic, that is when Alembic first compares or
renders a column of ours: it is too late then to register for the run that has begun, so
its own context is joined.

Alembic calls :func:`setup` while ``alembic.autogenerate`` is half imported, and
whatever fails then breaks ``import alembic`` for everybody: so nothing of Alembic is
imported at the top of this module.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy.dialects.postgresql.base import PGDialect

from .types import PydanticJSON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.plugins import Plugin

_CHAINED: Final = "_sa_wfstate_chained"
_JSONB = "postgresql.JSONB(astext_type={sa}Text())"

_registered: set[str] = set()


def render_item(
    kind: str, item: object, autogen_context: AutogenContext
) -> str | Literal[False]:
    """Render a :class:`~sa_wfstate.PydanticJSON` column as what the database stores.

    What is generated on another database than PostgreSQL runs on PostgreSQL, too.
    """
    if kind != "type" or not isinstance(item, PydanticJSON):
        return False
    autogen_context.imports.add("from sqlalchemy.dialects import postgresql")
    sa = autogen_context.opts.get("sqlalchemy_module_prefix") or "sa."
    jsonb = _JSONB.format(sa=sa)
    if isinstance(autogen_context.dialect, PGDialect):
        return jsonb
    return f'{sa}JSON().with_variant({jsonb}, "postgresql")'


def register() -> None:
    """Tell Alembic about everything in here, as far as it is imported by now."""
    _register_operations()
    autogenerate = sys.modules.get("alembic.autogenerate")
    if autogenerate is None or not hasattr(autogenerate, "renderers"):
        return
    run = _run_that_asks()
    if run is not None:
        _chain_render_item(run)
    if "autogenerate" not in _registered:
        _registered.add("autogenerate")
        from . import alembic_drift

        alembic_drift.register_renderers()
        autogenerate.comparators.dispatch_for("schema")(_chain_render_item)
        alembic_drift.register_comparators(autogenerate.comparators)
        # The registry was copied for this run before there was anything to copy;
        # Alembic before 1.18 copies nothing.
        if run is not None and hasattr(run, "comparators"):
            alembic_drift.register_comparators(run.comparators)


def setup(plugin: Plugin) -> None:
    """Take part in Alembic; called by Alembic 1.18 and newer when it is imported."""
    _register_operations()
    plugin.add_autogenerate_comparator(_begin, "autogenerate", "sa_wfstate")


def _begin(*_: object) -> Any:
    """Join in where env.py names this plugin in ``autogenerate_plugins``."""
    from alembic.util import PriorityDispatchResult

    register()
    return PriorityDispatchResult.CONTINUE


def _register_operations() -> None:
    operations = sys.modules.get("alembic.operations")
    if "operations" not in _registered and hasattr(operations, "Operations"):
        _registered.add("operations")
        from . import alembic_operations  # noqa: F401 - it registers them itself


def _chain_render_item(autogen_context: AutogenContext, *_: object) -> None:
    _chain(autogen_context.opts)


def _chain(opts: dict[str, Any]) -> None:
    """Ask :func:`render_item` wherever env.py's own has nothing to say."""
    theirs = opts.get("render_item")
    if getattr(theirs, _CHAINED, False):
        return

    def render(kind: str, item: Any, autogen_context: AutogenContext) -> Any:
        rendered = theirs(kind, item, autogen_context) if theirs else False
        if rendered is False:
            return render_item(kind, item, autogen_context)
        return rendered

    setattr(render, _CHAINED, True)
    opts["render_item"] = render


def _run_that_asks() -> AutogenContext | None:
    """Find the run of Alembic that this is called by.

    Alembic tells it to those only who had registered before it began.
    """
    frame: FrameType | None = sys._getframe()  # noqa: SLF001
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("alembic.autogenerate"):
            run: AutogenContext | None = frame.f_locals.get("autogen_context")
            if run is not None:
                return run
        frame = frame.f_back
    return None


class _Module(ModuleType):
    """The entry point as all versions want it: one module, or an iterable of them.

    Alembic 1.18.0 to 1.20.0 iterate over what the entry point gives (alembic#1873).
    """

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _Module
register()
