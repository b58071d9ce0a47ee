"""CHECK constraints, indexes and the version trigger of a workflow's table.

Constraints and indexes are added when the class has been mapped, under the names that
PostgreSQL would give them, so that a table made by hand shows no difference.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import (
    DDL,
    CheckConstraint,
    Column,
    FromClause,
    Index,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)
from sqlalchemy.sql.elements import conv

from ..errors import MappingError
from .columns import ATTRIBUTE, column_of, columns_of, key_columns, quoted
from .keys import key_type_of

if TYPE_CHECKING:
    from collections.abc import Iterable


_MAX_IDENTIFIER_BYTES = 63

_WORD = re.compile(r"\w+")
_NOISE = re.compile(r"[\s()\"]")

_INDEX_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "recent": {
        "using": "brin",
        "with": {"pages_per_range": 16, "autosummarize": "on"},
    },
    "state": {"using": "gin"},
    "provenance": {"using": "gin"},
}

COUNTERS = ("version", "schema_version")
"""The columns that count from 1, each with a CHECK."""


def complete_primary_key(table: Table, key: Column[Any]) -> None:
    """Make *key* the primary key of *table*, unless it has one."""
    if not table.primary_key.columns:
        key.primary_key, key.nullable = True, False
        table.append_constraint(PrimaryKeyConstraint(key))


def add_unique_key(entity: str, table: Table) -> None:
    """Make the workflow key of *table* unique, unless it is or is the primary key.

    Raises MappingError if it is declared as unique only together with other columns
    than that of the tenant.
    """
    *tenant, key = key_columns(table)
    if list(table.primary_key) == [key]:
        return
    for column in (*tenant, key):
        column.nullable = False
    uniques = _uniques(table)
    if tenant or [key] in uniques:
        return
    for columns in uniques:
        if key in columns:
            names = ", ".join(column.name for column in columns)
            raise MappingError(
                entity,
                f"workflow_key is unique only as part of ({names}), and identifies a "
                "workflow by itself, or together with one column of text, integers or "
                "UUIDs, the tenant; declare it with unique=True, or give the table one "
                "UniqueConstraint of the tenant's column and workflow_key",
            )
    # Without a convention, under the name that PostgreSQL would give it.
    conventions = table.metadata.naming_convention
    named = "uq" in conventions or UniqueConstraint in conventions
    name = None if named else conv(_object_name(table.name, key.name, "key"))
    table.append_constraint(UniqueConstraint(key, name=name))


def find_tenant(entity: str, table: Table, key: Column[Any]) -> Column[Any] | None:
    """Return the column within which *key* is unique; None if it is so by itself.

    None, too, if other columns than those two are needed.
    """
    uniques = [set(columns) for columns in _uniques(table)]
    if {key} in uniques:
        return None
    found = {
        other
        for columns in uniques
        if key in columns and len(columns) == 2  # noqa: PLR2004
        for other in columns - {key}
        # Otherwise the key need not be unique at all within it.
        if {other} not in uniques
    }
    if len(found) != 1:
        return None
    (tenant,) = found
    try:
        key_type_of(entity, tenant)
    except MappingError:
        return None
    return tenant  # type: ignore[no-any-return]


def _uniques(table: Table) -> list[list[Any]]:
    """Return the columns of what makes them unique in *table*."""
    kinds = (PrimaryKeyConstraint, UniqueConstraint)
    found = [c for c in table.constraints if isinstance(c, kinds)]
    whole = [
        index
        for index in table.indexes
        if index.unique and index.dialect_kwargs.get("postgresql_where") is None
    ]
    return [list(each.columns) for each in found] + [
        list(index.expressions) for index in whole
    ]


def check_key_references(entity: str, table: Table) -> None:
    """Raise MappingError if a foreign key lets the database change a workflow key."""
    for column in key_columns(table):
        for reference in column.foreign_keys:
            rule = reference.onupdate or "NO ACTION"
            if rule.upper() not in {"NO ACTION", "RESTRICT"}:
                name = column.info.get(ATTRIBUTE, column.name)
                raise MappingError(
                    entity,
                    f"ON UPDATE {rule} of the foreign key of {name} would change the "
                    "key of a stored row; leave onupdate out",
                )


def add_constraints(table: Table) -> None:
    """Give *table* the CHECKs of its counters, unless it has them.

    PostgreSQL names a CHECK without a name after its column, as ours is named. So an
    unnamed CHECK with the same condition counts as ours, any other gets the next name.
    """
    columns, checks = columns_of(table), _checks(table)
    for counter in COUNTERS:
        column = getattr(columns, counter)
        name = conv(check_constraint_name(table.name, column.name))
        others = 0
        for check in _unnamed_checks(checks, table, column):
            condition = _NOISE.sub("", _text(check, table))
            ours = condition in {f"{column.name}>=1", f"{column.name}>0"}
            if ours and not any(each.name == name for each in checks):
                check.name = name
            else:
                others += 1
                check.name = conv(f"{name}{others}")
        if not any(each.name == name for each in checks):
            column_name = quoted(column.name).replace(":", "\\:")  # No parameter.
            condition = f"{column_name} >= 1"
            table.append_constraint(CheckConstraint(condition, name=name))


def _checks(table: Table) -> list[CheckConstraint]:
    """Return the CHECKs of *table* and of its columns."""
    of_columns = (column.constraints for column in table.c)
    every = set(table.constraints).union(*of_columns)
    return [each for each in every if isinstance(each, CheckConstraint)]


def _unnamed_checks(
    checks: list[CheckConstraint], table: Table, column: Column[Any]
) -> list[CheckConstraint]:
    """Return those of *checks* without a name that refer only to *column*, in order."""
    names = {each.name for each in table.c}
    found = [
        check
        for check in checks
        if not isinstance(check.name, str)
        and names.intersection(_WORD.findall(_text(check, table))) == {column.name}
    ]
    return sorted(found, key=lambda check: _text(check, table))


def _text(check: CheckConstraint, table: Table) -> str:
    text = str(check.sqltext.compile(compile_kwargs={"literal_binds": True}))
    return text.replace(f"{table.name}.", "")


COMMIT_INDEXES: Final = ("version", "updated", "recent")
"""The optional indexes on columns that each commit changes."""


def index_name(table: str, which: str) -> str:
    """Return the name of the optional index *which*."""
    return f"idx_{table}_{which}"


def add_indexes(entity: str, table: Table, wanted: Iterable[str]) -> None:
    """Give *table* the optional indexes *wanted* by *entity*.

    Raises MappingError if there is no such index.
    """
    c = columns_of(table)
    columns: dict[str, tuple[Any, ...]] = {
        "version": (*key_columns(table), c.version),
        "updated": (c.updated_at.desc(),),
        "recent": (c.updated_at,),
        "state": (c.state,),
        "provenance": (c.provenance,),
    }
    for which in wanted:
        if which not in columns:
            raise MappingError(
                entity,
                f"__workflow_indexes__ has {which!r}, not one of {', '.join(columns)}",
            )
        index = Index(conv(index_name(table.name, which)), *columns[which])
        index.dialect_options["postgresql"].update(_INDEX_OPTIONS.get(which, {}))


def check_constraint_name(table: str, column: str) -> str:
    """Return PostgreSQL's default name of a CHECK, at most 63 bytes."""
    return _object_name(table, column, "check")


def primary_key_name(table: str) -> str:
    """Return PostgreSQL's default name of a primary key, at most 63 bytes."""
    return _object_name(table, "", "pkey")


def _object_name(table: str, column: str, label: str) -> str:
    """Join the parts of a name, shortened as PostgreSQL does.

    Source: makeObjectName() in src/backend/commands/indexcmds.c, which shortens the
    longer of the two names first.
    """
    first, second = table.encode(), column.encode()
    room = _MAX_IDENTIFIER_BYTES - len(f"{'_' if column else ''}_{label}")
    while len(first) + len(second) > room:
        if len(first) > len(second):
            first = first[:-1]
        else:
            second = second[:-1]
    parts = (part.decode(errors="ignore") for part in (first, second))
    return "_".join((*filter(None, parts), label))


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
    """Return the statements that create the version trigger of *table*, or *drop* it.

    Tables of a schema whose columns have the names of their attributes share the
    trigger function; dropping the trigger keeps the function.
    """
    ddl, target = cast("tuple[Any, Any]", (DDL, table))
    columns = {name: getattr(column_of(target, name), "name", name) for name in _READ}
    function = _NAME
    if any(column != name for name, column in columns.items()):
        function = f"{_NAME}_{target.name}"  # It reads the columns of this table only.
    names = {name: quoted(name_) for name, name_ in columns.items()}
    names["function"] = quoted(function)
    texts = [_DROP] if drop else [_FUNCTION, _TRIGGER]
    escaped = {key: name.replace("%", "%%") for key, name in names.items()}
    if target.schema:
        escaped["function"] = f"%(schema)s.{escaped['function']}"
    context = None
    if "%" in target.fullname:  # DDL itself would double it twice.
        schema = quoted(target.schema) if target.schema else ""
        fullname = ".".join(filter(None, [schema, quoted(target.name)]))
        context = {"fullname": fullname, "schema": schema}
    statements = (text.format(**escaped) for text in texts)
    return [ddl(text, context=context).against(target) for text in statements]
