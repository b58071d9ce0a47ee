"""An optional trigger that counts versions in the database itself.

What goes around the library, raw SQL or another program, can write a workflow row
without counting its version. The trigger refuses that: ``NEW.version`` must be
``OLD.version + 1`` and the key must stay. An upcast in bulk, which raises
``schema_version`` and counts nothing, passes. It is never installed by itself::

    for ddl in version_trigger(Order.__table__):
        connection.execute(ddl)

In a migration, ``op.create_version_trigger("orders")`` does the same. PostgreSQL only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import DDL
from sqlalchemy.dialects.postgresql.base import PGDialect

if TYPE_CHECKING:
    from sqlalchemy import FromClause

_NAME: Final = "wfstate_count_version"

_FUNCTION: Final = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version = OLD.version AND NEW.schema_version > OLD.schema_version
       AND NEW.provenance = OLD.provenance AND NEW.workflow_key = OLD.workflow_key THEN
        RETURN NEW;
    END IF;
    IF NEW.version IS DISTINCT FROM OLD.version + 1
       OR NEW.workflow_key IS DISTINCT FROM OLD.workflow_key THEN
        RAISE EXCEPTION
            'workflow %%: version %% can only be followed by version %%, got %% of %%',
            OLD.workflow_key, OLD.version, OLD.version + 1,
            NEW.version, NEW.workflow_key
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$"""

_TRIGGER: Final = f"""\
CREATE TRIGGER {_NAME} BEFORE UPDATE ON %(fullname)s
FOR EACH ROW EXECUTE FUNCTION {{function}}()"""


def version_trigger(table: FromClause, *, drop: bool = False) -> list[DDL]:
    """Return the statements that put the trigger on *table*, or *drop* it.

    The function behind it is shared by the tables of a schema; dropping the trigger
    leaves it there.
    """
    target: Any = table
    function = f"%(schema)s.{_NAME}" if target.schema else _NAME
    statements = [f"DROP TRIGGER IF EXISTS {_NAME} ON %(fullname)s"]
    if not drop:
        statements = [
            _FUNCTION.format(function=function),
            _TRIGGER.format(function=function),
        ]
    ddl: Any = DDL  # It is not typed.
    context = _names(target) if "%" in target.fullname else None
    return [ddl(text, context=context).against(target) for text in statements]


def _names(target: Any) -> dict[str, str]:
    """Return quoted names for DDL, which itself would double a percent sign twice."""
    dialect: Any = PGDialect  # Its constructor is not typed.
    preparer = dialect(paramstyle="named").identifier_preparer
    schema = preparer.quote(target.schema) if target.schema else ""
    return {"fullname": preparer.format_table(target), "schema": schema}
