"""Which statements an engine gets is decided by its profile."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

import sa_wfstate
from sa_wfstate.engines import use_profile
from sa_wfstate.errors import MappingError
from sa_wfstate.row import engine_profiles
from sa_wfstate.row.engine_profiles import PROFILES, profile_of, profile_on

from .tasks import Base, Task

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect, Engine

PACKAGE = Path(sa_wfstate.__file__).parent


def named(name: str) -> Dialect:
    """Return a dialect of PostgreSQL with another name."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    dialect.name = name
    return dialect  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PROFILES)
def test_profile_has_the_name_of_its_dialect(name: str) -> None:
    """A dialect finds its profile by its name."""
    assert profile_of(named(name)).name == name


@pytest.mark.parametrize(
    ("dialect", "kind"),
    [
        (named("postgresql"), "JSONB"),
        (named("cockroachdb"), "JSONB"),
        (named("auroradsql"), "JSON"),
        (sqlite.dialect(), "JSON"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_json_columns_have_the_type_of_the_engine(dialect: Any, kind: str) -> None:
    """Aurora DSQL has no columns of JSONB."""
    table = str(CreateTable(Task.__table__).compile(dialect=dialect))  # type: ignore[arg-type]
    assert f"state {kind} NOT NULL" in table


def test_unknown_dialect_is_refused_by_name() -> None:
    """The error names the dialect, and what to call."""
    with pytest.raises(MappingError) as caught:
        select(Task).compile(dialect=mysql.dialect())
    assert str(caught.value) == (
        "the dialect 'mysql': has no engine profile; if one of postgresql, citus, "
        "cockroachdb, yugabytedb, auroradsql, sqlite fits, call "
        "sa_wfstate.engines.use_profile('mysql', profile=…) before the first statement"
    )


def test_unknown_dialect_takes_the_profile_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """use_profile() names the engine that a dialect is like."""
    known = dict(engine_profiles._by_dialect)
    monkeypatch.setattr(engine_profiles, "_by_dialect", known)
    use_profile("greenplum", profile="postgresql")
    assert profile_of(named("greenplum")) is PROFILES["postgresql"]
    with pytest.raises(ValueError, match="profile must be one of postgresql, citus"):
        use_profile("greenplum", profile="oracle")


def test_statement_without_a_dialect_has_a_text() -> None:
    """str() compiles for no engine in particular."""
    assert "FROM tasks" in str(select(Task))


def test_server_is_asked_once_for_each_pool(engine: Engine) -> None:
    """Connections and engines that share a pool share the answer."""
    asked = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_: Connection, __: object, statement: str, *___: object) -> None:
        asked.append(statement)

    other = engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as one, engine.connect() as two, other.connect() as three:
        assert {profile_on(each).name for each in (one, two, three)} == {"postgresql"}
    assert len(asked) == 1
    engine.dispose()
    with engine.connect() as connection:
        assert profile_on(connection).name == "postgresql"
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("PostgreSQL 15.12-YB-2025.2.0.0-b0 on x86_64-pc-linux-gnu", "yugabytedb"),
        ("PostgreSQL 18.1 on x86_64-pc-linux-gnu", "postgresql"),
    ],
)
def test_engine_behind_the_plain_dialect_is_recognized(
    engine: Engine, version: str, name: str
) -> None:
    """YugabyteDB names itself in the version, and is reached as PostgreSQL."""

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def pretend(
        _: Connection, __: object, statement: str, parameters: Any, *___: object
    ) -> tuple[str, Any]:
        return statement.replace("version()", f"'{version}'"), parameters

    with engine.connect() as connection:
        assert profile_on(connection) is PROFILES[name]


def test_engine_of_another_name_is_not_asked() -> None:
    """SQLite has one profile, and no version() to ask for."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine, [Task.__table__])  # type: ignore[list-item]
    with Session(engine) as session:
        assert profile_on(session.connection()).name == "sqlite"
    engine.dispose()


def test_only_the_profiles_look_at_a_dialect() -> None:
    """No other module compares the name of a dialect, or its class."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Compare(left=ast.Attribute(attr="name") as left):
                    if ast.unparse(left).endswith("dialect.name"):
                        found.append(path.name)
                case ast.Call(func=ast.Name(id="compiles"), args=[_, _, *_]):
                    found.append(path.name)
                case ast.Call(func=ast.Name(id="isinstance"), args=[_, kind]):
                    if "Dialect" in ast.unparse(kind):
                        found.append(path.name)
    assert found == []
