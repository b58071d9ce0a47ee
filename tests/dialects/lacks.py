"""What other engines lack by their documentation: refused before it is sent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

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


def refuse(engine: Engine, name: str) -> None:
    """Make *engine* refuse what the engine *name* lacks."""
    lacks = [re.compile(each, re.IGNORECASE) for each in LACKS[name]]

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def before(
        connection: Connection, _: Any, statement: str, parameters: Any, *__: Any
    ) -> tuple[str, Any]:
        # What the dialect itself asks of the catalogs is its own affair.
        if "pg_catalog" not in statement:
            text = " ".join(statement.split())
            for each in lacks:
                if each.search(text):
                    raise Lacking(f"{name} has no {each.pattern}: {text}")
        level = connection.get_execution_options().get("isolation_level")
        if level is not None and level not in LEVELS.get(name, {level}):
            raise Lacking(f"{name} has no {level}")
        for words, instead in SPELLINGS.get(name, {}).items():
            statement = statement.replace(words, instead)
        return statement, parameters
