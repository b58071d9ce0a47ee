"""How migrations write the columns of this package: as types of the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..row.engine_profiles import profile_of
from ..row.types import PydanticJSON

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

_JSONB = "postgresql.JSONB(astext_type={sa}Text())"


def render_item(
    kind: str, item: object, autogen_context: AutogenContext
) -> str | Literal[False]:
    """Render a :class:`~sa_wfstate.PydanticJSON` column as its database type.

    A migration generated on another database runs on PostgreSQL, too.
    """
    if kind != "type" or not isinstance(item, PydanticJSON):
        return False
    autogen_context.imports.add("from sqlalchemy.dialects import postgresql")
    sa = autogen_context.opts.get("sqlalchemy_module_prefix") or "sa."
    jsonb = _JSONB.format(sa=sa)
    if profile_of(autogen_context.dialect).has_jsonb:
        return jsonb
    return f'{sa}JSON().with_variant({jsonb}, "postgresql")'
