"""The command ``doctor``: what is wrong with a database, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Engine, Table, inspect, text
from sqlalchemy.exc import NoInspectionAvailable

from ..outbox.table import IntentMixin
from ..projection.definition import Projection
from ..row.engine_profiles import profile_of
from . import arguments
from .pooler import Pooler, find_pooler
from .screen import print_json, say
from .tables import Finding, check_intents, check_projection, check_table
from .targets import CommandError, load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

OLDEST: Final = 150000
"""The first version of PostgreSQL that the library is tested on."""


class _Wanted(NamedTuple):
    setting: str
    wrong: str
    level: str
    finding: str
    advice: str


SETTINGS: Final = (
    _Wanted(
        "fsync",
        "off",
        "error",
        "a crash of the server can destroy the database",
        "set fsync = on",
    ),
    _Wanted(
        "synchronous_commit",
        "off",
        "warning",
        "a crash can lose the last commits that were acknowledged",
        "set synchronous_commit = on, at least for the role of the application",
    ),
    _Wanted(
        "server_encoding",
        "SQL_ASCII",
        "warning",
        "the server checks no encoding",
        "make a database with ENCODING 'UTF8'",
    ),
    _Wanted(
        "lock_timeout",
        "0",
        "note",
        "a writer can wait behind a migration for ever",
        "ALTER ROLE … SET lock_timeout = '5s'",
    ),
    _Wanted(
        "idle_in_transaction_session_timeout",
        "0",
        "note",
        "a transaction that is left open keeps its rows locked",
        "ALTER ROLE … SET idle_in_transaction_session_timeout = '60s'",
    ),
)
"""Settings of the server, and values of them that have a cost."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``doctor``."""
    command.add_argument(
        "entity",
        metavar="NAME",
        nargs="*",
        help="a mapped class, a declarative base, a Projection, or the engine of the "
        "application, as app.models:Base",
    )
    arguments.add_connection(command)


def engine_of(names: list[str]) -> Engine | AsyncEngine | None:
    """Return the engine among *names*, if there is one: as the application sets it."""
    engines = [each for each in map(load, names) if _is_engine(each)]
    return engines[0] if engines else None


def run(engine: Engine, targets: Any, options: argparse.Namespace) -> int:
    """Show what is found, a line each; the exit code is 1 for an error or a warning."""
    found = [*_examine(engine, targets)]
    if options.json:
        print_json([each._asdict() for each in found])
    else:
        for each in found:
            say(f"{each.level}: {each.subject}: {each.finding}; {each.advice}")
        if not found:
            say("nothing found")
    return int(any(each.level != "note" for each in found))


def _examine(engine: Engine, targets: list[Any]) -> Iterator[Finding]:
    profile = profile_of(engine.dialect)
    if profile.name == "postgresql":
        yield from _check_pooler(find_pooler(engine))
        yield from _check_server(engine)
    else:
        found = f"{profile.name} is not PostgreSQL"
        yield Finding("warning", "dialect", found, "use PostgreSQL in production")
    for target in targets:
        if isinstance(target, Projection):
            yield from check_projection(engine, target)
        elif not _is_engine(target):
            yield from _check_classes(engine, target)


def _is_engine(target: Any) -> bool:
    return isinstance(getattr(target, "sync_engine", target), Engine)


def _check_classes(engine: Engine, target: Any) -> Iterator[Finding]:
    registry = getattr(target, "registry", None)
    try:
        mappers = [inspect(target)]
    except NoInspectionAvailable:
        if registry is None:
            raise CommandError(
                f"{target!r} is not a mapped class, a declarative base, a Projection "
                "or an engine"
            ) from None
        mappers = sorted(registry.mappers, key=lambda mapper: mapper.class_.__name__)
    for mapper in mappers:
        table = mapper.local_table
        if mapper.inherits is not None or not isinstance(table, Table):
            continue
        missing = False
        with engine.connect() as connection:
            for finding in check_table(connection, mapper.class_.__name__, table):
                missing = missing or finding.level == "error"
                yield finding
        if issubclass(mapper.class_, IntentMixin) and not missing:
            yield from check_intents(engine, mapper.class_)


def _check_pooler(pooler: Pooler) -> Iterator[Finding]:
    """Look for prepared statements that another client may execute."""
    advice = (
        "set prepare_threshold=None (psycopg) or statement_cache_size=0 (asyncpg) in "
        "the connect_args of each client, or max_prepared_statements in PgBouncer 1.21 "
        "and newer"
    )
    if pooler.by_transaction and pooler.prepares and not pooler.supported:
        yield Finding(
            "error",
            "pooler",
            "connections change with each transaction, and the driver prepares "
            "statements that the pooler does not know: rows of another class can be "
            "read",
            advice,
        )
    elif pooler.by_transaction:
        yield Finding(
            "note",
            "pooler",
            "connections change with each transaction"
            + ("" if pooler.prepares else "; the driver prepares no statements"),
            "SET LOCAL instead of SET, and no options in the URL",
        )


def _check_server(engine: Engine) -> Iterator[Finding]:
    with engine.connect() as connection:

        def show(setting: str) -> str:
            return str(connection.scalar(text(f"SHOW {setting}")))

        if int(show("server_version_num")) < OLDEST:
            yield Finding(
                "error",
                "version",
                f"PostgreSQL {show('server_version')} is older than 15",
                "upgrade the server",
            )
        if connection.scalar(text("SELECT pg_is_in_recovery()")):
            yield Finding(
                "warning",
                "standby",
                "this server takes no writes",
                "connect to the primary: target_session_attrs=read-write",
            )
        level = show("transaction_isolation")
        if level != "read committed":
            yield Finding(
                "note",
                "isolation",
                f"transactions run at {level}",
                "retry serialization failures: run_transaction(), or a store",
            )
        for each in SETTINGS:
            if show(each.setting) == each.wrong:
                name = f"{each.setting} = {each.wrong}"
                yield Finding(each.level, name, each.finding, each.advice)
        citus = text("SELECT extversion FROM pg_extension WHERE extname = 'citus'")
        found = connection.scalar(citus)
        if found is not None:
            yield Finding(
                "note",
                "citus",
                f"this is Citus {found}",
                "see the page on outgrowing one server for what it refuses",
            )
