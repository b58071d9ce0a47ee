"""A list as a bound array, for ``unnest()``: sent in binary.

psycopg would send it as text, and escape each quote of the JSON in it one by one, which
takes longer than all else; asyncpg always sends binary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, bindparam, column, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import TableValuedAlias
    from sqlalchemy.sql.compiler import SQLCompiler


class BoundArray(FunctionElement[Any]):
    """The parameter *name*, a list of values of *type_*."""

    inherit_cache = True

    def __init__(self, name: str, type_: Any) -> None:
        super().__init__(bindparam(name, type_=ARRAY(type_)))


@compiles(BoundArray)
def _compile(element: BoundArray, compiler: SQLCompiler, **kw: Any) -> str:
    text: str = compiler.process(element.clauses.clauses[0], **kw)
    # psycopg's placeholder for "binary"; with %s it sends a list as text.
    psycopg = compiler.dialect.driver in {"psycopg", "psycopg_async"}
    return text.replace(")s", ")b", 1) if psycopg else text


def bound_table(types: Mapping[str, Any]) -> TableValuedAlias:
    """Return the table of the arrays ``wfs_…``: a column for each of *types*."""
    arrays = (BoundArray(f"wfs_{name}", type_) for name, type_ in types.items())
    columns = (column(name, type_) for name, type_ in types.items())
    return func.unnest(*arrays).table_valued(*columns).render_derived(name="wfs_new")
