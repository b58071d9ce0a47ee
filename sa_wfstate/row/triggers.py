"""HasTriggers: whether a trigger is called when rows of a table are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.sql.compiler import SQLCompiler


class HasTriggers(FunctionElement[bool]):
    """Whether *table* has a trigger for INSERT or UPDATE. For PostgreSQL.

    Those of foreign keys do not count: PostgreSQL makes them itself.
    """

    inherit_cache = True
    type = Boolean()

    def __init__(self, table: Table) -> None:
        super().__init__(literal_column(table.fullname))  # For the key of the cache.
        self.table = table


@compiles(HasTriggers)
def _has_triggers(element: HasTriggers, compiler: SQLCompiler, **_: Any) -> str:
    # So the search path, and a map of schemas, find the table as in other statements.
    name = compiler.preparer.format_table(element.table).replace("'", "''")
    return (
        "EXISTS (SELECT FROM pg_catalog.pg_trigger"
        f" WHERE tgrelid = CAST('{name}' AS regclass)"
        # In tgtype, 4 is INSERT, and 16 is UPDATE.
        " AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 20 <> 0)"
    )
