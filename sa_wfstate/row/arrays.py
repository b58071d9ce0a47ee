"""Lists of values as one parameter each: an array, or a table of several arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, ColumnElement, and_, bindparam, column, func
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
    # The binary placeholder of psycopg; with %s it sends a list as text.
    psycopg = compiler.dialect.driver in {"psycopg", "psycopg_async"}
    return text.replace(")s", ")b", 1) if psycopg else text


def among(key: Any) -> ColumnElement[bool]:
    """Return the criterion that the column *key* is one of the array ``wfs_key``."""
    criterion: ColumnElement[bool] = key == func.any(BoundArray("wfs_key", key.type))
    return criterion


def of_keys(*pairs: tuple[Any, Any]) -> ColumnElement[bool]:
    """Return the criterion that a key is that of a row of a bound table.

    *pairs* are the columns of both.
    """
    arrays = [(key, BoundArray(f"wfs_{new.name}", new.type)) for key, new in pairs]
    return and_(
        *(key == new for key, new in pairs),
        *(key == func.any(array) for key, array in arrays),
    )


def bound_table(types: Mapping[str, Any], name: str = "wfs_new") -> TableValuedAlias:
    """Return the arrays ``wfs_…`` as a table with a column for each of *types*."""
    arrays = (BoundArray(f"wfs_{each}", type_) for each, type_ in types.items())
    columns = (column(each, type_) for each, type_ in types.items())
    return func.unnest(*arrays).table_valued(*columns).render_derived(name=name)
