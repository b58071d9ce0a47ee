"""The columns that hold the key of a row, and the SQL that compares them.

That is the column of ``workflow_key`` alone, or, where a key is unique only within its
tenant, that of the tenant and that of ``workflow_key``. Each of them is compared by
itself, so that a database that distributes rows by one of them finds them by it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    ARRAY,
    Boolean,
    and_,
    bindparam,
    column,
    func,
    select,
    true,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ..values.keys import parts_of
from .engine_profiles import profile_of
from .keys import KeyText, SelectedKey, key_type_of, within_tenant

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.sql.compiler import SQLCompiler

    from ..values.keys import Key
    from .keys import KeyType, StoredKey


_PARAMETERS: Final = ("key", "tenant")


class KeyColumns:
    """The *columns* of the keys of an entity: at most two, ``workflow_key`` is last.

    Parameters have the names of SQLAlchemy's ``bindparam()``, ``wfs_key`` and
    ``wfs_tenant``.
    """

    def __init__(self, entity: str, *columns: Any) -> None:
        self.columns: tuple[Any, ...] = columns
        *tenant, key = columns
        self.type: KeyType = key_type_of(entity, key)
        for each in tenant:
            what = f"the tenant of its keys, {each.name!r},"
            self.type = within_tenant(key_type_of(entity, each, what), self.type)

    @cached_property
    def value(self) -> ColumnElement[Any]:
        """The key, to be selected."""
        if not self.type.parts:
            (column,) = self.columns
            return column  # type: ignore[no-any-return]
        return SelectedKey(self.type, *self.columns).label("workflow_key")

    @cached_property
    def text(self) -> ColumnElement[str]:
        """The canonical text of the key."""
        return self.columns[0] if self.type.type is str else KeyText(*self.columns)

    def stored(self, stored: StoredKey) -> ColumnElement[Any]:
        """Return the SQL of what a table beside the rows stores for the key."""
        return self.value if stored.same else self.text

    @cached_property
    def equal(self) -> ColumnElement[bool]:
        """The criterion for the row of the key in parameters()."""
        names = self.types()
        return and_(
            *(
                column == bindparam(f"wfs_{name}")
                for column, name in zip(self.columns, names, strict=True)
            )
        )

    def parameters(self, workflow_key: Key) -> dict[str, Any]:
        """Return the parameters of equal() for one key."""
        if not self.type.parts:
            return {"wfs_key": workflow_key}
        return self._named(parts_of(workflow_key))

    def arrays(self, workflow_keys: Collection[Key]) -> dict[str, Any]:
        """Return the parameters of a bound table with the columns of types()."""
        if not self.type.parts:
            return {"wfs_key": list(workflow_keys)}
        return self._named(map(list, zip(*workflow_keys, strict=True)))

    def _named(self, values: Any) -> dict[str, Any]:
        names = self.types()
        return {f"wfs_{n}": value for n, value in zip(names, values, strict=True)}

    def types(self) -> dict[str, Any]:
        """Return the types of the columns by the names of their parameters."""
        names = reversed(_PARAMETERS[: len(self.columns)])
        return {n: c.type for n, c in zip(names, self.columns, strict=True)}

    def pairs(self, rows: Any) -> list[tuple[Any, Any]]:
        """Return each column with that of a bound table."""
        return [(c, rows.c[n]) for n, c in zip(self.types(), self.columns, strict=True)]

    def named(self, workflow_key: Key) -> dict[str, Any]:
        """Return the values of the columns for one key, by the columns' own keys."""
        parts = parts_of(workflow_key)
        return {c.key: part for c, part in zip(self.columns, parts, strict=True)}

    def only(self, workflow_key: Key) -> ColumnElement[bool]:
        """Return the criterion for the row of *workflow_key*: an engine may ask for it.

        Aurora DSQL locks a row if all of its key is compared for equality.
        """
        pairs = zip(self.columns, parts_of(workflow_key), strict=True)
        return and_(*(column == part for column, part in pairs))

    def among(self, workflow_keys: Collection[Key]) -> ColumnElement[bool]:
        """Return the criterion for the rows of *workflow_keys*."""
        keys = list(workflow_keys)
        if not self.type.parts:
            return self.columns[0].in_(keys)  # type: ignore[no-any-return]
        if len(keys) == 1:
            return self.only(keys[0])
        tenants = sorted({parts_of(key)[0] for key in keys})
        # By these PostgreSQL leaves out the partitions without any of the keys.
        return and_(self.columns[0].in_(tenants), _Among(self.columns, keys))

    def after(
        self, workflow_key: Key | None, before: Mapping[Any, Any] | None = None
    ) -> ColumnElement[bool]:
        """Return the criterion for the rows behind a key, in the order of the columns.

        *before*: columns that come first in the order, and their values.
        """
        if workflow_key is None:
            return true()
        first = before or {}
        values = (*first.values(), *parts_of(workflow_key))
        if len(values) == 1:
            return self.columns[0] > values[0]  # type: ignore[no-any-return]
        return tuple_(*first, *self.columns) > values


class _Among(FunctionElement[bool]):
    """The criterion for the rows of several keys in two columns.

    As a list of pairs PostgreSQL would plan a scan for each of them; as a table of two
    arrays it is one join.
    """

    inherit_cache = True
    type = Boolean()

    def __init__(self, columns: tuple[Any, ...], keys: Sequence[Any]) -> None:
        arrays = [
            bindparam("wfs_keys", list(parts), type_=ARRAY(c.type), unique=True)
            for parts, c in zip(zip(*keys, strict=True), columns, strict=True)
        ]
        names = [column(f"key_{n}", c.type) for n, c in enumerate(columns)]
        rows = func.unnest(*arrays).table_valued(*names).render_derived("wfs_keys")
        super().__init__(
            tuple_(*columns).in_(keys), tuple_(*columns).in_(select(*rows.c))
        )


@compiles(_Among)
def _among(element: _Among, compiler: SQLCompiler, **kw: Any) -> str:
    pairs, join = element.clauses.clauses
    has_arrays = profile_of(compiler.dialect).is_postgresql
    return compiler.process(join if has_arrays else pairs, **kw)
