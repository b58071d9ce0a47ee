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

from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import DDL
from sqlalchemy.dialects.postgresql.base import PGDialect

from .columns import column_of

if TYPE_CHECKING:
    from sqlalchemy import FromClause

_NAME: Final = "wfstate_count_version"

_READ: Final = ("workflow_key", "version", "schema_version", "provenance")

_FUNCTION: Final = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.{version} = OLD.{version} AND NEW.{schema_version} > OLD.{schema_version}
       AND NEW.{provenance} = OLD.{provenance}
       AND NEW.{workflow_key} = OLD.{workflow_key} THEN
        RETURN NEW;
    END IF;
    IF NEW.{version} IS DISTINCT FROM OLD.{version} + 1
       OR NEW.{workflow_key} IS DISTINCT FROM OLD.{workflow_key} THEN
        RAISE EXCEPTION
            'workflow %%: version %% can only be followed by version %%, got %% of %%',
            OLD.{workflow_key}, OLD.{version}, OLD.{version} + 1,
            NEW.{version}, NEW.{workflow_key}
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$"""

_TRIGGER: Final = f"""\
CREATE TRIGGER {_NAME} BEFORE UPDATE ON %(fullname)s
FOR EACH ROW EXECUTE FUNCTION {{function}}()"""

_DROP: Final = f"DROP TRIGGER IF EXISTS {_NAME} ON %(fullname)s"


def version_trigger(table: FromClause, *, drop: bool = False) -> list[DDL]:
    """Return the statements that put the trigger on *table*, or *drop* it.

    The function behind it is shared by the tables of a schema whose columns have the
    names of their attributes; dropping the trigger leaves it there.
    """
    ddl, target, dialect = cast("tuple[Any, Any, Any]", (DDL, table, PGDialect))
    # With named parameters it escapes no percent sign, which DDL does by itself.
    preparer = dialect(paramstyle="named").identifier_preparer
    columns = {name: getattr(column_of(target, name), "name", name) for name in _READ}
    function = _NAME
    if any(column != name for name, column in columns.items()):
        function = f"{_NAME}_{target.name}"  # It reads the columns of this table only.
    names = {name: preparer.quote(name_) for name, name_ in columns.items()}
    names["function"] = preparer.quote(function)
    texts = [_DROP] if drop else [_FUNCTION, _TRIGGER]
    escaped = {key: name.replace("%", "%%") for key, name in names.items()}
    if target.schema:
        escaped["function"] = f"%(schema)s.{escaped['function']}"
    context = None
    if "%" in target.fullname:  # DDL itself would double it twice.
        schema = preparer.quote(target.schema) if target.schema else ""
        context = {"fullname": preparer.format_table(target), "schema": schema}
    statements = (text.format(**escaped) for text in texts)
    return [ddl(text, context=context).against(target) for text in statements]
