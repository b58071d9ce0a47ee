"""A flush compares the effect that it is based on together with the version.

A workflow that was deleted and created again starts at version 1 again; its provenance
tells the two apart. The UPDATE and DELETE statements of the unit of work compare
``version = :v``. The comparator of the version column makes this ``:v IN (version,
version:effect_id)``, and a flush gives ``:v`` as :class:`Expected`. Where the effect is
not known, ``:v`` is a plain number, and the version alone is compared.

Nothing fails if SQLAlchemy ever builds that criterion in another way: the effect is not
compared then. So there is a test of the statements for each kind of mapping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Integer,
    Text,
    TypeDecorator,
    bindparam,
    cast,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.functions import FunctionElement

from ..errors import MappingError
from ..row.sql import effect_id_of

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.sql.compiler import SQLCompiler


class Expected(int):
    """A version, and the effect that wrote it.

    An instance holds one during a flush only; copied or pickled, it is a plain number.
    """

    effect_id: str

    def __reduce__(self) -> Any:
        return int, (int(self),)


class _Token(TypeDecorator[int]):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        token = str(int(value))
        return f"{token}:{value.effect_id}" if isinstance(value, Expected) else token


_TOKEN: Final = _Token()
_TEXT: Final = Text()


class VersionComparator(BigInteger.Comparator[int]):
    """Compare as an integer does, and in the criterion of a flush the effect too."""

    __slots__ = ()

    def operate(self, op: Any, *other: Any, **kw: Any) -> Any:
        column: Any = self.expr
        if op is not operators.eq or not _of_a_flush(column, *other):
            return super().operate(op, *other, **kw)
        return _SameEffect(column, bindparam(other[0].key, type_=_TOKEN))


class _SameEffect(FunctionElement[bool]):
    """A version column and a token of the version, and maybe of the effect, to match.

    It is one element because SQLAlchemy builds the statement of each flush anew, and
    its cache key by a walk over the elements.
    """

    inherit_cache = True
    type = Boolean()


@compiles(_SameEffect)
def _in_versions(element: _SameEffect, compiler: SQLCompiler, **kw: Any) -> str:
    column, token = element.clauses.clauses
    # Joined as text: a class has statements of its own, and each compiles this.
    given, version = (compiler.process(e, **kw) for e in (token, cast(column, _TEXT)))
    # Its key is no parameter, which each UPDATE would have to send.
    kw["literal_binds"] = True
    effect_id = compiler.process(effect_id_of(column.table), **kw)
    return f"{given} IN ({version}, {version} || ':' || {effect_id})"


def _of_a_flush(column: Any, value: Any) -> bool:
    """Return whether *column* is compared with the parameter of the unit of work."""
    return (
        type(column) is Column  # That of an ORM expression is annotated.
        and isinstance(value, BindParameter)
        and not value.unique
        and value.type is column.type  # An application rarely gives this very type.
    )


def compare_effects(entity: str, column: Column[Any]) -> None:
    """Let the flushes' ``column = :version`` compare the effect too.

    Raises MappingError if the type of *column* has operators of its own.
    """
    if (
        not isinstance(column.type, Integer)
        or type(column.type).comparator_factory is not Integer.comparator_factory
    ):
        raise MappingError(
            entity,
            f"column 'version' of table {column.table.name!r} must be a BigInteger or "
            f"an Integer as SQLAlchemy has it, not {column.type!r}; declare the column "
            "without the type of your own",
        )
    column.type = column.type.copy()
    column.type.comparator_factory = VersionComparator
    column.__dict__.pop("comparator", None)  # An earlier comparison has cached one.
