"""The rules for what the library sends, checked in the whole run of `nox -s lint_sql`.

A statement for a caller compares the workflow key with its parameters, so that it can
be sent to one shard. Citus refuses clocks in some places, and locks in several shards.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

import sa_wfstate

PACKAGE: Final = Path(sa_wfstate.__file__).parent

PARAMETER: Final = r"(%\(|\$\d|\?)"
KEY: Final = r"(\w*key|order.no|no|shop|tenant|number|uid|id)\b\"?"
"""The columns that are keys in these tests."""
NAMES: Final = r"(\"[^\"]*\"|[^()\"])"
"""A part of names, which may hold parentheses between quotes."""
BY_KEY: Final = re.compile(
    rf"WHERE .*{KEY} = {PARAMETER}|{KEY}( IN \(| = any\(){PARAMETER}"
    # A key and more, of rows beside a workflow; a key of two columns.
    rf"|\([^()]*{KEY}[^()]*\) IN \(\(*({PARAMETER}|SELECT wfs_keys)"
    # Parameters or arrays that are new rows.
    rf"|INSERT INTO {NAMES}+ \({NAMES}*\) (VALUES|SELECT wfs_new)"
)
"""A comparison of the key, or a new row."""

SWEEPS: Final[dict[str, str]] = {
    "alembic/": "a migration changes the whole table",
    "cli/": "a command looks at a table, or at the server",
    "dedup.py": "cleanup_expired() looks at the whole log",
    "history/queries.py": "trim_history() looks at the whole history",
    "orm/statement_guard.py": "a bulk save of the application's passes through it",
    "outbox/lease.py": "a dispatcher looks for intents of any workflow",
    "outbox/table.py": "revive_dead() of all workflows",
    "projection/": "a worker follows the whole table",
    "testing/": "temporary databases and their servers",
    "upcasting/": "upcast_all() goes from key to key, or counts",
}
"""Modules whose statements need no key, each with its reason."""

NO_ROWS: Final = re.compile(
    r"^(BEGIN$|SELECT true|SELECT now\(\)|SET LOCAL|SAVEPOINT|RELEASE|ROLLBACK TO"
    r"|SELECT set_config|SELECT current_setting"
    r"|SELECT CAST\(pg_current_xact_id|SELECT pg_xact_status"
    r"|SELECT CASE WHEN EXISTS \(SELECT FROM pg_extension"
    r"|SELECT EXISTS \(SELECT FROM pg_catalog\.)"
)
"""Statements that name no row."""

LOCKS: Final[dict[str, str]] = {
    "dedup.py": "cleanup_expired() skips what is locked",
    "history/queries.py": "trim_history() skips what is locked",
    "outbox/lease.py": "a dispatcher leases the intents of a batch",
    "projection/watermarks.py": "one row of a table that is not distributed",
    "upcasting/job.py": "upcast_all() locks the rows of a batch",
    "row/reads.py": "several rows, in their order, where that is one statement",
    "orm/criteria.py": "the same, with the criteria of the session",
    "store/patch_many.py": "try_patch_many() validates what it is going to write",
}
"""Modules that lock rows of several keys, if the engine profile lets them."""

SAVEPOINTS: Final[dict[str, str]] = {
    "projection/sweep.py": "a worker writes row by row if a batch is refused",
    "store/row_guards.py": "a refused lock leaves the transaction usable",
}
"""Modules with savepoints of their own."""

PLAIN: Final[dict[str, str]] = {
    "reducer/claimed_writes.py": "one statement for row and claims",
}
"""Modules whose statements are for a plain PostgreSQL only, by the engine profile."""

CLOCK: Final = re.compile(r"\b(now|\w+_timestamp)\(\)")
LOCK: Final = re.compile(r"FOR (NO KEY )?UPDATE")
OF_ONE: Final = re.compile(rf" = {PARAMETER}")


def problem_of(statement: str, module: str) -> str | None:
    """Return which rule a *statement* of *module* breaks, None if none."""
    sweeps = any(module.startswith(name) for name in SWEEPS)
    if not (sweeps or BY_KEY.search(statement) or NO_ROWS.search(statement)):
        return "no key"
    if "SAVEPOINT" in statement and module not in SAVEPOINTS:
        return "a savepoint"
    if LOCK.search(statement) and not OF_ONE.search(statement) and module not in LOCKS:
        return "a lock of several keys"
    return None if module in PLAIN else _clock_in(statement)


def _clock_in(statement: str) -> str | None:
    for place in ("DO UPDATE SET", "RETURNING"):
        if CLOCK.search(statement.partition(place)[2].partition(" WHERE ")[0]):
            return f"a clock after {place}"
    updates = "UPDATE " in statement.partition(" SET ")[0]
    if updates and "clock_timestamp()" in statement:
        return "a volatile function in an UPDATE"
    return None


PASSES_ON: Final = ("/sqlalchemy/", "/sa_wfstate/row/direct.py")
"""Where statements go through that another module sends."""


class Lint:
    """Looks once at each statement that the library sends."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.problems: list[str] = []

    def note(self, _: object, __: object, statement: str, *___: Any) -> None:
        """Look at *statement*, as an event of SQLAlchemy."""
        if statement in self._seen:
            return
        module = _sender()
        if module is None:
            return
        self._seen.add(statement)
        text = " ".join(statement.split())
        problem = problem_of(text, module)
        if problem is not None:
            self.problems.append(f"{module} sends {problem}: {text}")

    def take(self) -> list[str]:
        """Return the problems since the last call."""
        problems, self.problems = self.problems, []
        return problems


def _sender() -> str | None:
    """Return the module of the package that has called SQLAlchemy, if one has."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not any(part in name for part in PASSES_ON):
            break
        frame = frame.f_back  # type: ignore[assignment]
    else:
        return None
    path = Path(name)
    if not path.is_relative_to(PACKAGE):
        return None
    return path.relative_to(PACKAGE).as_posix()
