"""What other engines lack by their documentation: refused before it is sent."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from sqlalchemy import event

import sa_wfstate

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

PACKAGE: Final = Path(sa_wfstate.__file__).parent
NO_TRANSACTION_IDS: Final = r"pg_current_xact_id|pg_xact_status|pg_snapshot|xmin"
LACKS: Final[dict[str, list[str]]] = {
    "cockroachdb": [NO_TRANSACTION_IDS, r"CREATE TRIGGER", r"\bON ONLY\b"],
    "yugabytedb": [NO_TRANSACTION_IDS],
    "auroradsql": [
        NO_TRANSACTION_IDS,
        r"SAVEPOINT",
        r"FOR NO KEY|FOR SHARE|FOR KEY|SKIP LOCKED|NOWAIT",
        # A lock is of one row, which is named by its key.
        r"^(?!.*(workflow_key|partition_id) = %\().* FOR UPDATE",
        r"CREATE TABLE .* JSONB|CREATE INDEX .* (ASC|DESC|gin)\b",
        r"CREATE TRIGGER|TRUNCATE|PARTITION BY|COLLATE",
        r"lock_timeout|idle_in_transaction_session_timeout",
    ],
}
"""By engine, what its documentation says it does not have."""

LEVELS: Final = {
    "cockroachdb": {"SERIALIZABLE", "READ COMMITTED", "AUTOCOMMIT"},
    "auroradsql": {"REPEATABLE READ", "AUTOCOMMIT"},
}
"""By engine, the isolation levels of a transaction; of the others, all."""

SPELLINGS: Final = {
    "yugabytedb": {"version()": "'PostgreSQL 15.12-YB-2025.2.0.0-b0 on x86_64'"},
    "auroradsql": {"CREATE INDEX ASYNC": "CREATE INDEX"},
}
"""By engine, what a PostgreSQL must be told in other words."""


class Lacking(Exception):
    """The engine does not have it."""


def refuse(engine: Engine, name: str, *, skip: bool = False) -> None:
    """Make *engine* refuse what the engine *name* lacks.

    *skip* ends a test as skipped that asks for it itself, not through the library.
    """

    def error(problem: str) -> BaseException:
        if skip and not _sent_by_library():
            return pytest.skip.Exception(problem)
        return Lacking(problem)

    lacks = [re.compile(each, re.IGNORECASE) for each in LACKS[name]]

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def before(
        _: Connection, __: Any, statement: str, parameters: Any, *___: Any
    ) -> tuple[str, Any]:
        # What the dialect itself asks of the catalogs is its own affair.
        text = " ".join(statement.split())
        found = next((each for each in lacks if each.search(text)), None)
        if found is not None and "pg_catalog" not in text:
            raise error(f"{name} has no {found.pattern}: {text}")
        for words, instead in SPELLINGS.get(name, {}).items():
            statement = statement.replace(words, instead)
        return statement, parameters

    @event.listens_for(engine, "set_connection_execution_options")
    @event.listens_for(engine, "set_engine_execution_options")
    def set_level(_: Any, options: dict[str, Any]) -> None:
        level = options.get("isolation_level")
        if level is not None and level not in LEVELS.get(name, {level}):
            raise error(f"{name} has no {level}")


def _sent_by_library() -> bool:
    """Return whether the library itself, not its user, has called SQLAlchemy."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return True
        if "sqlalchemy" not in path.parts and path != Path(__file__):
            return False
        frame = frame.f_back
    return False
